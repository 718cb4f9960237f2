"""The feed of subscriptions with the public library `pubcontrol`, unmodified: told to require subscribers, it publishes on
a channel while somebody listens to it, and not before or after.

subscribers.py BINARY
"""

import json
import socket
import sys
import time
import urllib.error
import urllib.request

from gripcontrol import HttpStreamFormat
from pubcontrol import Item, PubControl

from fantail import Fantail

KEY = "a key of the realm acme, 32 bytes"
DEADLINE = 30
CONFIG = f'''
[[realm]]
id = "acme"
keys = ["{KEY}"]
'''


def until(what, wanted):
    deadline = time.monotonic() + DEADLINE
    while not wanted():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def listen(server, channel):
    sock = socket.create_connection(server.client, DEADLINE)
    sock.sendall(f"GET /stream?channel={channel} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    read(sock, b"[stream opened]")
    return sock


def read(sock, wanted):
    got = b""
    while wanted not in got:
        piece = sock.recv(65536)
        assert piece, got
        got += piece
    return got


def items(server, since=None, key=KEY):
    host, port = server.control
    query = f"?since={urllib.request.quote(f'cursor:{since}')}" if since else ""
    url = f"http://{host}:{port}/realm/acme/subscriptions/items/{query}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def main(binary):
    server = Fantail(binary, ["*,realm=acme test"], CONFIG)
    host, port = server.control
    first = listen(server, "early")
    control = PubControl(
        {
            "uri": f"http://{host}:{port}/realm/acme",
            "key": KEY,
            "require_subscribers": True,
        }
    )
    monitor = control.clients[0].sub_monitor
    until("who was there is known", lambda: monitor.is_channel_subscribed_to("early"))
    second = listen(server, "late")
    until("who comes is told", lambda: monitor.is_channel_subscribed_to("late"))
    for channel, sock in (("early", first), ("late", second)):
        control.publish(channel, Item(HttpStreamFormat(f"to {channel}\n")), blocking=True)
        read(sock, f"to {channel}\n".encode())
    second.close()
    until("who leaves is told", lambda: not monitor.is_channel_subscribed_to("late"))
    before = published(server)
    control.publish("late", Item(HttpStreamFormat("to nobody\n")), blocking=True)
    control.publish("never", Item(HttpStreamFormat("to nobody\n")), blocking=True)
    assert published(server) == before, "what nobody hears is not published"

    assert items(server, key="another key")[0] == 401
    status, page = items(server)
    states = {item["channel"]: item["state"] for item in page["items"]}
    assert status == 200 and states == {"early": "subscribed", "late": "unsubscribed"}, states
    status, rest = items(server, page["last_cursor"])
    assert (status, rest["items"], rest["last_cursor"]) == (200, [], page["last_cursor"])
    # base64 of a cursor of another process
    assert items(server, "ZmFudGFpbF83LTE=")[0] == 404
    assert items(server, "nonsense")[0] == 400
    # The stream of the monitor does not hold the server up.
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 10
    print("subscribers: ok")


def published(server):
    host, port = server.control
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=DEADLINE) as answer:
        lines = answer.read().decode().splitlines()
    return next(line for line in lines if line.startswith('fantail_publishes_total{result="accepted"}'))


if __name__ == "__main__":
    main(sys.argv[1])
