"""A message board behind Fantail, with Python's standard library and nothing else.

GET  /messages  a stream of server-sent events: each message as it comes
GET  /next      a long-poll: the next message, or 204 after 20 seconds
POST /messages  takes a message and publishes it to both

Environment: PORT (8000), CONTROL (http://127.0.0.1:5561), SIG_KEY (changeme: Fantail's proxy.sig_key).
"""

import base64
import hashlib
import hmac
import json
import os
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ.get("PORT", "8000"))
CONTROL = os.environ.get("CONTROL", "http://127.0.0.1:5561")
SIG_KEY = os.environ.get("SIG_KEY", "changeme").encode()
LONGEST = 10_000


class Board(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path not in ("/messages", "/next"):
            return self.answer(404, {}, "not found\n")
        # Without Fantail in front the request cannot be held.
        if not is_signed(self.headers.get("Grip-Sig", "")):
            return self.answer(501, {}, "ask through Fantail\n")
        if self.path == "/messages":
            return self.answer(200, {
                "Content-Type": "text/event-stream",
                "Grip-Hold": "stream",
                "Grip-Channel": "messages",
                "Grip-Keep-Alive": ":\\n\\n; format=cstring; timeout=20",
            })
        self.answer(204, {"Grip-Hold": "response", "Grip-Channel": "messages", "Grip-Timeout": "20"})

    def do_POST(self):
        if self.path != "/messages":
            return self.answer(404, {}, "not found\n")
        length = int(self.headers.get("Content-Length", "0"))
        if length > LONGEST:
            self.close_connection = True
            return self.answer(413, {"Connection": "close"}, "too long\n")
        publish(self.rfile.read(length).decode(errors="replace"))
        self.answer(200, {}, "published\n")

    def answer(self, status, headers, body=""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())


def publish(text):
    """Publishes one message: an event for streams, an answer for long-polls."""
    message = json.dumps({"text": text})
    formats = {
        "http-stream": {"content": f"data: {message}\n\n"},
        "http-response": {"headers": {"Content-Type": "application/json"}, "body": message + "\n"},
    }
    body = json.dumps({"items": [{"channel": "messages", "formats": formats}]}).encode()
    urllib.request.urlopen(CONTROL + "/publish/", body, timeout=10).close()


def is_signed(token):
    """True for a JWT that Fantail made with SIG_KEY and that has not expired."""
    try:
        signed, signature = token.rsplit(".", 1)
        right = hmac.new(SIG_KEY, signed.encode(), hashlib.sha256).digest()
        claims = json.loads(decode(signed.split(".")[1]))
        return hmac.compare_digest(decode(signature), right) and claims["exp"] > time.time()
    except (ValueError, KeyError, IndexError):
        return False


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Board).serve_forever()
