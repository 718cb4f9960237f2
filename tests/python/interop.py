"""The Python GRIP libraries, unmodified, drive streams and long-polls through Fantail.

A real Django application with django-grip under waitress is the origin; it and gripcontrol publish.
Usage: interop.py PATH-TO-FANTAIL
"""

import http.client
import os
import socket
import sys
import threading

import django
from django.conf import settings
from django.http import HttpResponse, HttpResponseNotModified
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from fantail import Fantail

KEY = "a-key-that-is-long-enough-for-hs256-tokens"
CONFIG = f"""
[proxy]
sig_key = "{KEY}"
[[realm]]
id = "acme"
keys = ["{KEY}"]
"""


def stream(request):
    from django_grip import set_hold_stream

    set_hold_stream(request, request.GET["channel"], keep_alive_data="keep\n", keep_alive_timeout=1)
    return HttpResponse(f"signed={request.grip.signed}\n", content_type="text/plain")


def poll(request):
    from django_grip import set_hold_longpoll

    set_hold_longpoll(request, request.GET["channel"], timeout=20)
    response = HttpResponse("nothing\n", content_type="text/plain")
    response["X-Kept"] = "kept"
    return response


def not_modified(request):
    from django_grip import set_hold_longpoll

    set_hold_longpoll(request, request.GET["channel"], timeout=5)
    return HttpResponseNotModified()


def instruct(request):
    from gripcontrol import Channel, Response, create_hold

    body = create_hold("response", [Channel(request.GET["channel"])], Response(body="nothing\n"), 20)
    return HttpResponse(body, content_type="application/grip-instruct")


@csrf_exempt
def publish(request):
    """What an application does: something is posted, and those who wait get it."""
    from django_grip import publish as grip_publish
    from gripcontrol import HttpStreamFormat

    grip_publish(request.GET["channel"], HttpStreamFormat(request.body.decode()), blocking=True)
    return HttpResponse("posted\n")


urlpatterns = [
    path("stream", stream),
    path("poll", poll),
    path("not-modified", not_modified),
    path("instruct", instruct),
    path("publish", publish),
]


class Client:
    """One GET on its own connection; reads what arrives."""

    def __init__(self, fantail, target, host="fantail.example", method="GET", body=None):
        self.connection = http.client.HTTPConnection(*fantail.client, timeout=20)
        self.connection.request(method, target, body=body, headers={"Host": host})

    def head(self):
        self.response = self.connection.getresponse()
        return self.response

    def line(self):
        """The next line that is no keep-alive."""
        while True:
            line = self.response.readline()
            if line != b"keep\n":
                return line


def held(fantail, kind, count):
    """Waits until that many connections are held."""
    wanted = f'kind="{kind}"'
    for _ in range(2000):
        connection = http.client.HTTPConnection(*fantail.control, timeout=20)
        connection.request("GET", "/metrics", headers={"Host": "localhost"})
        lines = connection.getresponse().read().decode().splitlines()
        samples = [l for l in lines if l.startswith("fantail_pins{") and wanted in l]
        if sum(float(l.rsplit(" ", 1)[1]) for l in samples) == count:
            return
    raise AssertionError(f"never {count} of {kind}")


def same(got, wanted):
    if got != wanted:
        raise AssertionError(f"{got!r}, not {wanted!r}")


def check_stream(fantail, publisher):
    from gripcontrol import HttpStreamFormat
    from pubcontrol import Item

    client = Client(fantail, "/stream?channel=s")
    same(client.head().status, 200)
    same(client.response.getheader("Grip-Hold"), None)
    same(client.line(), b"signed=True\n")
    same(client.response.readline(), b"keep\n")
    posted = Client(fantail, "/publish?channel=s", method="POST", body="from the application\n")
    same(posted.head().read(), b"posted\n")
    same(client.line(), b"from the application\n")
    publisher.publish("s", Item(HttpStreamFormat(b"\x00\xff\n"), id="1"), blocking=True)
    publisher.publish("s", Item(HttpStreamFormat("again\n"), id="1", prev_id="0"), blocking=True)
    publisher.publish_http_stream("s", "last\n", id="2", prev_id="1", blocking=True)
    same(client.line(), b"\x00\xff\n")
    same(client.line(), b"last\n")
    publisher.publish("s", Item(HttpStreamFormat(close=True)), blocking=True)
    same(client.line(), b"")


def check_poll(fantail, publisher):
    from gripcontrol import HttpResponseFormat
    from pubcontrol import Item

    client = Client(fantail, "/poll?channel=p")
    held(fantail, "poll", 1)
    answer = HttpResponseFormat(code=201, reason="Made", headers={"X-Item": "1"}, body="item\n")
    publisher.publish("p", Item(answer), blocking=True)
    got = client.head()
    same((got.status, got.reason, got.read()), (201, "Made", b"item\n"))
    same((got.getheader("X-Item"), got.getheader("X-Kept")), ("1", "kept"))
    for target in ("/poll?channel=b", "/instruct?channel=b"):
        client = Client(fantail, target)
        held(fantail, "poll", 1)
        publisher.publish_http_response("b", HttpResponseFormat(body=b"\x00\xff"), blocking=True)
        same(client.head().read(), b"\x00\xff")
        held(fantail, "poll", 0)
    client = Client(fantail, "/not-modified?channel=n")
    same(client.head().status, 304)


def check_realm(fantail, control):
    from gripcontrol import GripPubControl

    client = Client(fantail, "/stream?channel=s", host="acme.example")
    client.head()
    same(client.line(), b"signed=True\n")
    realm = f"{control}/realm/acme"
    signed = GripPubControl({"control_uri": realm, "control_iss": "acme", "key": KEY})
    signed.publish_http_stream("s", "signed\n", blocking=True)
    same(client.line(), b"signed\n")
    bare = GripPubControl()
    from gripcontrol import parse_grip_uri

    bare.apply_grip_config(parse_grip_uri(f"{realm}?key={KEY}"))
    bare.publish_http_stream("s", "bare\n", blocking=True)
    same(client.line(), b"bare\n")
    wrong = GripPubControl({"control_uri": realm, "control_iss": "acme", "key": "not-" + KEY})
    try:
        wrong.publish_http_stream("s", "forged\n", blocking=True)
    except ValueError:
        return
    raise AssertionError("a wrong key was accepted")


def main():
    listener = socket.create_server(("127.0.0.1", 0))
    origin = "127.0.0.1:%d" % listener.getsockname()[1]
    fantail = Fantail(os.path.abspath(sys.argv[1]), [f"* {origin}", f"acme.example,realm=acme {origin}"], CONFIG)
    control = "http://%s:%d" % fantail.control
    settings.configure(
        ALLOWED_HOSTS=["*"],
        GRIP_PROXIES=[{"control_uri": control, "key": KEY}],
        GRIP_PROXY_REQUIRED=True,
        MIDDLEWARE=["django_grip.GripMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="for tests only",
    )
    django.setup()
    import waitress
    from django.core.wsgi import get_wsgi_application
    from gripcontrol import GripPubControl

    application = get_wsgi_application()
    serve = lambda: waitress.serve(application, sockets=[listener], threads=8, _quiet=True)
    threading.Thread(target=serve, daemon=True).start()
    publisher = GripPubControl({"control_uri": control})
    check_stream(fantail, publisher)
    check_poll(fantail, publisher)
    check_realm(fantail, control)
    fantail.stop()
    print("python: django-grip, gripcontrol and pubcontrol drive streams and long-polls")


if __name__ == "__main__":
    main()
