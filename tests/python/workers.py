"""Workers behind ZeroMQ (`zhttpreq/` and `zhttp/` targets), written with pyzmq, answer for Fantail.

They speak plain ZHTTP with a TNetString of their own, so that nothing here agrees with Fantail's mistakes.
Usage: workers.py PATH-TO-FANTAIL
"""

import http.client
import itertools
import json
import os
import socket
import stat
import sys
import tempfile
import threading
import time

import zmq
from fantail import Fantail
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from zeromq_inputs import metric

CONTEXT = zmq.Context()
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
FOLDER = tempfile.mkdtemp()
PATIENCE = 20


def dumps(value):
    if value is None:
        return b"0:~"
    if isinstance(value, bool):
        data, kind = (b"true" if value else b"false"), b"!"
    elif isinstance(value, int):
        data, kind = str(value).encode(), b"#"
    elif isinstance(value, (bytes, str)):
        data, kind = (value.encode() if isinstance(value, str) else value), b","
    elif isinstance(value, dict):
        data, kind = b"".join(dumps(k) + dumps(v) for k, v in value.items()), b"}"
    else:
        data, kind = b"".join(map(dumps, value)), b"]"
    return str(len(data)).encode() + b":" + data + kind


def loads(text):
    length, rest = text.split(b":", 1)
    data, kind, rest = rest[: int(length)], rest[int(length) : int(length) + 1], rest[int(length) + 1 :]
    values = []
    if kind in b"}]":
        while data:
            value, data = loads(data)
            values.append(value)
    return {
        b",": lambda: data,
        b"#": lambda: int(data),
        b"!": lambda: data == b"true",
        b"~": lambda: None,
        b"]": lambda: values,
        b"}": lambda: {k.decode(): v for k, v in zip(values[::2], values[1::2])},
    }[kind](), rest


def packet(raw):
    assert raw[:1] == b"T", raw
    value, rest = loads(raw[1:])
    assert rest == b"", rest
    return value


