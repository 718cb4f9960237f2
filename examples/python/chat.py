"""A chat over WebSockets behind Fantail, with Python's standard library. It keeps no connection and no state:
Fantail holds the WebSockets, and posts here what the clients do.

GET  /      the page
POST /chat  WebSocket events: who opens one hears the channel `chat`; what anyone says is published to it

Environment: as for app.py, whose check of Grip-Sig is used here.
"""

import json
import pathlib
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from app import CONTROL, LONGEST, PORT, is_signed

PAGE = pathlib.Path(__file__).parent.parent / "chat.html"


class Chat(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path != "/":
            return self.answer(404, {}, b"not found\n")
        self.answer(200, {"Content-Type": "text/html"}, PAGE.read_bytes())

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        # Anybody could post what looks like events: Fantail signs.
        if self.path != "/chat" or not is_signed(self.headers.get("Grip-Sig", "")):
            return self.answer(404, {}, b"not found\n")
        replies = [reply(kind, content) for kind, content in events(body)]
        # The extension says that some of the texts are control messages.
        headers = {"Content-Type": "application/websocket-events", "Sec-WebSocket-Extensions": "grip"}
        self.answer(200, headers, b"".join(replies))

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


def reply(kind, content):
    """What is said to the client that did this."""
    if kind == b"OPEN":
        return event(kind) + event(b"TEXT", b'c:{"type": "subscribe", "channel": "chat"}')
    if kind == b"TEXT":
        publish(content)
    if kind == b"PING":
        return event(b"PONG", content)
    if kind == b"CLOSE":
        return event(kind, content)
    return b""


def publish(content):
    """To everybody in the chat, the one who said it included. What no page would send is left out."""
    try:
        said = json.loads(content)
        message = json.dumps({"from": said["from"][:40], "text": said["text"][:LONGEST]})
    except (ValueError, KeyError, TypeError):
        return
    items = [{"channel": "chat", "formats": {"ws-message": {"content": message}}}]
    urllib.request.urlopen(CONTROL + "/publish/", json.dumps({"items": items}).encode(), timeout=10).close()


def events(body):
    """Pairs of type and content: `TYPE`, or `TYPE LENGTH` in hexadecimal and so many bytes, each with CRLF."""
    while body:
        line, _, body = body.partition(b"\r\n")
        kind, _, length = line.partition(b" ")
        size = int(length or b"0", 16)
        yield kind, body[:size]
        body = body[size + 2 :] if length else body


def event(kind, content=b""):
    return b"%s %x\r\n%s\r\n" % (kind, len(content), content) if content else kind + b"\r\n"


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Chat).serve_forever()
