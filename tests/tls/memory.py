"""Measures what a held stream with TLS costs Fantail in memory of its own: the slope between two numbers of streams, so
that what the server takes once does not count.

memory.py BINARY [MOST]    exits with 1 if a stream keeps more than MOST bytes (4,500)
"""

import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

from fantail import Fantail

SIZES = (1000, 4000)
REQUEST = b"GET /stream HTTP/1.1\r\nHost: test.example\r\n\r\n"


def stream(address, settings):
    """A stream that the built-in origin has held."""
    sealed = settings.wrap_socket(socket.create_connection(address), server_hostname="test.example")
    sealed.sendall(REQUEST)
    got = b""
    while b"\r\n\r\n" not in got:
        got += sealed.recv(4096)
    assert got.startswith(b"HTTP/1.1 200"), got
    return sealed


def anonymous(pid):
    """Resident memory of the process itself, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def slope(binary, folder, version):
    flags = ["--tls-listen", "127.0.0.1:0", "--cert", f"{folder}/a.crt", "--key", f"{folder}/a.key"]
    server = Fantail(binary, ["* test"], arguments=flags)
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    settings.check_hostname, settings.verify_mode = False, ssl.CERT_NONE
    settings.minimum_version = settings.maximum_version = version
    held, readings = [], []
    for size in SIZES:
        while len(held) < size:
            held.append(stream(server.tls, settings))
        readings.append(anonymous(server.process.pid))
    for each in held:
        each.close()
    server.stop()
    return (readings[1] - readings[0]) / (SIZES[1] - SIZES[0])


def main(binary, most):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
            " -keyout a.key -out a.crt".split(), cwd=folder, check=True, capture_output=True)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            bytes_each = slope(binary, folder, version)
            print(f"{version.name}: {bytes_each:,.0f} bytes a held stream, at most {most:,}")
            failed |= bytes_each > most
    return failed


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4500))