class Worker(threading.Thread):
    """A worker has a context of its own, so that when it has stopped its connections are closed, not just about to be.

    What is asked then must not meet it any more, though Fantail may not have noticed yet.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.context, self.running = zmq.Context(), True

    def stop(self):
        self.running = False
        self.join()
        self.context.term()


class Whole(Worker):
    """A worker of `zhttpreq`: `answer(request)` gives the members of the response, or None to go away instead."""

    def __init__(self, spec, kind, answer):
        super().__init__()
        self.socket, self.kind, self.answer, self.served = self.context.socket(kind), kind, answer, 0
        self.socket.linger = 0
        self.socket.connect(spec)
        self.start()

    def run(self):
        while self.running:
            if not self.socket.poll(20):
                continue
            *envelope, raw = self.socket.recv_multipart()
            request = packet(raw)
            assert "seq" not in request and request["from"] and request["id"], request
            self.served += 1
            response = self.answer(request)
            if response is None:
                break
            self.socket.send_multipart([*envelope, b"T" + dumps({"id": request["id"], **response})])
        self.socket.close()


class Streaming(Worker):
    """A worker of `zhttp`: `serve(session)` runs in a thread of its own for each request."""

    def __init__(self, base, serve, kind=zmq.ROUTER, by_router=False):
        super().__init__()
        self.name_ = f"worker-{os.getpid()}-{id(self)}".encode()
        self.serve, self.sessions, self.by_router = serve, {}, by_router
        self.taking, self.following, self.saying = map(self.context.socket, (zmq.PULL, kind, zmq.PUB))
        self.following.identity = self.name_
        for each, suffix in ((self.taking, "-out"), (self.following, "-out-stream"), (self.saying, "-in")):
            each.linger = 0
            each.connect(base + suffix)
        self.lock = threading.Lock()
        self.cancelled, self.gaps, self.peer = [], [], None
        self.start()

    def run(self):
        poller = zmq.Poller()
        poller.register(self.taking, zmq.POLLIN)
        poller.register(self.following, zmq.POLLIN)
        while self.running:
            ready = dict(poller.poll(20))
            if self.taking in ready:
                request = packet(self.taking.recv())
                assert request["seq"] == 0 and request["stream"] is True, request
                session = Session(self, request)
                self.sessions[request["id"]] = session
                threading.Thread(target=self.attend, args=(session,), daemon=True).start()
            if self.following in ready:
                frames = self.following.recv_multipart()
                assert frames[-2] == b"", frames
                if len(frames) == 3:
                    self.peer = frames[0]
                said = packet(frames[-1])
                session = self.sessions.get(said["id"])
                if session is not None:
                    session.hear(said)
        for each in (self.taking, self.following, self.saying):
            each.close()

    def attend(self, session):
        try:
            self.serve(session)
        except Exception as error:
            print(f"a worker failed: {error!r}", file=sys.stderr)
            raise

    def say(self, to, raw):
        with self.lock:
            self.saying.send(to + b" T" + raw)


class Session:
    """One session, as its worker sees it: sequence and credits are minded, unless a test does not want that."""

    def __init__(self, worker, request):
        self.worker, self.request = worker, request
        self.sent, self.heard, self.credits = 0, 1, request["credits"]
        self.news = threading.Condition()
        self.packets, self.over = [], None

    def hear(self, said):
        with self.news:
            if said["seq"] != self.heard:
                self.worker.gaps.append(said)
            self.heard += 1
            self.credits += said.get("credits", 0)
            if said.get("type") == b"cancel":
                self.over = said
                self.worker.cancelled.append(said["id"])
            elif said.get("type") not in (b"credit", b"keep-alive"):
                self.packets.append(said)
            self.news.notify_all()

    def say(self, seq=None, **members):
        with self.news:
            seq, self.sent = self.sent if seq is None else seq, self.sent + 1
        named = {name.replace("_", "-"): value for name, value in members.items()}
        self.worker.say(
            self.request["from"], dumps({"from": self.worker.name_, "id": self.request["id"], "seq": seq, **named})
        )

    def next(self):
        with self.news:
            assert self.news.wait_for(lambda: self.packets or self.over, PATIENCE), "nothing came"
            return self.packets.pop(0) if self.packets else self.over

    def spend(self, size):
        """Waits for credits for some of so many bytes."""
        with self.news:
            assert self.news.wait_for(lambda: self.credits > 0 or self.over, PATIENCE), "no credits came"
            if self.over:
                return 0
            size = min(size, self.credits)
            self.credits -= size
            return size


def respond(session, body=b"", headers=(), code=200, **members):
    headers = [["Content-Type", "text/plain"], *headers]
    session.say(code=code, reason="OK", headers=headers, body=body, **members)


specs = (f"ipc://{FOLDER}/{n}" for n in itertools.count())


def ask(server, method="GET", path="/", body=None, headers=()):
    connection = http.client.HTTPConnection(*server.client, timeout=PATIENCE)
    connection.request(method, path, body, dict(headers))
    response = connection.getresponse()
    return response.status, response.read().decode(), response


def publish(server, channel, formats):
    connection = http.client.HTTPConnection(*server.control, timeout=PATIENCE)
    connection.request("POST", "/publish/", json.dumps({"items": [{"channel": channel, "formats": formats}]}))
    assert connection.getresponse().status == 200


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def hello(request):
    return {"code": 200, "reason": "OK", "headers": [["Content-Type", "text/plain"]], "body": "hello\n"}


def whole(binary):
    """zhttpreq: REP, ROUTER and DEALER workers; limits; GRIP; workers that go away."""
    spec = next(specs)
    server = Fantail(binary, [f"*,debug zhttpreq/{spec},ipc_file_mode=640"])
    assert stat.S_IMODE(os.stat(spec[6:]).st_mode) == 0o640

    seen = []

    def echo(request):
        seen.append(request)
        return {**hello(request), "body": request.get("body", b"")}

    for kind in (zmq.REP, zmq.ROUTER, zmq.DEALER):
        worker = Whole(spec, kind, echo)
        status, body, _ = ask(server, "POST", "/path?query", "some body", {"Host": "example.com:81", "X-It": "is"})
        assert (status, body) == (200, "some body"), (status, body)
        request = seen.pop()
        assert request["method"] == b"POST" and request["uri"] == b"http://example.com:81/path?query", request
        headers = {name.decode().lower(): value for name, value in request["headers"]}
        assert headers["host"] == b"example.com:81" and headers["x-it"] == b"is", headers
        assert "more" not in request and "stream" not in request and "credits" not in request, request
        assert len(ask(server, "POST", "/", "x" * 1_000_000)[1]) == 1_000_000
        assert ask(server, "POST", "/", "x" * 1_000_001)[0] == 413
        worker.stop()

    two = [Whole(spec, zmq.REP, hello) for _ in range(2)]
    until(lambda: ask(server)[0] == 200 and all(worker.served for worker in two), "both get some")
    for worker in two:
        worker.stop()

    for answer, text in [
        ({"code": 200, "body": "x", "more": True}, "is not whole"),
        ({"code": 99}, "cannot be understood"),
        ({"type": "error", "condition": "bad-request"}, "bad-request"),
        ({"type": "error", "condition": "policy-violation"}, "Error: Origin host/IP blocked."),
        ({"code": 200, "body": "x" * 1_000_001}, "is too long"),
    ]:
        worker = Whole(spec, zmq.REP, lambda _: answer)
        if "code" in answer and answer["code"] == 99:
            # Not understood is not heard: only that the worker has gone ends it.
            leaving = threading.Thread(target=lambda: (until(lambda: worker.served, "it is asked"), worker.stop()))
            leaving.start()
            text = "has gone"
            status, body, _ = ask(server)
            leaving.join()
        else:
            status, body, _ = ask(server)
            worker.stop()
        assert status == 502 and text in body, (answer, status, body)
    worker = Whole(spec, zmq.REP, lambda _: {"type": "error", "condition": "length-required"})
    assert ask(server)[:2] == (411, "Must provide Content-Length header.\n")
    worker.stop()

    worker = Whole(spec, zmq.REP, lambda _: None)
    status, body, _ = ask(server)
    assert status == 502 and "the worker has gone" in body, (status, body)
    worker.stop()

    hold = [["Grip-Hold", "stream"], ["Grip-Channel", "c"]]
    worker = Whole(spec, zmq.REP, lambda _: {"code": 200, "reason": "OK", "headers": hold, "body": "first\n"})
    connection = http.client.HTTPConnection(*server.client, timeout=PATIENCE)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert response.readline() == b"first\n"
    publish(server, "c", {"http-stream": {"content": "second\n"}})
    assert response.readline() == b"second\n"
    connection.close()
    worker.stop()

    try:
        connect("ws://%s:%d/" % server.client)
        raise AssertionError("there are no WebSockets")
    except InvalidStatus as refused:
        assert refused.response.status_code == 502
        assert b"WebSockets cannot be used with zhttpreq target" in refused.response.body
    server.stop()
    assert not os.path.exists(spec[6:])


def leaving(binary):
    """What was not written to a worker that goes away is another's; what was is, if it changes nothing."""
    spec = next(specs)
    server = Fantail(binary, [f"*,debug zhttpreq/{spec}"])
    # One that takes nothing, so that all but the first few kilobytes wait for it.
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(spec[6:])
    deaf.sendall(GREETING + b"\x04\x18\x05READY\x0bSocket-Type\0\0\0\x03REP")
    deaf.recv(len(GREETING) + 10, socket.MSG_WAITALL)
    answers = []
    asking = [
        threading.Thread(target=lambda: answers.append(ask(server, "POST", "/", b"x" * 900_000)[:2])) for _ in range(5)
    ]
    for each in asking:
        each.start()
    until(lambda: metric(server, "fantail_origin_requests_total") == 5, "all are on their way")
    deaf.close()
    worker = Whole(spec, zmq.REP, hello)
    for each in asking:
        each.join()
    assert sorted(status for status, _ in answers)[:4] == [200] * 4, answers
    assert all(status == 200 or "the worker has gone" in body for status, body in answers), answers

    for method, status in (("GET", 200), ("POST", 502)):
        dies = Whole(spec, zmq.REP, lambda _: None)
        statuses = []
        until(lambda: statuses.append(ask(server, method)[0]) or dies.served, "it is asked")
        dies.stop()
        assert statuses.pop() == status and set(statuses) <= {200}, (method, statuses)
    worker.stop()
    server.stop()


