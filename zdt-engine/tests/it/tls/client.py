"""Python's ssl against the engine while it is reloaded: uploads that come back, resumption, unwrap."""

import socket
import ssl
import sys
import time

PORT, ROOT = int(sys.argv[1]), sys.argv[2]
BODY = bytes(range(256)) * 800


def context(version):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(ROOT)
    made.minimum_version = made.maximum_version = version
    return made


def read_until(stream, end):
    got = b""
    while end not in got:
        part = stream.recv(65536)
        assert part, "it ended early"
        got += part
    return got


for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    shared = context(version)
    session = None
    for turn in range(4):
        plain = socket.create_connection(("127.0.0.1", PORT), timeout=20)
        stream = shared.wrap_socket(plain, server_hostname="localhost", session=session)
        assert stream.session_reused == (turn > 0), (version, turn)
        for _ in range(5):
            head = f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n"
            stream.sendall(head.encode())
            for at in range(0, len(BODY), 10_000):
                stream.sendall(BODY[at : at + 10_000])
                time.sleep(0.002)
            answer = read_until(stream, b"\r\n0\r\n\r\n")
            chunks, rest = b"", answer.split(b"\r\n\r\n", 1)[1]
            while True:
                size, rest = rest.split(b"\r\n", 1)
                size = int(size, 16)
                if size == 0:
                    break
                chunks, rest = chunks + rest[:size], rest[size + 2 :]
            assert chunks == BODY
        session = stream.session
        # Both ways: our close_notify is answered with one.
        stream.unwrap().close()
