"""Recovery: what both systems do when items are missing, and when links are to be followed. A story is an origin's answers
by target, and steps of clients and a publisher; each run has a channel of its own, for order lasts."""

import itertools
import socket
import time
from dataclasses import dataclass, field

from wire import Message, Reader, answer, hold, request

#: In answers and items, the name of the run's channel.
CHANNEL = "CHANNEL"
NAMES = (f"channel-{n}" for n in itertools.count())
PATIENCE = 7
#: Pushpin subscribes some time after the client got the head.
SETTLE = 0.35
#: 1.36 asks the holds of a channel again a second after its first subscription, whatever its configuration says.
FIRST = 1.2


@dataclass
class Story:
    name: str
    #: target -> the answers to its requests, the last one to all further
    answers: dict
    steps: list
    host: str = "story.example"
    differs: dict = field(default_factory=dict)


def get(target="/", who=0):
    """A client asks; the hold is there when the next step begins."""
    return lambda run: run.get(target, who)


def send(target, body=b"", who=0, kind="text/plain", method="POST"):
    """A client asks for something that is not held."""
    return lambda run: run.send(method, target, body, who, kind)


def hear(content, who=0):
    """A client of a stream has this, or what it has instead after a while."""
    return lambda run: run.hear(len(content), who)


def response(who=0):
    """A client gets a whole response."""
    return lambda run: run.response(who)


def asked(count):
    return lambda run: run.origin.wait(count)


def pause(seconds):
    return lambda run: time.sleep(seconds)


def publish(*items):
    return lambda run: run.publish(list(items))


def recover():
    return lambda run: run.post("/recover/", b"")


class Run:
    def __init__(self, story, system, origin, post):
        self.story, self.system, self.origin, self.post_items = story, system, origin, post
        self.channel, self.clients, self.facts, self.counts = next(NAMES), {}, {}, {}

    def script(self, _, seen):
        target = seen.line.split(" ")[1]
        answers = self.story.answers.get(target, [answer("404 Not Found")])
        n = self.counts[target] = self.counts.get(target, -1) + 1
        return answers[min(n, len(answers) - 1)].replace(CHANNEL.encode(), self.channel.encode())

    def get(self, target, who):
        sock, reader = self.clients.get(who) or (None, None)
        if sock is None:
            sock = socket.create_connection(self.system.client, 5)
            reader = Reader(sock, PATIENCE)
            self.clients[who] = sock, reader
        before = len(self.origin.requests)
        sock.sendall(request(target=target, fields=[("Host", self.story.host)]))
        self.origin.wait(before + 1)
        time.sleep(SETTLE)

    def send(self, method, target, body, who, kind):
        if who not in self.clients:
            sock = socket.create_connection(self.system.client, 5)
            self.clients[who] = sock, Reader(sock, PATIENCE)
        fields = [("Host", self.story.host), ("Content-Type", kind)]
        self.clients[who][0].sendall(request(method, target.replace(CHANNEL, self.channel), fields, body))

    def hear(self, count, who):
        _, reader = self.clients[who]
        message = self.facts.get(f"client{who}.message")
        try:
            if message is None:
                message = self.facts[f"client{who}.message"] = reader.head()
                message.body = b""
            more = Message(body=b"")
            fields = {name.lower(): value for name, value in message.fields}
            reader.body(more, fields, False, count)
            message.end = more.end
        except TimeoutError:
            message.end = "silent"
        message.body += more.body

    def response(self, who):
        _, reader = self.clients[who]
        try:
            message = reader.message()
        except TimeoutError:
            message = Message(end="silent")
        said = self.facts.setdefault(f"client{who}.said", [])
        said.append((message.line, message.body, message.end))

    def publish(self, items):
        items = [{**item, "channel": self.channel} for item in items]
        self.post_items(self.system.control, items)

    def post(self, path, body):
        with socket.create_connection(self.system.control, 5) as sock:
            sock.sendall(request("POST", path, [("Host", "localhost")], body))
            Reader(sock, PATIENCE).message()

    def tell(self):
        self.origin.begin(self.script)
        for step in self.story.steps:
            step(self)
        for sock, _ in self.clients.values():
            sock.close()
        facts = {}
        for name, value in self.facts.items():
            if isinstance(value, Message):
                value = (value.line, value.body, value.end)
            facts[name] = value
        with self.origin.lock:
            requests = list(self.origin.requests)
        facts["origin.asked"] = [self.seen(request) for request in requests]
        return facts

    def seen(self, request):
        last = sorted(value for name, value in request.fields if name.lower() == "grip-last")
        return request.line, [value.replace(self.channel, CHANNEL) for value in last]


