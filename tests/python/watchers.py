"""Who watches clients: subscribers of the statistics socket, commands by connection, Prometheus, a server that keeps
sessions; and Pushpin's own scripts.

Fantail runs with a pushpin.conf. The scripts are those of Debian's package, unmodified; those that want Python 2 are left
out where there is none, and all of them without the package.
Usage: watchers.py PATH-TO-FANTAIL [PATH-TO-PYTHON-2]
"""

import base64
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

import tnetstring
import zmq
from fantail import Fantail
from zeromq_inputs import check_pubcontrol, free_ports, metric, same

SCRIPTS = "/usr/share/doc/pushpin/examples/tools"
PATIENCE = 20

CONF = """[global]
rundir={{folder}}/run
ipc_prefix=pushpin-
stats_connection_ttl=8
[runner]
http_port=127.0.0.1:0
[proxy]
routesfile=routes
[handler]
ipc_file_mode=600
push_in_spec=tcp://127.0.0.1:{pull}
push_in_sub_specs=tcp://127.0.0.1:{sub}
push_in_http_port={control}
stats_spec={stats}
command_spec=tcp://127.0.0.1:{command}
state_spec=tcp://127.0.0.1:{state}
stats_report_interval=1
stats_subscription_ttl=4
stats_format={format}
message_block_size=4
subscription_linger=1
prometheus_port={prometheus}
prometheus_prefix=pp_
"""


class Origin(http.server.BaseHTTPRequestHandler):
    """Holds what is asked for, and answers events."""

    protocol_version = "HTTP/1.1"
    #: (Connection-Id, body) of what was posted.
    posts = []
    #: The headers of what was posted to /session, and whether the answer is to be a hold.
    sessions, holds = [], False

    def log_message(self, *arguments):
        pass

    def answer(self, headers, body):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        try:
            self.end_headers()
            self.wfile.write(body)
        except BrokenPipeError:
            pass  # the client has left

    def do_GET(self):
        mode, _, channel = self.path.strip("/").partition("/")
        holds = {"Grip-Hold": mode, "Grip-Channel": channel, "Grip-Timeout": "60"}
        self.answer(holds if mode in ("stream", "response") else {}, b"hello\n")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posts.append((self.headers["Connection-Id"], body))
        if self.path == "/session":
            self.sessions.append(self.headers)
            headers = {"Grip-Session-Id": "s1", "Grip-Session-Detect": 'path-prefix=/ses; sid-ptr="/a/0"; json-param=j'}
            if Origin.holds:
                headers = {"Grip-Hold": "response", "Grip-Channel": "c", "Grip-Timeout": "60"}
            else:
                headers["Grip-Last"] = "c; last-id=1, d; last-id=9"
            return self.answer(headers, b"%d" % len(body))
        said = b""
        if body.startswith(b"OPEN"):
            control = b'c:{"type":"subscribe","channel":"w"}'
            said = b"OPEN\r\nTEXT %x\r\n%s\r\n" % (len(control), control)
        elif body.startswith((b"TEXT", b"CLOSE")):
            said = body
        headers = {"Content-Type": "application/websocket-events", "Sec-WebSocket-Extensions": "grip"}
        self.answer(headers, said)


