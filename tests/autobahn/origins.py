"""Origins that echo: one is asked by POSTs of websocket-events, one is a WebSocket server of its own.

Usage: origins.py over-http|native. Writes its port to standard output, and serves until standard input ends.
"""

import asyncio
import contextlib
import sys

from websockets import ConnectionClosed
from websockets.asyncio.server import serve as serve_websockets

#: Events that an origin sends back as they came.
ECHOED = (b"OPEN", b"TEXT", b"BINARY", b"CLOSE")


class Events(asyncio.Protocol):
    """One connection of HTTP/1.1 with POSTs that have a length."""

    def connection_made(self, transport):
        self.transport, self.ahead = transport, bytearray()

    def data_received(self, data):
        self.ahead += data
        while (end := self.ahead.find(b"\r\n\r\n")) >= 0:
            lines = bytes(self.ahead[:end]).lower().split(b"\r\n")
            length = int(next(line for line in lines if line.startswith(b"content-length:")).split(b":")[1])
            body = bytes(self.ahead[end + 4 : end + 4 + length])
            if len(body) < length:
                return
            del self.ahead[: end + 4 + length]
            answer = echo(body)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/websocket-events\r\nContent-Length: %d\r\n\r\n"
            self.transport.write(head % len(answer) + answer)


def echo(body):
    """The events that answer those of a request."""
    answer, at = [], 0
    while at < len(body):
        start = at
        kind, _, length = body[at : (line := body.index(b"\r\n", at))].partition(b" ")
        at = line + 2 + (int(length, 16) + 2 if length else 0)
        if kind in ECHOED:
            answer.append(body[start:at])
        elif kind == b"PING":
            answer.append(b"PONG" + body[start + 4 : at])
    return b"".join(answer)


async def native(connection):
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def serve(mode):
    loop = asyncio.get_running_loop()
    if mode == "over-http":
        server = await loop.create_server(Events, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    else:
        server = await serve_websockets(native, "127.0.0.1", 0, compression=None, max_size=None)
        port = next(iter(server.sockets)).getsockname()[1]
    print(port, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
