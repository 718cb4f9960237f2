"""ZeroMQ publishers, unmodified: libzmq's sockets by pyzmq, and pubcontrol with its discovery.

PUSH, PUB and XPUB publish, REQ and DEALER send commands, and XPUB sees which channels have subscribers.
Usage: zeromq_inputs.py PATH-TO-FANTAIL
"""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import tnetstring
import zmq
from fantail import Fantail

ITEMS = 200_000
CHANNELS = 20_000
PATIENCE = 20_000


def free_ports(count):
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


class Stream:
    """A held stream of the built-in origin."""

    def __init__(self, fantail, *channels, path="/stream"):
        self.connection = http.client.HTTPConnection(*fantail.client, timeout=20)
        query = "&".join(f"channel={channel}" for channel in channels)
        self.connection.request("GET", f"{path}?{query}", headers={"Host": "localhost"})
        if path == "/stream":
            self.response = self.connection.getresponse()
            # The first line is the origin's.
            self.response.readline()

    def line(self):
        return self.response.readline()

    def close(self):
        # The response holds the socket, too.
        self.response.close()
        self.connection.close()


def same(got, wanted):
    if got != wanted:
        raise AssertionError(f"{got!r}, not {wanted!r}")


def metric(fantail, name, label=""):
    connection = http.client.HTTPConnection(*fantail.control, timeout=20)
    connection.request("GET", "/metrics", headers={"Host": "localhost"})
    lines = connection.getresponse().read().decode().splitlines()
    samples = [l for l in lines if l.split("{")[0].split(" ")[0] == name and label in l]
    return sum(float(l.rsplit(" ", 1)[1]) for l in samples)


def until(what, reached):
    for _ in range(4000):
        if reached():
            return
    raise AssertionError(f"never: {what}")


def item(channel, content):
    formats = {b"http-stream": {b"content": content}, b"http-response": {b"body": content}}
    return {b"channel": channel, b"formats": formats}


def opened(context, kind, port, **options):
    sock = context.socket(kind)
    sock.linger = 0
    sock.rcvtimeo = sock.sndtimeo = PATIENCE
    for name, value in options.items():
        setattr(sock, name, value)
    sock.connect(f"tcp://127.0.0.1:{port}" if isinstance(port, int) else port)
    return sock


def check_push(fantail, context, port):
    push = opened(context, zmq.PUSH, port)
    stream = Stream(fantail, "a")
    push.send(b"J" + json.dumps({"channel": "a", "http-stream": {"content": "json\n"}}).encode())
    push.send(b"T" + tnetstring.dumps(item(b"a", b"framed\n")))
    push.send(tnetstring.dumps(item(b"a", b"\xff\x00bare\n")))
    same([stream.line() for _ in range(3)], [b"json\n", b"framed\n", b"\xff\x00bare\n"])
    lost = metric(fantail, "fantail_zeromq_messages_total", "malformed")
    for garbage in (b"", b"J", b"T", b"J{", b"99:a", b"J" + b"[" * 1000):
        push.send(garbage)
    push.send_multipart([b"a", b"J{}"])
    push.send(tnetstring.dumps(item(b"a", b"after\n")))
    same(stream.line(), b"after\n")
    same(metric(fantail, "fantail_zeromq_messages_total", "malformed") - lost, 7)
    stream.close()
    push.close()


def check_flood(fantail, context, port):
    """Items are published while nobody reads: all arrive, in order."""
    push = opened(context, zmq.PUSH, port)
    stream = Stream(fantail, "flood")
    begun = time.monotonic()

    def send():
        for n in range(ITEMS):
            push.send(tnetstring.dumps(item(b"flood", b"%d\n" % n)))

    sender = threading.Thread(target=send)
    sender.start()
    for n in range(ITEMS):
        line = stream.line()
        if line != b"%d\n" % n:
            raise AssertionError(f"{line!r}, not {n}")
    sender.join()
    print(f"{ITEMS} items in {time.monotonic() - begun:.1f} s")
    stream.close()
    push.close()


def check_sub(fantail, context, port):
    publisher = opened(context, zmq.XPUB, port)
    stream = Stream(fantail, "x")
    same(publisher.recv(), b"\x01x")
    publisher.send_multipart([b"x", b"J" + json.dumps({"http-stream": {"content": "item\n"}}).encode()])
    publisher.send_multipart([b"xy", tnetstring.dumps(item(b"x", b"of another channel\n"))])
    publisher.send_multipart([b"x"])
    publisher.send_multipart([b"x", tnetstring.dumps(item(b"y", b"again\n"))])
    same([stream.line() for _ in range(2)], [b"item\n", b"again\n"])
    late = opened(context, zmq.XPUB, port)
    same(late.recv(), b"\x01x")
    late.close()
    stream.close()
    same(publisher.recv(), b"\x00x")
    publisher.close()


