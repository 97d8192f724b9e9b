// Checks, in the browser and with nothing but a public key, that an event is in the log: RFC 6962 hashing, the way from the
// leaf to the root by RFC 9162 (2.1.3.2), and the Ed25519 signature under the checkpoint, by the formats of C2SP.

const HEADING = "c2sp.org/tlog-proof@v1";

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const hexOf = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const same = (one, other) => one.length === other.length && one.every((byte, at) => byte === other[at]);
const sha256 = async (...parts) => {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
};
const LEAF = Uint8Array.of(0);
const NODE = Uint8Array.of(1);

const read = (text) => {
  const cut = text.indexOf("\n\n");
  const lines = text.slice(0, cut).split("\n");
  const note = text.slice(cut + 2);
  if (cut < 0 || lines[0] !== HEADING || !lines[1]?.startsWith("extra ") || !/^index \d+$/.test(lines[2] ?? "")) {
    throw new Error("this is no proof of the form that is expected");
  }
  const end = note.indexOf("\n\n");
  const said = note.slice(0, end + 1);
  const [origin, size, root] = said.split("\n");
  return {
    leaf: bytesOf(lines[1].slice(6)),
    index: BigInt(lines[2].slice(6)),
    path: lines.slice(3).map(bytesOf),
    said,
    origin,
    size: BigInt(size),
    root: bytesOf(root),
    signatures: note.slice(end + 2).split("\n").filter((line) => line.startsWith("\u2014 ")),
  };
};

// The root that follows from the leaf and the hashes beside its way; nothing when they do not fit the size.
const rootOf = async ({ leaf, index, size, path }) => {
  let hash = await sha256(LEAF, leaf);
  if (size <= index) return null;
  let [place, last] = [index, size - 1n];
  for (const beside of path) {
    if (last === 0n || beside.length !== 32) return null;
    if ((place & 1n) === 1n || place === last) {
      hash = await sha256(NODE, beside, hash);
      while ((place & 1n) === 0n && place !== 0n) [place, last] = [place >> 1n, last >> 1n];
    } else {
      hash = await sha256(NODE, hash, beside);
    }
    [place, last] = [place >> 1n, last >> 1n];
  }
  return last === 0n ? hash : null;
};

// A key is `NAME+ID+BASE64`, of which the first byte says that it is Ed25519.
const signed = async ({ said, signatures }, key) => {
  const [name, id, rest] = [key.slice(0, key.indexOf("+")), ...key.slice(key.indexOf("+") + 1).split(/\+(.*)/s)];
  const raw = bytesOf(rest);
  if (raw.length !== 33 || raw[0] !== 1) throw new Error("the log’s key is not an Ed25519 key");
  const expected = await sha256(new TextEncoder().encode(name), Uint8Array.of(10), raw);
  if (hexOf(expected.slice(0, 4)) !== id) throw new Error("the log’s key does not have the name that it says");
  const verifier = await crypto.subtle.importKey("raw", raw.slice(1), { name: "Ed25519" }, false, ["verify"]);
  for (const line of signatures) {
    const [, whose, signature] = line.split(" ");
    const bytes = bytesOf(signature);
    if (whose !== name || hexOf(bytes.slice(0, 4)) !== id) continue;
    return crypto.subtle.verify({ name: "Ed25519" }, verifier, bytes.slice(4), new TextEncoder().encode(said));
  }
  return false;
};

const panel = document.querySelector("#proof");
const list = panel.querySelector("ol");
const verdict = panel.querySelector("#verdict");
const button = panel.querySelector("button");

const line = (good, text) => {
  const item = document.createElement("li");
  item.className = good ? "good" : "bad";
  item.textContent = text;
  list.append(item);
  return good;
};

const check = async () => {
  button.disabled = true;
  list.replaceChildren();
  verdict.className = "notice";
  verdict.textContent = "Checking …";
  let holds = false;
  try {
    const answer = await fetch(panel.dataset.from, { headers: { "Countersign-Refresh": "1" } });
    if (!answer.ok) throw new Error(await answer.text());
    const { bundle, key } = await answer.json();
    const proof = read(bundle);
    const shown = panel.dataset.leaf;
    const hash = await sha256(LEAF, proof.leaf);
    const one = line(
      hexOf(hash) === shown && proof.index === BigInt(panel.dataset.index),
      `The event on this page has the leaf hash ${hexOf(hash)}.`,
    );
    const root = await rootOf(proof);
    const two = line(
      root !== null && same(root, proof.root),
      `With ${proof.path.length} hashes beside its way it leads to the root ${hexOf(proof.root)} of ${proof.size} events.`,
    );
    const three = line(await signed(proof, key), `That root of ${proof.origin} is signed by ${key}.`);
    holds = one && two && three;
    verdict.textContent = holds
      ? "Proven, by this browser: the event is in the signed log."
      : "NOT proven: this event is not in what was signed.";
  } catch (why) {
    verdict.textContent = `Could not check: ${why.message}`;
  }
  verdict.className = holds ? "notice good" : "notice bad";
  button.disabled = false;
};

button.addEventListener("click", check);
check();