def fail_over(binary):
    """The next target has the request when nobody is there, or a worker says that it reached nobody."""
    first, second = next(specs), next(specs)
    server = Fantail(
        binary,
        [f"* zhttpreq/{first} zhttp/{second}"],
        environment={"FANTAIL_ORIGIN__CONNECT_TIMEOUT": "1s"},
    )
    streaming = Streaming(second, lambda session: respond(session, b"second " + session.request.get("body", b"")))
    assert ask(server, "POST", "/", "body")[:2] == (200, "second body")
    for condition in ("remote-connection-failed", "connection-timeout", "tls-error"):
        worker = Whole(first, zmq.REP, lambda _: {"type": "error", "condition": condition})
        assert ask(server, "POST", "/", "body")[:2] == (200, "second body"), condition
        assert worker.served == 1
        worker.stop()
    streaming.stop()
    assert ask(server)[:2] == (502, "Error while proxying to origin.\n")
    server.stop()


def over_http(binary):
    """WebSockets of `over_http` targets are POSTs of events to workers, too."""
    spec = next(specs)
    server = Fantail(binary, [f"* zhttpreq/{spec},over_http"])
    events = [["Content-Type", "application/websocket-events"]]

    def answer(request):
        body = request.get("body", b"")
        return {"code": 200, "reason": "OK", "headers": events, "body": body if body else b"OPEN\r\n"}

    worker = Whole(spec, zmq.REP, answer)
    with connect("ws://%s:%d/" % server.client) as client:
        client.send("over events")
        assert client.recv(PATIENCE) == "over events"
    worker.stop()
    server.stop()


