/* A PKCS#11 module that passes everything on to another (HANG_MODULE), and whose C_Sign and C_Decrypt do not return while a
   file is there (HANG_WHILE). */
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

typedef unsigned long word;
typedef word (*get_list)(void **);
typedef word (*use)(word, unsigned char *, word, unsigned char *, word *);

/* As the standard lays it out: a version, and its functions in their order. */
struct functions {
    unsigned char version[2];
    void *all[68];
};

enum { C_GET_FUNCTION_LIST = 3, C_DECRYPT = 34, C_SIGN = 43, CKR_GENERAL_ERROR = 5 };

static struct functions ours;
static use real_decrypt, real_sign;

static word hanging_sign(word session, unsigned char *data, word data_length, unsigned char *signature,
                         word *signature_length) {
    while (access(getenv("HANG_WHILE"), F_OK) == 0) usleep(10000);
    return real_sign(session, data, data_length, signature, signature_length);
}

static word hanging_decrypt(word session, unsigned char *sealed, word sealed_length, unsigned char *opened,
                            word *opened_length) {
    while (access(getenv("HANG_WHILE"), F_OK) == 0) usleep(10000);
    return real_decrypt(session, sealed, sealed_length, opened, opened_length);
}

word C_GetFunctionList(void **list) {
    void *module = dlopen(getenv("HANG_MODULE"), RTLD_NOW | RTLD_LOCAL);
    get_list get = module ? (get_list)dlsym(module, "C_GetFunctionList") : 0;
    void *theirs;
    if (!get || get(&theirs) != 0) return CKR_GENERAL_ERROR;
    ours = *(struct functions *)theirs;
    real_sign = (use)ours.all[C_SIGN];
    real_decrypt = (use)ours.all[C_DECRYPT];
    ours.all[C_DECRYPT] = (void *)hanging_decrypt;
    ours.all[C_SIGN] = (void *)hanging_sign;
    ours.all[C_GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
    *list = &ours;
    return 0;
}
