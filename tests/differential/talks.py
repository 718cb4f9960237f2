"""Conversations over WebSockets that are held with both systems, by an origin over HTTP (`over`), by one with
WebSockets of its own (`native`), or by each. What may differ is named as in cases.py."""

import json
from dataclasses import dataclass, field

from talk import close, closing, frame, hear, leave, listen, part, pause, ping, pong, publish, raw, text, binary, upgrade
from wire import answer, request

BOTH = ("over", "native")
EVENTS = "application/websocket-events"


@dataclass
class Talk:
    name: str
    #: What the client does once it is open; then it closes with 1000.
    steps: list = field(default_factory=list)
    #: What the origin replies to a content; it echoes the rest.
    answers: dict = field(default_factory=dict)
    #: What it says by itself at the beginning.
    opening: list = field(default_factory=list)
    modes: tuple = BOTH
    #: Sec-WebSocket-Extensions of its handshake.
    grip: str = None
    #: What an echo begins with.
    prefix: bytes = b""
    echo: bool = True
    #: Beginning of the host, for other routes.
    host: str = ""
    #: Headers of the client's handshake, and of the origin's.
    asks: list = field(default_factory=list)
    fields: list = field(default_factory=list)
    media_type: str = EVENTS
    #: Bytes instead of the origin's answers.
    refuse: bytes = None
    #: From host and target: bytes instead of the client's handshake.
    handshake: object = None
    #: Compare how many requests the origin gets.
    counts: bool = False
    #: fact -> id in docs/differences.md; a mode stands for all facts of this mode
    differs: dict = field(default_factory=dict)


def grip(name, steps, answers=None, **more):
    """A talk with an origin that speaks GRIP and has subscribed the client to `c`."""
    return Talk(name, steps, answers or {}, [SUBSCRIBE, *more.pop("opening", [])], grip="grip", prefix=b"m:", **more)


def control(kind, **members):
    return "TEXT", b"c:" + json.dumps({"type": kind, **members}).encode()


def item(channel="c", meta=None, id=None, **format):
    item = {"channel": channel, "formats": {"ws-message": format}}
    return {**item, **({"meta": meta} if meta else {}), **({"id": id} if id else {})}


def said(content):
    return "TEXT", b"m:" + content


def events(*parts):
    """An answer of events with this body."""
    return answer(fields=[("Content-Type", EVENTS)], body=b"".join(parts))


