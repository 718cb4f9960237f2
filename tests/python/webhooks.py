"""Webhooks as a receiver sees them with the public libraries, unmodified: standardwebhooks and svix verify what Fantail
signs, through a rotation of secrets, and refuse what was changed on the way. `pubcontrol` publishes."""

import json
import os
import queue
import sys
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import standardwebhooks
import svix.webhooks
from pubcontrol import Format, Item, PubControl

from fantail import Fantail


class HttpRequest(Format):
    def __init__(self, body):
        self.body = body

    def name(self):
        return "http-request"

    def export(self):
        return {"headers": {"Content-Type": "application/json"}, "body": self.body}


class Receiver(ThreadingHTTPServer):
    def __init__(self):
        self.got = queue.Queue()
        super().__init__(("127.0.0.1", 0), self.answer())
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self):
        got = self.got

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.put((dict(self.headers.items()), body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        return Answer


def ask(server, method, path, body=None):
    host, port = server.control
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    request = urllib.request.Request(f"http://{host}:{port}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def verifiers(secret):
    return [standardwebhooks.Webhook(secret), svix.webhooks.Webhook(secret)]


def check(verifier, body, headers, wanted):
    """It verifies; svix's libraries do not return what they have verified."""
    assert verifier.verify(body, headers) in (None, wanted)


def refused(verifier, body, headers):
    try:
        verifier.verify(body, headers)
    except (standardwebhooks.WebhookVerificationError, svix.webhooks.WebhookVerificationError):
        return True
    return False


def main():
    config = '[server]\ndata_dir = "{folder}/data"\n[webhooks]\nallow = ["127.0.0.1"]\n'
    server, receiver = Fantail(os.path.abspath(sys.argv[1]), ["* test"], config), Receiver()
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    endpoint = "/channel/c/hrq-subscription/" + urllib.parse.quote(url, safe="")
    first = ask(server, "POST", "/channel/c/hrq-subscriptions/", {"url": url})["secrets"][0]["secret"]
    publisher = PubControl({"uri": "http://%s:%d" % server.control})

    def delivered(number):
        publisher.publish("c", Item(HttpRequest(json.dumps({"n": number}))), blocking=True)
        headers, body = receiver.got.get(timeout=10)
        return {name.lower(): value for name, value in headers.items()}, body

    headers, body = delivered(1)
    for verifier in verifiers(first):
        check(verifier, body, headers, {"n": 1})
        assert refused(verifier, body + b" ", headers)
        assert refused(verifier, body, {**headers, "webhook-id": "msg_other"})
        assert refused(verifier, body, {**headers, "webhook-timestamp": "1600000000"})
    second = ask(server, "POST", endpoint + "/secrets/", {"overlap": 600})["secrets"][0]["secret"]
    headers, body = delivered(2)
    for verifier in verifiers(first) + verifiers(second):
        check(verifier, body, headers, {"n": 2})
    third = ask(server, "POST", endpoint + "/secrets/", {"overlap": 0})["secrets"][0]["secret"]
    headers, body = delivered(3)
    for verifier in verifiers(third):
        check(verifier, body, headers, {"n": 3})
    assert all(refused(verifier, body, headers) for verifier in verifiers(first) + verifiers(second))
    server.stop()
    receiver.shutdown()
    print("python: standardwebhooks and svix verify webhooks, through rotations")


main()