def check_channels(fantail, context, port):
    """Many channels are told promptly, and withdrawn."""
    xpub = opened(context, zmq.XPUB, port, rcvhwm=0)
    begun = time.monotonic()
    streams, left = [], list(range(CHANNELS))
    while left:
        streams.append(Stream(fantail, *(f"many-{n}" for n in left[:100])))
        del left[:100]
    told = {xpub.recv() for _ in range(CHANNELS)}
    same(told, {b"\x01many-%d" % n for n in range(CHANNELS)})
    subscribed = time.monotonic()
    for stream in streams:
        stream.close()
    told = {xpub.recv() for _ in range(CHANNELS)}
    same(told, {b"\x00many-%d" % n for n in range(CHANNELS)})
    print(f"{CHANNELS} channels in {subscribed - begun:.1f} s, withdrawn in {time.monotonic() - subscribed:.1f} s")
    xpub.close()


def check_linger(fantail, context, ports):
    """A long-poll's channel stays for a while after its answer."""
    xpub = opened(context, zmq.XPUB, ports["sub"])
    poll = Stream(fantail, "p", path="/response")
    same(xpub.recv(), b"\x01p")
    xpub.send_multipart([b"p", tnetstring.dumps(item(b"p", b"answer"))])
    same(poll.connection.getresponse().read(), b"answer")
    answered = time.monotonic()
    same(xpub.recv(), b"\x00p")
    if time.monotonic() - answered < 0.5:
        raise AssertionError("withdrawn at once")
    xpub.close()


def check_commands(fantail, context, ports):
    def ask(sock, method, args=None):
        request = {b"id": b"7", b"method": method}
        if args is not None:
            request[b"args"] = args
        sock.send(tnetstring.dumps(request))
        response = tnetstring.loads(sock.recv())
        same(response.pop(b"id"), b"7")
        return response

    req = opened(context, zmq.REQ, ports["command"])
    uris = {
        b"command": b"tcp://127.0.0.1:%d" % ports["command"],
        b"publish-pull": b"tcp://127.0.0.1:%d" % ports["pull"],
        b"publish-sub": b"tcp://127.0.0.1:%d" % ports["sub"],
    }
    same(ask(req, b"get-zmq-uris"), {b"success": True, b"value": uris})
    stream = Stream(fantail, "c")
    same(ask(req, b"publish", {b"items": [item(b"c", b"one\n"), item(b"c", b"two\n")]}), {b"success": True, b"value": None})
    same([stream.line() for _ in range(2)], [b"one\n", b"two\n"])
    bad = ask(req, b"publish", {b"items": [item(b"c", b"no\n"), {b"channel": b"c"}]})
    same((bad[b"success"], bad[b"condition"]), (False, b"bad-request"))
    same(ask(req, b"publish", {})[b"condition"], b"bad-request")
    same(ask(req, b"recover"), {b"success": True, b"value": None})
    same(ask(req, b"refresh", {b"channel": b"c"}), {b"success": True, b"value": None})
    same(ask(req, b"refresh", {})[b"condition"], b"bad-request")
    same(ask(req, b"nothing"), {b"success": False, b"condition": b"method-not-found"})
    dealer = opened(context, zmq.DEALER, ports["command"])
    for garbage in (b"", b"x", b"0:}", b"T2:{}", tnetstring.dumps({b"id": b"1"})):
        dealer.send_multipart([b"", garbage])
    dealer.send_multipart([b"way", b"back", b"", tnetstring.dumps({b"method": b"recover"})])
    same(dealer.recv_multipart()[:3], [b"way", b"back", b""])
    stream.close()
    req.close()
    dealer.close()