class Watcher:
    """A subscriber; what it was told can be waited for."""

    def __init__(self, context, spec, *types):
        self.sock = context.socket(zmq.SUB)
        self.sock.linger = 0
        self.sock.rcvtimeo = PATIENCE * 1000
        for kind in types or ("",):
            self.sock.subscribe(kind)
        self.sock.connect(spec)
        self.told = []

    def next(self):
        kind, _, data = self.sock.recv().partition(b" ")
        members = json.loads(data[1:]) if data[:1] == b"J" else text(tnetstring.loads(data[1:]))
        self.told.append((kind.decode(), members))
        return self.told[-1]

    def find(self, kind, **wanted):
        """The next packet with these members, which must all be there; None is one that must not."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found, members = self.next()
            if found == kind and all(members.get(name.replace("_", "-")) == value for name, value in wanted.items()):
                return members
        raise AssertionError(f"never told: {kind} {wanted}, but {self.told[-20:]}")

    def settle(self, fantail):
        """Returns when the subscription has arrived: something is told that has just happened."""
        until = time.monotonic() + PATIENCE
        self.sock.rcvtimeo = 300
        while time.monotonic() < until:
            get(fantail, "/settle")
            try:
                self.next()
                break
            except zmq.Again:
                pass
        self.sock.rcvtimeo = PATIENCE * 1000


def text(value):
    if isinstance(value, dict):
        return {text(name): text(member) for name, member in value.items()}
    if isinstance(value, list):
        return [text(element) for element in value]
    return value.decode() if isinstance(value, bytes) else value


def get(fantail, path, host="x.example", answered=True):
    connection = http.client.HTTPConnection(*fantail.client, timeout=PATIENCE)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse() if answered else None
    if response is not None and not path.startswith("/stream"):
        response.read()
    return connection, response


def websocket(fantail, host="x.example"):
    sock = socket.create_connection(fantail.client, timeout=PATIENCE)
    key = base64.b64encode(b"0" * 16).decode()
    lines = ["GET /ws HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
    sock.sendall("\r\n".join(lines).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return sock


def say(sock, message):
    """A text of a client, masked with zeros."""
    sock.sendall(b"\x81" + bytes([0x80 | len(message)]) + bytes(4) + message)


def heard(sock):
    """The next text, which is short."""
    first, length = sock.recv(2, socket.MSG_WAITALL)
    same((first, length < 126), (0x81, True))
    return sock.recv(length, socket.MSG_WAITALL)


def publish(fantail, channel, **members):
    formats = {"http-stream": {"content": "stream\n"}, "http-response": {"body": "poll\n"}, "ws-message": {"content": "ws"}}
    connection = http.client.HTTPConnection(*fantail.control, timeout=PATIENCE)
    body = json.dumps({"items": [{"channel": channel, "formats": formats, **members}]})
    connection.request("POST", "/publish/", body=body, headers={"Content-Type": "application/json"})
    same(connection.getresponse().status, 200)


def ask(context, port, method, **args):
    sock = context.socket(zmq.REQ)
    sock.linger, sock.rcvtimeo = 0, PATIENCE * 1000
    sock.connect(f"tcp://127.0.0.1:{port}")
    args = {name.encode(): value for name, value in args.items()}
    sock.send(tnetstring.dumps({b"method": method, b"id": b"1", b"args": args}))
    answer = tnetstring.loads(sock.recv())
    sock.close()
    return answer


def check_packets(fantail, context, ports, spec):
    watcher = Watcher(context, spec)
    watcher.settle(fantail)
    get(fantail, "/plain", "named.example")
    came = watcher.find("conn", type="http", route="named")
    same((came["peer-address"], came["ttl"], "ssl" in came), ("127.0.0.1", 8, False))
    same(watcher.find("conn", id=came["id"])["unavailable"], True)
    watcher.find("activity", route="named", count=1)
    watcher.find("counts", requests_received=1)
    stream, response = get(fantail, "/stream/s", "named.example")
    # Until its answer, it is a request like any other.
    streams = watcher.find("conn", type="http", route="named")["id"]
    watcher.find("sub", mode="stream", channel="s", subscribers=1, ttl=4)
    poll, _ = get(fantail, "/response/p", answered=False)
    watcher.find("sub", mode="response", channel="p", subscribers=1)
    ws = websocket(fantail)
    wsid = watcher.find("conn", type="ws")["id"]
    same(wsid in [connection for connection, _ in Origin.posts], True)
    watcher.find("sub", mode="ws", channel="w", subscribers=1)
    second = websocket(fantail)
    watcher.find("sub", mode="ws", channel="w", subscribers=2)
    publish(fantail, "s", id="1")
    told = watcher.find("message", channel="s")
    same((told["count"], told["transport"], told["item-id"], told["blocks"]), (1, "http-stream", "1", 2))
    publish(fantail, "w")
    told = watcher.find("message", channel="w")
    same((told["count"], told["transport"], told["blocks"], "item-id" in told), (2, "ws-message", 1, False))
    publish(fantail, "p", size=9)
    told = watcher.find("message", channel="p")
    same((told["count"], told["transport"], told["blocks"]), (1, "http-response", 3))
    ids = [streams.encode(), b"nobody", wsid.encode(), came["id"].encode()]
    same(ask(context, ports["command"], b"conncheck", ids=ids)[b"value"], [streams.encode(), wsid.encode()])
    same(ask(context, ports["command"], b"conncheck")[b"condition"], b"bad-request")
    same(ask(context, ports["command"], b"conncheck", ids=[1])[b"condition"], b"bad-request")
    same(ask(context, ports["command"], b"refresh", cid=wsid.encode())[b"success"], True)
    until = time.monotonic() + PATIENCE
    while (wsid, b"") not in Origin.posts:
        same(time.monotonic() < until, True)
        time.sleep(0.01)
    for unknown in (b"nobody", came["id"].encode(), b"00000000-0000-0000-0000-000000000000"):
        same(ask(context, ports["command"], b"refresh", cid=unknown)[b"condition"], b"item-not-found")
    ws.sendall(b"\x81\x82\0\0\0\0hi")
    report = watcher.find("report", client_messages_received=1, route=None)
    same(report["connections"] >= 2 and report["duration"] >= 1000, True)
    same(report["server-header-bytes-sent"] > 100 and report["client-content-bytes-received"] == 2, True)
    # What is held is told again in time, and reported as long as it is there.
    watcher.find("report", route="named", connections=1)
    watcher.find("conn", id=streams, type="http")
    watcher.find("sub", mode="stream", channel="s", subscribers=1)
    response.close()
    stream.close()
    watcher.find("conn", id=streams, unavailable=True)
    for sock in (ws, second):
        sock.close()
    watcher.find("conn", id=wsid, unavailable=True)
    poll.close()
    gone = {(told["mode"], told["channel"]) for kind, told in watcher.told if kind == "sub" and told.get("unavailable")}
    while gone != {("stream", "s"), ("ws", "w"), ("response", "p")}:
        kind, told = watcher.next()
        if kind == "sub" and told.get("unavailable"):
            gone.add((told["mode"], told["channel"]))
    sums = [told for kind, told in watcher.told if kind == "report"]
    total = lambda name: sum(told.get(name, 0) for told in sums)
    same((total("received"), total("sent"), total("http-response-sent")), (3, 4, 1))
    same((total("blocks-received"), total("blocks-sent")), (2 + 2 + 3, 2 + 1 + 1 + 3))
    watcher.sock.close()


def check_sockjs(fantail, context, spec):
    """A session is a WebSocket, and each request that receives for it or speaks is one of its own."""
    watcher = Watcher(context, spec, "conn ")
    watcher.settle(fantail)

    def ask_session(transport, body=b""):
        connection = http.client.HTTPConnection(*fantail.client, timeout=PATIENCE)
        connection.request("POST", "/chat/0/watched/" + transport, body=body, headers={"Host": "chat.example"})
        return connection

    same(ask_session("xhr").getresponse().read(), b"o\n")
    first = watcher.find("conn", type="http", route="chat")
    session = watcher.find("conn", type="ws", route="chat")["id"]
    same(session in [connection for connection, _ in Origin.posts], True)
    same(watcher.find("conn", id=first["id"], unavailable=True)["unavailable"], True)
    receiver = ask_session("xhr_streaming")
    held = watcher.find("conn", type="http", route="chat")
    same((held["peer-address"], held["ttl"]), ("127.0.0.1", 8))
    # As long as it is held.
    watcher.find("conn", type="http", id=held["id"])
    receiver.close()
    gone = {held["id"], session}
    while gone:
        kind, told = watcher.next()
        if told.get("unavailable"):
            gone.discard(told["id"])
    watcher.sock.close()


def check_strangers(fantail, context, spec):
    """Who reads nothing, or says what is no subscription, disturbs nobody; the second is disconnected."""
    path = spec.removeprefix("ipc://") if spec.startswith("ipc") else None
    strangers = []
    for garbage in (b"", b"\x00\x02\x07x", b"\x01\x01\x01\x00\x01x", b"\x00\x00", b"GET / HTTP/1.1\r\n\r\n"):
        sock = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        sock.settimeout(PATIENCE)
        sock.connect(path or ("127.0.0.1", int(spec.rsplit(":", 1)[1])))
        sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
        sock.sendall(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB\0\x01\x01" + garbage)
        strangers.append((sock, garbage))
    watcher = Watcher(context, spec, "conn ")
    watcher.settle(fantail)
    for _ in range(50):
        get(fantail, "/plain")
    stream, response = get(fantail, "/stream/last")
    watcher.find("conn")
    for sock, garbage in strangers:
        try:
            while garbage and sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        sock.close()
    response.close()
    stream.close()
    watcher.sock.close()


def check_prometheus(fantail, address):
    def numbers():
        if address.startswith("ipc://"):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(address.removeprefix("ipc://").replace("{folder}", fantail.folder.name))
        else:
            sock = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))
        sock.sendall(b"OPTIONS /whatever HTTP/1.1\r\nHost: x\r\n\r\n")
        page = b""
        while chunk := sock.recv(65536):
            page += chunk
        head, _, body = page.decode().partition("\r\n\r\n")
        same((head.split("\r\n")[0], "Content-Type: text/plain" in head), ("HTTP/1.1 200 OK", True))
        lines = [line for line in body.splitlines() if not line.startswith("#")]
        return {name: int(value) for name, value in (line.split(" ") for line in lines)}

    until = time.monotonic() + PATIENCE
    before = None
    # What has just left is looked at a moment later.
    while before != (before := numbers()) or before["pp_connection_connected"]:
        same(time.monotonic() < until, True)
        time.sleep(0.5)
    same(set(before), {f"pp_{name}" for name in ("request_received", "connection_connected", "connection_minute", "message_received", "message_sent")})
    stream, response = get(fantail, "/stream/prom")
    response.readline()
    publish(fantail, "prom")
    same(response.readline(), b"stream\n")
    until = time.monotonic() + PATIENCE
    grown = lambda: {name[3:]: value - before[name] for name, value in numbers().items()}
    wanted = {"request_received": 1, "connection_connected": 1, "connection_minute": 1, "message_received": 1, "message_sent": 1}
    while grown() != wanted:
        same(time.monotonic() < until or grown(), True)
        time.sleep(0.05)
    response.close()
    stream.close()


class State:
    """Keeps sessions, as Pushpin's gripstate.py does."""

    def __init__(self, context, spec):
        self.context, self.spec, self.rules, self.sessions = context, spec, [], {}
        self.stopped = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        sock = self.context.socket(zmq.REP)
        sock.linger, sock.rcvtimeo = 0, 50
        sock.connect(self.spec)
        while not self.stopped:
            try:
                request = tnetstring.loads(sock.recv())
            except zmq.Again:
                continue
            value = self.answer(text(request[b"method"]), text(request[b"args"]))
            if value == "unknown":
                answer = {b"id": request[b"id"], b"success": False, b"condition": b"item-not-found"}
            else:
                answer = {b"id": request[b"id"], b"success": True, b"value": value}
            sock.send(tnetstring.dumps(raw(answer)))
        sock.close()

    def answer(self, method, args):
        if method == "session-detect-rules-set":
            self.rules += args["rules"]
        elif method == "session-detect-rules-get":
            return [r for r in self.rules if r["domain"] == args["domain"] and args["path"].startswith(r["path-prefix"])]
        elif method == "session-create-or-update":
            self.sessions.setdefault(args["sid"], {}).update(args["last-ids"])
        elif method == "session-update-many":
            for sid, ids in args["sid-last-ids"].items():
                self.sessions[sid].update(ids)
        elif method == "session-get-last-ids":
            return self.sessions.get(args["sid"], "unknown")
        return None

    def stop(self):
        self.stopped = True
        self.thread.join()


