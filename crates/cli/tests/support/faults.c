/* Makes the writes of a process fail, or be late, as a page of shared memory says.

   Loaded with LD_PRELOAD by the tests that look at crash safety. Only regular files count whose path has the part that
   FAULTS_PATH names, and none of the standard streams. The page (FAULTS_PAGE, at least 44 bytes) holds numbers of 32 bits:
   whether any of it holds, then of 1000 writes, syncs and renames how many fail, by which errno, how many microseconds each
   waits before, and the seed of the chance by which they are chosen. In the last four it is counted here how many writes,
   syncs and renames were made to fail, and how many calls to wait.

   It also gives each kind of process a clock of its own: where FAKETIME_TIMESTAMP_FILE names `clock` and there is a file
   `clock-server`, processes whose first argument is `server` go by that one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct page {
    volatile uint32_t on, writes, syncs, renames, error, delay, seed;
    volatile uint32_t failed_writes, failed_syncs, failed_renames, late;
};

static struct page *page;
static const char *part;
static uint32_t count;

/* Before libfaketime asks for the first time. */
static void choose_clock(void) {
    const char *clock = getenv("FAKETIME_TIMESTAMP_FILE");
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    char words[PATH_MAX], own[PATH_MAX];
    ssize_t length = read(file, words, sizeof words - 1);
    close(file);
    if (!clock || length <= 0) return;
    words[length] = 0;
    size_t first = strlen(words) + 1;
    if ((size_t)length <= first || strchr(words + first, '/')) return;
    int whole = snprintf(own, sizeof own, "%s-%s", clock, words + first);
    if (whole < (int)sizeof own && access(own, R_OK) == 0)
        setenv("FAKETIME_TIMESTAMP_FILE", own, 1);
}

__attribute__((constructor)) static void begin(void) {
    choose_clock();
    const char *path = getenv("FAULTS_PAGE");
    part = getenv("FAULTS_PATH");
    if (!path || !part) return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *at = mmap(0, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) page = at;
    close(file);
}

static uint32_t chance(void) {
    uint64_t x = ((uint64_t)page->seed << 32) ^ ((uint64_t)getpid() << 16)
        ^ __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ (x >> 31)) % 1000);
}

/* Whether this call is to fail, which is counted; waits first when it is to be late. */
static int fails(uint32_t of_thousand, volatile uint32_t *failed) {
    uint32_t delay = page->delay;
    if (delay) {
        __atomic_fetch_add(&page->late, 1, __ATOMIC_RELAXED);
        /* In parts, so that it ends when it is lifted: a call that hangs is one that waits for very long. */
        for (uint32_t left = delay, part; left && page->on && page->delay; left -= part) {
            part = left < 20000 ? left : 20000;
            struct timespec time = { 0, (long)part * 1000 };
            nanosleep(&time, 0);
        }
    }
    if (chance() < of_thousand) {
        __atomic_fetch_add(failed, 1, __ATOMIC_RELAXED);
        errno = (int)page->error;
        return 1;
    }
    return 0;
}

static int counts(int file) {
    if (!page || !page->on || file <= 2) return 0;
    int before = errno;
    char link[64], path[PATH_MAX];
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    int yes = 0 < length && fstat(file, &status) == 0
        && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
    if (yes) {
        path[length] = 0;
        yes = strstr(path, part) != 0;
    }
    errno = before;
    return yes;
}

#define REAL(name, type, ...) static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *bytes, size_t length) {
    REAL(write, ssize_t, int, const void *, size_t);
    if (counts(file) && fails(page->writes, &page->failed_writes)) return -1;
    return real(file, bytes, length);
}

ssize_t writev(int file, const struct iovec *parts, int many) {
    REAL(writev, ssize_t, int, const struct iovec *, int);
    if (counts(file) && fails(page->writes, &page->failed_writes)) return -1;
    return real(file, parts, many);
}

ssize_t pwrite(int file, const void *bytes, size_t length, off_t at) {
    REAL(pwrite, ssize_t, int, const void *, size_t, off_t);
    if (counts(file) && fails(page->writes, &page->failed_writes)) return -1;
    return real(file, bytes, length, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) {
    REAL(pwrite64, ssize_t, int, const void *, size_t, off64_t);
    if (counts(file) && fails(page->writes, &page->failed_writes)) return -1;
    return real(file, bytes, length, at);
}

int fsync(int file) {
    REAL(fsync, int, int);
    if (counts(file) && fails(page->syncs, &page->failed_syncs)) return -1;
    return real(file);
}

int fdatasync(int file) {
    REAL(fdatasync, int, int);
    if (counts(file) && fails(page->syncs, &page->failed_syncs)) return -1;
    return real(file);
}

int rename(const char *from, const char *to) {
    REAL(rename, int, const char *, const char *);
    if (page && page->on && strstr(to, part) && fails(page->renames, &page->failed_renames)) return -1;
    return real(from, to);
}
