"""Echoes messages of many sizes on compressed WebSockets and checks every byte of the answers.

Arguments: the URL, the number of connections. Prints one line after each round over all sizes, on
all connections, and ends with the round after its standard input has ended.
"""

import asyncio
import json
import random
import sys
import threading

import websockets

SIZES = [0, 1, 7, 125, 126, 1000, 4096, 16383, 16384, 65535, 65536, 65537, 200000, 1 << 20]


def payload(rng, size, kind):
    if kind == "noise":
        return rng.randbytes(size)
    if kind == "text":
        # Characters of one to four bytes, so that frames and reads end within them.
        return "".join(rng.choice("abcdé€😀 ") for _ in range(size))
    record = json.dumps({"id": rng.randrange(1 << 30), "name": "a record like the one before"})
    return (record * (size // len(record) + 1))[:size]


async def one_round(connection, rng):
    for size in SIZES:
        kind = rng.choice(["noise", "text", "json"])
        message = payload(rng, min(size, 20000) if kind == "text" else size, kind)
        if kind == "json" and size > 1000:
            # In fragments, and with a second message behind it before the first is answered.
            cut = rng.randrange(1, size)
            await connection.send([message[:cut], message[cut:]])
            await connection.send(message[:50])
            expected = [message, message[:50]]
        else:
            await connection.send(message)
            expected = [message]
        for one in expected:
            answer = await asyncio.wait_for(connection.recv(), 20)
            assert answer == one, f"{kind} of {size}: {len(answer)} other bytes"
    pong = await connection.ping()
    await asyncio.wait_for(pong, 20)


async def main(url, count):
    rng = random.Random(20)
    connections = [
        await websockets.connect(url, max_size=None, ping_interval=None) for _ in range(count)
    ]
    for connection in connections:
        names = [extension.name for extension in connection.protocol.extensions]
        assert names == ["permessage-deflate"], names
    # A daemon: one that fails does not wait for its standard input.
    ended = threading.Thread(target=sys.stdin.read, daemon=True)
    ended.start()
    while True:
        is_last = not ended.is_alive()
        await asyncio.gather(*(one_round(connection, rng) for connection in connections))
        print("round", flush=True)
        if is_last:
            break
    for connection in connections:
        await connection.close()
        assert connection.close_code == 1000, connection.close_code


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
