"""How many stanzas a second reach subscribed addresses through Prosody, and whose processor is the limit.

fan_out.py BINARY [ADDRESSES [ITEMS]]

Each address is an account of Prosody's with one client, a socket that counts what it gets. Prosody routes in one thread: its
share of one core is what the row shows, with Fantail's and that of the clients beside it.
"""

import asyncio
import base64
import json
import os
import sys
import time

from component import COMPONENT, HOST, Setup


async def client(port, user, counts, item_count):
    """A client by hand: slixmpp's would be the bottleneck."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    opening = f"<stream:stream to='{HOST}' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
    plain = base64.b64encode(f"\0{user}\0secret".encode()).decode()
    writer.write(f"<?xml version='1.0'?>{opening}".encode())
    await reader.readuntil(b"</stream:features>")
    writer.write(f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>".encode())
    await reader.readuntil(b"<success")
    writer.write(opening.encode())
    await reader.readuntil(b"</stream:features>")
    writer.write(b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>")
    await reader.readuntil(b"</iq>")
    writer.write(b"<presence/>")
    # One's own presence comes back: from then on messages do.
    await reader.readuntil(b"<presence")

    async def count():
        got, rest = 0, b""
        while got < item_count:
            piece = rest + await reader.read(65536)
            assert len(piece) > len(rest), f"{user} was cut off after {got}"
            new = piece.count(b"</message>")
            got, counts[0] = got + new, counts[0] + new
            rest = piece[-10:] if not piece.endswith(b"</message>") else b""
            # A beginning that is kept must not be counted twice.
            rest = rest[rest.rfind(b"<") :] if b"<" in rest else b""

    return count(), writer


def cpu(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(binary, addresses, items):
    users = [f"u{n}" for n in range(addresses)]
    setup = Setup(os.path.abspath(binary), users)
    await setup.joined()
    for user in users:
        await asyncio.to_thread(setup.subscribe, "row", f"{user}@{HOST}")
    counts = [0]
    clients = []
    for user in users:
        clients.append(await client(setup.prosody.c2s, user, counts, items))
    pids = {"Prosody": setup.prosody.process.pid, "Fantail": setup.fantail.process.pid, "clients": os.getpid()}
    before = {name: cpu(pid) for name, pid in pids.items()}
    begun = time.monotonic()
    stanza = "<message type='headline'><body>" + "x" * 100 + "</body></message>"
    for _ in range(items):
        status, answer = await asyncio.to_thread(setup.publish, "row", {"xmpp-stanza": {"content": stanza}})
        assert status == 200, answer
    published = time.monotonic() - begun
    await asyncio.wait_for(asyncio.gather(*(count for count, _ in clients)), 600)
    took = time.monotonic() - begun
    used = {name: cpu(pid) - before[name] for name, pid in pids.items()}
    assert counts[0] == addresses * items, counts
    assert setup.metric("xmpp_dropped_total") == 0
    row = {
        "addresses": addresses,
        "items": items,
        "stanzas a second": round(counts[0] / took),
        "seconds": round(took, 2),
        "publishing took": round(published, 2),
        "of a core": {name: round(seconds / took, 3) for name, seconds in used.items()},
        "CPU ms per 1,000 stanzas": {name: round(1e6 * s / counts[0], 1) for name, s in used.items()},
    }
    print(json.dumps(row))
    for _, writer in clients:
        writer.close()
    setup.stop()


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[2:]] + [1000, 50][len(sys.argv) - 2 :]
    asyncio.run(measure(sys.argv[1], *numbers))
