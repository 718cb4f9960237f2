"""Fantail as a component of Prosody, with slixmpp's clients: subscriptions in all ways, delivery, presence, discovery,
commands, a bot behind HTTP, a server that dies, a wrong secret, and input that means harm.

component.py BINARY [--ejabberd] [TEST…]
"""

import asyncio
import hashlib
import http.server
import json
import os
import queue
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.parsers.expat

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

import slixmpp
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET

from fantail import Fantail
from ejabberd import Ejabberd
from prosody import COMPONENT, HOST, SECRET, Prosody, free_port

PUBSUB = "http://jabber.org/protocol/pubsub"
COMMANDS = "http://jabber.org/protocol/commands"
DEADLINE = 60


class Client(slixmpp.ClientXMPP):
    """A client whose stanzas can be waited for."""

    def __init__(self, user, resource="test"):
        super().__init__(f"{user}@{HOST}/{resource}", "secret")
        self.enable_starttls = self.enable_direct_tls = False
        self.enable_plaintext = True
        self.plugin["feature_mechanisms"].unencrypted_plain = True
        self.plugin["feature_mechanisms"].unencrypted_scram = True
        self.register_plugin("xep_0030")
        self.register_plugin("xep_0199")
        # People decide who sees their presence; tests say so.
        self.auto_authorize, self.auto_subscribe = None, False
        self.messages, self.presences = asyncio.Queue(), asyncio.Queue()
        self.add_filter("in", self.heard)

    def heard(self, stanza):
        if isinstance(stanza, slixmpp.Message):
            self.messages.put_nowait(stanza.xml)
        elif isinstance(stanza, slixmpp.Presence):
            self.presences.put_nowait(stanza.xml)
        return stanza

    async def join(self, prosody):
        started = asyncio.get_running_loop().create_future()
        self.add_event_handler("session_start", lambda _: started.done() or started.set_result(None))
        self.add_event_handler("failed_all_auth", lambda e: print("no authentication", e))
        self.connect("127.0.0.1", prosody.c2s)
        await asyncio.wait_for(started, DEADLINE)
        # Who has not asked for it hears nothing of subscriptions to presence.
        await self.get_roster()
        return self

    async def message(self, wanted=lambda _: True):
        async def search():
            while True:
                xml = await self.messages.get()
                if wanted(xml):
                    return xml

        return await asyncio.wait_for(search(), DEADLINE)

    async def presence(self, wanted):
        async def search():
            while True:
                xml = await self.presences.get()
                if wanted(xml):
                    return xml

        return await asyncio.wait_for(search(), DEADLINE)

    async def appear(self):
        """Is present, and its server knows it: before that nothing is delivered to the address without a resource."""
        self.send_presence()
        await self.presence(lambda xml: xml.get("from") == str(self.boundjid))

    async def ask(self, kind, payload, to=COMPONENT):
        """An iq's answer: its payload, or IqError."""
        iq = self.make_iq(ito=to, itype=kind)
        iq.append(ET.fromstring(payload))
        return await iq.send(timeout=DEADLINE)

    async def pubsub(self, kind, inner):
        return await self.ask(kind, f"<pubsub xmlns='{PUBSUB}'>{inner}</pubsub>")

    def say(self, to, text, **more):
        self.send_message(mto=to, mbody=text, **more)

    def raw(self, text):
        self.send_raw(text)


def body(xml):
    found = xml.find("{jabber:client}body")
    return None if found is None else found.text


def condition(error):
    return error.iq["error"]["condition"]


class Bot(http.server.BaseHTTPRequestHandler):
    """The origin: a bot without state."""

    seen = []
    slow = threading.Event()
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers["Content-Type"] == "application/websocket-events":
            return self.websocket(content)
        Bot.seen.append((self.path, dict(self.headers), content))
        status, headers, answer = self.think(content)
        answer = answer.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "text/plain", "Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def websocket(self, events):
        answer = b""
        if events.startswith("OPEN"):
            control = b'c:{"type":"subscribe","channel":"all"}'
            answer = b"OPEN\r\nTEXT %x\r\n%s\r\n" % (len(control), control)
        self.send_response(200)
        self.send_header("Content-Type", "application/websocket-events")
        self.send_header("Sec-WebSocket-Extensions", "grip")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def think(self, content):
        stanza = ET.fromstring(content)
        kind = stanza.tag.split("}")[1]
        if kind == "presence" and self.headers["Type"] == "subscribe":
            return 200, {}, "<presence type='subscribed'/>\n<presence/>\n"
        if kind == "iq":
            if stanza[0].tag == "{urn:x}query":
                return 200, {}, f"<iq type='result' id='{stanza.get('id')}'><answer xmlns='urn:x'/></iq>"
            return 200, {}, ""
        text = body(stanza)
        if text is None:
            return 200, {}, ""
        if text.startswith("join "):
            joined = {"Grip-Hold": "stream", "Grip-Channel": text[5:]}
            return 200, joined, "<message type='chat'><body>joined</body></message>"
        if text.startswith("here "):
            instruct = {
                "hold": {"mode": "stream", "channels": [{"name": text[5:]}], "meta": {"presence": "true"}},
                "response": {"body": "<message><body>joined</body></message>"},
            }
            return 200, {"Content-Type": "application/grip-instruct"}, json.dumps(instruct)
        if text.startswith("leave "):
            control = json.dumps({"type": "unsubscribe", "channel": text[6:]})
            return 200, {}, f"c:{control}\n<message><body>left</body></message>"
        if text == "slow":
            Bot.slow.wait(DEADLINE)
        if text == "forge":
            return 200, {}, (
                f"<message from='romeo@{HOST}'><body>forged</body></message>\n"
                "<message><body>&lol;</body></message>\n<features/>\n"
                f"<message from='other@{COMPONENT}'><body>honest</body></message>"
            )
        if text == "fail":
            return 500, {}, "no"
        return 200, {}, f"<message type='chat'><body>echo: {text}</body></message>"

    def log_message(self, *_):
        pass


