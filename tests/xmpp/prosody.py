"""Prosody from Debian, for a test: a host with accounts and a place for a component, on free loopback ports."""

import atexit
import os
import random
import socket
import subprocess
import tempfile
import time

HOST, COMPONENT, SECRET = "chat.test", "push.test", "s3cret-of-the-component"

CONFIG = """
run_as_root = true
daemonize = false
pidfile = "{folder}/prosody.pid"
data_path = "{folder}/data"
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s} }}
component_ports = {{ {component} }}
component_interfaces = {{ "127.0.0.1" }}
legacy_ssl_ports = {{ }}
c2s_direct_tls_ports = {{ }}
s2s_ports = {{ }}
s2s_direct_tls_ports = {{ }}
http_ports = {{ }}
https_ports = {{ }}
modules_enabled = {{ "roster"; "saslauth"; "disco"; "posix"; "offline" }}
modules_disabled = {{ "s2s"; "tls" }}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
authentication = "internal_plain"
storage = "internal"
log = {{ {{ levels = {{ min = "{level}" }}, to = "file", filename = "{folder}/log" }} }}
VirtualHost "{host}"
Component "{name}"
    component_secret = "{secret}"
"""


def free_port():
    """Below the ports that are given out for connections."""
    while True:
        port = random.randint(10000, 15999)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class Prosody:
    def __init__(self, users, level="warn"):
        self.folder = tempfile.TemporaryDirectory()
        self.c2s, self.component = free_port(), free_port()
        accounts = os.path.join(self.folder.name, "data", HOST.replace(".", "%2e"), "accounts")
        os.makedirs(accounts)
        for user in users:
            with open(os.path.join(accounts, f"{user}.dat"), "w") as file:
                file.write('return { ["password"] = "secret"; };')
        self.config = os.path.join(self.folder.name, "prosody.cfg.lua")
        with open(self.config, "w") as file:
            file.write(
                CONFIG.format(
                    folder=self.folder.name,
                    c2s=self.c2s,
                    component=self.component,
                    host=HOST,
                    name=COMPONENT,
                    secret=SECRET,
                    level=level,
                )
            )
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(["prosody", "--config", self.config, "-F"], stdout=subprocess.DEVNULL)
        atexit.register(self.process.kill)
        deadline = time.monotonic() + 30
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Prosody did not start:\n" + self.log())
            try:
                for port in (self.c2s, self.component):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    def log(self):
        try:
            with open(os.path.join(self.folder.name, "log")) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self.folder.cleanup()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
