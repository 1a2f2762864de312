"""WebSockets over HTTP/2 (RFC 8441) with the hyper-h2 library: as many as asked for, on one connection, each
counting; a round is printed whenever all have answered. Ends when standard input does."""

import json, os, select, socket, ssl, sys

import h2.config, h2.connection, h2.events


def frame(opcode, payload):
    mask = os.urandom(4)
    assert len(payload) < 126
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def secured(connection):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    secure = context.wrap_socket(connection, server_hostname="localhost")
    assert secure.selected_alpn_protocol() == "h2"
    return secure


def main(port, count, is_secure):
    connection = socket.create_connection(("127.0.0.1", port))
    if is_secure:
        connection = secured(connection)
    machine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    machine.initiate_connection()
    received, answers = {}, {}

    def turn():
        connection.sendall(machine.data_to_send())
        data = connection.recv(65536)
        assert data, "the connection has ended"
        for event in machine.receive_data(data):
            assert not isinstance(event, (h2.events.ConnectionTerminated, h2.events.StreamReset)), event
            if isinstance(event, h2.events.ResponseReceived):
                assert dict(event.headers)[":status"] == "200", event
            if isinstance(event, h2.events.DataReceived):
                machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                received[event.stream_id] = received.get(event.stream_id, b"") + event.data
        connection.sendall(machine.data_to_send())

    while machine.remote_settings.get(8) != 1:
        turn()
    streams = []
    for _ in range(count):
        stream = machine.get_next_available_stream_id()
        streams.append(stream)
        machine.send_headers(stream, [
            (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/ws/counter"),
            (":authority", "zdt.test"), ("sec-websocket-version", "13")])
    number = 0
    while True:
        number += 1
        for stream in streams:
            machine.send_data(stream, frame(1, b"tick"))
        waiting = set(streams)
        while waiting:
            turn()
            for stream in list(waiting):
                data = received.get(stream, b"")
                if len(data) >= 2 and len(data) >= 2 + data[1]:
                    assert data[0] == 0x81
                    answer = json.loads(data[2:2 + data[1]])
                    received[stream] = data[2 + data[1]:]
                    assert answer["n"] == number, (stream, answer, number)
                    waiting.discard(stream)
        print("round", flush=True)
        if select.select([sys.stdin], [], [], 0)[0] and not sys.stdin.read(1):
            return


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["tls"])
