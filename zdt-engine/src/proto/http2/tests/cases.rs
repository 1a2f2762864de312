//! Exchanges, limits and floods, one by one.
//!
//! Must not know: sockets.

use super::super::frame::{self, write};
use super::super::*;
use super::driver::{OPTIONS, Received, Server, environment, move_machine};

/// A server that has been greeted.
fn greeted() -> Server {
    let mut server = Server::new(true);
    let mut bytes = PREFACE.to_vec();
    write(&mut bytes, frame::SETTINGS, 0, 0, &[]);
    write(&mut bytes, frame::SETTINGS, frame::ACK, 0, &[]);
    server.receive(&bytes);
    server.out.clear();
    server
}

/// POST or GET / at `h`, with more of a block behind it.
fn head(method: u8, more: &[u8]) -> Vec<u8> {
    let mut block = vec![0x80 | method, 0x86, 0x84, 0x01, 1, b'h'];
    block.extend_from_slice(more);
    block
}

const GET: u8 = 2;
const POST: u8 = 3;

fn request(server: &mut Server, id: u32, end: bool, block: &[u8]) {
    let mut bytes = Vec::new();
    let flags = frame::END_HEADERS | if end { frame::END_STREAM } else { 0 };
    write(&mut bytes, frame::HEADERS, flags, id, block);
    server.receive(&bytes);
}

fn data(server: &mut Server, id: u32, end: bool, payload: &[u8]) {
    let mut bytes = Vec::new();
    write(&mut bytes, frame::DATA, u8::from(end), id, payload);
    server.receive(&bytes);
}

fn received(server: &mut Server) -> Received {
    let mut received = Received::default();
    received.read(&server.frames());
    received
}

#[test]
fn a_request_is_answered_at_once() {
    let mut server = greeted();
    request(&mut server, 1, true, &head(GET, &[]));
    let seen = &server.seen[&1].request;
    assert_eq!(seen, &Some(("GET".into(), "/".into(), vec![("host".into(), b"h".to_vec())])));
    let got = received(&mut server);
    assert_eq!(got.streams[&1], (Some(200), b"at once".to_vec(), true, None));
    assert_eq!(server.machine.stream_count(), 0);
}

#[test]
fn a_body_that_nobody_waits_for_is_cut_off_politely() {
    let mut server = greeted();
    request(&mut server, 1, false, &head(POST, &[]));
    let got = received(&mut server);
    assert_eq!(got.streams[&1], (Some(200), b"at once".to_vec(), true, None));
    let slot = server.machine.slot_of(1).expect("it lingers");
    assert_eq!(server.machine.waits_since(slot), Some((1_000, true)));
    assert!(server.machine.is_exchange_over(slot));
    // A client that goes on is told so when it would be owed a window, however slowly it comes there.
    server.now_ms = 2_500;
    for _ in 0..4 {
        data(&mut server, 1, false, &[1; 8_000]);
        assert_eq!(received(&mut server).streams.get(&1), None);
        assert_eq!(server.machine.waits_since(slot), Some((1_000, true)));
    }
    data(&mut server, 1, false, &[1; 1_000]);
    assert_eq!(received(&mut server).streams[&1].3, Some(0));
    // What was on its way is taken, and the connection lives.
    data(&mut server, 1, false, &[1; 1_000]);
    request(&mut server, 9, true, &head(GET, &[]));
    let got = received(&mut server);
    assert_eq!(got.streams[&9].0, Some(200));
    assert!(!got.streams.contains_key(&1) && server.error.is_none());
    // Once the client has reset it, too, nothing can be on its way any more.
    server.receive(&one(frame::RST_STREAM, 0, 1, &[0; 4]));
    data(&mut server, 1, false, &[1; 1_000]);
    assert_eq!(received(&mut server).streams[&1].3, Some(ErrorCode::StreamClosed as u32));
}

#[test]
fn a_short_body_that_nobody_waits_for_costs_no_reset() {
    for trailers in [false, true] {
        let mut server = greeted();
        request(&mut server, 1, false, &head(POST, &[]));
        data(&mut server, 1, !trailers, &[1; 1_000]);
        if trailers {
            assert_eq!(server.machine.stream_count(), 1);
            let flags = frame::END_HEADERS | frame::END_STREAM;
            server.receive(&one(frame::HEADERS, flags, 1, &[0, 1, b'x', 1, b'y']));
        }
        assert_eq!(received(&mut server).streams[&1].3, None);
        assert_eq!(server.machine.stream_count(), 0);
    }
    // The rules hold until its end.
    let mut server = greeted();
    request(&mut server, 1, false, &head(POST, &[0x0f, 13, 1, b'3']));
    data(&mut server, 1, false, &[1; 4]);
    assert_eq!(received(&mut server).streams[&1].3, Some(ErrorCode::Protocol as u32));
}

