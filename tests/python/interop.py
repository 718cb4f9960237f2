"""The Python GRIP libraries, unmodified, drive streams, long-polls and WebSockets through Fantail.

A real Django application with django-grip under waitress is the origin, and a bare WSGI one with gripcontrol alone; they
and gripcontrol publish. The WebSockets' client is the library `websockets`. Fantail has a configuration of Pushpin's.
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
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

KEY = "a-key-that-is-long-enough-for-hs256-tokens"
CONFIG = f"""
[runner]
allow_compression=true
[proxy]
sig_key={KEY}
[handler]
id_cache_ttl=60
"""
ENVIRONMENT = {"FANTAIL_REALM": f'[{{id = "acme", keys = ["{KEY}"]}}]'}


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


@csrf_exempt
def socket_room(request):
    """Echoes, counts in the meta, and does what some messages ask for."""
    ws = request.wscontext
    if not ws:
        return HttpResponse("WebSockets only\n", status=426)
    if request.GET["channel"] == "private":
        return HttpResponse("not for you\n", status=403)
    if ws.is_opening():
        ws.accept()
        ws.subscribe(request.GET["channel"])
        ws.meta["count"] = "0"
    while ws.can_recv():
        message = ws.recv()
        if message is None:
            ws.close(ws.close_code)
            break
        ws.meta["count"] = str(int(ws.meta["count"]) + 1)
        if message == "count":
            ws.send(ws.meta["count"])
        elif message == "leave":
            ws.unsubscribe(request.GET["channel"])
            ws.send("left")
        elif message == "detach":
            ws.send("on your own")
            ws.detach()
        elif message == "close":
            ws.close()
        elif message == "close 4001":
            ws.close(4001)
        elif isinstance(message, str):
            ws.send(message)
        else:
            ws.send_binary(message)
    return HttpResponse()


def protocols(get_response):
    """django-grip makes its answer anew: a subprotocol is chosen around it."""

    def middleware(request):
        response = get_response(request)
        if "room" in request.META.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""):
            response["Sec-WebSocket-Protocol"] = "room"
        return response

    return middleware


urlpatterns = [
    path("stream", stream),
    path("poll", poll),
    path("not-modified", not_modified),
    path("instruct", instruct),
    path("publish", publish),
    path("socket", socket_room),
]


def bare(environ, start_response):
    """An application without a framework: what gripcontrol makes by itself."""
    import gripcontrol as grip

    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    path, instruct = environ["PATH_INFO"], [("Content-Type", "application/grip-instruct")]
    if path == "/hold":
        valid = grip.validate_sig(environ["HTTP_GRIP_SIG"], KEY)
        said = grip.create_hold_stream(grip.Channel("bare"), grip.Response(body=f"valid={valid}\n"))
        start_response("200 OK", instruct)
        return [said.encode()]
    if path == "/poll":
        start_response("200 OK", instruct)
        return [grip.create_hold_response("bare", grip.Response(code=202, body=b"nothing \xff\n"), 5).encode()]
    if path == "/headers":
        filtered = grip.Channel("bare")
        filtered.filters = ["skip-self"]
        channel = grip.create_grip_channel_header([grip.Channel("other"), filtered])
        start_response("200 OK", [("Grip-Hold", "stream"), ("Grip-Channel", channel), ("Content-Type", "text/plain")])
        return [b"by headers\n"]
    events = []
    for event in grip.decode_websocket_events(body):
        if event.type == "OPEN":
            control = grip.websocket_control_message("subscribe", {"channel": "bare"})
            events += [event, grip.WebSocketEvent("TEXT", f"c:{control}")]
        elif event.type == "TEXT":
            events.append(grip.WebSocketEvent("TEXT", b"m:" + event.content))
        elif event.type == "CLOSE":
            events.append(event)
    headers = [("Content-Type", "application/websocket-events"), ("Sec-WebSocket-Extensions", 'grip; message-prefix="m:"')]
    start_response("200 OK", headers)
    return [grip.encode_websocket_events(events)]


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


def check_bare(fantail, publisher):
    from gripcontrol import HttpStreamFormat, WebSocketMessageFormat
    from pubcontrol import Item

    def published(text):
        formats = [HttpStreamFormat(text + "\n"), WebSocketMessageFormat(text)]
        publisher.publish("bare", Item(formats), blocking=True)

    streams = [Client(fantail, target, "bare.example") for target in ("/hold", "/headers")]
    for client, first in zip(streams, (b"valid=True\n", b"by headers\n")):
        client.head()
        same(client.line(), first)
    ws = connect("ws://bare.example/ws", sock=socket.create_connection(fantail.client), close_timeout=20, legacy=True)
    same(said(ws, "hello"), ["hello"])
    published("to all")
    for client in streams:
        same(client.line(), b"to all\n")
    same(ws.recv(20), "to all")
    ws.close(3001)
    same(ws.protocol.close_rcvd.code, 3001)
    poll = Client(fantail, "/poll", "bare.example")
    same((poll.head().status, poll.response.read()), (202, b"nothing \xff\n"))


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


def opened(fantail, query="channel=w", **more):
    return connect("ws://%s:%d/socket?%s" % (*fantail.client, query), close_timeout=20, legacy=True, **more)


def said(client, *messages):
    """What is answered to messages, one each."""
    for message in messages:
        client.send(message)
    return [client.recv(20) for _ in messages]


def closed(client):
    """How the other side closes: its code and reason."""
    try:
        message = client.recv(20)
    except ConnectionClosed as end:
        return (end.rcvd.code, end.rcvd.reason) if end.rcvd else None
    raise AssertionError(f"{message!r}, not a close")


def check_websocket(fantail, publisher, compression):
    from gripcontrol import WebSocketMessageFormat
    from pubcontrol import Item

    publish = lambda *format, **more: publisher.publish(
        "w", Item(WebSocketMessageFormat(*format, **more)), blocking=True
    )
    client = opened(fantail, compression=compression, subprotocols=["other", "room"])
    same((client.subprotocol, bool(client.protocol.extensions)), ("room", compression is not None))
    hidden = [name for name in client.response.headers if name.lower().startswith(("set-meta", "grip"))]
    same(hidden, [])
    texts = ["hello", "", "gr\u00fc\u00dfe " * 1000, b"", b"\x00\xff" * 5000]
    same(said(client, *texts), texts)
    same(said(client, "count"), ["6"])
    same(client.ping(b"payload").wait(20), True)
    publish("news " * 100)
    publish(b"\x00\xff", True)
    same([client.recv(20), client.recv(20)], ["news " * 100, b"\x00\xff"])
    same(said(client, "leave"), ["left"])
    publish("not for those who left")
    same(said(client, "still here"), ["still here"])
    client.send("close 4001")
    same(closed(client), (4001, ""))
    client = opened(fantail, compression=compression)
    client.send("close")
    same(closed(client), (1000, ""))
    client = opened(fantail, compression=compression)
    client.close(3001)
    same(client.protocol.close_rcvd.code, 3001)
    client = opened(fantail, compression=compression)
    # The library takes a close with a reason for one without a code, and answers 0.
    client.close(3001, "enough")
    same(client.protocol.close_rcvd.code, 1000)
    client = opened(fantail, compression=compression)
    same(said(client, "detach"), ["on your own"])
    publish("for those who were let go")
    same(client.recv(20), "for those who were let go")
    publish(action="close", code=4002, reason="done")
    same(closed(client), (4002, "done"))
    held(fantail, "websocket", 0)


def check_refusal(fantail):
    try:
        opened(fantail, "channel=private")
    except InvalidStatus as refusal:
        same((refusal.response.status_code, refusal.response.body), (403, b"not for you\n"))
    else:
        raise AssertionError("opened what the origin refused")
    plain = Client(fantail, "/socket?channel=w")
    same((plain.head().status, plain.response.read()), (426, b"WebSockets only\n"))


def main():
    listener, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    origin, alone = ("127.0.0.1:%d" % each.getsockname()[1] for each in (listener, other))
    routes = [f"*,proto=ws {origin},over_http", f"* {origin}", f"acme.example,realm=acme {origin}"]
    routes.append(f"bare.example {alone},over_http")
    fantail = Fantail(os.path.abspath(sys.argv[1]), routes, CONFIG, ENVIRONMENT, name="pushpin.conf")
    control = "http://%s:%d" % fantail.control
    settings.configure(
        ALLOWED_HOSTS=["*"],
        GRIP_PROXIES=[{"control_uri": control, "key": KEY}],
        GRIP_PROXY_REQUIRED=True,
        MIDDLEWARE=[f"{__name__}.protocols", "django_grip.GripMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="for tests only",
    )
    django.setup()
    import waitress
    from django.core.wsgi import get_wsgi_application
    from gripcontrol import GripPubControl

    application = get_wsgi_application()
    for served, at in ((application, listener), (bare, other)):
        serve = lambda served=served, at=at: waitress.serve(served, sockets=[at], threads=8, _quiet=True)
        threading.Thread(target=serve, daemon=True).start()
    publisher = GripPubControl({"control_uri": control})
    check_stream(fantail, publisher)
    check_poll(fantail, publisher)
    check_bare(fantail, publisher)
    check_realm(fantail, control)
    for compression in (None, "deflate"):
        check_websocket(fantail, publisher, compression)
    check_refusal(fantail)
    fantail.stop()
    print("python: django-grip, gripcontrol and pubcontrol drive streams, long-polls and WebSockets")


if __name__ == "__main__":
    main()
