"""Starts the Fantail binary for a test, on free loopback ports, and stops it by its pid."""

import atexit
import json
import os
import subprocess
import tempfile
import threading


class Fantail:
    """A running server: `client`, `control` and, if it speaks TLS, `tls` are (host, port).

    `config` is the text of a file of this name, Fantail's or Pushpin's, in which `{folder}` is where the file is.
    """

    def __init__(self, binary, routes, config="", environment=None, arguments=(), name="fantail.toml"):
        self.folder = tempfile.TemporaryDirectory()
        # It runs in a folder of its own.
        command = [os.path.abspath(binary), "serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", *arguments]
        for route in routes:
            command += ["--route", route]
        if config:
            path = os.path.join(self.folder.name, name)
            with open(path, "w") as file:
                file.write(config.replace("{folder}", self.folder.name))
            command += ["--config", path]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FANTAIL_")}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder.name,
            env={**inherited, "FANTAIL_LOGGING__FORMAT": "json", **(environment or {})},
        )
        atexit.register(self.process.kill)
        self.log = []
        self.client, self.control, self.tls = None, None, None
        for line in self.process.stdout:
            self.log.append(line)
            fields = json.loads(line)
            if fields.get("message") == "listening":
                self.client, self.control = (address(fields[name]) for name in ("client", "control"))
                self.tls = address(fields["client_tls"]) if fields["client_tls"] else None
            if fields.get("message", "").endswith("started"):
                break
        if self.client is None:
            raise RuntimeError("Fantail did not start: " + "".join(self.log))
        threading.Thread(target=lambda: self.log.extend(self.process.stdout), daemon=True).start()

    def stop(self):
        """SIGTERM; fails unless the server ends with 0."""
        self.process.terminate()
        status = self.process.wait(20)
        self.folder.cleanup()
        if status != 0:
            raise RuntimeError(f"Fantail ended with {status}:\n" + "".join(self.log[-50:]))


def address(text):
    host, port = text.split(",")[0].rsplit(":", 1)
    return host.strip("[]"), int(port)
