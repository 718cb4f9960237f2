"""Raw HTTP over sockets: a scripted origin that records what it is sent, and a client that reads an answer
as it comes. Both tell what happened; neither judges."""

import socket
import threading
import time

# What proxies write differently without meaning anything by it.
UNSPOKEN = {"date", "server"}


class Message:
    """A head and a body, framing undone."""

    def __init__(self, line="", fields=(), body=b"", framing="none", end="complete"):
        self.line, self.fields, self.body, self.framing, self.end = line, list(fields), body, framing, end

    def view(self, name):
        """Flat facts, for comparing."""
        facts = {f"{name}.line": self.line, f"{name}.body": self.body.decode("latin1")}
        facts[f"{name}.end"] = self.end
        values = {}
        for field, value in self.fields:
            if field.lower() not in UNSPOKEN | {"connection", "transfer-encoding", "content-length"}:
                values.setdefault(field.lower(), []).append(value)
        facts.update({f"{name}.{field}": ", ".join(all) for field, all in values.items()})
        return facts


class Reader:
    """Reads messages from a socket until they end, are cut, or nothing more comes."""

    def __init__(self, sock, patience):
        self.sock, self.ahead, self.patience, self.closed = sock, b"", patience, False

    def more(self):
        """False at the end of the connection; raises TimeoutError."""
        if self.closed:
            return False
        self.sock.settimeout(self.patience)
        try:
            piece = self.sock.recv(65536)
        except ConnectionError:
            piece = b""
        self.closed = piece == b""
        self.ahead += piece
        return not self.closed

    def until(self, mark):
        while mark not in self.ahead:
            if not self.more():
                return None
        found, self.ahead = self.ahead.split(mark, 1)
        return found

    def exactly(self, count):
        while len(self.ahead) < count and self.more():
            pass
        found, self.ahead = self.ahead[:count], self.ahead[count:]
        return found

    def head(self):
        raw = self.until(b"\r\n\r\n")
        if raw is None:
            return None
        lines = raw.decode("latin1").split("\r\n")
        fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:] if ":" in line]
        return Message(lines[0], fields)

    def message(self, bodyless=False, is_request=False, wanted=None):
        """One message. With `wanted`, stops when that many bytes of the body are there, and calls it open."""
        message = self.head()
        if message is None:
            return Message(end="closed", body=self.ahead)
        fields = {name.lower(): value for name, value in message.fields}
        status = message.line.split(" ")[1] if not is_request else ""
        if bodyless or status in ("204", "304", "101") or status.startswith("1"):
            return message
        try:
            self.body(message, fields, is_request, wanted)
        except TimeoutError:
            message.end = "silent"
        return message

    def body(self, message, fields, is_request, wanted):
        if "chunked" in fields.get("transfer-encoding", ""):
            message.framing = "chunked"
            while wanted is None or len(message.body) < wanted:
                line = self.until(b"\r\n")
                if line is None:
                    message.end = "cut"
                    return
                size = int(line.split(b";")[0], 16)
                chunk = self.exactly(size + 2)
                message.body += chunk[:size]
                if size == 0:
                    return
                if len(chunk) < size + 2:
                    message.end = "cut"
                    return
            message.end = "open"
        elif "content-length" in fields:
            message.framing = "length"
            length = int(fields["content-length"].split(",")[0])
            message.body = self.exactly(length)
            message.end = "complete" if len(message.body) == length else "cut"
        elif not is_request:
            message.framing = "close"
            while (wanted is None or len(self.ahead) < wanted) and self.more():
                pass
            message.body, self.ahead = self.ahead, b""
            message.end = "complete" if self.closed else "open"


class Origin:
    """Answers each request with what `script` returns for it: bytes, or (bytes, "close"), or bytes and what is done
    with the socket and its reader then."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.script, self.requests, self.lock = None, [], threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def begin(self, script):
        with self.lock:
            self.script, self.requests = script, []

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = Reader(sock, 120)
        with sock:
            while True:
                try:
                    request = reader.message(is_request=True)
                except (TimeoutError, ValueError):
                    return
                if request.end == "closed":
                    return
                with self.lock:
                    self.requests.append(request)
                    answer = self.script(len(self.requests) - 1, request)
                raw, then = answer if isinstance(answer, tuple) else (answer, "keep")
                try:
                    sock.sendall(raw)
                except OSError:
                    return
                if callable(then):
                    then(sock, reader)
                    return
                if then == "close":
                    return

    def wait(self, count):
        """True once that many requests have come."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            with self.lock:
                if len(self.requests) >= count:
                    return True
            time.sleep(0.005)
        return False


def answer(status="200 OK", fields=(), body=b""):
    body = body.encode() if isinstance(body, str) else body
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def hold(mode, channel, fields=(), body=""):
    own = [("Content-Type", "text/plain"), ("Grip-Hold", mode), ("Grip-Channel", channel)]
    return answer(fields=own + list(fields), body=body)


def request(method="GET", target="/", fields=(), body=None, version="1.1"):
    fields = list(fields)
    if not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", "plain.example"))
    if body is not None and not any(name.lower() == "transfer-encoding" for name, _ in fields):
        fields.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {target} HTTP/{version}\r\n{head}\r\n".encode("latin1") + (body or b"")