def check_garbage(fantail, context, ports):
    """Bytes that are no ZeroMQ, and frames that are no messages: refused, counted, and everything goes on."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    ready = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH"
    long = b"\x02" + b"\x7f" + b"\xff" * 7
    before = metric(fantail, "fantail_zeromq_peers_refused_total")
    sent = 0
    for port in ports.values():
        for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 4, bytes(100), greeting + long, greeting + ready + b"\xff\xff"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
                peer.sendall(data)
                try:
                    while peer.recv(1000):
                        pass
                except ConnectionResetError:
                    pass
                sent += 1
    until("all are refused", lambda: metric(fantail, "fantail_zeromq_peers_refused_total") - before == sent)
    push = opened(context, zmq.PUSH, ports["pull"])
    lost = metric(fantail, "fantail_zeromq_peers_refused_total")
    push.send(b"x" * 1_000_001)
    until("a long message is refused", lambda: metric(fantail, "fantail_zeromq_peers_refused_total") > lost)
    push.close()


def check_pubcontrol(fantail, ports):
    from gripcontrol import GripPubControl, HttpStreamFormat
    from pubcontrol import Item, PubControl

    stream = Stream(fantail, "pc")
    for require_subscribers in (False, True):
        uri = "tcp://127.0.0.1:%d" % ports["command"]
        seen = []
        publisher = PubControl(
            {"zmq_uri": uri, "require_subscribers": require_subscribers},
            sub_callback=(lambda kind, channel: seen.append((kind, channel))) if require_subscribers else None,
        )
        publisher.publish("pc", Item(HttpStreamFormat("first\n")), blocking=True)
        if require_subscribers:
            # The first is dropped by pubcontrol unless the subscription has arrived.
            until("a subscriber is seen", lambda: time.sleep(0.005) or ("sub", "pc") in seen)
            publisher.publish("nobody", Item(HttpStreamFormat("nobody\n")), blocking=True)
            publisher.publish("pc", Item(HttpStreamFormat("last\n")), blocking=True)
            line = stream.line()
            same(line if line == b"last\n" else stream.line(), b"last\n")
        else:
            same(stream.line(), b"first\n")
        publisher.close()
    # gripcontrol, and django-grip with it, finds where to publish in the same way.
    publisher = GripPubControl({"control_zmq_uri": uri})
    publisher.publish_http_stream("pc", "by grip\n", blocking=True)
    same(stream.line(), b"by grip\n")
    publisher.close()
    stream.close()


def check_command_lines(fantail, binary, ports):
    """`fantail publish`, and under Pushpin's name; and Pushpin's own, where it is installed."""
    named = os.path.join(fantail.folder.name, "pushpin-publish")
    os.symlink(binary, named)
    lines = [[binary, "publish"], [named]]
    if shutil.which("pushpin-publish"):
        lines.append(["pushpin-publish"])
    stream = Stream(fantail, "cli")
    for spec in ("tcp://127.0.0.1:%d" % ports["pull"], f"ipc://{fantail.folder.name}/in"):
        for line in lines:
            done = subprocess.run([*line, "--spec", spec, "--sender", "s", "cli", "hello"], capture_output=True, timeout=20)
            same((done.returncode, done.stdout.strip(), done.stderr), (0, b"Published", b""))
            same(stream.line(), b"hello\n")
    wrong = subprocess.run([*lines[0], "--spec", "tcp://127.0.0.1:%d" % ports["sub"], "cli", "x"], capture_output=True, timeout=20)
    same(wrong.returncode, 1)
    both = subprocess.run([*lines[0], "--spec", "tcp://127.0.0.1:1", "--key", "k", "cli", "x"], capture_output=True, timeout=20)
    same((both.returncode, b"--key" in both.stderr), (1, True))
    stream.close()


def main(binary):
    names = ("pull", "sub", "command")
    ports = dict(zip(names, free_ports(len(names))))
    config = "[grip]\nsubscriptions = 100\n[hub]\nmailbox_items = 1000\nlinger = \"1s\"\n[zeromq]\n"
    # The name of an interface is as good as its address.
    config += 'pull = ["tcp://lo:%d", "ipc://in"]\nipc_file_mode = "0600"\n' % ports["pull"]
    config += 'sub = ["tcp://127.0.0.1:%d"]\ncommand = "tcp://127.0.0.1:%d"\n' % (ports["sub"], ports["command"])
    fantail = Fantail(binary, ["* test"], config)
    context = zmq.Context()
    print("libzmq", zmq.zmq_version())
    checks = [
        lambda: check_push(fantail, context, ports["pull"]),
        lambda: check_push(fantail, context, f"ipc://{fantail.folder.name}/in"),
        lambda: check_sub(fantail, context, ports["sub"]),
        lambda: check_linger(fantail, context, ports),
        lambda: check_commands(fantail, context, ports),
        lambda: check_garbage(fantail, context, ports),
        lambda: check_command_lines(fantail, binary, ports),
        lambda: check_pubcontrol(fantail, ports),
        lambda: check_channels(fantail, context, ports["sub"]),
        lambda: check_flood(fantail, context, ports["pull"]),
    ]
    same(os.stat(f"{fantail.folder.name}/in").st_mode & 0o777, 0o600)
    for check in checks:
        check()
        until("nobody is held", lambda: metric(fantail, "fantail_hub_channels") == 0)
    context.term()
    fantail.stop()
    if any('"panicked' in line for line in fantail.log):
        raise AssertionError("a panic")
    print("ok")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
