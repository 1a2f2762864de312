"""Judges HTTP/1.1 input by h11: one hexadecimal input a line, one JSON verdict a line.

A verdict: the requests as [method, target, [[name, value], ...], body, complete] with bytes as
Latin-1 text, and the status of the refusal, or null.
"""

import json
import sys

import h11


def text(value):
    return bytes(value).decode("latin-1")


def judge(data):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    requests = []
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                headers = [[text(name), text(value)] for name, value in event.headers]
                requests.append([text(event.method), text(event.target), headers, "", False])
                version = event.http_version
            elif isinstance(event, h11.Data):
                requests[-1][3] += text(event.data)
            elif isinstance(event, h11.EndOfMessage):
                requests[-1][4] = True
                if version != b"1.1":
                    break  # h11 keeps no HTTP/1.0 connection open
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    break
                connection.start_next_cycle()
            else:
                break
    except h11.RemoteProtocolError as error:
        return requests, error.error_status_hint
    return requests, None


for line in sys.stdin:
    requests, status = judge(bytes.fromhex(line.strip()))
    print(json.dumps({"requests": requests, "status": status}))
