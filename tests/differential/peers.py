"""Starts Debian's Pushpin 1.36 and Fantail before an origin each, on loopback, and stops them."""

import atexit
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "python"))
from fantail import Fantail  # noqa: E402

#: Pushpin cannot be asked for free ports: the first of these groups that nobody has is taken.
BASES = (9800, 9700, 9600, 9500)
OFFSETS = {"client": 99, "control": 61, "pull": 60, "sub": 62, "command": 63}

ROUTES = """
debug.example,debug {origin}
prefix.example,prefix=p- {origin},sub=implicit
rewrite.example,path_beg=/api/,replace_beg=/v2/ {origin}
cut.example,path_beg=/cut/,path_rem=4 {origin}
host.example,as_host=route.example {origin}
target.example,as_host=route.example {origin},host=target.example:99
header.example,header=X-A:1,header=X-B: {origin}
orig.example,orig_headers {origin}
shadow.example,path_beg=/x {origin}
down.example 127.0.0.1:1 {origin}
dead.example 127.0.0.1:1
longest.example,path_beg=/a {origin},host=short
longest.example,path_beg=/a/b {origin},host=long
test.example test
over.example {origin},over_http
one.over.example {origin},over_http,one_event
prefix.over.example,prefix=p- {origin},over_http
prefix.native.example,prefix=p- {origin}
sub.over.example {origin},over_http,sub=implicit
sub.native.example {origin},sub=implicit
debug.over.example,debug {origin},over_http
debug.native.example,debug {origin}
plain.over.example,no_grip {origin},over_http
plain.native.example,no_grip {origin}
jsonp.example,aco {origin}
basic.example,aco,jsonp_mode=basic {origin}
sockjs.example,sockjs=/chat {origin},over_http
dead.over.example 127.0.0.1:1,over_http
dead.native.example 127.0.0.1:1
down.over.example 127.0.0.1:1,over_http {origin},over_http
down.native.example 127.0.0.1:1 {origin}
* {origin}
"""


def routes(origin):
    return [line for line in ROUTES.format(origin=origin).splitlines() if line]


class Pushpin:
    """Pushpin with its files in a folder of its own, in its own process group."""

    def __init__(self, origin):
        ports = free_ports()
        self.folder = tempfile.TemporaryDirectory()
        folder = self.folder.name
        os.makedirs(f"{folder}/run")
        os.makedirs(f"{folder}/log")
        with open("/usr/lib/pushpin/internal.conf") as file:
            internal = re.sub(r"ipc:///var/run/zurl/zurl", f"ipc://{folder}/run/pushpin-zurl", file.read())
        write(f"{folder}/internal.conf", internal)
        write(f"{folder}/routes", "\n".join(routes(origin)) + "\n")
        write(f"{folder}/pushpin.conf", CONF.format(folder=folder, **ports))
        self.client, self.control = ("127.0.0.1", ports["client"]), ("127.0.0.1", ports["control"])
        command = ["pushpin", "--merge-output", f"--config={folder}/pushpin.conf"]
        with open(f"{folder}/out.log", "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        atexit.register(self.process.terminate)
        for address in (self.client, self.control):
            wait_for(address)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()


def free_ports():
    for base in BASES:
        ports = {name: base + offset for name, offset in OFFSETS.items()}
        try:
            for port in ports.values():
                socket.create_server(("127.0.0.1", port)).close()
            return ports
        except OSError as error:
            taken = error
    raise taken


def start_fantail(binary, origin):
    """With a configuration like that of Pushpin, but with ports of its own."""
    conf = CONF.format(folder="{folder}", **free_ports()).replace("log_level=1", "log_level=2")
    conf = conf.replace("client_buffer_size=8192", "client_buffer_size=32768")
    return Fantail(binary, routes(origin), conf, name="pushpin.conf")


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def wait_for(address):
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(address, 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


CONF = """[global]
include={folder}/internal.conf
rundir={folder}/run
ipc_prefix=pushpin-
port_offset=0
[runner]
services=condure,zurl,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{client}
logdir={folder}/log
log_level=1
client_buffer_size=8192
client_maxconn=1000
[proxy]
routesfile={folder}/routes
sig_key=changeme
x_forwarded_for=append
set_x_forwarded_protocol=proto-only
updates_check=off
[handler]
push_in_spec=tcp://127.0.0.1:{pull}
push_in_sub_specs=tcp://127.0.0.1:{sub}
push_in_http_addr=127.0.0.1
push_in_http_port={control}
stats_spec=ipc://{{rundir}}/{{ipc_prefix}}stats
command_spec=tcp://127.0.0.1:{command}
message_rate=1000000
message_hwm=1000000
id_cache_ttl=60
connection_subscription_max=20
update_on_first_subscription=false
"""
