"""WebSockets to an application that answers each message with its number and the message itself.

Arguments: the URL, the number of connections. All count on, as fast as they are answered, whatever is replaced; a
round is printed when each has been answered ten times more. Ends with the round in which standard input has ended.
Messages are long and alike, so that compression has something to gain from a window."""

import asyncio
import random
import sys
import threading

import websockets

RECORD = "a record that is like the one before, but for its number: "


async def ten(connection, state):
    for _ in range(10):
        state["count"] += 1
        message = RECORD * random.choice([0, 1, 30, 400]) + str(state["count"])
        await connection.send(message)
        answer = await asyncio.wait_for(connection.recv(), 20)
        expected = f"{state['count']} {message}"
        assert answer == expected, f"{answer[:80]!r} instead of {expected[:80]!r}"


async def main(url, count):
    # Some with compression, some without.
    connections = [
        await websockets.connect(url, compression="deflate" if number % 2 else None, ping_interval=None)
        for number in range(count)
    ]
    states = [{"count": 0} for _ in connections]
    # A daemon: one that fails does not wait for its standard input.
    ended = threading.Thread(target=sys.stdin.read, daemon=True)
    ended.start()
    while True:
        is_last = not ended.is_alive()
        await asyncio.gather(*(ten(connection, state) for connection, state in zip(connections, states)))
        print("round", flush=True)
        if is_last:
            break
    for connection in connections:
        await connection.close()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
