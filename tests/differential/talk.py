"""WebSockets on raw sockets: a client that does what it is told and notes what it hears, and an origin that can
be asked by POSTs of events or has WebSockets itself. Both tell what happened; neither judges."""

import base64
import hashlib
import itertools
import json
import re
import socket
import struct
import threading
import time

from wire import Message, Reader, answer, request

KINDS = {1: "TEXT", 2: "BINARY", 8: "CLOSE", 9: "PING", 10: "PONG"}
OPCODES = {kind: opcode for opcode, kind in KINDS.items()}
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
#: How long to wait for what may never come. Pushpin lets some connections hang.
PATIENCE = 3
PROBE = b"~"
#: Each talk has a mark in its target, so that what comes late is not taken for the next one's.
MARKS = itertools.count()


def upgrade(host, target="/", fields=(), key=KEY):
    own = [("Host", host), ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
    return request(target=target, fields=own + [("Sec-WebSocket-Key", key), *fields])


def accept(key):
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


def frame(opcode, payload, masked, fin=True):
    """One frame; the mask is nothing, but there."""
    head = bytes([opcode | 128 * fin])
    bit = 128 * masked
    if len(payload) < 126:
        head += bytes([len(payload) | bit])
    elif len(payload) < 65536:
        head += struct.pack(">BH", 126 | bit, len(payload))
    else:
        head += struct.pack(">BQ", 127 | bit, len(payload))
    return head + bytes(4 * masked) + payload


def closing(code=None, reason=""):
    return b"" if code is None else struct.pack(">H", code) + reason.encode()


class Frames:
    """Whole messages from a socket, as (kind, content); control frames come between fragments."""

    def __init__(self, reader):
        self.reader, self.kind, self.content = reader, None, b""

    def next(self):
        """None at the end of the connection; raises TimeoutError."""
        while True:
            head = self.reader.exactly(2)
            if len(head) < 2:
                return None
            length = head[1] & 127
            if length > 125:
                size = 2 if length == 126 else 8
                length = int.from_bytes(self.reader.exactly(size), "big")
            mask = self.reader.exactly(4) if head[1] & 128 else None
            payload = self.reader.exactly(length)
            if mask and any(mask):
                payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
            opcode = head[0] & 15
            if opcode > 7:
                return KINDS.get(opcode, opcode), payload
            self.kind = KINDS.get(opcode, self.kind)
            self.content += payload
            if head[0] & 128:
                whole, self.content = self.content, b""
                return self.kind, whole


class Client:
    """One WebSocket of a client."""

    def __init__(self, sock, publish):
        self.sock, self.publish = sock, publish
        self.reader = Reader(sock, PATIENCE)
        self.frames = Frames(self.reader)
        self.said, self.end, self.has_closed = [], None, False

    def send(self, opcode, payload, fin=True):
        self.raw(frame(opcode, payload, True, fin))

    def raw(self, data):
        try:
            self.sock.sendall(data)
        except OSError:
            pass

    def close(self, payload):
        self.has_closed = True
        self.send(8, payload)

    def leave(self):
        self.end = "left"
        self.sock.close()

    def hear(self, count):
        """Notes so many messages, unless the connection ends before."""
        wanted = len(self.said) + count
        while len(self.said) < wanted and self.end is None:
            self.hear_one()

    def hear_one(self):
        """Notes what comes next, unless it is a probe; gives it."""
        try:
            message = self.frames.next()
        except TimeoutError:
            self.end = "silent"
            return None
        if message is None:
            self.end = "dropped"
        elif message[0] == "CLOSE":
            payload = message[1]
            code = struct.unpack(">H", payload[:2])[0] if len(payload) > 1 else "no code"
            self.end = f"closed {code} {payload[2:].decode('latin1')}".strip()
            if not self.has_closed:
                self.close(payload)
            self.reader.patience = PATIENCE
            try:
                while self.reader.more():
                    pass
            except TimeoutError:
                self.end += ", connection left open"
        elif message[1] != PROBE:
            self.said.append((message[0], message[1].decode("latin1")))
        return message

    def listen(self, channel):
        """Publishes probes until one arrives: Pushpin subscribes some time after it said so."""
        self.reader.patience = 0.05
        for _ in range(40):
            self.publish([{"channel": channel, "formats": {"ws-message": {"content": PROBE.decode()}}}])
            try:
                message = self.frames.next()
            except TimeoutError:
                continue
            if message is None or message[1] == PROBE:
                break
            self.said.append((message[0], message[1].decode("latin1")))
        self.reader.patience = PATIENCE


class Peer:
    """The origin's side of a talk, in both modes: what it hears, and what it says to it."""

    def __init__(self, talk, mark):
        self.talk, self.mark, self.heard, self.lock, self.over = talk, mark, [], threading.Lock(), threading.Event()

    def replies(self, kind, content):
        """Pairs of kind and content for one that was heard."""
        with self.lock:
            self.heard.append((kind, content.decode("latin1")))
        if kind in ("CLOSE", "DISCONNECT"):
            self.over.set()
        if content in self.talk.answers:
            return self.talk.answers[content]
        if kind == "OPEN":
            return [("OPEN", b""), *self.talk.opening]
        if kind in ("TEXT", "BINARY"):
            return [(kind, self.talk.prefix + content)] if self.talk.echo else []
        return {"PING": [("PONG", content)], "CLOSE": [("CLOSE", content)]}.get(kind, [])

    def script(self, _, asked):
        """What an `Origin` answers to one request."""
        fields = {name.lower(): value for name, value in asked.fields}
        if self.mark not in asked.line:
            # Of a talk that is over.
            return answer("410 Gone")
        if self.talk.refuse is not None:
            return self.talk.refuse
        extensions = [("Sec-WebSocket-Extensions", self.talk.grip)] if self.talk.grip else []
        if fields.get("content-type") == "application/websocket-events":
            replies = [reply for event in events(asked.body) for reply in self.replies(*event)]
            body = b"".join(event(*reply) for reply in replies)
            own = [("Content-Type", self.talk.media_type), *self.talk.fields]
            return answer(fields=own + (extensions if b"OPEN" in asked.body else []), body=body)
        if "sec-websocket-key" not in fields:
            return answer(body="ready")
        lines = [("Upgrade", "websocket"), ("Connection", "Upgrade"), *extensions, *self.talk.fields]
        lines.append(("Sec-WebSocket-Accept", accept(fields["sec-websocket-key"])))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"HTTP/1.1 101 Switching Protocols\r\n{head}\r\n".encode(), self.natively

    def natively(self, sock, reader):
        frames = Frames(reader)
        self.write(sock, self.talk.opening)
        while True:
            message = frames.next()
            if message is None:
                if not self.over.is_set():
                    self.replies("DISCONNECT", b"")
                return
            if not self.write(sock, self.replies(*message)):
                return
            if message[0] == "CLOSE":
                return

    def write(self, sock, replies):
        for kind, content in replies:
            if kind == "DISCONNECT":
                return False
            sock.sendall(frame(OPCODES[kind], content, False))
        return True


def events(body):
    """The events of a body; an event without content has the empty one."""
    while body:
        line, _, body = body.partition(b"\r\n")
        kind, _, length = line.decode().partition(" ")
        size = int(length, 16) if length else 0
        yield kind, body[:size]
        body = body[size + 2 :] if length else body


def event(kind, content):
    return b"%s %x\r\n%s\r\n" % (kind.encode(), len(content), content) if content else kind.encode() + b"\r\n"


def run(talk, mode, system, origin):
    """What client and origin see of one talk, as facts."""
    host = f"{talk.host}{mode}.example"
    mark = f"talk={next(MARKS)}&"
    peer = Peer(talk, mark)
    origin.begin(peer.script)
    with socket.create_connection(system.client, 5) as sock:
        client = Client(sock, lambda items: post(system.control, items))
        sock.sendall(talk.handshake(host, "/?" + mark) if talk.handshake else upgrade(host, "/?" + mark, talk.asks))
        try:
            head = client.reader.message()
        except TimeoutError:
            head = Message(end="silent")
        facts = head.view("client")
        if head.line.startswith("HTTP/1.1 101"):
            converse(client, talk.steps)
            facts["client.end"], facts["client.said"] = client.end, client.said
            peer.over.wait(PATIENCE)
    with origin.lock:
        requests = [asked for asked in origin.requests if mark in asked.line]
    with peer.lock:
        facts["origin.heard"] = list(peer.heard)
    name = "post" if mode == "over" else "origin"
    facts.update(first_two(name, requests, mark))
    if talk.counts:
        facts[f"{name}.count"] = len(requests)
    facts["origin.connections"] = len({dict(asked.fields).get("Connection-Id") for asked in requests})
    return facts


def first_two(name, requests, mark):
    """The head of the first request, and of the second what is not as in the first."""
    views = [{key: normal(key, value) for key, value in asked.view(name).items()} for asked in requests[:2]]
    for view in views:
        view[f"{name}.line"] = view[f"{name}.line"].replace(mark, "")
        del view[f"{name}.body"], view[f"{name}.end"]
    facts = dict(views[0]) if views else {}
    for key, value in views[1].items() if views[1:] else ():
        if value != views[0].get(key):
            facts[key.replace(name, name + "2", 1)] = value
    return facts


def differs(talk, mode):
    """What may differ in this mode, as compare.py has it."""
    facts = {fact: reason for fact, reason in talk.differs.items() if fact not in ("over", "native")}
    reason = talk.differs.get(mode)
    return {**facts, **({"*": reason} if reason else {})}


def post(address, items):
    body = json.dumps({"items": items}).encode()
    with socket.create_connection(address, 5) as sock:
        sock.sendall(request("POST", "/publish/", [("Host", "localhost")], body))
        return Reader(sock, PATIENCE).message()


def converse(client, steps):
    for step in steps:
        if client.end is None:
            step(client)
    if client.end is None and not client.has_closed:
        client.close(closing(1000))
    while client.end is None:
        client.hear_one()


def normal(name, value):
    """What varies between two runs of one system."""
    if name.endswith(".connection-id") and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value):
        return "a UUID"
    if name.endswith(".sec-websocket-key") and re.fullmatch(r"[\w+/]{22}==", value):
        return "16 bytes"
    if name.endswith(".grip-sig") and re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", value):
        return "a signature"
    return value


def text(content):
    return lambda client: client.send(1, content.encode())


def binary(content):
    return lambda client: client.send(2, content)


def ping(content=b""):
    return lambda client: client.send(9, content)


def pong(content=b""):
    return lambda client: client.send(10, content)


def part(opcode, content, fin=False):
    """One fragment."""
    return lambda client: client.send(opcode, content, fin)


def close(*close):
    return lambda client: client.close(closing(*close))


def raw(data):
    return lambda client: client.raw(data)


def leave():
    return lambda client: client.leave()


def hear(count=1):
    return lambda client: client.hear(count)


def listen(channel="c"):
    return lambda client: client.listen(channel)


def publish(*items):
    return lambda client: client.publish(list(items))


def pause(seconds):
    """For what shows by not coming."""
    return lambda _: time.sleep(seconds)