def raw(value):
    if isinstance(value, dict):
        return {raw(name): raw(member) for name, member in value.items()}
    if isinstance(value, list):
        return [raw(element) for element in value]
    return value.encode() if isinstance(value, str) else value


def check_sessions(fantail, context, port, old):
    spec = f"tcp://127.0.0.1:{port}"
    state = Script(old, "gripstate.py", spec) if old else State(context, spec)

    def post(body=b"", answered=True):
        connection = http.client.HTTPConnection(*fantail.client, timeout=PATIENCE)
        connection.request("POST", "/session", body=body, headers={"Host": "session.example"})
        return connection.getresponse().read() if answered else connection

    def last():
        headers = Origin.sessions[-1]
        return headers["Grip-Session-Id"], sorted(headers.get_all("Grip-Last") or [])

    def until(reached):
        end = time.monotonic() + PATIENCE
        while not reached():
            same(time.monotonic() < end or last(), True)
            time.sleep(0.02)

    known = b"i=1&j=%7B%22a%22:[%22s1%22]%7D"
    Origin.sessions.clear()
    Origin.holds = False
    # The server may be about to connect: questions are lost until it has.
    until(lambda: post(known) == b"30" and last()[0] == "s1")
    same(last(), ("s1", ["c; last-id=1", "d; last-id=9"]))
    same("session" in Origin.sessions[-1].get_all("Grip-Feature"), True)
    same(post(known + b"&" + b"x" * 50_000), b"50031")
    same(last()[0], "s1")
    same((post(b"j={}"), last()), (b"4", (None, [])))
    Origin.holds = True
    seen = len(Origin.sessions)
    waiting = post(known, answered=False)
    until(lambda: len(Origin.sessions) > seen)
    item = json.dumps({"items": [{"channel": "c", "id": "2", "formats": {"http-response": {"body": "two"}}}]})

    def published():
        connection = http.client.HTTPConnection(*fantail.control, timeout=PATIENCE)
        connection.request("POST", "/publish/?receipt=true", body=item, headers={"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())

    # The hold begins some moments after the origin's answer; a repeated id would be dropped.
    until(lambda: metric(fantail, "fantail_pins", 'kind="poll"') >= 1)
    published()
    same(waiting.getresponse().read(), b"two")
    Origin.holds = False
    wanted = ["c; last-id=2", "d; last-id=9"]

    def asked():
        # Without an answer that says ids: it would set them back.
        Origin.holds = True
        connection = post(known, answered=False)
        before = len(Origin.sessions)
        until(lambda: len(Origin.sessions) >= before)
        connection.close()
        return last()[1] == wanted

    until(asked)
    # A WebSocket says whose it is by control messages, which the origin echoes; what it gets is its session's as well.
    ws = websocket(fantail, "session.example")
    for message in (b'c:{"type":"session","id":"s1"}', b"m:begun"):
        say(ws, message)
    same(heard(ws), b"begun")
    publish(fantail, "w", id="7")
    same(heard(ws), b"ws")
    wanted.append("w; last-id=7")
    until(asked)
    # Nobody's any more.
    for message in (b'c:{"type":"session"}', b"m:ended"):
        say(ws, message)
    same(heard(ws), b"ended")
    publish(fantail, "w", id="8")
    same(heard(ws), b"ws")
    # What is kept later shows that this was not.
    until(lambda: metric(fantail, "fantail_pins", 'kind="poll"') == 0)
    waiting = post(known, answered=False)
    until(lambda: metric(fantail, "fantail_pins", 'kind="poll"') >= 1)
    item = item.replace('"id": "2"', '"id": "3"')
    published()
    same(waiting.getresponse().read(), b"two")
    wanted[0] = "c; last-id=3"
    until(asked)
    ws.close()
    state.stop()
    Origin.holds = False
    begun = time.monotonic()
    same(post(b"j={}"), b"4")
    same(time.monotonic() - begun < 10, True)


class Script:
    """One of Pushpin's, while it runs; its output is read line by line."""

    def __init__(self, python, name, *arguments):
        command = [python, "-u", os.path.join(SCRIPTS, name), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def find(self, wanted):
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        read = []
        for line in self.process.stdout:
            read.append(line)
            if wanted in line:
                timer.cancel()
                return line
        raise AssertionError(f"{self.process.args}: no {wanted!r} in {read}")

    def stop(self):
        self.process.kill()
        self.process.wait()


def check_scripts(fantail, ports, spec, old):
    new = sys.executable
    command = "tcp://127.0.0.1:%d" % ports["command"]
    line = Script(new, "command.py", command, "get-zmq-uris").find("success: ")
    same(all(str(ports[name]) in line for name in ("pull", "sub", "command")), True)
    items = json.dumps({"items": [{"channel": "s", "formats": {"http-stream": {"content": "by command\n"}}}]})
    watcher, subsock = Script(new, "monitorstats.py", spec, "sub,message"), Script(new, "monitorsubsock.py", "tcp://127.0.0.1:%d" % ports["sub"])
    stream, response = get(fantail, "/stream/s")
    same(response.readline(), b"hello\n")
    subsock.find("SUB s")
    Script(new, "command.py", command, "publish", items).find("success: None")
    same(response.readline(), b"by command\n")
    Script(new, "command.py", command, "conncheck", '{"ids": ["x"]}').find("success: []")
    Script(new, "command.py", command, "nothing").find("error: method-not-found")
    done = subprocess.run(["pushpin-publish", "--spec", f"http://127.0.0.1:{fantail.control[1]}", "s", "by name"], capture_output=True, timeout=PATIENCE)
    same((done.returncode, done.stdout), (0, b"Published\n"))
    same(response.readline(), b"by name\n")
    watcher.find("sub {'")
    scripts = [watcher, subsock]
    if old:
        scripts.append(Script(old, "monitorsubs.py", spec))
        scripts[-1].find("SUB mode=stream channel=s")
        Script(old, "getzmquris.py", command).find("publish-pull: ")
        same(Script(old, "recover.py", command).process.wait(PATIENCE), 0)
        Script(old, "publish.py", "--spec", "tcp://127.0.0.1:%d" % ports["pull"], "s", "by push").find("Published")
        same(response.readline(), b"by push\n")
    else:
        print("there is no Python 2: its scripts are left out")
    response.close()
    stream.close()
    for script in scripts:
        script.stop()


def main(binary, old=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = "127.0.0.1:%d" % server.server_port
    routes = ["localhost test", f"chat.example,id=chat,sockjs=/chat {origin},over_http", f"named.example,id=named {origin},over_http", f"session.example,session {origin},over_http", f"* {origin},over_http"]
    context = zmq.Context()
    for packets, by_ipc in (("tnetstring", True), ("json", False)):
        names = ("pull", "sub", "command", "control", "stats", "prometheus", "state")
        ports = dict(zip(names, free_ports(len(names))))
        values = {**ports, "format": packets, "stats": "ipc://{rundir}/{ipc_prefix}stats", "prometheus": "ipc://{folder}/prometheus"}
        if not by_ipc:
            values.update(stats="tcp://127.0.0.1:%d" % ports["stats"], prometheus="127.0.0.1:%d" % ports["prometheus"])
        conf = CONF.format(**values).replace("{rundir}", "{rundir}")
        fantail = Fantail(binary, routes, conf, name="pushpin.conf")
        spec = values["stats"].replace("{rundir}", f"{fantail.folder.name}/run").replace("{ipc_prefix}", "pushpin-")
        if by_ipc:
            same(os.stat(spec.removeprefix("ipc://")).st_mode & 0o777, 0o600)
        check_packets(fantail, context, ports, spec)
        check_sockjs(fantail, context, spec)
        check_strangers(fantail, context, spec)
        check_prometheus(fantail, values["prometheus"])
        check_pubcontrol(fantail, ports)
        check_sessions(fantail, context, ports["state"], old if by_ipc and os.path.isdir(SCRIPTS) else None)
        if by_ipc and os.path.isdir(SCRIPTS):
            check_scripts(fantail, ports, spec, old)
        fantail.stop()
        if any('"panicked' in line for line in fantail.log):
            raise AssertionError("a panic")
    context.term()
    print("ok")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), *sys.argv[2:])
