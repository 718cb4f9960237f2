"""What is sent to both systems. A case is a client's bytes, an origin's answers and what is published
meanwhile; `differs` names each fact that may differ, with the id of the reason in docs/differences.md."""

import json
from dataclasses import dataclass, field

from wire import answer, hold, request


@dataclass
class Case:
    name: str
    #: What the client writes; a list is one connection with an answer each.
    send: object
    #: The origin's answer by number of the request, or the same for all.
    origin: object = b""
    #: Items published once the request is held.
    publish: list = field(default_factory=list)
    #: Read the body until it has this many bytes, then leave. None: to its end.
    wanted: int = None
    #: fact -> id in docs/differences.md
    differs: dict = field(default_factory=dict)
    #: The methods' answers have no body.
    bodyless: bool = False


def to(host, target="/", **more):
    return request(target=target, fields=[("Host", host)], **more)


def stream(content):
    return {"http-stream": {"content": content}}


def response(**members):
    return {"http-response": members}


def item(formats, channel="c", **members):
    return {"channel": channel, "formats": formats, **members}


#: What Pushpin serves or cuts, and Fantail answers with 400.
REFUSED = {"client.*": "D1", "origin*": "D1"}
CLOSE = {"http-stream": {"action": "close"}}
INSTRUCT = [("Content-Type", "application/grip-instruct")]


def instruct(value, status="200 OK"):
    body = value if isinstance(value, str) else json.dumps(value)
    return answer(status, INSTRUCT, body)


#: An answer to a page.
ADMITTED = {"client.access-control-allow-credentials": "D400", "client.vary": "D402"}
#: A call with an answer.
SCRIPT = {"client.x-content-type-options": "D413", "client.body": "D414"}