def streams(binary):
    """zhttp: streaming both ways under credits, slow readers, and what breaks a session."""
    base = next(specs)
    server = Fantail(binary, [f"*,debug zhttp/{base}"], environment={"FANTAIL_ORIGIN__CONNECT_TIMEOUT": "5s"})
    size = 20_000_000
    most = []

    def serve(session):
        path = session.request["uri"].split(b"/", 3)[3].decode()
        if path == "hello":
            # As simple workers do: not even a number.
            raw = {"from": session.worker.name_, "id": session.request["id"], "code": 200, "body": "hello"}
            session.worker.say(session.request["from"], dumps(raw))
        elif path == "long":
            respond(session, more=True)
            left = size
            while left:
                part = session.spend(min(left, 10_000))
                if part == 0:
                    return
                left -= part
                most.append(size - left)
                session.say(body=b"x" * part, more=left > 0)
        elif path == "upload":
            session.say(type="credit", credits=50_000)
            total = len(session.request.get("body", b""))
            more = session.request.get("more", False)
            while more:
                said = session.next()
                total += len(said["body"])
                more = said.get("more", False)
                if more:
                    session.say(type="credit", credits=len(said["body"]))
            respond(session, str(total).encode())
        elif path == "gap":
            respond(session, b"begun", more=True)
            session.say(seq=5, body=b"never", more=False)
        elif path == "flood":
            respond(session, more=True)
            for _ in range(300):
                session.say(body=b"x" * 100_000, more=True)
        elif path == "length":
            respond(session, b"12345", [["Content-Length", "10"]], more=True)
            session.say(body=b"678", more=False)
        elif path == "quiet":
            session.say(type="keep-alive")
        elif path == "cancel":
            session.say(type="cancel")
        elif path == "hold":
            headers = [["Grip-Hold", "stream"], ["Grip-Channel", "z"]]
            respond(session, b"held\n", headers)
        elif path == "large-hold":
            headers = [["Grip-Hold", "stream"], ["Grip-Channel", "z"]]
            respond(session, b"x" * 150_000, headers, more=True)
            session.say(body=b"held\n", more=False)
        elif path == "handoff":
            respond(session, b"a", more=True)
            session.say(type="handoff-start")
            assert session.next()["type"] == b"handoff-proceed"
            session.say(body=b"b", more=False)

    worker = Streaming(base, serve)
    assert ask(server, path="/hello")[:2] == (200, "hello")
    status, body, response = ask(server, path="/long")
    assert (status, len(body), response.reason) == (200, size, "OK")
    for count in (0, 9_000, 10_001, size):
        assert ask(server, "POST", "/upload", b"y" * count)[:2] == (200, str(count)), count
    connection = http.client.HTTPConnection(*server.client, timeout=PATIENCE)
    connection.request("POST", "/upload", iter([b"z" * 70_000] * 3), encode_chunked=True)
    assert connection.getresponse().read() == b"210000"
    assert ask(server, path="/handoff")[:2] == (200, "ab")

    most.clear()
    slow = socket.create_connection(server.client, PATIENCE)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.sendall(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
    until(lambda: most and most[-1] >= 200_000, "the credits are used")
    time.sleep(0.3)
    read = most[-1]
    time.sleep(0.3)
    assert most[-1] == read < size, "a slow reader stops its worker"
    slow.close()
    until(lambda: worker.cancelled, "a client that leaves is told of")

    for path in ("/gap", "/length"):
        try:
            ask(server, path=path)
            raise AssertionError(f"{path} is whole")
        except (http.client.IncompleteRead, ConnectionError):
            pass

    before = len(worker.cancelled)
    slow = socket.create_connection(server.client, PATIENCE)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.sendall(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
    until(lambda: len(worker.cancelled) > before, "who minds no credits is stopped")
    slow.close()
    status, body, _ = ask(server, path="/cancel")
    assert status == 502 and "the worker has cancelled it" in body, (status, body)

    for path in ("/hold", "/large-hold"):
        connection = http.client.HTTPConnection(*server.client, timeout=PATIENCE)
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.readline().endswith(b"held\n")
        publish(server, "z", {"http-stream": {"content": "published\n"}})
        assert response.readline() == b"published\n"
        connection.close()

    before = len(worker.cancelled)
    gone = socket.create_connection(server.client)
    gone.sendall(b"GET /quiet HTTP/1.1\r\nHost: a\r\n\r\n")
    until(lambda: any(b"/quiet" in s.request["uri"] for s in worker.sessions.values()), "it is asked")
    time.sleep(0.1)
    gone.close()
    until(lambda: len(worker.cancelled) > before, "a client that leaves before the answer is told of")

    for suffix in ("-out", "-out-stream", "-in"):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\xff" + b"\0" * 8 + b"\x7f\x03" + b"\0" * 100):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(base[6:] + suffix)
                raw.sendall(garbage)
    name = next(iter(worker.sessions.values())).request["from"]
    for garbage in (b"", b"T", b"T5:", b"T9999999999:x,", b"J{}", b"T" + dumps({"id": "1", "code": "x"})):
        worker.say(name, garbage)
    assert ask(server, path="/hello")[:2] == (200, "hello")
    assert not worker.gaps, worker.gaps

    worker.stop()
    again = Streaming(base, serve)
    assert ask(server, path="/hello")[:2] == (200, "hello"), "a worker that has gone gets nothing"
    again.stop()
    server.stop()


def by_router(binary):
    """A worker may answer where it is spoken to, and by TCP, at an interface's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1] % 5000 + 9000
    server = Fantail(binary, [f"* zhttp/tcp://lo:{port}"])
    taking, following = CONTEXT.socket(zmq.PULL), CONTEXT.socket(zmq.DEALER)
    following.identity = b"dealer"
    taking.connect(f"tcp://127.0.0.1:{port}")
    following.connect(f"tcp://127.0.0.1:{port + 1}")
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(server)[:2]))
    asking.start()
    request = packet(taking.recv())
    assert request["router-resp"] is True
    response = {"from": "dealer", "id": request["id"], "seq": 0, "code": 200, "body": "by router"}
    following.send_multipart([b"", b"T" + dumps(response)])
    asking.join()
    assert answers == [(200, "by router")], answers
    taking.close(0)
    following.close(0)
    server.stop()


def websockets(binary):
    """zhttp: WebSockets as packets: data, ping, pong, close, rejection, GRIP."""
    base = next(specs)
    server = Fantail(binary, [f"*,debug zhttp/{base}"])

    def serve(session):
        uri = session.request["uri"]
        assert uri.startswith(b"ws://"), uri
        names = {name.decode().lower() for name, _ in session.request["headers"]}
        assert not names & {"upgrade", "connection", "sec-websocket-key", "sec-websocket-version"}, names
        if uri.endswith(b"/no"):
            session.say(
                type="error", condition="rejected", code=403, reason="No", headers=[["X-Why", "so"]], body="no way"
            )
            return
        headers = [["X-It", "is"]]
        if uri.endswith(b"/grip"):
            headers.append(["Sec-WebSocket-Extensions", 'grip; message-prefix=""'])
        session.say(code=101, reason="Switching Protocols", headers=headers, credits=30_000)
        if uri.endswith(b"/grip"):
            session.say(body='c:{"type":"subscribe","channel":"w"}')
            session.say(body="subscribed")
        if uri.endswith(b"/parts"):
            session.say(body=b"one ", more=True, content_type="binary")
            session.say(body=b"two", more=False)
            session.say(type="ping", body="?")
        whole, kind = b"", None
        while True:
            said = session.next()
            if said.get("type") == b"cancel":
                return
            if said.get("type") == b"close":
                session.say(type="close", **{k: said[k] for k in ("code", "body") if k in said})
                return
            if said.get("type"):
                session.say(body=said["type"] + b" " + said["body"])
                continue
            kind = kind or said.get("content-type", b"text")
            whole += said["body"]
            session.say(type="credit", credits=len(said["body"]))
            if said.get("more"):
                continue
            if whole == b"bye":
                session.say(type="close", code=4001, body="as you say")
                said = session.next()
                assert said["type"] == b"close" and said["code"] == 4001, said
                return
            if whole == b"vanish":
                session.say(type="cancel")
                return
            left, at, last = len(whole), 0, False
            while not last:
                part = session.spend(left) if left else 0
                at, left, last = at + part, left - part, left == part
                session.say(body=whole[at - part : at], content_type=kind, more=not last)
            whole, kind = b"", None

    worker = Streaming(base, serve)
    url = "ws://%s:%d" % server.client
    with connect(url + "/echo", max_size=None) as client:
        assert client.response.headers["X-It"] == "is"
        for message in ("text ü", b"\0binary\xff", "", "x" * 1_000_000):
            client.send(message)
            assert client.recv(PATIENCE) == message
        client.pong(b"!")
        assert client.recv(PATIENCE) == "pong !"
        client.close(4000, "enough")
    assert (client.close_code, client.close_reason) == (4000, "enough")
    with connect(url + "/parts") as client:
        assert client.recv(PATIENCE) == b"one two"
        assert client.recv(PATIENCE) == "pong ?"
        client.send("bye")
        try:
            client.recv(PATIENCE)
            raise AssertionError("not closed")
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "as you say"), closed
    with connect(url + "/echo") as client:
        client.send("vanish")
        try:
            client.recv(PATIENCE)
            raise AssertionError("not dropped")
        except ConnectionClosed as closed:
            assert closed.rcvd is None, closed
    with connect(url + "/grip") as client:
        assert client.recv(PATIENCE) == "subscribed"
        publish(server, "w", {"ws-message": {"content": "published"}})
        assert client.recv(PATIENCE) == "published"
    try:
        connect(url + "/no")
        raise AssertionError("not refused")
    except InvalidStatus as refused:
        response = refused.response
        assert (response.status_code, response.body) == (403, b"no way"), response
        assert response.headers["X-Why"] == "so"
    before = len(worker.cancelled)
    client = connect(url + "/echo")
    client.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: len(worker.cancelled) > before, "a client that drops is told of")
    assert not worker.gaps, worker.gaps
    worker.stop()
    server.stop()


def reloads(binary):
    """Sockets come and go with the routes; routes with the same address share them."""
    first, second = next(specs), next(specs)
    routes = os.path.join(FOLDER, "routes")

    def write(*lines):
        with open(routes + ".new", "w") as file:
            file.write("\n".join(lines) + "\n")
        os.rename(routes + ".new", routes)

    write(f"*,path_beg=/a zhttpreq/{first}", f"*,path_beg=/b zhttpreq/{first}")
    server = Fantail(binary, [], config=f'[routes]\nfile = "{routes}"\n')
    worker = Whole(first, zmq.REP, hello)
    assert ask(server, path="/a")[0] == ask(server, path="/b")[0] == 200
    write(f"* zhttpreq/{second}")
    until(lambda: os.path.exists(second[6:]), "the second is bound")
    until(lambda: not os.path.exists(first[6:]), "the first is closed")
    worker.stop()
    worker = Whole(second, zmq.REP, hello)
    assert ask(server)[0] == 200
    worker.stop()
    server.stop()


def main():
    binary = os.path.abspath(sys.argv[1])
    chosen = sys.argv[2:]
    for test in (whole, leaving, fail_over, over_http, streams, by_router, websockets, reloads):
        if not chosen or test.__name__ in chosen:
            test(binary)
            print(f"{test.__name__}: good")


main()
