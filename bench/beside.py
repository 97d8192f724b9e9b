#!/usr/bin/env python3
"""Stands a Countersign proxy up for a harness that measures proxies side by side, and runs that harness.

    bench/beside.py [--port 18120] [--backend 127.0.0.1:18080] -- COMMAND... @PEER@ ...

A real server, agent and proxy, with a door on PORT of 127.0.0.1 that passes requests on to BACKEND, and a caller who may come in.
In COMMAND, `@PEER@` becomes one JSON object: `name`, `port`, `pid` (the proxy's), `h2`, `version`, and `load` with the files by
which the caller is known (`ca`, `cert`, `key`). Ends with COMMAND's exit status; everything that was started is ended.
Programs are `target/release/countersign` and `target/dist/countersign-proxy`, or what COUNTERSIGN_BIN and COUNTERSIGN_PROXY_BIN name.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("COUNTERSIGN_BIN", str(ROOT / "target/release/countersign"))
PROXY = os.path.realpath(os.environ.get("COUNTERSIGN_PROXY_BIN", ROOT / "target/dist/countersign-proxy"))

# Certificates outlive the measurement, so that no renewal falls into it. The proxy is the door, being that program; whatever else this
# user runs is the caller.
MANIFEST = """\
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {{name: door}}
spec: {{selectors: ["unix:uid:{uid}", "unix:path:{proxy}"], lifetime: 12h}}
---
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {{name: caller}}
spec: {{selectors: ["unix:uid:{uid}"], lifetime: 12h}}
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {{name: door}}
spec: {{workload: door, protocol: http, listen: "127.0.0.1:{port}", forward: "{backend}"}}
---
apiVersion: countersign.dev/v1alpha1
kind: Policy
metadata: {{name: caller-to-door}}
spec:
  cedar: |
    permit (principal == Workload::"caller", action == Action::"connect", resource == Service::"door");
"""


def ask(*words):
    """Runs a command to its end; gives what it printed."""
    done = subprocess.run([PROGRAM, *words, "--output", "json"], stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"beside.py: `countersign {' '.join(words)}` ended with {done.returncode}")
    return json.loads(done.stdout)


class Parts:
    """Processes that run until the end, the last one ended first."""

    def __init__(self):
        self.running = []

    def __enter__(self):
        return self

    def __exit__(self, *_why):
        for process in reversed(self.running):
            process.terminate()
            process.wait()

    def start(self, words, environment=None):
        """Starts one; gives its process and what it said when it was ready."""
        process = subprocess.Popen(
            [*words, "--output", "json", "--log-level", "error"],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        line = process.stdout.readline()
        if not line:
            sys.exit(f"beside.py: `{' '.join(words)}` ended with {process.wait()}")
        return process, json.loads(line)


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--port", type=int, default=18120, help="where the proxy listens")
    words.add_argument("--backend", default="127.0.0.1:18080", help="what it passes requests on to")
    words.add_argument("command", nargs="+", help="the harness, after `--`")
    told = words.parse_args()
    with tempfile.TemporaryDirectory() as folder, Parts() as parts:
        place = pathlib.Path(folder)
        data, socket = str(place / "server"), f"unix://{place}/agent.sock"
        ask("init", "--data", data, "--trust-domain", "bench.example")
        _, server = parts.start([PROGRAM, "server", "--data", data, "--listen", "127.0.0.1:0", "--metrics", "off"])
        manifest = place / "all.yaml"
        manifest.write_text(MANIFEST.format(uid=os.getuid(), proxy=PROXY, port=told.port, backend=told.backend))
        ask("apply", str(manifest), "--admin", server["admin"])
        token = ask("token", "create", "--admin", server["admin"])
        joining = {"COUNTERSIGN_JOIN": token["token"], "COUNTERSIGN_TRUST": token["trust"]}
        agent = [PROGRAM, "agent", "--data", str(place / "agent"), "--socket", str(place / "agent.sock")]
        parts.start([*agent, "--server", server["listen"]], joining)
        proxy, _ = parts.start([PROXY, "--agent", socket, "--run-dir", str(place / "proxy")])
        caller = "spiffe://bench.example/caller"
        ask("fetch", "x509", "--socket", socket, "--id", caller, "--write", str(place / "caller"))
        files = {"ca": "bundle.pem", "cert": "svid.pem", "key": "svid-key.pem"}
        peer = {
            "name": "countersign",
            "port": told.port,
            "pid": proxy.pid,
            "h2": True,
            "version": f"{PROXY} --version",
            "load": {what: str(place / "caller" / file) for what, file in files.items()},
        }
        command = [word.replace("@PEER@", json.dumps(peer)) for word in told.command]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