#[test]
fn trailers_follow_a_body_that_waits_for_the_windows() {
    let mut server = greeted();
    server.receive(&one(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 3]));
    request(&mut server, 3, false, &head(POST, &[]));
    data(&mut server, 3, true, b"seven b");
    let mut got = Received::default();
    got.read(&server.frames());
    assert_eq!(got.streams[&3], (Some(200), b"sev".to_vec(), false, None));
    let slot = server.machine.slot_of(3).expect("it waits");
    assert!(server.machine.save_trailers(slot).is_some());
    server.receive(&one(frame::WINDOW_UPDATE, 0, 3, &[0, 0, 0, 4]));
    got.read(&server.frames());
    assert_eq!(got.streams[&3], (Some(200), b"seven b".to_vec(), true, None));
    assert_eq!(got.trailers[&3], (b"x-sum".to_vec(), b"7".to_vec()));
    assert_eq!(server.machine.stream_count(), 0);
}

#[test]
fn a_window_that_becomes_negative_is_waited_for() {
    let mut server = greeted();
    let initial_window = |server: &mut Server, bytes: u32| {
        let mut frame = Vec::new();
        let mut payload = vec![0, 4];
        payload.extend_from_slice(&bytes.to_be_bytes());
        write(&mut frame, frame::SETTINGS, 0, 0, &payload);
        server.receive(&frame);
    };
    let mut got = Received::default();
    let mut length = |server: &mut Server| {
        got.read(&server.frames());
        let (_, body, ended, _) = &got.streams[&5];
        (body.len(), *ended)
    };
    initial_window(&mut server, 20_000);
    request(&mut server, 5, true, &head(GET, &[])); // 30,000 bytes
    assert_eq!(length(&mut server), (20_000, false));
    initial_window(&mut server, 1_000); // 19,000 below zero
    let update = |server: &mut Server, increment: u32| {
        let mut bytes = Vec::new();
        frame::write_window_update(&mut bytes, 5, increment);
        server.receive(&bytes);
    };
    update(&mut server, 19_000);
    assert_eq!(length(&mut server), (20_000, false), "the window is 0");
    update(&mut server, 9_999);
    assert_eq!(length(&mut server), (29_999, false));
    update(&mut server, 1);
    assert_eq!(length(&mut server), (30_000, true));
    assert_eq!(server.machine.stream_count(), 0);
}

