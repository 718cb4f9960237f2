"""django-eventstream, unmodified, behind Fantail: events with ids, resuming after a cut, users taken off a channel.

A Django application under waitress, its events kept in SQLite, is the origin and publishes to its GRIP_URL. Fantail has a
configuration of Pushpin's.
Usage: eventstream.py PATH-TO-FANTAIL
"""

import http.client
import os
import socket
import sys
import tempfile
import threading

import django
from django.conf import settings
from django.core.management import call_command
from django.urls import include, path
from fantail import Fantail

KEY = "a-key-that-is-long-enough-for-hs256-tokens"
CONFIG = f"""
[proxy]
sig_key={KEY}
[handler]
id_cache_ttl=60
"""

urlpatterns = []


class Events:
    """A client of server-sent events."""

    def __init__(self, fantail, room, last_id=None):
        connection = http.client.HTTPConnection(*fantail.client, timeout=20)
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        connection.request("GET", f"/rooms/{room}/", headers=headers)
        self.response = connection.getresponse()
        same(self.response.status, 200)
        same(self.response.getheader("Content-Type"), "text/event-stream")
        self.last_id = last_id

    def event(self):
        """The next event: its type and data."""
        kind, data = None, []
        for line in self.response:
            name, _, value = line.decode().rstrip("\n").partition(":")
            if name == "event":
                kind = value.strip()
            elif name == "data":
                data.append(value.strip())
            elif name == "id":
                self.last_id = value.strip()
            elif name == "" and value == "" and kind is not None:
                return kind, "\n".join(data)
        return None


def same(got, wanted):
    if got != wanted:
        raise AssertionError(f"{got!r}, not {wanted!r}")


def application(folder, listener, control):
    """Starts Django on that socket."""
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.path.join(folder, "events.db")}},
        EVENTSTREAM_STORAGE_CLASS="django_eventstream.storage.DjangoModelStorage",
        GRIP_URL=f"{control}/?key={KEY}",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_eventstream"],
        MIDDLEWARE=["django_grip.GripMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="for tests only",
        USE_TZ=True,
    )
    django.setup()
    import waitress
    from django.core.wsgi import get_wsgi_application

    # The library reads the settings when it is imported.
    channels = {"format-channels": ["room-{room}"]}
    urlpatterns.append(path("rooms/<room>/", include("django_eventstream.urls"), channels))
    call_command("migrate", verbosity=0)
    served = get_wsgi_application()
    serve = lambda: waitress.serve(served, sockets=[listener], threads=8, _quiet=True)
    threading.Thread(target=serve, daemon=True).start()


def check(fantail):
    from django_eventstream import send_event

    first = Events(fantail, "a")
    same(first.event(), ("stream-open", ""))
    send_event("room-a", "message", {"text": "one"})
    same(first.event(), ("message", '{"text": "one"}'))
    same(first.last_id, "room-a:1")
    send_event("room-b", "message", "for others")
    send_event("room-a", "message", "two")
    same(first.event(), ("message", '"two"'))
    cut, second = first.last_id, Events(fantail, "a", first.last_id)
    same(cut, "room-a:2")
    same(second.event(), ("stream-open", ""))
    # While a client is away, events go on: they come from the origin when it is back.
    for number in (3, 4):
        send_event("room-a", "message", number)
    for client in (first, second, Events(fantail, "a", cut)):
        wanted = [("message", "3"), ("message", "4")]
        events = [client.event() for _ in wanted]
        if events[0] == ("stream-open", ""):
            events = [*events[1:], client.event()]
        same(events, wanted)
        same(client.last_id, "room-a:4")


def main():
    listener = socket.create_server(("127.0.0.1", 0))
    route = "* 127.0.0.1:%d" % listener.getsockname()[1]
    fantail = Fantail(os.path.abspath(sys.argv[1]), [route], CONFIG, name="pushpin.conf")
    with tempfile.TemporaryDirectory() as folder:
        application(folder, listener, "http://%s:%d" % fantail.control)
        check(fantail)
        fantail.stop()
    print("python: django-eventstream: events, their ids, what was missed")


if __name__ == "__main__":
    main()