class Setup:
    """Prosody, the bot and Fantail."""

    def __init__(self, binary, users, more="", secret=SECRET, prosody=None, data="data"):
        self.prosody = prosody or (Ejabberd if "--ejabberd" in sys.argv else Prosody)(users)
        self.origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bot)
        threading.Thread(target=self.origin.serve_forever, daemon=True).start()
        port = self.origin.server_address[1]
        self.fantail = Fantail(
            binary,
            [f"{COMPONENT} 127.0.0.1:{port}", f"ws.test 127.0.0.1:{port},over_http", "* test"],
            f'[server]\ndata_dir = "{data}"\n[xmpp]\nserver = "127.0.0.1:{self.prosody.component}"\n'
            f'domain = "{COMPONENT}"\nsecret = "{secret}"\nadmins = ["admin@{HOST}"]\nopen_realms = ["default"]\n'
            f"{more}\n"
            '[webhooks]\nallow = ["127.0.0.1"]\n'
            '[[realm]]\nid = "acme"\nkeys = ["a key of the realm acme, 32 bytes"]\n',
        )

    def control(self, method, path, data=None, key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"http://127.0.0.1:{self.fantail.control[1]}{path}"
        request = urllib.request.Request(url, data and data.encode(), headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def publish(self, channel, formats, realm=None, key=None, **more):
        item = {"channel": channel, "formats": formats, **more}
        path = f"/realm/{realm}/publish/" if realm else "/publish/"
        return self.control("POST", path, json.dumps({"items": [item]}), key)

    def stanza(self, channel, text, **more):
        status, answer = self.publish(channel, {"xmpp-stanza": {"content": message(text)}}, **more)
        assert status == 200, answer

    def subscribe(self, channel, jid, **form):
        status, answer = self.control(
            "POST", f"/channel/{channel}/xs-subscriptions/", urllib.parse.urlencode({"jid": jid, **form})
        )
        assert (status, answer) == (200, "Subscribed\n"), answer

    def metric(self, name):
        page = self.control("GET", "/metrics")[1]
        found = re.search(rf"^fantail_{re.escape(name)} (\d+)$", page, re.M)
        return int(found.group(1))

    def until(self, name, wanted):
        deadline = time.monotonic() + DEADLINE
        while not wanted(self.metric(name)):
            assert time.monotonic() < deadline, (name, self.metric(name), self.fantail.log[-5:])
            time.sleep(0.02)

    async def joined(self, times=1):
        await asyncio.to_thread(self.until, 'xmpp_connects_total{result="joined"}', lambda n: n >= times)

    async def acknowledged(self):
        await asyncio.to_thread(self.until, "xmpp_unacknowledged_bytes", lambda n: n == 0)

    def stop(self, prosody=True):
        self.fantail.stop()
        self.origin.shutdown()
        if prosody:
            self.prosody.stop()


def message(text):
    return f"<message type='chat'><body>{text}</body></message>"


def has(text):
    return lambda xml: body(xml) == text


async def rest_and_delivery(setup, romeo):
    jid = f"romeo@{HOST}"
    setup.subscribe("news", f"Romeo@{HOST.upper()}")
    quoted = urllib.parse.quote(jid, safe="")
    one = f"/channel/news/xs-subscription/{quoted}/"
    assert json.loads(setup.control("GET", one)[1]) == {"jid": jid, "stanza": True, "node": False}
    content = f"<message type='chat' id='m1' to='juliet@{HOST}' from='juliet@{HOST}'><body>1 &lt; 2</body><x xmlns='urn:y' a='&apos;'/></message>"
    assert setup.publish("news", {"xmpp-stanza": {"content": content}})[0] == 200
    got = await romeo.message(has("1 < 2"))
    # Addresses are Fantail's, whatever the publisher wrote.
    assert (got.get("from"), got.get("to"), got.get("id")) == (COMPONENT, jid, "m1"), ET.tostring(got)
    assert got.find("{urn:y}x").get("a") == "'"
    own = f"<message from='bot@{COMPONENT}'><body>own</body></message>"
    assert setup.publish("news", {"xmpp-stanza": {"content": own}})[0] == 200
    assert (await romeo.message(has("own"))).get("from") == f"bot@{COMPONENT}"
    for n in range(200):
        setup.stanza("news", f"n{n}")
    assert [body(await romeo.message()) for _ in range(200)] == [f"n{n}" for n in range(200)]

    listed = json.loads(setup.control("GET", "/channel/news/xs-subscriptions/?limit=1")[1])
    assert listed == {"subscriptions": [{"jid": jid, "stanza": True, "node": False}], "next": None}, listed
    assert setup.control("DELETE", one) == (200, "Unsubscribed\n")
    assert setup.control("DELETE", one)[0] == 404 and setup.control("GET", one)[0] == 404
    setup.stanza("news", "nobody")
    setup.subscribe("other", jid)
    setup.stanza("other", "last")
    assert body(await romeo.message()) == "last"

    # Realms have keys; the path without one is the realm default.
    path = "/realm/acme/channel/news/xs-subscriptions/"
    form = urllib.parse.urlencode({"jid": jid})
    key = "a key of the realm acme, 32 bytes"
    assert setup.control("POST", path, form)[0] == 401
    assert setup.control("POST", path, form, key=key)[0] == 200
    setup.stanza("news", "of acme", realm="acme", key=key)
    assert body(await romeo.message()) == "of acme"
    for path, data, wanted in [
        ("/channel/c/xs-subscriptions/", "jid=a b@c", 400),
        ("/channel/c/xs-subscriptions/", "url=x", 400),
        ("/channel/c/xs-subscriptions/", "", 400),
        (f"/channel/{'x' * 2000}/xs-subscriptions/", form, 400),
    ]:
        assert setup.control("POST", path, data or "&")[0] == wanted, path
    assert setup.control("PUT", "/channel/c/xs-subscriptions/", form)[0] == 405
    assert setup.control("GET", "/channel/c/xs-subscriptions/?page=1")[0] == 400


async def refused_at_publish(setup):
    for content, why in [
        ("<message>", "ends too early"),
        ("<message/><message/>", "something behind"),
        ("<!DOCTYPE m [<!ENTITY l 'lol'>]><message>&l;</message>", "document type"),
        ("<message>&lol;</message>", "entity"),
        ("<message><?pi?></message>", "processing instruction"),
        ("<features/>", "no message, presence or iq"),
        ("<message type='error'/>", "type"),
        ("<message>" + "<a>" * 50000 + "</message>", "elements in each other"),
        ("<message>" + "x" * 300000 + "</message>", "bytes"),
        # Each attribute says its namespace again.
        ("<message>" + f"<x xmlns:p='urn:{'p' * 200}' p:a='' p:b='' p:c=''/>" * 1000 + "</message>", "480000 bytes"),
        ("<message><xml:x/></message>", "has a name"),
    ]:
        status, answer = setup.publish("news", {"xmpp-stanza": {"content": content}})
        assert status == 400 and why in answer and "xmpp-stanza" in answer, (content[:60], answer)


async def nodes(setup, romeo, juliet):
    jid = f"romeo@{HOST}"
    answer = await romeo.pubsub("set", f"<subscribe node='/default/feed' jid='{jid}'/>")
    made = answer.xml.find(f"{{{PUBSUB}}}pubsub/{{{PUBSUB}}}subscription")
    assert made.attrib == {"node": "/default/feed", "jid": jid, "subscription": "subscribed"}, made.attrib
    event = "{http://jabber.org/protocol/pubsub#event}"

    async def next_item():
        got = await romeo.message(lambda xml: xml.find(f"{event}event") is not None)
        items = got.find(f"{event}event/{event}items")
        assert items.get("node") == "/default/feed"
        return items.find(f"{event}item")

    assert setup.publish("feed", {"http-stream": {"content": '{"a": [1]}\n'}}, id="7")[0] == 200
    item = await next_item()
    assert item.get("id") == "7" and json.loads(item.find("{urn:xmpp:json:0}json").text) == {"a": [1]}
    assert setup.publish("feed", {"ws-message": {"content": "plain"}})[0] == 200
    assert json.loads((await next_item())[0].text) == "plain"
    assert setup.publish("feed", {"json-object": {"b": "c"}, "ws-message": {"content": "x"}})[0] == 200
    assert json.loads((await next_item())[0].text) == {"b": "c"}
    content = "<message><body>x</body><entry xmlns='http://www.w3.org/2005/Atom'><title>t</title></entry></message>"
    assert setup.publish("feed", {"xmpp-stanza": {"content": content}})[0] == 200
    assert (await next_item())[0].tag == "{http://www.w3.org/2005/Atom}entry"

    # Stanzas and items are two wishes of one address.
    setup.subscribe("feed", jid)
    quoted = urllib.parse.quote(jid, safe="")
    shown = json.loads(setup.control("GET", f"/channel/feed/xs-subscription/{quoted}/")[1])
    assert shown == {"jid": jid, "stanza": True, "node": True}, shown
    setup.control("DELETE", f"/channel/feed/xs-subscription/{quoted}/")
    assert setup.control("GET", f"/channel/feed/xs-subscription/{quoted}/")[0] == 404
    await romeo.pubsub("set", f"<subscribe node='/default/feed' jid='{jid}'/>")

    listed = await romeo.pubsub("get", "<subscriptions/>")
    found = listed.xml.findall(f".//{{{PUBSUB}}}subscription")
    assert [(s.get("node"), s.get("jid")) for s in found] == [("/default/feed", jid)]
    for kind, inner, wanted in [
        ("set", f"<subscribe node='/acme/feed' jid='{jid}'/>", "not-allowed"),
        ("set", f"<subscribe node='/nowhere/feed' jid='{jid}'/>", "not-allowed"),
        ("set", f"<subscribe node='feed' jid='{jid}'/>", "item-not-found"),
        ("set", f"<subscribe node='/default/feed' jid='juliet@{HOST}'/>", "bad-request"),
        ("set", "<subscribe node='/default/feed' jid='a b'/>", "jid-malformed"),
        ("set", "<subscribe node='/default/feed'/>", "bad-request"),
        ("set", "<create node='/default/new'/>", "feature-not-implemented"),
        ("set", "<publish node='/default/feed'><item/></publish>", "feature-not-implemented"),
        ("set", f"<unsubscribe node='/default/none' jid='{jid}'/>", "unexpected-request"),
    ]:
        try:
            await romeo.pubsub(kind, inner)
            raise AssertionError(inner)
        except IqError as error:
            assert condition(error) == wanted, (inner, error.iq)
    await romeo.pubsub("set", f"<unsubscribe node='/default/feed' jid='{jid}'/>")
    assert setup.publish("feed", {"ws-message": {"content": "gone"}})[0] == 200
    await juliet.pubsub("set", f"<subscribe node='/default/feed' jid='juliet@{HOST}'/>")
    assert setup.publish("feed", {"ws-message": {"content": "hers"}})[0] == 200
    await juliet.message(lambda xml: xml.find(f"{event}event") is not None)
    assert romeo.messages.empty()


def stamps(xml):
    return [delay.get("stamp") for delay in xml.findall("{urn:xmpp:delay}delay") if delay.get("from") == COMPONENT]


async def recent_items(setup, romeo):
    """What a channel's log has, to who asks: in order, each once, and no more than is good for a server."""

    def ids(answer):
        items = answer.xml.find(f"{{{PUBSUB}}}pubsub/{{{PUBSUB}}}items")
        assert items.get("node") == "/default/log-recent"
        return [item.get("id") for item in items]

    async def ask(inner="", attributes=""):
        return await romeo.pubsub("get", f"<items node='/default/log-recent'{attributes}>{inner}</items>")

    assert ids(await ask()) == []
    for n in range(120):
        assert setup.publish("log-recent", {"json-object": {"n": n}}, id=f"i{n}")[0] == 200
    # What no node's subscriber would get is not there either.
    assert setup.publish("log-recent", {"http-stream": {"action": "close"}}, id="close")[0] == 200
    newest = await ask(attributes=" max_items='3'")
    assert ids(newest) == ["i118", "i119"], ids(newest)
    payloads = [json.loads(json_object.text) for json_object in newest.xml.iter("{urn:xmpp:json:0}json")]
    assert payloads == [{"n": 118}, {"n": 119}]
    assert ids(await ask()) == [f"i{n}" for n in range(21, 120)]
    named = "".join(f"<item id='{name}'/>" for name in ("i70", "i3", "none", "i70"))
    assert ids(await ask(named)) == ["i3", "i70"]
    for n in range(3):
        content = f"<message><body>{n}{'x' * 60_000}</body></message>"
        assert setup.publish("log-recent", {"xmpp-stanza": {"content": content}}, id=f"big{n}")[0] == 200
    assert ids(await ask()) == ["big1", "big2"]
    for node, wanted in [("/default/unkept", "feature-not-implemented"), ("/acme/log-recent", "not-allowed")]:
        try:
            await romeo.pubsub("get", f"<items node='{node}'/>")
            raise AssertionError(node)
        except IqError as error:
            assert condition(error) == wanted, (node, error.iq)
            assert ("persistent-items" in str(error.iq)) == (node == "/default/unkept"), error.iq


async def absence(setup, romeo):
    """Who was not present gets what it has missed, in order, each once, with the time at which it was published."""
    jid = f"romeo@{HOST}"
    setup.subscribe("log-away", jid, presence="true")
    absent = setup.metric("xmpp_absent_total")
    filled = setup.metric("xmpp_filled_total")
    for n in range(300):
        setup.stanza("log-away", f"a{n}")
    await asyncio.to_thread(setup.until, "xmpp_absent_total", lambda n: n == absent + 300)
    romeo.send_presence(pto=COMPONENT)
    for n in range(300, 400):
        setup.stanza("log-away", f"a{n}")
    got = [await romeo.message() for _ in range(400)]
    assert [body(xml) for xml in got] == [f"a{n}" for n in range(400)], [body(xml) for xml in got]
    assert all(len(stamps(xml)) == 1 for xml in got[:300]), ET.tostring(got[0])
    assert setup.metric("xmpp_filled_total") >= filled + 300
    romeo.send_presence(pto=COMPONENT, ptype="unavailable")
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")
    # The log of this channel keeps 500: what it has let go is lost, and counted.
    dropped = setup.metric("xmpp_dropped_total")
    for n in range(510):
        setup.stanza("log-away", f"b{n}")
    await asyncio.to_thread(setup.until, "xmpp_absent_total", lambda n: n >= absent + 810)
    romeo.send_presence(pto=COMPONENT)
    got = [body(await romeo.message()) for _ in range(500)]
    assert got == [f"b{n}" for n in range(10, 510)], got
    assert setup.metric("xmpp_dropped_total") == dropped + 10
    setup.stanza("log-away", "live")
    live = await romeo.message()
    assert body(live) == "live" and not stamps(live), ET.tostring(live)
    quoted = urllib.parse.quote(jid, safe="")
    setup.control("DELETE", f"/channel/log-away/xs-subscription/{quoted}/")
    romeo.send_presence(pto=COMPONENT, ptype="unavailable")
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")


async def presence(setup, romeo):
    """Items go to who is there, if the subscription wants it so."""
    jid = f"romeo@{HOST}"
    setup.subscribe("mood", jid, presence="true")
    quoted = urllib.parse.quote(jid, safe="")
    shown = json.loads(setup.control("GET", f"/channel/mood/xs-subscription/{quoted}/")[1])
    assert shown["presence"] == ["away", "chat", "dnd", "online", "xa"], shown
    absent = setup.metric("xmpp_absent_total")
    setup.stanza("mood", "unseen")
    await asyncio.to_thread(setup.until, "xmpp_absent_total", lambda n: n > absent)
    romeo.send_presence(pto=COMPONENT)
    romeo.send_presence(pto=COMPONENT, ptype="probe")
    await romeo.presence(lambda xml: xml.get("from") == COMPONENT and xml.get("type") is None)
    setup.stanza("mood", "seen")
    assert body(await romeo.message()) == "seen"
    form = (
        "<x xmlns='jabber:x:data' type='submit'><field var='pubsub#show-values'><value>chat</value></field></x>"
    )
    # With two wishes the wider counts for both.
    setup.control("DELETE", f"/channel/mood/xs-subscription/{quoted}/")
    await romeo.pubsub("set", f"<subscribe node='/default/mood' jid='{jid}'/><options>{form}</options>")
    setup.stanza("mood", "not in the mood to chat")
    await asyncio.to_thread(setup.until, "xmpp_absent_total", lambda n: n > absent + 1)
    romeo.send_presence(pto=COMPONENT, pshow="chat")
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")
    setup.stanza("mood", "chatty")
    await romeo.message(lambda xml: xml.find("{http://jabber.org/protocol/pubsub#event}event") is not None)
    romeo.send_presence(pto=COMPONENT, ptype="unavailable")
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")
    setup.stanza("mood", "away again")
    await asyncio.to_thread(setup.until, "xmpp_absent_total", lambda n: n > absent + 2)
    await romeo.pubsub("set", f"<unsubscribe node='/default/mood' jid='{jid}'/>")
    romeo.send_presence(pto=COMPONENT, ptype="subscribe")
    await romeo.presence(lambda xml: xml.get("type") == "subscribed" and xml.get("from") == COMPONENT)


async def discovery(romeo, admin):
    info = await romeo.plugin["xep_0030"].get_info(jid=COMPONENT, timeout=DEADLINE)
    assert ("pubsub", "service", None, "Fantail") in info["disco_info"]["identities"]
    features = info["disco_info"]["features"]
    assert {"urn:xmpp:ping", PUBSUB, "urn:xmpp:json:0"} <= features and COMMANDS not in features
    node = await romeo.plugin["xep_0030"].get_info(jid=COMPONENT, node="/default/feed", timeout=DEADLINE)
    assert ("pubsub", "leaf", None, "/default/feed") in node["disco_info"]["identities"]
    assert await romeo.plugin["xep_0199"].ping(COMPONENT, timeout=DEADLINE) > 0
    assert await romeo.plugin["xep_0199"].ping(f"bot@{COMPONENT}", timeout=DEADLINE) > 0
    for who, wanted in [(romeo, set()), (admin, {"publish"})]:
        items = await who.plugin["xep_0030"].get_items(jid=COMPONENT, node=COMMANDS, timeout=DEADLINE)
        assert {item[1] for item in items["disco_items"]["items"]} == wanted
    try:
        await romeo.ask("get", "<query xmlns='urn:unknown'/>")
        raise AssertionError("answered")
    except IqError as error:
        assert condition(error) == "service-unavailable"


async def admins(setup, romeo, admin):
    setup.subscribe("ops", f"romeo@{HOST}")

    async def said(who, text, to=f"admin@{COMPONENT}"):
        who.say(to, text)
        return await who.message()

    assert body(await said(admin, "publish ops hello all")) == "Published"
    assert body(await romeo.message()) == "hello all"
    items = {"items": [{"channel": "ops", "xmpp-stanza": {"content": message("by JSON")}}]}
    assert body(await said(admin, json.dumps(items))) == "Published"
    assert body(await romeo.message()) == "by JSON"
    for text, to, wrong in (
        ("help", "admin", "Write: publish CHANNEL TEXT"),
        ('{"items":[{"channel":"c"}]}', "admin", "Invalid format"),
        ("publish x y", "admin-none", "There is no realm none."),
    ):
        # An error, so that two that answer everything do not go on for ever.
        answer = await said(admin, text, f"{to}@{COMPONENT}")
        assert answer.get("type") == "error" and wrong in ET.tostring(answer).decode(), ET.tostring(answer)
    assert body(await said(admin, "publish x y", f"admin-acme@{COMPONENT}")) == "Published"
    refused = await said(romeo, "publish ops forged")
    assert refused.get("type") == "error" and refused.find(".//{*}forbidden") is not None

    form = await admin.ask("set", f"<command xmlns='{COMMANDS}' node='publish' action='execute'/>")
    command = form.xml.find(f"{{{COMMANDS}}}command")
    session = command.get("sessionid")
    fields = [field.get("var") for field in command.findall(".//{jabber:x:data}field")]
    assert command.get("status") == "executing" and fields == ["realm", "channel", "content", "items"]

    def submit(**values):
        filled = "".join(f"<field var='{k}'><value>{v}</value></field>" for k, v in values.items())
        return (
            f"<command xmlns='{COMMANDS}' node='publish' sessionid='{session}'>"
            f"<x xmlns='jabber:x:data' type='submit'>{filled}</x></command>"
        )

    done = await admin.ask("set", submit(channel="ops", content="by command"))
    command = done.xml.find(f"{{{COMMANDS}}}command")
    assert (command.get("status"), command.get("sessionid")) == ("completed", session)
    assert body(await romeo.message()) == "by command"
    for who, payload, wanted in [
        (admin, submit(channel="ops"), "bad-request"),
        (admin, submit(channel="ops", content="x", realm="none"), "bad-request"),
        (admin, f"<command xmlns='{COMMANDS}' node='reboot'/>", "item-not-found"),
        (romeo, submit(channel="ops", content="forged"), "forbidden"),
        (romeo, f"<command xmlns='{COMMANDS}' node='publish'/>", "forbidden"),
    ]:
        try:
            await who.ask("set", payload)
            raise AssertionError(payload)
        except IqError as error:
            assert condition(error) == wanted, (payload, error.iq)
    canceled = await admin.ask("set", f"<command xmlns='{COMMANDS}' node='publish' action='cancel'/>")
    assert canceled.xml.find(f"{{{COMMANDS}}}command").get("status") == "canceled"


async def bot(setup, romeo, juliet):
    to = f"bot@{COMPONENT}"
    romeo.say(to, "hi there", mtype="chat")
    got = await romeo.message()
    assert (got.get("from"), got.get("to"), body(got)) == (to, f"romeo@{HOST}/test", "echo: hi there")
    path, headers, content = Bot.seen[-1]
    headers = {name.lower(): value for name, value in headers.items()}
    assert path == f"/xmpp/bot@{COMPONENT}", path
    assert (headers["from"], headers["to"], headers["type"]) == (f"romeo@{HOST}/test", to, "chat")
    assert headers["host"] == COMPONENT and headers["content-type"] == "application/xmpp+xml"
    assert headers["grip-sig"].count(".") == 2 and "grip-feature" in headers
    stanza = ET.fromstring(content)
    assert stanza.tag == "{jabber:client}message" and body(stanza) == "hi there"

    romeo.send_presence(pto=to, ptype="subscribe")
    await romeo.presence(lambda xml: xml.get("type") == "subscribed" and xml.get("from") == to)
    answer = await romeo.ask("get", "<query xmlns='urn:x'/>", to)
    assert answer.xml[0].tag == "{urn:x}answer"
    for payload, wanted in [("<query xmlns='urn:z'/>", "service-unavailable")]:
        try:
            await romeo.ask("get", payload, to)
            raise AssertionError(payload)
        except IqError as error:
            assert condition(error) == wanted

    romeo.say(to, "join room")
    assert body(await romeo.message()) == "joined"
    setup.stanza("room", "to the room")
    assert body(await romeo.message()) == "to the room"
    romeo.say(to, "leave room")
    assert body(await romeo.message()) == "left"
    setup.stanza("room", "to nobody")
    romeo.say(to, "here room")
    assert body(await romeo.message()) == "joined"
    quoted = urllib.parse.quote(f"romeo@{HOST}", safe="")
    assert len(json.loads(setup.control("GET", f"/channel/room/xs-subscription/{quoted}/")[1])["presence"]) == 5
    setup.control("DELETE", f"/channel/room/xs-subscription/{quoted}/")

    # The sender of what is sent is of the component, and what is no stanza is not sent.
    romeo.say(to, "forge")
    assert [(await romeo.message()).get("from") for _ in range(2)] == [to, f"other@{COMPONENT}"]
    romeo.say(to, "fail")
    failed = await romeo.message()
    assert failed.get("type") == "error" and failed.find(".//{*}internal-server-error") is not None

    # A slow answer delays its own sender, in order, and nobody else; one that sends too much is told.
    Bot.slow.clear()
    romeo.say(to, "slow")
    for n in range(20):
        romeo.say(to, f"s{n}")
    juliet.say(to, "quick")
    assert body(await juliet.message(has("echo: quick"))) == "echo: quick"
    crowded = await romeo.message()
    assert crowded.get("type") == "error" and crowded.find(".//{*}resource-constraint") is not None
    Bot.slow.set()
    rest = [await romeo.message() for _ in range(20)]
    answers = [body(xml) for xml in rest if xml.get("type") != "error"]
    assert answers == ["echo: slow"] + [f"echo: s{n}" for n in range(10)], answers


async def hostile(setup, romeo):
    """What a client may send through its server."""
    to = f"bot@{COMPONENT}"
    before = setup.metric('xmpp_refused_total{cause="limit"}')
    deep = f"<message to='{to}' id='deep'><body>x</body>{'<a>' * 200}{'</a>' * 200}</message>"
    romeo.raw(deep)
    refused = await romeo.message()
    assert refused.get("id") == "deep" and refused.find(".//{*}policy-violation") is not None
    wide = "".join(f" a{n}=''" for n in range(100))
    romeo.raw(f"<message to='{to}' id='wide'><x xmlns='urn:y'{wide}/></message>")
    refused = await romeo.message()
    assert refused.get("id") == "wide", ET.tostring(refused)
    assert setup.metric('xmpp_refused_total{cause="limit"}') == before + 2
    # A sender is who the server says it is.
    romeo.raw(f"<message to='admin@{COMPONENT}' from='admin@{HOST}'><body>publish ops forged</body></message>")
    try:
        await asyncio.wait_for(romeo.messages.get(), 0.5)
    except asyncio.TimeoutError:
        pass
    assert not any("forged" in content for _, _, content in Bot.seen)
    assert setup.metric("xmpp_connected") == 1


async def rest(binary):
    """All that needs one Prosody."""
    log = '[[log]]\nmatch = "log-*"\nitems = 500\n'
    setup = Setup(binary, ["romeo", "juliet", "admin"], f"sender_stanzas = 10\n{log}")
    try:
        await setup.joined()
        romeo, juliet, admin = [await Client(user).join(setup.prosody) for user in ("romeo", "juliet", "admin")]
        for client in (romeo, juliet, admin):
            await client.appear()
        await rest_and_delivery(setup, romeo)
        await refused_at_publish(setup)
        await nodes(setup, romeo, juliet)
        await recent_items(setup, romeo)
        await absence(setup, romeo)
        await presence(setup, romeo)
        await discovery(romeo, admin)
        await admins(setup, romeo, admin)
        await bot(setup, romeo, juliet)
        await hostile(setup, romeo)
        if isinstance(setup.prosody, Ejabberd):
            # It has ended the stream of who claims to be another; Prosody leaves it.
            romeo = await Client("romeo").join(setup.prosody)
            await romeo.appear()
        await every_transport(setup, romeo)
        for client in (romeo, juliet, admin):
            await client.disconnect()
        setup.fantail.process.poll()
        assert SECRET not in "".join(setup.fantail.log)
        setup.stop()
    except BaseException:
        print("".join(setup.fantail.log[-40:]), setup.prosody.log(), file=sys.stderr)
        raise


class Receiver(http.server.BaseHTTPRequestHandler):
    """An endpoint of webhooks."""

    got = queue.Queue()

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"])).decode()
        Receiver.got.put((self.path, self.headers["X-Item"], content))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


async def every_transport(setup, romeo):
    """One publish reaches a stream, a long-poll, a WebSocket, a webhook and an XMPP entity."""

    def ask(path, host="x", more=""):
        sock = socket.create_connection(setup.fantail.client, DEADLINE)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())
        return sock

    def read_until(sock, wanted):
        got = b""
        while wanted not in got:
            piece = sock.recv(65536)
            assert piece, got
            got += piece
        return got

    stream = ask("/stream?channel=all")
    read_until(stream, b"[stream opened]")
    poll = ask("/response?channel=all")
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    websocket = ask("/", "ws.test", upgrade)
    await asyncio.to_thread(read_until, websocket, b"101 Switching Protocols")
    deadline = time.monotonic() + DEADLINE
    while not re.search(r'fantail_pins\{[^}]*kind="poll"[^}]*\} 1', setup.control("GET", "/metrics")[1]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    setup.subscribe("all", f"romeo@{HOST}")
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    url = urllib.parse.urlencode({"url": f"http://127.0.0.1:{receiver.server_address[1]}/hook"})
    assert setup.control("POST", "/channel/all/hrq-subscriptions/", url) == (200, "Subscribed\n")
    formats = {
        "http-request": {"method": "PUT", "headers": {"X-Item": "1"}, "body": "posted"},
        "http-stream": {"content": "streamed\n"},
        "http-response": {"body": "answered\n"},
        "ws-message": {"content": "framed"},
        "xmpp-stanza": {"content": message("said")},
    }
    assert setup.publish("all", formats, id="1")[0] == 200
    read_until(stream, b"streamed\n")
    read_until(poll, b"answered\n")
    read_until(websocket, b"\x81\x06framed")
    assert body(await romeo.message()) == "said"
    assert await asyncio.to_thread(Receiver.got.get, timeout=DEADLINE) == ("/hook", "1", "posted")
    receiver.shutdown()


async def a_server_that_dies(binary):
    """What is published meanwhile comes late, and says so; what is too much is dropped and counted."""
    setup = Setup(binary, ["romeo"], "queue_items = 5\nrealm_queue_items = 5")
    await setup.joined()
    jid = f"romeo@{HOST}"
    setup.subscribe("late", jid)
    setup.subscribe("mood", jid, presence="true")
    romeo = await Client("romeo").join(setup.prosody)
    await romeo.appear()
    romeo.send_presence(pto=COMPONENT)
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")
    setup.stanza("mood", "seen")
    assert body(await romeo.message()) == "seen"
    await setup.acknowledged()
    setup.prosody.kill()
    await asyncio.to_thread(setup.until, "xmpp_connected", lambda n: n == 0)
    for n in range(8):
        setup.stanza("late", f"n{n}")
    # Publishers do not wait until the component has looked at an item.
    await asyncio.to_thread(setup.until, "xmpp_dropped_total", lambda n: n == 3)
    assert setup.metric("xmpp_queued") == 5
    # Long enough for a delay to be told.
    await asyncio.sleep(2.1)
    setup.prosody.start()
    await setup.joined(2)
    await asyncio.to_thread(setup.until, "xmpp_queued", lambda n: n == 0)
    # What is stored for romeo while romeo appears may stay where it is: so it is stored before, which an answer on the
    # same stream proves.
    romeo = await Client("romeo").join(setup.prosody)
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")
    await romeo.appear()
    got = [await romeo.message() for _ in range(5)]
    assert [body(xml) for xml in got] == [f"n{n}" for n in range(3, 8)], [body(xml) for xml in got]
    delays = [xml.findall("{urn:xmpp:delay}delay") for xml in got]
    assert all(any(delay.get("from") == COMPONENT for delay in each) for each in delays), ET.tostring(got[0])
    # The presence that was said before the kill is not believed any more: the new server knows nothing of it.
    deadline = time.monotonic() + DEADLINE
    while setup.metric("xmpp_absent_total") == 0:
        assert time.monotonic() < deadline
        setup.stanza("mood", "unseen?")
        await asyncio.sleep(0.1)
    romeo.send_presence(pto=COMPONENT)
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")
    setup.stanza("mood", "seen again")
    await romeo.message(has("seen again"))
    await romeo.disconnect()
    setup.stop()


async def a_server_that_does_not_read(binary):
    """What its kernel has taken is not lost when it dies, also without a log."""
    setup = Setup(binary, ["romeo"])
    await setup.joined()
    setup.subscribe("lagging", f"romeo@{HOST}")
    await setup.acknowledged()
    setup.prosody.process.send_signal(signal.SIGSTOP)
    for n in range(50):
        setup.stanza("lagging", f"n{n}")
    await asyncio.to_thread(setup.until, 'xmpp_sent_total{kind="item"}', lambda n: n == 50)
    setup.prosody.kill()
    await asyncio.to_thread(setup.until, "xmpp_connected", lambda n: n == 0)
    setup.prosody.start()
    await setup.joined(2)
    await setup.acknowledged()
    assert setup.metric("xmpp_repeated_total") >= 50
    romeo = await Client("romeo").join(setup.prosody)
    await romeo.ask("get", "<ping xmlns='urn:xmpp:ping'/>")
    await romeo.appear()
    got = [body(await romeo.message()) for _ in range(50)]
    assert got == [f"n{n}" for n in range(50)], got
    await romeo.disconnect()
    setup.stop()


async def a_log_fills_what_a_server_missed(binary):
    """What is published while the server is away is read from the log, whatever the queue, also by another process."""
    log = '[[log]]\nmatch = "*"\nstorage = "disk"\ndurability = "logged"\nitems = 1000\n'
    with tempfile.TemporaryDirectory() as data:
        first = Setup(binary, ["romeo"], f"queue_items = 5\n{log}", data=data)
        await first.joined()
        first.subscribe("late", f"romeo@{HOST}")
        romeo = await Client("romeo").join(first.prosody)
        await romeo.appear()
        first.stanza("late", "before")
        assert body(await romeo.message()) == "before"
        await first.acknowledged()
        first.prosody.kill()
        await asyncio.to_thread(first.until, "xmpp_connected", lambda n: n == 0)
        for n in range(40):
            first.stanza("late", f"n{n}")
        assert first.metric("xmpp_dropped_total") == 0
        first.prosody.start()
        romeo = await Client("romeo").join(first.prosody)
        await romeo.appear()
        for n in range(40, 60):
            first.stanza("late", f"n{n}")
        got = [await romeo.message() for _ in range(60)]
        assert [body(xml) for xml in got] == [f"n{n}" for n in range(60)], [body(xml) for xml in got]
        assert all(stamps(xml) for xml in got[:40])
        first.stanza("late", "live")
        live = await romeo.message()
        assert body(live) == "live" and not stamps(live), ET.tostring(live)

        await first.acknowledged()
        first.prosody.kill()
        await asyncio.to_thread(first.until, "xmpp_connected", lambda n: n == 0)
        for n in range(20):
            first.stanza("late", f"k{n}")
        first.fantail.process.kill()
        first.fantail.process.wait()
        first.origin.shutdown()
        first.prosody.start()
        romeo = await Client("romeo").join(first.prosody)
        await romeo.appear()
        setup = Setup(binary, [], f"queue_items = 5\n{log}", prosody=first.prosody, data=data)
        # What it got within a second of the kill may come again.
        got = [await romeo.message()]
        while body(got[-1]) != "k19":
            got.append(await romeo.message())
        owed = ["before", *(f"n{n}" for n in range(60)), "live", *(f"k{n}" for n in range(20))]
        assert 20 <= len(got) and [body(xml) for xml in got] == owed[-len(got) :], [body(xml) for xml in got]
        assert all(stamps(xml) for xml in got)
        setup.stanza("late", "last")
        assert body(await romeo.message()) == "last"
        await romeo.disconnect()
        setup.stop()


async def seen(setup, client, text):
    """Publishes until the client gets one, which its presence decides."""
    for n in range(DEADLINE * 5):
        setup.stanza("mine", f"{text} {n}")
        try:
            while True:
                got = await asyncio.wait_for(client.messages.get(), 0.2)
                if (body(got) or "").startswith(text):
                    return
        except asyncio.TimeoutError:
            continue
    raise AssertionError(text)


async def subscriptions_survive(binary):
    """kill -9, and the subscription is there again; and so is who lets the component see its presence."""
    with tempfile.TemporaryDirectory() as data:
        first = Setup(binary, ["romeo"], data=data)
        await first.joined()
        first.subscribe("kept", f"romeo@{HOST}")
        romeo = await Client("romeo").join(first.prosody)
        await romeo.appear()
        romeo.auto_authorize = True
        first.subscribe("mine", f"romeo@{HOST}", presence="true")
        await seen(first, romeo, "agreed")
        first.fantail.process.kill()
        first.fantail.process.wait()
        first.origin.shutdown()
        setup = Setup(binary, [], prosody=first.prosody, data=data)
        await setup.joined()
        assert setup.metric("xmpp_subscriptions") == 2
        setup.stanza("kept", "still here")
        await romeo.message(has("still here"))
        await seen(setup, romeo, "known again")
        quoted = urllib.parse.quote(f"romeo@{HOST}", safe="")
        assert setup.control("DELETE", f"/channel/mine/xs-subscription/{quoted}/")[0] == 200
        await romeo.presence(lambda xml: xml.get("type") == "unsubscribe" and xml.get("from") == COMPONENT)
        await romeo.disconnect()
        setup.stop()


async def a_wrong_secret(binary):
    setup = Setup(binary, ["romeo"], secret="not-the-secret")
    await asyncio.to_thread(setup.until, 'xmpp_connects_total{result="denied"}', lambda n: n == 1)
    log = "".join(setup.fantail.log)
    assert "xmpp.secret is not what the server has" in log and "not-authorized" in log, log
    assert "not-the-secret" not in log and "not-the-secret" not in setup.control("GET", "/metrics")[1]
    # Slowly: people have to mend it.
    await asyncio.sleep(3)
    assert setup.metric('xmpp_connects_total{result="denied"}') == 1
    setup.stop(prosody=False)

    # Another port of the server.
    class Place:
        component = setup.prosody.c2s

    lost = Setup(binary, [], prosody=Place())
    await asyncio.to_thread(lost.until, 'xmpp_connects_total{result="denied"}', lambda n: n == 1)
    assert "xmpp.server" in "".join(lost.fantail.log), lost.fantail.log
    lost.stop(prosody=False)
    setup.prosody.stop()


class Server:
    """A server of components that says what a test wants."""

    def __init__(self):
        self.connections = asyncio.Queue()

    async def start(self):
        self.port = free_port()
        self.server = await asyncio.start_server(lambda r, w: self.connections.put((r, w)), "127.0.0.1", self.port)
        return self

    async def accept(self, accepts=True):
        reader, writer = await asyncio.wait_for(self.connections.get(), DEADLINE)
        await reader.readuntil(b"to='push.test'>")
        writer.write(
            b"<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' "
            b"xmlns:stream='http://etherx.jabber.org/streams' from='push.test' id='abc'>"
        )
        proof = await reader.readuntil(b"</handshake>")
        assert hashlib.sha1(f"abc{SECRET}".encode()).hexdigest().encode() in proof
        if accepts:
            writer.write(b"<handshake/>")
        return reader, writer


# What is put together here is XML to some parsers and none to others.
PIECES = [
    "<a>", "</a>", "<a/>", "<b xmlns=''>", "</b>", "<b xmlns='urn:b'>", "<xml:c/>", "<c xml:lang='d'/>", "<p:e p:f='1'/>",
    "<q:g xmlns:q='http://www.w3.org/2000/xmlns/'/>", "<h xmlns='http://www.w3.org/XML/1998/namespace'/>", "<\u0220/>",
    "<größe/>", "<i \U00010000=''/>", "<j xmlns='k l'/>", "<j xmlns='k&#10;l'/>", "<m xmlns:n='\u0001'/>", "]]&gt;", "]]>", "&#13;\t\n", "'\"",
    "<o p='&#9;&apos;&quot;&lt;'/>", "\ufffd", "\uffff", "&#xfffe;", "<r xmlns:s='u' xmlns:t='u' s:v='' t:v=''/>", "<xmlns/>", "<w xmlns:x='xmlns' x:xmlns='1'/>",
]


async def what_is_sent_is_xml_to_expat(binary):
    """Prosody and ejabberd read with expat, and end the stream of everybody for what it refuses."""
    server = await Server().start()

    class Place:
        component = server.port

        def stop(self):
            server.server.close()

    setup = Setup(binary, [], prosody=Place())
    reader, writer = await server.accept()
    setup.subscribe("c", f"romeo@{HOST}")
    jid = f"juliet@{HOST}"
    writer.write(
        f"<iq from='{jid}' to='{COMPONENT}' type='set' id='1'><pubsub xmlns='{PUBSUB}'>"
        f"<subscribe node='/default/c' jid='{jid}'/></pubsub></iq>".encode()
    )
    await asyncio.wait_for(reader.readuntil(b"</iq>"), DEADLINE)
    random.seed(7)
    taken = 0
    for n in range(600):
        picked = [PIECES[n]] if n < len(PIECES) else random.choices(PIECES, k=random.randint(2, 3))
        content = f"<message xmlns:p='urn:p'>{''.join(picked)}</message>"
        taken += setup.publish("c", {"xmpp-stanza": {"content": content}})[0] == 200
    assert taken > 50, taken
    setup.stanza("c", "the last")
    text = b""
    # The copies for the node's subscriber come behind the others.
    while b"the last</body></message></item></items></event></message>" not in text:
        piece = await asyncio.wait_for(reader.read(65536), DEADLINE)
        assert piece
        text += piece
    # With the separators of Prosody and of ejabberd.
    for separator in ("\x01", "\n", " "):
        parser = xml.parsers.expat.ParserCreate("UTF-8", separator)
        parser.Parse(b"<stream xmlns='jabber:component:accept'>" + text + b"</stream>", True)
    setup.stop()


async def a_server_that_means_harm(binary):
    """Billion laughs, forged senders, garbage: a complaint, a count, and another try."""
    server = await Server().start()

    class Place:
        component = server.port

        def stop(self):
            server.server.close()

    setup = Setup(binary, [], prosody=Place())
    reader, writer = await server.accept()
    laughs = b"<!DOCTYPE lolz [<!ENTITY lol 'lol'><!ENTITY lol2 '&lol;&lol;'>]><message>&lol2;</message>"
    writer.write(laughs)
    assert b"<restricted-xml" in await asyncio.wait_for(reader.read(), DEADLINE)
    await asyncio.to_thread(setup.until, 'xmpp_connects_total{result="failed"}', lambda n: n == 1)
    for garbage, wanted in [(b"<message></presence>", b"<not-well-formed")]:
        reader, writer = await server.accept()
        writer.write(garbage)
        assert wanted in await asyncio.wait_for(reader.read(), DEADLINE)
    reader, writer = await server.accept()
    for stanza in [
        "<message from='push.test' to='push.test'><body>x</body></message>",
        "<message from='a@push.test' to='bot@push.test'><body>x</body></message>",
        "<message to='bot@push.test'/>",
        "<message from='a@b' to='bot@other.test'/>",
        "<message from='a b@c' to='bot@push.test'/>",
        "<features/>",
    ]:
        writer.write(stanza.encode())
    await asyncio.to_thread(setup.until, 'xmpp_refused_total{cause="address"}', lambda n: n == 6)
    writer.write(b"<message from='a@b' to='bot@push.test' id='big'><body>" + b"x" * 5_000_000)
    writer.write(b"</body></message><iq from='a@b' to='push.test' type='get' id='9'><ping xmlns='urn:xmpp:ping'/></iq>")
    answers = await asyncio.wait_for(reader.readuntil(b"id='9'"), DEADLINE)
    assert b"policy-violation" in answers and b"id='big'" in answers, answers
    assert setup.metric('xmpp_refused_total{cause="limit"}') == 1
    writer.write(b"<stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
    writer.close()
    await server.accept(accepts=False)
    assert any("system-shutdown" in line for line in setup.fantail.log)
    assert SECRET not in "".join(setup.fantail.log)
    setup.stop()


TESTS = [
    rest,
    a_server_that_dies,
    a_server_that_does_not_read,
    a_log_fills_what_a_server_missed,
    subscriptions_survive,
    a_wrong_secret,
    what_is_sent_is_xml_to_expat,
    a_server_that_means_harm,
]


def main(binary, names):
    for test in TESTS:
        if not names or test.__name__ in names:
            begun = time.monotonic()
            asyncio.run(test(os.path.abspath(binary)))
            print(f"{test.__name__}: ok ({time.monotonic() - begun:.1f} s)")


if __name__ == "__main__":
    main(sys.argv[1], [name for name in sys.argv[2:] if name != "--ejabberd"])
