"""Sends the same to Pushpin 1.36 and to Fantail and compares what origins and clients see.

Every difference must be named by its case with an id that docs/differences.md explains, and every name must
be a difference. Usage: compare.py PATH-TO-FANTAIL [--only PART-OF-A-NAME]
"""

import json
import os
import re
import socket
import sys
import threading
import time

import cases
import stories
import talk
import talks
from peers import Pushpin, start_fantail
from wire import Origin, Reader, request

#: A case must not take longer than a long-poll's shortest time.
PATIENCE = 7
#: Published until it arrives: Pushpin subscribes some time after the client got the head.
PROBE = "~"


def exchange(address, raw, origin, before, case, control):
    """One connection: what the client sees of each request on it, as facts."""
    facts = {}
    sends = raw if isinstance(raw, list) else [raw]
    with socket.create_connection(address, 5) as sock:
        reader = Reader(sock, PATIENCE)
        for n, one in enumerate(sends):
            try:
                sock.sendall(one)
            except OSError:
                facts[f"client{n}.end"] = "closed"
                continue
            publisher = None
            if case and case.publish:
                publisher = threading.Thread(target=publish_when_held, args=(control, case, origin, before + n + 1))
                publisher.start()
            try:
                message = reader.message(bodyless=bool(case and case.bodyless), wanted=case.wanted if case else None)
            except TimeoutError:
                message = None
            if publisher:
                publisher.join()
            if message is None:
                facts[f"client{n}.end"] = "silent"
                continue
            message.body = message.body.replace(PROBE.encode(), b"")
            facts.update(message.view(f"client{n}"))
    return facts


def publish_when_held(control, case, origin, count):
    """Publishes the case's items when its request is held: a stream gets probes until one counts."""
    origin.wait(count)
    if all("http-stream" in i.get("formats", i) for i in case.publish):
        channel = next(iter(c for c in (i["channel"] for i in case.publish) if c != "c"), "c")
        for _ in range(8):
            post(control, [{"channel": i, "formats": {"http-stream": {"content": PROBE}}} for i in {"c", channel}])
            time.sleep(0.02)
        time.sleep(0.1)
        post(control, case.publish)
        return
    time.sleep(0.25)
    post(control, case.publish)


def post(address, items):
    body = json.dumps({"items": items}).encode()
    return ask(address, request("POST", "/publish/", [("Host", "localhost")], body))


def ask(address, raw):
    with socket.create_connection(address, 5) as sock:
        try:
            sock.sendall(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all of it was read: the answer may be there all the same
        return Reader(sock, PATIENCE).message()


def run(case, system, origin):
    """All facts of a case on one system."""
    answers = case.origin if isinstance(case.origin, list) else [case.origin]
    origin.begin(lambda n, _: answers[min(n, len(answers) - 1)])
    facts = exchange(system.client, case.send, origin, 0, case, system.control)
    with origin.lock:
        requests = list(origin.requests)
    facts["origin.count"] = len(requests)
    for n, seen in enumerate(requests):
        facts.update({k: normal(k, v) for k, v in seen.view(f"origin{n}").items()})
    return facts


def normal(name, value):
    """What varies between two runs of one system."""
    if name.endswith(".grip-sig"):
        return "a signature" if re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", value) else value
    return value


def differences(left, right):
    names = sorted(set(left) | set(right))
    return {n: (left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)}


def allowed(name, differs):
    """The id for a fact: by its name, without the numbers of requests, or by its beginning with `*`."""
    plain = re.sub(r"(\D)\d+\.", r"\1.", name)
    for key, reason in {**EVERYWHERE, **differs}.items():
        if key in (name, plain) or (key.endswith("*") and plain.startswith(key[:-1])):
            return key, reason
    return None, None


#: Facts that may differ in every case.
EVERYWHERE = {
    "origin.accept": "D14",
    "origin.accept-encoding": "D14",
    "origin.grip-feature": "D22",
    "post.accept-encoding": "D14",
    "post.grip-feature": "D22",
    "post.x-forwarded-for": "D200",
}

#: Differences that Pushpin has most of the time: a message right before a close is lost if the close is faster.
SOMETIMES = {"D210"}

#: Pushpin loses a request or an item now and then: a case is only wrong when it is so every time.
TRIES = 3


def judge(name, found, differs, documented):
    """One line a difference, and the number of those that nothing explains."""
    lines, wrong, used = [], 0, set()
    for fact, (pushpin, fantail) in found.items():
        key, reason = allowed(fact, differs)
        used.add(key)
        good = reason in documented
        wrong += not good
        shown = f"{short(pushpin)} -> {short(fantail)}"
        lines.append(f"{'     ' if good else 'WRONG'} {reason or '-':4} {name}: {fact}: {shown}")
    for key in set(differs) - used:
        if differs[key] in SOMETIMES:
            continue
        wrong += 1
        lines.append(f"WRONG {differs[key]:4} {name}: {key}: no difference any more")
    return lines, wrong


def compare(name, look, systems, differs, documented):
    """Prints the table of one case; `look` gives the facts of one system."""
    for _ in range(TRIES):
        found = differences(*(look(*system) for system in systems))
        lines, wrong = judge(name, found, differs, documented)
        if not wrong:
            break
    print("\n".join(lines), end="\n" if lines else "")
    return wrong


def short(value):
    text = repr(value)
    return text if len(text) < 70 else text[:60] + f"…({len(text)})"


def documented_ids():
    path = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "differences.md")
    with open(path) as file:
        return set(re.findall(r"\bD\d+\b", file.read()))


def warm_up(system, origin):
    """Pushpin listens before it is ready."""
    origin.begin(lambda n, _: cases.answer(body="ready"))
    for _ in range(100):
        try:
            if ask(system.client, request()).line.startswith("HTTP/1.1 200"):
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{system.client} does not become ready")


def main():
    binary, only = os.path.abspath(sys.argv[1]), sys.argv[3] if "--only" in sys.argv else ""
    documented = documented_ids()
    origins = Origin(), Origin()
    pushpin = Pushpin(origins[0].address)
    fantail = start_fantail(binary, origins[1].address)
    systems = [(pushpin, origins[0]), (fantail, origins[1])]
    wrong = count = 0
    try:
        for system in systems:
            warm_up(*system)
        for case in (c for c in cases.CASES if only in c.name):
            look = lambda system, origin, case=case: run(case, system, origin)
            wrong += compare(case.name, look, systems, case.differs, documented)
            count += 1
        for one in talks.TALKS:
            for mode in one.modes:
                name = f"{mode}: {one.name}"
                if only in name:
                    look = lambda system, origin, one=one, mode=mode: talk.run(one, mode, system, origin)
                    wrong += compare(name, look, systems, talk.differs(one, mode), documented)
                    count += 1
        for story in (s for s in stories.STORIES if only in "story: " + s.name):
            look = lambda system, origin, story=story: stories.tell(story, system, origin, post)
            wrong += compare("story: " + story.name, look, systems, story.differs, documented)
            count += 1
        for name, raw, differs in (c for c in cases.CONTROL if only in c[0]):
            look = lambda system, _, raw=raw: ask(system.control, raw).view("control")
            wrong += compare("control: " + name, look, systems, differs, documented)
            count += 1
    finally:
        pushpin.stop()
        fantail.stop()
    print(f"differential: {count} cases, {wrong} differences that docs/differences.md does not explain")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
