"""Autobahn's fuzzing client against a WebSocket over HTTP and a native one, both through Fantail.

Fails on every case that is not OK (or informational) unless ACCEPTED has it. The reports stay in the folder.
Usage: run.py PATH-TO-FANTAIL PATH-TO-WSTEST FOLDER [--full]
"""

import atexit
import collections
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "python"))
from fantail import Fantail  # noqa: E402

MODES = ("over-http", "native")

#: The suite sends a message, then a frame against the protocol, and likes best to see the message come back first.
#: Here the message goes to an origin. The connection is failed at once (RFC 6455 section 7.1.7), not when the
#: origin has answered: who breaks the protocol is owed nothing, and must not be able to hold a connection.
AT_ONCE = ("3.2", "3.3", "3.4", "4.1.3", "4.1.4", "4.1.5", "4.2.3", "4.2.4", "4.2.5", "5.15")

#: What is right although it is not OK. It depends on who is faster, so that OK is as right.
ACCEPTED = {(case, "NON-STRICT") for case in AT_ONCE}

#: Runs of the suite for one mode, side by side. Families 12 and 13 are 1,000 messages a case, and each of their
#: groups the same 18 sizes and fragmentations: four of each will do, and the largest once.
BASICS = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
SIZES = (1, 5, 8, 13)
SHORT = (
    BASICS + ["12.1.10"],
    [f"12.{group}.{size}" for group in range(1, 6) for size in SIZES],
    [f"13.{group}.{size}" for group in range(1, 8) for size in SIZES] + ["13.1.16"],
)
FULL = (BASICS, ["12.*"], ["13.*"])


class Origin:
    def __init__(self, mode):
        script = os.path.join(os.path.dirname(__file__), "origins.py")
        command = [sys.executable, script, mode]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def stop(self):
        self.process.stdin.close()
        self.process.wait(20)


def main(binary, wstest, folder, full=False):
    origins = {mode: Origin(mode) for mode in MODES}
    flags = {"over-http": ",over_http", "native": ""}
    routes = [f"*,path_beg=/{mode}/ 127.0.0.1:{origins[mode].port}{flags[mode]}" for mode in MODES]
    server = Fantail(os.path.abspath(binary), routes, "[websocket]\ndeflate = true\n")
    began = time.monotonic()
    parts = enumerate(FULL if full else SHORT)
    runs = [
        Run(wstest, os.path.join(folder, f"{mode}-{n}"), mode, server.client, part)
        for n, part in parts
        for mode in MODES
    ]
    results = [result for run in runs for result in run.results()]
    server.stop()
    for origin in origins.values():
        origin.stop()
    sys.exit(judge(results, time.monotonic() - began))


class Run:
    """The suite in a process of its own."""

    def __init__(self, wstest, folder, mode, address, cases):
        self.folder = os.path.abspath(folder)
        os.makedirs(self.folder, exist_ok=True)
        spec = {
            "outdir": self.folder,
            "options": {"failByDrop": False},
            "servers": [{"agent": mode, "url": f"ws://{address[0]}:{address[1]}/{mode}/"}],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        with open(os.path.join(self.folder, "spec.json"), "w") as file:
            json.dump(spec, file)
        command = [os.path.abspath(wstest), "-m", "fuzzingclient", "-s", file.name]
        with open(os.path.join(self.folder, "output"), "w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=self.folder)
        atexit.register(self.process.kill)

    def results(self):
        """Mode, case, behaviour, and that of the close."""
        if self.process.wait() != 0:
            sys.exit(f"the suite did not run to its end: see {self.folder}/output")
        with open(os.path.join(self.folder, "index.json")) as file:
            for mode, cases in json.load(file).items():
                for case, result in cases.items():
                    yield mode, case, result["behavior"], result["behaviorClose"]


def judge(results, seconds):
    """Prints a summary; the exit status."""
    wrong = []
    counts = collections.defaultdict(collections.Counter)
    for mode, case, behaviour, close in results:
        counts[mode].update([behaviour])
        for each in {behaviour, close} - {"OK", "INFORMATIONAL"}:
            if (case, each) not in ACCEPTED:
                wrong.append(f"{mode} {case}: {each}")
    for mode in MODES:
        each = ", ".join(f"{name} {count}" for name, count in sorted(counts[mode].items()))
        print(f"{mode}: {counts[mode].total()} cases in {seconds:.0f} s: {each}")
    print(*wrong, sep="\n", end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    main(*sys.argv[1:4], full="--full" in sys.argv)