def changed(**changes):
    """A handshake with other headers; None leaves one out."""

    def handshake(host, target):
        fields = {"Host": host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        fields["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        fields.update({name.replace("_", "-"): value for name, value in changes.items()})
        return request(target=target, fields=[pair for pair in fields.items() if pair[1] is not None])

    return handshake


SUBSCRIBE = control("subscribe", channel="c")
BIG = "0123456789" * 1500

TALKS = [
    # The handshake.
    Talk("a handshake", [], asks=[("Origin", "http://a.example"), ("Cookie", "a=1"), ("X-A", "1")], fields=[("X-B", "2"), ("Set-Cookie", "b=2")]),
    Talk("a subprotocol", [], asks=[("Sec-WebSocket-Protocol", "a, b")], fields=[("Sec-WebSocket-Protocol", "b")]),
    Talk("an extension of a client", [], asks=[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]),
    Talk("a client that says grip", [], asks=[("Sec-WebSocket-Extensions", "grip"), ("Grip-Sig", "x")]),
    Talk("session headers of a client", [text("a"), hear()], asks=[("Connection-Id", "x"), ("Meta-User", "x"), ("Content-Bytes-Replayed", "7")], modes=("over",), differs={"post.content-bytes-replayed": "D230"}),
    Talk("x-forwarded-for and proto", [], asks=[("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-Proto", "https")]),
    Talk("grip of an origin", [text("a"), hear()], grip="grip", prefix=b"m:"),
    Talk("no_grip", [text("a"), hear()], host="plain."),
    Talk("the next target", [text("a"), hear()], host="down."),
    Talk("no target left", host="dead.", differs={"client.content-type": "D201"}),
    Talk("an upper-case upgrade", [], handshake=changed(Upgrade="WebSocket"), differs={"*": "D203"}),
    Talk("no Connection", handshake=changed(Connection=None), differs={"*": "D202"}),
    Talk("no key", handshake=changed(Sec_WebSocket_Key=None), differs={"client*": "D202"}),
    Talk("a bad key", handshake=changed(Sec_WebSocket_Key="x"), differs={"*": "D202"}),
    Talk("another version", handshake=changed(Sec_WebSocket_Version="8"), differs={"client*": "D202"}),
    Talk("a POST for a WebSocket", handshake=lambda host, target: upgrade(host, target).replace(b"GET", b"POST", 1), differs={"client*": "D202"}),
    # Refusals.
    Talk("a refusal", refuse=answer("403 Forbidden", [("X-A", "1"), ("Content-Type", "text/plain")], "not for you"), differs={"native": "D204"}),
    Talk("a redirect", refuse=answer("302 Found", [("Location", "/other")]), differs={"native": "D204"}),
    Talk("an answer instead of a handshake", refuse=answer(body="hello"), differs={"native": "D204"}),
    Talk("a long refusal", refuse=answer("500 Oops", body="x" * 8000), differs={"native": "D204"}),
    Talk("an answer without OPEN", refuse=events(b"TEXT 1\r\na\r\n"), modes=("over",), differs={"client.content-type": "D201"}),
    Talk("an answer without events", refuse=events(), modes=("over",), differs={"client.content-type": "D201"}),
    Talk("an answer that is no list of events", refuse=events(b"OPEN"), modes=("over",), differs={"client.content-type": "D201"}),
    Talk("a media type with a parameter", [text("a"), hear()], media_type=EVENTS + "; charset=utf-8", modes=("over",), differs={"*": "D205"}),
    Talk("an event of an unknown type", [text("a"), hear(2)], {b"a": [("FLY", b"x"), ("TEXT", b"b"), ("TEXT", b"c")]}, modes=("over",)),
    Talk("an origin that goes", [text("a")], {b"a": [("TEXT", b"b"), ("DISCONNECT", b"")]}, modes=("over",), differs={"*": "D206"}),
    # Messages.
    Talk("texts", [text("hello"), hear(), text("gr\u00fc\u00dfe"), hear(), text(""), hear()]),
    Talk("binaries", [binary(b"\x00\xff"), hear(), binary(b""), hear()]),
    Talk("pings and pongs", [ping(), hear(), ping(b"payload"), hear(), pong(b"x"), text("a"), hear()], differs={"native": "D207"}),
    Talk("several at once", [text("a"), text("b"), binary(b"c"), ping(b"d"), text("e"), hear(5)], differs={"native": "D207"}),
    Talk("fragments", [part(1, b"a"), part(0, b"b"), part(0, b"c", True), hear(), part(2, b""), part(0, b"", True), hear()]),
    Talk("a ping between fragments", [part(1, b"a"), part(9, b"p", True), part(0, b"b", True), hear(2)], differs={"*": "D208"}),
    Talk("messages of 15,000 bytes", [text(BIG), hear(), binary(BIG.encode()), hear()]),
    Talk("an origin that says more", [text("go"), hear(4)], {b"go": [("TEXT", b"1"), ("BINARY", b"2"), ("PING", b"3"), ("TEXT", b"")]}, differs={"native": "D207"}),
    Talk("an origin that begins", [hear(2)], opening=[("TEXT", b"hello"), ("BINARY", b"\xff")]),
    Talk("one event a request", [raw(b"".join(frame(1, content, True) for content in (b"a", b"b", b"", b"c"))), hear(4)], host="one.", modes=("over",), counts=True),
    Talk("meta", [text("a"), hear()], fields=[("Set-Meta-User", "ann"), ("Set-Meta-Gone", "")], modes=("over",)),
    # The end.
    Talk("a close of the client", [close(1000)]),
    Talk("a close of the client with a reason", [close(4001, "gr\u00fc\u00dfe")]),
    Talk("a close of the client without a code", [close()], differs={"client.end": "D209"}),
    Talk("a close behind messages", [text("a"), text("b"), close(4001), hear(2)], modes=("over",)),
    Talk("a close that is answered with another", [close(1001)], {closing(1001): [("CLOSE", closing(4002, "other"))]}),
    Talk("a close of the origin", [text("a"), hear()], {b"a": [("TEXT", b"b"), ("CLOSE", closing(4001, "bye"))]}, differs={"native": "D210"}),
    Talk("a close of the origin without a code", [text("a")], {b"a": [("CLOSE", b"")]}, differs={"native": "D209"}),
    Talk("the libraries' close", [text("a")], {b"a": [("CLOSE", b"\0\0")]}, modes=("over",), differs={"client.end": "D211"}),
    Talk("a client that is gone", [text("a"), hear(), leave()]),
    Talk("a close that the origin ignores", [close(1000)], {closing(1000): []}, modes=("over",)),
    Talk("a text that is no UTF-8", [raw(b"\x81\x82\0\0\0\0\xff\xfe")], differs={"*": "D212"}),
    Talk("a frame that is not masked", [raw(b"\x81\x01a")], differs={"*": "D212"}),
    Talk("a reserved opcode", [raw(b"\x83\x80\0\0\0\0")], differs={"client.end": "D212"}),
    Talk("a reserved bit", [raw(b"\xc1\x81\0\0\0\0a")], differs={"client.end": "D212"}),
    Talk("a close with a reserved code", [raw(b"\x88\x82\0\0\0\0\x03\xed")], differs={"*": "D212"}),
    Talk("a long ping", [raw(b"\x89\xfe\x00\x7e\0\0\0\0" + b"x" * 126)], differs={"client.end": "D212"}),
    # GRIP.
    grip("an item", [listen(), publish(item(content="one")), hear(), publish(item(content="two")), hear()]),
    grip("items of all types", [listen(), publish(item(**{"content-bin": "AP8="}), item(type="text", **{"content-bin": "YQ=="}), item(type="ping", content="p"), item(type="pong"), item(content="")), hear(5)], differs={"*": "D213"}),
    grip("an item without a format for it", [listen(), publish({"channel": "c", "formats": {"http-stream": {"content": "no"}}}, item(content="yes")), hear()]),
    grip("an id twice", [listen(), publish(item(content="a", id="w1"), item(content="b", id="w1"), item(content="c")), hear(2)]),
    grip("an item that closes", [listen(), publish(item(action="close"))], differs={"origin.heard": "D214"}),
    grip("an item that closes with a code", [listen(), publish(item(action="close", code=4001, reason="bye"))], differs={"*": "D214"}),
    grip("an item that closes with a reason", [listen(), publish(item(action="close", reason="bye"))], differs={"origin.heard": "D214", "client.end": "D420"}),
    grip("a hint", [listen(), publish(item(action="hint"), item(content="a")), hear()]),
    grip("a refresh", [listen(), publish(item(action="refresh"), item(content="a")), hear()], modes=("over",), differs={"*": "D215"}),
    grip("unsubscribe", [listen(), text("leave"), hear(), pause(0.3), publish(item(content="no"), item("d", content="no")), text("a"), hear()], {b"leave": [control("unsubscribe", channel="c"), said(b"left")]}),
    grip("detach", [listen(), text("go"), hear(), pause(0.3), publish(item(content="alone")), hear(), text("lost"), publish(item(action="close"))], {b"go": [said(b"gone"), control("detach")]}),
    grip("messages without a prefix", [text("go"), hear(2)], {b"go": [("TEXT", b"no"), ("TEXT", b"m"), said(b"yes"), ("BINARY", b"no"), ("BINARY", b"c:no"), ("BINARY", b"m:"), ("TEXT", b"c:")]}),
    Talk("a message prefix", [text("a"), hear()], {b"a": [("TEXT", b"no"), ("TEXT", b"x-yes")]}, grip='grip; message-prefix="x-"'),
    Talk("an empty message prefix", [text("a"), hear(2), listen()], {b"a": [("TEXT", b"c:{}"), ("TEXT", b"a"), SUBSCRIBE, ("TEXT", b"")]}, grip='grip; message-prefix=""'),
    Talk("a control message without grip", [text("a"), hear()], {b"a": [SUBSCRIBE]}),
    grip("control messages that are wrong", [text("a"), hear(), listen(), publish(item(content="a")), hear()], {b"a": [("TEXT", b"c:x"), control("fly"), control("subscribe"), control("subscribe", channel=1), ("TEXT", b"c:[]"), said(b"b")]}),
    grip("a keep-alive", [hear(2)], opening=[control("keep-alive", content="still", timeout=1, mode="interval")]),
    grip("a keep-alive of pings", [hear()], opening=[control("keep-alive", **{"message-type": "ping", "content-bin": "AP8=", "timeout": 1})]),
    grip("a keep-alive that is switched off", [text("off"), hear(), pause(1.5), text("a"), hear()], {b"off": [control("keep-alive"), said(b"off")]}, opening=[control("keep-alive", content="no", timeout=1)]),
    grip("a delayed message", [text("a"), hear(2)], {b"a": [control("send-delayed", content="later", timeout=1), said(b"first")]}),
    grip("a delayed message and another", [text("a"), hear(2)], {b"a": [control("send-delayed", content="1", timeout=1), control("send-delayed", **{"content-bin": "/w==", "message-type": "binary", "timeout": 1})]}),
    grip("a delayed message that is flushed", [text("a"), hear(2)], {b"a": [control("send-delayed", content="1", timeout=50), control("flush-delayed"), said(b"2")]}, differs={"client.said": "D216"}),
    grip("a delayed message without content", [text("a"), hear()], {b"a": [control("send-delayed", timeout=1)]}),
    grip("skip-self", [listen(), listen("f"), publish(item("f", {"sender": "ann"}, content="no"), item("f", {"sender": "bob"}, content="yes")), hear()], opening=[control("set-meta", name="user", value="ann"), control("subscribe", channel="f", filters=["skip-self"])]),
    grip("skip-users", [listen("f"), publish(item("f", {"skip_users": "x, ann"}, content="no"), item("f", {"skip_users": "x"}, content="yes")), hear()], opening=[control("set-meta", name="user", value="ann"), control("subscribe", channel="f", filters=["skip-users"])]),
    grip("require-sub", [listen("f"), publish(item("f", {"require_sub": "d"}, content="no"), item("f", {"require_sub": "c"}, content="yes")), hear()], opening=[control("subscribe", channel="f", filters=["require-sub"])], differs={"*": "D217"}),
    grip("too many filters", [text("a")], {b"a": [control("subscribe", channel="d", filters=["skip-self"] * 6)]}, differs={"*": "D218"}),
    grip("too many filters with debug", [text("a")], {b"a": [control("subscribe", channel="d", filters=["skip-self"] * 6)]}, host="debug.", differs={"*": "D218"}),
    grip("a prefix of the route", [listen("p-c"), publish(item(content="no"), item("p-c", content="yes")), hear()], host="prefix."),
    Talk("a channel of the target", [listen("implicit"), publish(item("implicit", content="yes")), hear()], host="sub."),
    grip("an item of 12,000 bytes", [listen(), publish(item(content="x" * 12000)), hear()]),
    grip("more channels than there may be", [listen("c18"), publish(item("c20", content="no"), item("c5", content="yes")), hear()], opening=[control("subscribe", channel=f"c{n}") for n in range(21)]),
]