def item(id=None, prev=None, **more):
    own = {} if id is None else {"id": id}
    own |= {} if prev is None else {"prev-id": prev}
    formats = {"http-stream": {"content": f"[{id}]"}, "http-response": {"body": f"[{id}]"}}
    return {**own, "formats": formats, **more}


def hint(format):
    return {"formats": {format: {"action": "hint"}}}


def close():
    return {"formats": {"http-stream": {"action": "close"}}}


def link(target, timeout=0):
    return ("Grip-Link", f"<{target}>; rel=next" + (f"; timeout={timeout}" if timeout else ""))


def poll(prev=None):
    return hold("response", CHANNEL + (f"; prev-id={prev}" if prev else ""))


def page(prev, body, next="/next"):
    return hold("stream", f"{CHANNEL}; prev-id={prev}", [link(next, 300)], body)


def events(body):
    return answer(fields=[("Content-Type", "application/websocket-events")], body=body)


def sockjs(transport):
    """A path of this run's session."""
    return f"/chat/0/{CHANNEL}/{transport}"


PLAIN = hold("stream", CHANNEL)
FORM = "application/x-www-form-urlencoded"

STORIES = [
    Story("items come out in order", {"/": [PLAIN]}, [get(), publish(item("a"), item("e", "d"), item("d", "c"), item("c", "b"), item("b", "a")), hear("[a][b][c][d][e]")]),
    Story("an item without its predecessor", {"/": [PLAIN]}, [get(), publish(item("a"), item("c", "b")), hear("[a]"), publish(item("z", "y", **{"no-seq": True})), hear("[z]"), hear("[c]")]),
    Story("two items after the same", {"/": [PLAIN]}, [get(), publish(item("a"), item("c", "b"), item("x", "b"), item("b", "a"), item("d", "c")), hear("[a][b][c][d]")]),
    Story("an item without an id", {"/": [PLAIN]}, [get(), publish(item("a"), item(None), item("c", "b")), hear("[a][None][c]")]),
    Story("a repeated id", {"/": [PLAIN]}, [get(), publish(item("a"), item("a"), item("b")), hear("[a][b]")]),
    Story("a poll that gets its next", {"/": [poll("3")]}, [get(), publish(item("4", "3")), response()]),
    Story("a poll that has missed something", {"/": [poll("3")]}, [get(), publish(item("9", "8")), asked(2), pause(SETTLE), publish(item("4", "3")), response()]),
    Story("a poll and an item without ids", {"/": [poll("3")]}, [get(), publish(item(None)), asked(2), pause(SETTLE), publish(item("4", "3")), response()]),
    Story("a poll and what it has", {"/": [poll("3")]}, [get(), publish(item("3", "2")), pause(SETTLE), publish(item("4", "3")), response()], differs={"origin.asked": "D432"}),
    Story("a poll without a position", {"/": [poll()]}, [get(), publish(item("9", "8")), response()]),
    Story("a poll that is behind", {"/": [poll("3"), poll("3"), poll("4")]}, [get(), publish(item("4", "3")), response(), pause(FIRST), get(), asked(3), pause(SETTLE), publish(item("5", "4")), response()]),
    Story("a hint for a poll", {"/": [poll("3")]}, [get(), publish(hint("http-response")), asked(2), pause(SETTLE), publish(item("4", "3")), response()]),
    Story("recover asks polls again", {"/": [poll("3")]}, [get(), recover(), asked(2), pause(SETTLE), publish(item("4", "3")), response()]),
    Story("pages", {"/": [answer(fields=[link("/2")], body="1;")], "/2": [answer(fields=[link("3")], body="2;")], "/3": [answer(body="3;")]}, [get(), hear("1;2;3;more")]),
    Story("pages, and then a hold", {"/": [answer(fields=[link("/2")], body="1;")], "/2": [hold("stream", CHANNEL, body="2;")]}, [get(), hear("1;2;"), pause(SETTLE), publish(item("a")), hear("[a]"), publish(close()), hear("more")]),
    Story("a stream that has missed something", {"/": [page("3", "first;")], "/next": [page("9", "page;")]}, [get(), hear("first;"), publish(item("4", "3")), hear("[4]"), publish(item("9", "8", **{"no-seq": True})), hear("page;"), pause(SETTLE), publish(item("10", "9", **{"no-seq": True})), hear("[10]")]),
    Story("a stream that begins behind", {"/": [page("5", "5th;")], "/old": [page("3", "3rd;")], "/next": [page("6", "page;")]}, [get(), hear("5th;"), publish(item("6", "5")), hear("[6]"), get("/old", 1), hear("3rd;", 1), hear("page;", 1)]),
    Story("a hint for a stream", {"/": [page("3", "first;")], "/next": [page("3", "page;")]}, [get(), hear("first;"), publish(hint("http-stream")), hear("page;"), pause(SETTLE), publish(item("4", "3")), hear("[4]")]),
    Story("recover follows links", {"/": [page("3", "first;")], "/next": [page("3", "page;")]}, [get(), hear("first;"), recover(), hear("page;")]),
    Story("a link that is answered at last", {"/": [page("3", "first;")], "/next": [answer("500 Oh"), page("4", "page;")]}, [get(), hear("first;"), publish(hint("http-stream")), hear("page;")]),
    Story("a page that is a poll", {"/": [page("3", "first;")], "/next": [poll("3")]}, [get(), hear("first;"), publish(hint("http-stream")), hear("more")]),
    Story("a page with an end", {"/": [page("3", "first;")], "/next": [answer(body="last;")]}, [get(), hear("first;"), publish(hint("http-stream")), hear("last;more")]),
    Story("a session of SockJS", {"/chat": [events(b"OPEN\r\n"), events(b"TEXT 5\r\nhello\r\n")]}, [send(sockjs("xhr")), response(), send(sockjs("xhr_send"), b'["hi"]', 1), response(1), send(sockjs("xhr"), who=2), response(2)], host="sockjs.example", differs={"client1.said": "D406"}),
    Story("a session of SockJS by JSON-P", {"/chat": [events(b"OPEN\r\n"), events(b"TEXT 5\r\nhello\r\n")]}, [send(sockjs("jsonp?c=cb"), method="GET"), response(), send(sockjs("jsonp_send"), b"d=%5B%22hi%22%5D", 1, FORM), response(1), send(sockjs("jsonp?c=cb"), who=2, method="GET"), response(2)], host="sockjs.example"),
    Story("a session of SockJS that its origin closes", {"/chat": [events(b"OPEN\r\n"), events(b"CLOSE 6\r\n\x0f\xa1bye!\r\n")]}, [send(sockjs("xhr")), response(), send(sockjs("xhr_send"), b'["hi"]', 1), response(1), send(sockjs("xhr"), who=2), response(2), send(sockjs("xhr"), who=3), response(3)], host="sockjs.example", differs={"client1.said": "D406"}),
    Story("two who poll a session of SockJS", {"/chat": [events(b"OPEN\r\n"), events(b"")]}, [send(sockjs("xhr")), response(), send(sockjs("xhr"), who=1), pause(0.3), send(sockjs("xhr"), who=2), response(2)], host="sockjs.example"),
    Story("a session of SockJS is sent nonsense", {"/chat": [events(b"OPEN\r\n"), events(b"")]}, [send(sockjs("xhr")), response(), send(sockjs("xhr_send"), b'["hi', 1), response(1), send(sockjs("xhr_send"), b"", 2), response(2), send("/chat/0/nobody/xhr_send", b'["a"]', 3), response(3)], host="sockjs.example", differs={"client1.said": "D406", "client2.said": "D406"}),
]


def tell(story, system, origin, post):
    """What a story's clients and origin see on one system, as facts."""
    return Run(story, system, origin, post).tell()