#[test]
fn malformed_requests_cost_their_stream_only() {
    let field = |name: &str, value: &str| {
        let mut bytes = vec![0x00, name.len() as u8];
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(value.len() as u8);
        bytes.extend_from_slice(value.as_bytes());
        bytes
    };
    let refused = |block: &[u8]| {
        let mut server = greeted();
        request(&mut server, 3, true, block);
        let got = received(&mut server);
        assert_eq!(got.streams.get(&3).and_then(|one| one.3), Some(1), "{block:?}");
        assert!(server.error.is_none() && server.seen.is_empty());
    };
    for (name, value) in [
        ("Upper", "x"),
        ("connection", "close"),
        ("keep-alive", "x"),
        ("proxy-connection", "x"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("bad name", "x"),
        ("", "x"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("x", " blank"),
        ("x", "blank\t"),
        (":status", "200"),
        (":path", "/twice"),
        (":protocol", "websocket"),
        ("content-length", "1"),
        ("content-length", "+0"),
        ("host", "other"),
    ] {
        refused(&head(GET, &field(name, value)));
    }
    refused(&head(GET, &[field("x", "y"), field(":protocol", "x")].concat()));
    refused(&[0x82, 0x86]); // no path
    refused(&[0x82, 0x84]); // no scheme
    refused(&[0x86, 0x84]); // no method
    refused(&[vec![0x82, 0x86], field(":path", "")].concat());
    refused(&[vec![0x82, 0x86], field(":path", "relative")].concat());
    refused(&[vec![0x82, 0x86], field(":path", "/a b")].concat());
    refused(&[field(":method", "CONNECT"), vec![0x86, 0x84, 0x01, 1, b'h']].concat());
    let mut server = greeted();
    request(
        &mut server,
        1,
        true,
        &head(GET, &[field("te", "trailers"), field("host", "h")].concat()),
    );
    assert_eq!(received(&mut server).streams[&1].0, Some(200));
}

#[test]
fn bodies_have_the_length_that_was_announced() {
    for (length, pieces, is_fine) in
        [("5", &[3usize, 2][..], true), ("5", &[3, 3], false), ("5", &[3], false), ("0", &[], true)]
    {
        let mut server = greeted();
        let mut more = vec![0x0f, 13, 1];
        more.extend_from_slice(length.as_bytes());
        request(&mut server, 7, false, &head(POST, &more));
        for piece in pieces {
            data(&mut server, 7, false, &vec![b'x'; *piece]);
        }
        if server.machine.stream_count() > 0 {
            data(&mut server, 7, true, &[]);
        }
        let got = received(&mut server);
        assert_eq!(got.streams[&7].0.is_some(), is_fine, "{length} {pieces:?}");
        assert_eq!(got.streams[&7].3, (!is_fine).then_some(1), "{length} {pieces:?}");
    }
}

#[test]
fn limits_are_answered() {
    // 431, 413, and the limit of streams.
    let mut server = greeted();
    let mut more = Vec::new();
    for _ in 0..40 {
        more.extend_from_slice(&[0x00, 1, b'x', 1, b'y']);
    }
    request(&mut server, 1, true, &head(GET, &more));
    assert_eq!(received(&mut server).streams[&1].0, Some(431));
    let mut more = vec![0x0f, 13, 6];
    more.extend_from_slice(b"100001");
    request(&mut server, 3, false, &head(POST, &more));
    assert_eq!(received(&mut server).streams[&3].0, Some(413));
    for stream in 0..9 {
        request(&mut server, 15 + 8 * stream, false, &head(POST, &[]));
    }
    let got = received(&mut server);
    assert_eq!(server.machine.stream_count(), 8);
    assert_eq!(got.streams[&79].3, Some(ErrorCode::RefusedStream as u32));
    // A body without a length that becomes too long.
    for _ in 0..7 {
        data(&mut server, 15, false, &[0; 16_000]);
    }
    let got = received(&mut server);
    assert_eq!((got.streams[&15].0, got.streams[&15].3), (Some(413), None));
}

/// Sends frames until the connection is refused; how many it took.
fn flood(bytes: &[u8], prepare: impl Fn(&mut Server), most: usize) -> usize {
    let mut server = greeted();
    prepare(&mut server);
    for count in 0..most {
        server.receive(bytes);
        if let Some(error) = server.error {
            assert_eq!(error.code, ErrorCode::EnhanceYourCalm, "{error}");
            assert_eq!(received(&mut server).goaway, Some(11));
            return count;
        }
        server.out.clear();
    }
    most
}

/// One frame of that kind.
fn one(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, kind, flags, stream, payload);
    bytes
}

#[test]
fn floods_end_the_connection_however_often_it_moves() {
    let open = |server: &mut Server| request(server, 7, false, &head(POST, &[]));
    let most = OPTIONS.control_burst as usize + 10;
    for (name, frame) in [
        ("pings", one(frame::PING, 0, 0, b"12345678")),
        ("settings", one(frame::SETTINGS, 0, 0, &[])),
        ("priorities", one(frame::PRIORITY, 0, 7, &[0, 0, 0, 0, 1])),
        ("empty data", one(frame::DATA, 0, 7, &[])),
        ("unknown frames", one(0x77, 0, 7, &[])),
        ("tiny window updates", one(frame::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("resets of closed streams", one(frame::RST_STREAM, 0, 5, &[0; 4])),
    ] {
        let count = flood(&frame, open, most);
        assert!((50..most).contains(&count), "{name}: {count}");
    }
    // Rapid reset: each request is cancelled as soon as it is made.
    let mut server = greeted();
    let mut count = 0;
    while server.error.is_none() {
        assert!(count < 60, "rapid reset");
        let id = 15 + 8 * count;
        request(&mut server, id, false, &head(POST, &[]));
        server.receive(&one(frame::RST_STREAM, 0, id, &[0, 0, 0, 8]));
        count += 1;
    }
    assert_eq!(server.error.map(|error| error.code), Some(ErrorCode::EnhanceYourCalm));
}

#[test]
fn time_and_useful_traffic_make_up_for_control_frames() {
    let mut server = greeted();
    for round in 0..500 {
        server.receive(&one(frame::PING, 0, 0, b"12345678"));
        server.now_ms += 100;
        request(&mut server, 1 + 8 * round, true, &head(GET, &[]));
    }
    assert_eq!(server.error, None);
    assert_eq!(received(&mut server).pongs, 500);
}

#[test]
fn continuations_are_bounded() {
    let mut server = greeted();
    server.receive(&one(frame::HEADERS, 0, 1, &head(GET, &[])));
    let mut count = 0;
    while server.error.is_none() {
        count += 1;
        assert!(count < 100);
        server.receive(&one(frame::CONTINUATION, 0, 1, &[0x00, 1, b'x', 0]));
    }
    assert_eq!(server.error.map(|error| error.code), Some(ErrorCode::EnhanceYourCalm));
    let mut server = greeted();
    server.receive(&one(frame::HEADERS, 0, 1, &[0; 9_000]));
    server.receive(&one(frame::CONTINUATION, 0, 1, &[0; 9_000]));
    assert_eq!(server.error.map(|error| error.code), Some(ErrorCode::EnhanceYourCalm));
}

#[test]
fn a_farewell_has_two_parts() {
    let mut server = greeted();
    request(&mut server, 7, false, &head(POST, &[]));
    let mut out = Vec::new();
    server.machine.say_farewell(&mut out);
    server.out.extend(out);
    let frames = server.frames();
    let [goaway, ping] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((goaway.kind, &goaway.payload[..4]), (frame::GOAWAY, &[0x7f, 0xff, 0xff, 0xff][..]));
    // What was sent before the client heard of it is served.
    request(&mut server, 15, false, &head(POST, &[]));
    server.receive(&one(frame::PING, frame::ACK, 0, &ping.payload));
    let frames = server.frames();
    assert_eq!(frames.last().map(|one| one.payload.clone()), Some(vec![0, 0, 0, 15, 0, 0, 0, 0]));
    request(&mut server, 17, true, &head(GET, &[]));
    assert!(!server.seen.contains_key(&17), "nobody knows of it");
    assert!(!server.machine.is_done());
    data(&mut server, 7, true, b"x");
    data(&mut server, 15, true, b"x");
    let mut bytes = Vec::new();
    for id in [0, 7, 15] {
        frame::write_window_update(&mut bytes, id, 100_000);
    }
    server.receive(&bytes);
    assert!(server.machine.is_done(), "{:?}", server.frames().len());
}

#[test]
fn settings_hold_once_they_are_acknowledged() {
    let mut server = greeted();
    request(&mut server, 7, false, &head(POST, &[]));
    let options = Options { stream_window_bytes: 10_000, ..OPTIONS };
    let smaller = Environment { options, ..environment(2_000) };
    assert_eq!(server.machine.settings_since_ms(), None);
    server.machine.announce(&mut server.out, &smaller);
    server.machine.announce(&mut server.out, &Environment { now_ms: 3_000, ..smaller });
    assert_eq!(server.frames().len(), 1, "they are told once");
    assert_eq!(server.machine.settings_since_ms(), Some(2_000));
    // By the clock of another process, where everything happens 100 seconds later.
    server.machine = move_machine(&server.machine, 4_000);
    let mut tail = Vec::new();
    server.machine.save_tail(&mut tail);
    let state = Http2State::decode(server.machine.save_head(4_000), &tail).expect("a state");
    let moved = Http2::restore(&state, 104_500, 500).expect("a machine");
    assert_eq!(moved.settings_since_ms(), Some(102_000));
    data(&mut server, 7, false, &[0; 16_000]);
    assert_eq!(server.error, None, "the client has not heard of it yet");
    server.receive(&one(frame::SETTINGS, frame::ACK, 0, &[]));
    // 65,535 less 16,000 less 55,535.
    let slot = server.machine.slot_of(7).expect("it lives");
    let window = server.machine.save_stream(slot, 0).map(|(head, _)| head.receive_window);
    assert_eq!(window, Some(65_535 - 16_000 - 55_535));
    assert_eq!(server.machine.settings_since_ms(), None);
}

#[test]
fn a_stall_is_seen_and_a_trickle_is_no_progress() {
    let mut server = greeted();
    let mut bytes = Vec::new();
    write(&mut bytes, frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    server.receive(&bytes);
    request(&mut server, 5, true, &head(GET, &[]));
    let slot = server.machine.slot_of(5).expect("it waits");
    assert_eq!(server.machine.waits_since(slot), Some((1_000, false)));
    server.now_ms = 5_000;
    server.receive(&one(frame::WINDOW_UPDATE, 0, 5, &[0, 0, 0, 5]));
    assert_eq!(server.machine.waits_since(slot), Some((1_000, false)));
    server.receive(&one(frame::WINDOW_UPDATE, 0, 5, &[0, 0, 8, 0]));
    assert_eq!(server.machine.waits_since(slot), Some((5_000, false)));
}

#[test]
fn saved_states_that_nobody_saved_are_refused() {
    let machine = greeted().machine;
    let (head, mut tail) = (machine.save_head(0), Vec::new());
    machine.save_tail(&mut tail);
    let refused = |change: fn(&mut Http2Head)| {
        let mut head = head;
        change(&mut head);
        match Http2State::decode(head, &tail) {
            Ok(state) => Http2::restore(&state, 0, 0).err(),
            Err(error) => Some(error),
        }
    };
    assert_eq!(refused(|_| {}), None);
    for change in [
        (|head: &mut Http2Head| head.stage = 9) as fn(&mut Http2Head),
        |head| head.flags = 1 << 9,
        |head| head.send_window = -1,
        |head| head.receive_window = -1,
        |head| head.receive_credit = u32::MAX,
        |head| head.peer_max_frame_bytes = 0,
        |head| head.peer_initial_window = u32::MAX,
        |head| head.stage_left = 1 << 20,
        |head| head.block_bytes = 4,
        |head| head.table_bytes = 4,
        |head| head.remembered = 1,
        |head| head.pending_settings = 1,
        |head| head.decoder_table_bytes = 5_000,
        |head| head.block_stream = 2,
        |head| head.farewell = 7,
    ] {
        assert!(refused(change).is_some());
    }
    let mut server = greeted();
    request(&mut server, 7, false, &self::head(POST, &[]));
    let slot = server.machine.slot_of(7).expect("it lives");
    let (good, _) = server.machine.save_stream(slot, 0).expect("it lives");
    let refused = |change: fn(&mut StreamHead), buffer: &[u8]| {
        let mut head = good;
        change(&mut head);
        let mut machine = move_machine(&server.machine, 0);
        machine.reset_stream(
            machine.slot_of(7).expect("it lives"),
            ErrorCode::Cancel,
            &mut Vec::new(),
        );
        machine.restore_stream(&head, buffer, 0, 0).err()
    };
    let mut server = greeted();
    server.receive(&one(frame::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 3]));
    request(&mut server, 5, true, &self::head(GET, &[]));
    for block in [&b""[..], b"\x00\x01X\x01v", b"\x40\x01x\x01v", b"\x00\x01x\x01", b"\x88"] {
        let mut machine = move_machine(&server.machine, 0);
        assert!(machine.restore_trailers(5, block).is_err(), "{block:?}");
        assert!(machine.restore_trailers(3, b"\x00\x01x\x01v").is_err());
        assert!(machine.restore_trailers(5, b"\x00\x01x\x01v").is_ok());
    }
    assert_eq!(refused(|_| {}, b""), None);
    assert!(refused(|_| {}, b"a body before its head").is_some());
    for change in [
        (|head: &mut StreamHead| head.id = 8) as fn(&mut StreamHead),
        |head| head.id = 9,
        |head| head.outgoing = 6,
        |head| head.outgoing = 5,
        |head| head.flags = 1 << 8,
        |head| head.receive_credit = u32::MAX,
    ] {
        assert!(refused(change, b"").is_some());
    }
}

/// Its bytes may still wait for the client's window: its end comes behind them.
#[test]
fn a_half_closed_tunnel_takes_what_comes_until_it_is_ended() {
    for answered in [2, 70_000] {
        let mut server = greeted();
        request(&mut server, 7, false, &head(POST, &[]));
        let (now_ms, lent) = (server.now_ms, environment(server.now_ms));
        let slot = server.machine.slot_of(7).expect("it lives");
        server.machine.accept_tunnel(slot, &mut server.out, &[], &lent).expect("due");
        let body = vec![b'x'; answered];
        server.machine.write_body(slot, &mut server.out, &body, now_ms).expect("it is open");
        for _ in 0..2 {
            server.machine.half_close_tunnel(slot, &mut server.out, now_ms);
            server.machine = move_machine(&server.machine, now_ms);
            let slot = server.machine.slot_of(7).expect("it lives");
            assert!(server.machine.is_live_tunnel(slot) && !server.machine.is_open_tunnel(slot));
            assert!(!server.machine.is_exchange_over(slot));
        }
        data(&mut server, 7, false, b"more");
        assert_eq!(server.seen[&7].body, b"more");
        let mut bytes = Vec::new();
        for stream in [0, 7] {
            frame::write_window_update(&mut bytes, stream, 100_000);
        }
        server.receive(&bytes);
        let got = received(&mut server);
        assert_eq!(got.streams[&7], (Some(200), body, true, None));
        let slot = server.machine.slot_of(7).expect("its client has not ended");
        server.machine.end_tunnel(slot, &mut server.out, now_ms);
        assert!(server.machine.is_exchange_over(slot));
        data(&mut server, 7, true, b"too late");
        assert_eq!(server.machine.stream_count(), 0);
        assert_eq!((&server.seen[&7].body[..], server.out.len()), (&b"more"[..], 0));
    }
}
