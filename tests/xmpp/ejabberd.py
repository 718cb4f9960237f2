"""ejabberd from Debian, for a test: a host with accounts and a place for a component, on free loopback ports. It runs
without a name in Erlang's network, so that nothing of it stays."""

import atexit
import glob
import os
import socket
import subprocess
import tempfile
import time

from prosody import COMPONENT, HOST, SECRET, free_port

CONFIG = """
hosts: ["{host}"]
loglevel: warning
auth_method: [internal]
listen:
  - port: {c2s}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    access: all
  - port: {component}
    ip: "127.0.0.1"
    module: ejabberd_service
    access: all
    hosts:
      "{name}":
        password: "{secret}"
modules:
  mod_disco: {{}}
  mod_offline: {{}}
  mod_ping: {{}}
  mod_roster: {{}}
"""


class Ejabberd:
    """As Prosody is for a test."""

    def __init__(self, users, level="warn"):
        self.users = users
        self.folder = tempfile.TemporaryDirectory()
        self.c2s, self.component = free_port(), free_port()
        self.config = os.path.join(self.folder.name, "ejabberd.yml")
        with open(self.config, "w") as file:
            file.write(
                CONFIG.format(host=HOST, name=COMPONENT, secret=SECRET, c2s=self.c2s, component=self.component)
            )
        self.process = None
        self.start()

    def start(self):
        paths = glob.glob("/usr/lib/*/ejabberd-*/ebin") + glob.glob("/usr/lib/ejabberd*/ebin")
        database = os.path.join(self.folder.name, "mnesia")
        command = ["erl", "-noinput", "-mnesia", "dir", f'"{database}"', "-s", "ejabberd"]
        for path in paths:
            command += ["-pa", path]
        for user in self.users:
            names = ", ".join(f'<<"{name}">>' for name in (user, HOST, "secret"))
            command += ["-eval", f"ejabberd_auth:try_register({names})"]
        log = os.path.join(self.folder.name, "log")
        environment = {**os.environ, "EJABBERD_CONFIG_PATH": self.config, "EJABBERD_LOG_PATH": log}
        with open(os.path.join(self.folder.name, "out"), "a") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, cwd=self.folder.name
            )
        atexit.register(self.process.kill)
        deadline = time.monotonic() + 180
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("ejabberd did not start:\n" + self.log())
            try:
                for port in (self.c2s, self.component):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    def log(self):
        text = ""
        for name in ("out", "log"):
            try:
                with open(os.path.join(self.folder.name, name)) as file:
                    text += file.read()
            except FileNotFoundError:
                pass
        return text

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
