// A link ends in `#` and a secret, which no browser sends anywhere. It goes into the form, which sends it once.
const secret = location.hash.slice(1);
if (secret) {
  history.replaceState(null, "", location.pathname);
  const field = document.querySelector("#link");
  if (field) {
    field.value = secret;
    field.form.querySelector("button").focus();
    field.form.requestSubmit();
  }
}
