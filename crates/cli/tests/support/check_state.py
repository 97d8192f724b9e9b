"""Checks a trust domain's state from outside, by its published formats alone.

    check_state.py STORE LOG_SIZE CERTIFICATES

STORE is the path of an SQLite database, or a URL `postgres://…`, which is read by psql.

Recomputes the log's root from its leaves (RFC 6962), looks whether revisions are in order, whether each issued row is what
its leaf says, whether each log names the size and root of the one before, whether the records are what the kept changes come
to, and in which log each certificate is recorded:
CERTIFICATES has one on each line, DER in hexadecimal digits. Prints JSON.
"""

import hashlib
import json
import sqlite3
import subprocess
import sys

QUERIES = [
    "SELECT incarnation, number, fence, log_size FROM head",
    "SELECT incarnation, log_index, leaf, hash, details, salt FROM past_log ORDER BY incarnation, log_index",
    "SELECT log_index, leaf, hash, details, salt FROM log ORDER BY log_index",
    "SELECT serial, tbs, incarnation, log_index FROM issued",
    "SELECT number FROM commits ORDER BY number",
    "SELECT kind, name, value FROM records",
    "SELECT number, kind, name, value FROM changes ORDER BY number, position",
]


def read_sqlite(path):
    """The rows of each query, all of one moment."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    database.execute("BEGIN")
    return [database.execute(query).fetchall() for query in QUERIES]


def read_postgres(url):
    """The same."""
    command = ["psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", url]
    for text in ["BEGIN ISOLATION LEVEL REPEATABLE READ", *QUERIES]:
        command += ["-c", text, "-c", "\\echo ="]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def value(text):
        if text.startswith("\\x"):
            return bytes.fromhex(text[2:])
        if text.lstrip("-").isdigit():
            return int(text)
        return text or None

    parts = told.split("=\n")[1 : 1 + len(QUERIES)]
    return [[tuple(map(value, line.split("|"))) for line in part.splitlines()] for part in parts]


def leaf_hash(leaf):
    return hashlib.sha256(b"\0" + leaf).digest()


def root(hashes):
    """The compact range: complete subtrees, the largest first."""
    peaks = []
    for height_0 in hashes:
        node, height = height_0, 0
        while peaks and peaks[-1][1] == height:
            node = hashlib.sha256(b"\1" + peaks.pop()[0] + node).digest()
            height += 1
        peaks.append((node, height))
    if not peaks:
        return hashlib.sha256(b"").hexdigest()
    node = peaks.pop()[0]
    while peaks:
        node = hashlib.sha256(b"\1" + peaks.pop()[0] + node).digest()
    return node.hex()


def to_be_signed(der):
    """The first element of the certificate's sequence, with its head."""

    def head(at):
        length = der[at + 1]
        if length < 0x80:
            return at + 2, length
        count = length & 0x7F
        return at + 2 + count, int.from_bytes(der[at + 2 : at + 2 + count], "big")

    start, _ = head(0)
    inner, length = head(start)
    return der[start : inner + length]


def main():
    store, size, certificates = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    read = read_postgres if store.startswith("postgres://") else read_sqlite
    [[(incarnation, number, fence, log_size)], past, log, issued, numbers, records, changes] = read(store)
    problems = []
    logs = {}
    for of, index, leaf, kept, details, salt in past:
        logs.setdefault(of, []).append((index, leaf, kept, details, salt))
    logs[incarnation] = log
    if len(logs[incarnation]) != log_size:
        problems.append(f"the log has {len(logs[incarnation])} leaves, the head row counts {log_size}")
    recorded, before, at_size = {}, None, None
    for of in sorted(logs):
        hashes, latest = [], 0
        for place, (index, leaf, kept, details, salt) in enumerate(logs[of]):
            if index != place or leaf_hash(leaf) != kept:
                problems.append(f"leaf {of}/{place} is not what it is kept as")
            entry = json.loads(leaf)
            if entry["incarnation"] != of or entry["revision"] < latest:
                problems.append(f"leaf {of}/{place} is out of order")
            if details is not None and hashlib.sha256(salt + details).hexdigest() != entry["body"]:
                problems.append(f"the details of leaf {of}/{place} are not those that it names")
            latest = entry["revision"]
            if "tbs" in entry:
                recorded[entry["serial"]] = (of, place, entry["tbs"])
            hashes.append(kept)
        if before is not None:
            told = json.loads(logs[of][0][3])["from"]
            if (told["incarnation"], told["logSize"], told["logRoot"]) != before:
                problems.append(f"the log of {of} does not name the one before")
        before = (of, len(hashes), root(hashes))
        if of == incarnation:
            at_size = root(hashes[:size])
            if number < latest:
                problems.append("the log is ahead of the head row")
    if number < fence:
        problems.append("the fence is ahead of the head row")
    for serial, tbs, of, index in issued:
        if recorded.get(serial.hex()) != (of, index, tbs.hex()):
            problems.append(f"certificate {serial.hex()} is not what its leaf says")
    commits = [row[0] for row in numbers]
    if commits and commits != list(range(commits[0], number + 1)):
        problems.append("the feed has a gap")
    if number and not commits:
        problems.append("the feed is not there")
    last = {}
    for at, kind, name, value in changes:
        last[(kind, name)] = value
        if commits and not commits[0] <= at <= number:
            problems.append(f"a change is of commit {at}, which is not kept")
    now = {(kind, name): value for kind, name, value in records}
    for key, value in last.items():
        if now.get(key) != value:
            problems.append(f"record {key} is not what the feed says of it")
    if incarnation == 1 and commits and commits[0] == 1:
        problems += [f"the feed has never spoken of record {key}" for key in now.keys() - last.keys()]
    digests = {tbs: of for of, _, tbs in recorded.values()}
    held = []
    with open(certificates, encoding="ascii") as lines:
        for line in lines:
            digest = hashlib.sha256(to_be_signed(bytes.fromhex(line))).hexdigest()
            held.append({"tbs": digest, "of": digests.get(digest)})
    print(
        json.dumps(
            {
                "problems": problems,
                "incarnation": incarnation,
                "number": number,
                "size": log_size,
                "rootAt": at_size,
                "serials": {serial: of for serial, (of, _, _) in recorded.items()},
                "digests": digests,
                "held": held,
            }
        )
    )


main()