CASES = [
    # Requests.
    Case("a plain GET", request(target="/a?b=c", fields=[("Host", "plain.example:81"), ("X-A", "1")]), answer(body="hi")),
    Case("an unusual target", request(target="/a//b;c/%20%2f%41?x=%2f&&y"), answer(body="hi"), differs={"origin.line": "D16"}),
    Case("a NUL in a target", request(target="/a?x=%00"), answer(body="hi"), differs=REFUSED),
    Case("many values", request(fields=[("Host", "h"), ("Cookie", "a"), ("Accept", "x"), ("Accept", "y")]), answer(body="hi")),
    Case("authorization and ranges", request(fields=[("Authorization", "Basic eA=="), ("Range", "bytes=0-1")]), answer(body="hi")),
    Case("a coding asked for", request(fields=[("Accept-Encoding", "gzip"), ("Accept", "*/*")]), answer(body="hi")),
    Case("a POST with a length", request("POST", body=b"body"), answer(body="hi")),
    Case("a POST without a body", request("POST", body=b""), answer(body="hi")),
    Case("a POST in chunks", request("POST", fields=[("Transfer-Encoding", "chunked")], body=b"4\r\nbody\r\n0\r\n\r\n"), answer(body="hi")),
    Case("a PUT of 50 kB", request("PUT", body=b"x" * 50_000), answer(body="hi")),
    Case("DELETE and OPTIONS", [request("DELETE"), request("OPTIONS")], answer(body="hi")),
    Case("an unknown method", request("BREW"), answer(body="hi")),
    Case("HEAD", request("HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\n\r\n", bodyless=True),
    Case("grip headers of a client", request(fields=[("Grip-Sig", "x"), ("Grip-Last", "c; last-id=1"), ("Grip-Foo", "y")]), answer(body="hi")),
    Case("marked headers of a client", request(fields=[("eb9bf0f5-X", "1")]), answer(body="hi")),
    Case("x-forwarded-for", request(fields=[("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "2.2.2.2")]), answer(body="hi")),
    Case("x-forwarded-proto", request(fields=[("X-Forwarded-Proto", "https"), ("X-Forwarded-Protocol", "https")]), answer(body="hi")),
    Case("hop-by-hop headers", request(fields=[("Connection", "keep-alive, X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "1")]), answer(body="hi"), differs={"origin.x-hop": "D13"}),
    Case("two requests on a connection", [request(target="/1"), request(target="/2")], answer(body="hi")),
    Case("HTTP/1.0", request(version="1.0"), answer(body="hi")),
    Case("HTTP/1.0 with keep-alive", [request(version="1.0", fields=[("Connection", "keep-alive")])] * 2, answer(body="hi")),
    Case("a close asked for", request(fields=[("Connection", "close")]), answer(body="hi")),
    # Routes.
    Case("a path replaced", to("rewrite.example", "/api/x?y=1"), answer(body="hi")),
    Case("a path shortened", to("cut.example", "/cut/x"), answer(body="hi")),
    Case("a host replaced", to("host.example"), answer(body="hi")),
    Case("a target's host", to("target.example"), answer(body="hi")),
    Case("headers set and deleted", request(fields=[("Host", "header.example"), ("X-A", "2"), ("X-B", "3")]), answer(body="hi")),
    Case("original headers", request(fields=[("Host", "orig.example"), ("X-A", "2"), ("eb9bf0f5-X-B", "3")]), answer(body="hi")),
    Case("a host's table shadows the rest", to("shadow.example", "/y"), answer(body="hi"), differs={"client.body": "D36"}),
    Case("the longest path", [to("longest.example", "/ab"), to("longest.example", "/a/b/c")], answer(body="hi")),
    Case("the next target", to("down.example"), answer(body="hi")),
    Case("no target left", to("dead.example"), answer(body="hi")),
    Case("the test origin", [to("test.example"), to("test.example", "/nope")], b"", differs={"client.body": "D47"}),
    Case("a stream of the test origin", to("test.example", "/stream"), b"", [item(stream("x"), "test")], 17),
    Case("events of a client", [to("over.example", method="POST", body=b"OPEN\r\n"), request("POST", fields=[("Host", "over.example"), ("Content-Type", "application/websocket-events; a=b")], body=b"OPEN\r\n")], answer(body="hi")),
    # Answers.
    Case("a reason of its own", request(), answer("299 My Own Reason", [("X-A", "1"), ("X-A", "2")], "hi")),
    Case("cookies", request(), answer(fields=[("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2")], body="hi")),
    Case("a redirect", request(), answer("302 Found", [("Location", "/other")])),
    Case("errors of the origin", [request()] * 3, [answer("404 Not Found", body="no"), answer("500 Oops", body="x"), answer("503 Busy", [("Retry-After", "1")], "y")]),
    Case("no content", request(), b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"),
    Case("not modified", request(), b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
    Case("an empty answer", request(), answer()),
    Case("a chunked answer", request(), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    Case("a chunked answer for HTTP/1.0", request(version="1.0"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    Case("an answer until the close", request(), (b"HTTP/1.1 200 OK\r\n\r\nabc", "close")),
    Case("an answer of 300 kB", request(), answer(body="z" * 300_000)),
    Case("a content coding", request(), answer(fields=[("Content-Encoding", "gzip")], body="raw"), differs={"client.*": "D14"}),
    Case("garbage", request(), (b"garbage\r\n\r\n", "close")),
    Case("a closed connection", request(), (b"", "close")),
    Case("a length cut short", request(), (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "close"), differs={"client.*": "D30"}),
    Case("chunks cut short", request(), (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "close"), differs={"client.*": "D30"}),
    Case("early hints", request(), b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(body="hi")),
    # GRIP without a hold.
    Case("grip headers without a hold", request(), answer(fields=[("Grip-Foo", "1"), ("X-A", "2")], body="hi")),
    Case("a grip status", request(), answer(fields=[("Grip-Status", "404 Gone Fishing")], body="hi")),
    Case("a grip status without a reason", request(), answer(fields=[("Grip-Status", "404")], body="hi")),
    Case("exposed headers", request(), answer(fields=[("Grip-Expose-Headers", "X-Ok"), ("X-Ok", "1"), ("X-No", "2")], body="hi")),
    Case("a JSON instruct without a hold", request(), instruct({"response": {"code": 202, "headers": {"X-A": "b"}, "body": "ok\n"}})),
    Case("a JSON instruct with bytes", request(), instruct({"response": {"body-bin": "AAH/"}})),
    Case("an instruct that is no JSON", [request(), to("debug.example")], instruct("{")),
    Case("an instruct with a wrong status", request(), instruct({}, "201 Created")),
    Case("an unknown hold", [request(), to("debug.example")], hold("foo", "c")),
    Case("a wrong timeout", [request(), to("debug.example")], hold("response", "c", [("Grip-Timeout", "x")])),
    # Long-polls.
    Case("a poll answered", request(), hold("response", "c", [("X-Kept", "1"), ("X-Both", "a")], "stored"), [item(response(code=201, headers={"X-A": "1", "X-Both": "b"}, body="item"))]),
    Case("a poll answered with a reason", request(), hold("response", "c"), [item(response(code=250, reason="So", body="item"))]),
    Case("a poll answered with bytes", request(), hold("response", "c"), [item(response(**{"body-bin": "AAH/"}))]),
    Case("a poll with a string for a code", request(), hold("response", "c"), [item(response(code="202", body="item"))]),
    Case("a poll of HTTP/1.0", request(version="1.0"), hold("response", "c"), [item(response(body="item"))]),
    Case("a poll of two channels", request(), hold("response", "a, c"), [item(response(body="item"))]),
    Case("a poll by JSON", request(), instruct({"hold": {"mode": "response", "channels": [{"name": "c"}]}, "response": {"headers": {"X-A": "1"}, "body": "s"}}), [item(response(body="item"))]),
    Case("a poll's time", request(), hold("response", "c", [("Grip-Timeout", "1"), ("X-Kept", "1")], "stored")),
    Case("a poll with a patch", request(), hold("response", "c", body='{"a":1}\n'), [item(response(**{"body-patch": [{"op": "replace", "path": "/a", "value": 2}]}))]),
    Case("a poll with a patch into a list", request(), hold("response", "c", body='{"a":[1]}\n'), [item(response(**{"body-patch": [{"op": "add", "path": "/a/0", "value": 2}]}))], differs={"client.body": "D56"}),
    Case("a poll with a patch that fails", request(), hold("response", "c", body='{"a":1}\n'), [item(response(**{"body-patch": [{"op": "test", "path": "/a", "value": 2}]}))], differs={"client.*": "D55"}),
    Case("a hint", request("POST", body=b"again"), [hold("response", "c"), answer(body="new")], [item({"http-response": {"action": "hint"}})]),
    Case("an item that hides a header", request(), hold("response", "c", [("X-Kept", "1")]), [item(response(headers={"Grip-Expose-Headers": "X-A", "X-A": "1", "X-B": "2"}, body="item"))], differs={"client.*": "D53"}),
    # Streams.
    Case("a stream", request(), hold("stream", "c", [("X-Kept", "1")], "hi"), [item(stream("one")), item(stream("two")), item(CLOSE)]),
    Case("a stream with bytes", request(), hold("stream", "c"), [item({"http-stream": {"content-bin": "AAH/"}}), item(CLOSE)]),
    Case("a stream of HTTP/1.0", request(version="1.0"), hold("stream", "c", body="hi"), [item(stream("one")), item(CLOSE)]),
    Case("a stream with a status", request(), hold("stream", "c", [("Grip-Status", "250 So")], "hi"), [item(CLOSE)]),
    Case("a stream by JSON", request(), instruct({"hold": {"mode": "stream", "channels": [{"name": "c"}]}, "response": {"body": "hi"}}), [item(stream("one")), item(CLOSE)]),
    Case("a stream with keep-alives", request(), hold("stream", "other", [("Grip-Keep-Alive", "\\x41; format=cstring; timeout=1")], ""), [], 1),
    Case("a stream with a prefix", to("prefix.example"), hold("stream", "c"), [item(stream("no")), item(stream("yes"), "p-c"), item(stream("sub"), "implicit"), item(CLOSE, "p-c")]),
    Case("formats in the item itself", request(), hold("stream", "c"), [{"channel": "c", "http-stream": {"content": "old"}}, item(CLOSE)]),
    Case("an id twice", request(), hold("stream", "c"), [item(stream("a"), id="dup"), item(stream("b"), id="dup"), item(CLOSE)]),
    Case("skip-self", request(), hold("stream", "c; filter=skip-self", [("Grip-Set-Meta", 'user="ann"')]), [item(stream("no"), meta={"sender": "ann"}), item(stream("yes"), meta={"sender": "bob"}), item(CLOSE)]),
    Case("skip-users", request(), hold("stream", "c; filter=skip-users", [("Grip-Set-Meta", 'user="ann"')]), [item(stream("no"), meta={"skip_users": "x, ann"}), item(stream("yes"), meta={"skip_users": "x"}), item(CLOSE)]),
    Case("require-sub", request(), hold("stream", "c; filter=require-sub, d"), [item(stream("no"), meta={"require_sub": "e"}), item(stream("yes"), meta={"require_sub": "d"}), item(CLOSE)]),
    Case("var-subst", request(), hold("stream", "c; filter=var-subst", [("Grip-Set-Meta", 'user="ann"')]), [item(stream("%(user)s 100%%;")), item(stream("%(none)s")), item(stream("50%")), item(stream("end")), item(CLOSE)], differs={"client.body": "D380"}),
    Case("var-subst of a poll", request(), hold("response", "c; filter=var-subst", [("Grip-Set-Meta", 'user="ann"')]), [item(response(body="for %(user)s"))]),
    Case("build-id in a beginning", request(), hold("stream", "c; filter=build-id", [("Grip-Set-Meta", 'id_format="x%(c)s"')], "id: %(start)I 100%%;"), [item(CLOSE)]),
    Case("build-id in a body", request(), answer(fields=[("Grip-Channel", "c; filter=build-id"), ("Grip-Set-Meta", 'id_format="x"')], body="id: %(start)I;")),
    Case("build-id without a format", [request(), to("debug.example")], hold("stream", "c; filter=build-id", body="x"), differs={"client.*": "D382"}),
    Case("content for filters", request(), hold("stream", "c; filter=var-subst; filter=skip-self", [("Grip-Set-Meta", 'user="ann"')]), [item({"http-stream": {"content": "no", "content-filters": []}}), item({"http-stream": {"content": "%(user)s;", "content-filters": ["var-subst"]}}), item({"http-stream": {"content": "no", "content-filters": ["build-id"]}}), item(CLOSE)], differs={"client.body": "D380"}),
    Case("content for filters that nobody has", request(), hold("stream", "c"), [item({"http-stream": {"content": "no", "content-filters": ["var-subst"]}}), item(stream("yes")), item(CLOSE)], differs={"client.body": "D380"}),
    Case("a position without a link", [request(), to("debug.example")], hold("stream", "c; prev-id=1", body="hi")),
    # JSON-P.
    Case("a script", to("jsonp.example", "/a?x=1&callback=cb&y=2"), answer(fields=[("Content-Type", "text/plain"), ("Cache-Control", "no-store"), ("X-A", "1")], body="hi \"there\"\n"), differs=SCRIPT),
    Case("a script with a method, headers and a body", to("jsonp.example", "/?callback=cb&_method=PUT&_headers=%7B%22X-A%22%3A%221%22%7D&_body=a%20b"), answer("404 Not Found", [("Content-Type", "text/plain")], "no"), differs=SCRIPT),
    Case("a script with a wrong callback", to("jsonp.example", "/?callback="), answer(body="hi"), differs=ADMITTED),
    Case("a script with a wrong method", to("jsonp.example", "/?callback=cb&_method=a%20b"), answer(body="hi"), differs={"client.*": "D415", "origin*": "D415"}),
    Case("a script with wrong headers", to("jsonp.example", "/?callback=cb&_headers=1"), answer(body="hi"), differs=ADMITTED),
    Case("a basic script", to("basic.example", "/?callback=cb"), answer(fields=[("Content-Type", "application/json")], body='{"a": 1}\n'), differs={"client.x-content-type-options": "D413"}),
    Case("a callback without aco", request(target="/?callback=cb"), answer(body="hi")),
    # SockJS.
    Case("SockJS is asked for options", to("sockjs.example", "/chat/0/x/xhr", method="OPTIONS"), answer(body="hi"), differs={"client.*": "D407"}),
    Case("SockJS is asked for nothing", to("sockjs.example", "/chat/nothing"), answer(body="hi"), differs={"client.*": "D407"}),
    # What is no request.
    Case("no Host", b"GET / HTTP/1.1\r\n\r\n", answer(body="hi"), differs=REFUSED),
    Case("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", answer(body="hi"), differs=REFUSED),
    Case("a length and chunks", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", answer(body="hi"), differs=REFUSED),
    Case("two lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", answer(body="hi"), differs=REFUSED),
    Case("a head of 20 kB", request(fields=[("X-A", "x" * 20_000)]), answer(body="hi"), differs={"client.*": "D2", "origin*": "D2"}),
    Case("80 headers", request(fields=[("X-A", "x")] * 80), answer(body="hi"), differs={"client.*": "D2", "origin*": "D2"}),
    Case("a target of 6,000 bytes", request(target="/" + "x" * 6_000), answer(body="hi"), differs={"client.*": "D3", "origin*": "D3"}),
    Case("no HTTP", b"\x16\x03\x01 garbage\r\n\r\n", answer(body="hi"), differs={"client.*": "D1"}),
]


def post(path, body, *fields):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", path, [("Host", "localhost"), *fields], body)


def items(*all):
    return post("/publish/", {"items": list(all)})


#: Requests to the control port, with what may differ.
CONTROL = [
    ("publish", items(item(stream("x"))), {}),
    ("publish without a slash", post("/publish", {"items": []}), {}),
    ("publish and ask for JSON", post("/publish/", {"items": []}, ("Accept", "application/json")), {}),
    ("publish and ask for anything", post("/publish/", {"items": []}, ("Accept", "application/json, */*")), {}),
    ("publish and ask for a picture", post("/publish/", {"items": []}, ("Accept", "image/png")), {}),
    ("publish with credentials", post("/publish/", {"items": []}, ("Authorization", "Bearer x")), {}),
    ("GET /publish/", request("GET", "/publish/", [("Host", "localhost")]), {}),
    ("the root", request("GET", "/", [("Host", "localhost")]), {"control.body": "D74"}),
    ("nowhere", request("GET", "/nowhere", [("Host", "localhost")]), {}),
    ("recover", post("/recover/", b""), {}),
    ("no JSON", post("/publish/", b"{"), {}),
    ("no object", post("/publish/", []), {}),
    ("no items", post("/publish/", {}), {}),
    ("items of a wrong type", post("/publish/", {"items": {}}), {}),
    ("an item that is no object", items(1), {}),
    ("an item without a channel", items({"formats": stream("x")}), {}),
    ("an item with a wrong channel", items({"channel": 1, "formats": stream("x")}), {}),
    ("an item without formats", items({"channel": "c"}), {}),
    ("an item with null for an id", items({"channel": "c", "id": None, "formats": stream("x")}), {}),
    ("a stream without content", items(item({"http-stream": {}})), {}),
    ("a response without a body", items(item(response())), {}),
    ("a response with a wrong code", items(item(response(code=1000, body="x"))), {}),
    ("a response with a code that is no number", items(item(response(code="x", body="x"))), {"control.line": "D59", "control.body": "D59"}),
    ("an unknown action", items(item({"http-stream": {"action": "fly"}})), {"control.body": "D69"}),
    ("an unknown format", items(item({"fpp": {}})), {}),
    ("one bad among good", items(item(stream("x")), {"channel": "c"}), {}),
    ("a query", post("/publish/?x=1", {"items": []}), {"control.line": "D67", "control.body": "D67"}),
    ("chunks", request("POST", "/publish/", [("Host", "localhost"), ("Transfer-Encoding", "chunked")], b"c\r\n{\"items\":[]}\r\n0\r\n\r\n"), {"control.line": "D65", "control.body": "D65"}),
    ("a body over the limit", post("/publish/", b" " * 1_000_001), {"control.line": "D66"}),
]
