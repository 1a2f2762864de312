//! HTTP/2 frozen at any byte and between any two frames: what a moved connection answers is what an
//! unmoved one answers, stream by stream.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use zdt_engine::config::WorkerConfig;
use zdt_engine::proto::hpack::{Decoder, Fields, Limits};

use crate::freeze::frame as websocket_frame;
use crate::lab::http2::*;
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, eventually};

/// What a client can tell apart, stream by stream: fields without the date, bodies put together, ends.
pub fn tell(frames: &[Frame]) -> BTreeMap<u32, String> {
    let mut streams: BTreeMap<u32, String> = BTreeMap::new();
    let mut decoder = Decoder::new();
    for Frame { kind, flags, stream, payload } in frames {
        let text = streams.entry(*stream).or_default();
        match *kind {
            HEADERS => {
                let mut fields = Fields::default();
                let limits = Limits { max_list_bytes: 1 << 20, max_count: 100 };
                decoder.decode(payload, &limits, &mut fields).expect("a header block");
                for (name, value) in fields.iter().filter(|(name, _)| *name != b"date") {
                    let name = String::from_utf8_lossy(name);
                    write!(text, "{name}={} ", String::from_utf8_lossy(value)).expect("a string");
                }
            }
            DATA => text.push_str(&payload.escape_ascii().to_string()),
            RST_STREAM | GOAWAY | PING => {
                write!(text, " {kind}:{flags}:{payload:?} ").expect("a string");
            }
            // When windows are opened again depends on how the bytes came.
            WINDOW_UPDATE | SETTINGS => continue,
            other => panic!("frame {other}"),
        }
        if matches!(*kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            text.push_str(" end");
        }
    }
    streams
}

/// Reads until these streams have ended and the last ping has come back.
pub fn read_all(client: &mut Http2Client, streams: &[u32]) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    let is_there = |frames: &[Frame]| {
        let ended = |stream: &u32| {
            frames.iter().any(|f| f.stream == *stream && f.kind <= HEADERS && f.has(END_STREAM))
        };
        streams.iter().all(ended)
            && frames.iter().any(|f| f.kind == PING && f.payload == b"the last")
    };
    while !is_there(&frames) {
        frames.push(client.read().expect("the connection lives"));
    }
    frames
}

#[test]
fn a_connection_can_be_cut_anywhere() {
    let mut script = hello();
    script.extend(frame(SETTINGS, ACK, 0, &[]));
    // A request whose block comes in three frames, with a field for the header table.
    let mut head = block(&request("POST", "/digest", &[]));
    head.extend(b"\x40\x06x-test\x05value");
    script.extend(frame(HEADERS, 0, 1, &head[..20]));
    script.extend(frame(CONTINUATION, 0, 1, &head[20..45]));
    script.extend(frame(CONTINUATION, END_HEADERS, 1, &head[45..]));
    script.extend(frame(DATA, PADDED, 1, b"\x04first\0\0\0\0"));
    // Two WebSockets meanwhile, with frames that are cut by DATA frames, and a field from the table.
    script.extend(frame(HEADERS, END_HEADERS, 3, &[websocket_at("/ws/echo"), vec![0xbe]].concat()));
    script.extend(frame(HEADERS, END_HEADERS, 5, &websocket_at("/ws/echo")));
    let hello = websocket_frame(0x81, "grüße".as_bytes());
    script.extend(frame(DATA, 0, 3, &hello[..4]));
    script.extend(frame(DATA, 0, 5, &websocket_frame(0x01, b"frag")));
    script.extend(frame(DATA, 0, 3, &hello[4..]));
    let two = [websocket_frame(0x89, b"ping"), websocket_frame(0x80, b"ment")].concat();
    script.extend(frame(DATA, 0, 5, &two[..7]));
    script.extend(frame(PING, 0, 0, b"12345678"));
    script.extend(frame(DATA, 0, 5, &two[7..]));
    script.extend(frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 9]));
    script.extend(frame(0x77, 0, 7, b"unknown"));
    // A window that becomes negative, and is opened in the middle of a download.
    script.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 200]));
    let big = block(&request("GET", "/big?n=700", &[]));
    script.extend(frame(HEADERS, END_STREAM | END_HEADERS, 7, &big));
    script.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 50]));
    script.extend(frame(WINDOW_UPDATE, 0, 7, &400u32.to_be_bytes()));
    script.extend(frame(WINDOW_UPDATE, 0, 7, &300u32.to_be_bytes()));
    script.extend(frame(HEADERS, END_STREAM | END_HEADERS, 9, &[0x82, 0x86, 0x84, 0xbe]));
    script.extend(frame(WINDOW_UPDATE, 0, 9, &400u32.to_be_bytes()));
    script.extend(frame(DATA, END_STREAM, 1, b" and last"));
    script.extend(frame(WINDOW_UPDATE, 0, 1, &400u32.to_be_bytes()));
    for stream in [3, 5] {
        script.extend(frame(DATA, END_STREAM, stream, &websocket_frame(0x88, &[0x03, 0xe8])));
    }
    script.extend(frame(RST_STREAM, 0, 3, &[0; 4]));
    script.extend(frame(PING, 0, 0, b"the last"));

    let ends = [1, 3, 5, 7, 9];
    let mut blue = TestWorker::spawn_with(1, &Options::patient());
    let address = blue.listen();
    let expected = {
        let mut client = Http2Client::silent(address);
        client.write(&script);
        tell(&read_all(&mut client, &ends))
    };
    eventually("the first client is gone", || blue.status().connections == 0);
    let before = blue.status().bytes_received;
    let (mut clients, mut sent) = (Vec::new(), 0);
    for cut in 0..script.len() {
        let mut client = Http2Client::silent(address);
        client.write(&script[..cut]);
        sent += cut as u64;
        clients.push((cut, client));
    }
    eventually("blue receives the first parts", || {
        let status = blue.status();
        status.bytes_received == before + sent && status.connections == clients.len() as u64
    });
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &Options::patient()));
    let report = pair.hand_off();
    assert_eq!(report.moved, clients.len() as u64, "{report:?}");
    for (cut, client) in &mut clients {
        client.write(&script[*cut..]);
        let seen = tell(&read_all(client, &ends));
        assert_eq!(seen, expected, "cut at {cut} of {}", script.len());
    }
}

#[test]
fn several_websockets_and_exchanges_move_again_and_again() {
    let options = |_| Options { config: WorkerConfig::default(), ..Options::default() };
    let mut blue = TestWorker::spawn_with(1, &options(1));
    let address = blue.listen();
    let mut client = Http2Client::greet_with(address, &[(4, 20_000)]);
    for stream in [1, 3] {
        client.send(HEADERS, END_HEADERS, stream, &websocket_at("/ws/counter"));
    }
    // An upload, a stream, and a download that its window stops.
    let upload = block(&request("POST", "/echo", &[]));
    client.send(HEADERS, END_HEADERS, 5, &upload);
    client.get(7, "/stream?chunks=1000000&interval_ms=5");
    client.get(9, "/big?n=1000000");
    let mut bodies: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut sent = Vec::new();
    for round in 0..6u8 {
        for stream in [1, 3] {
            client.send(DATA, 0, stream, &websocket_frame(0x81, b"tick"));
        }
        client.send(DATA, 0, 5, &[round; 1_000]);
        sent.extend([round; 1_000]);
        client.send(WINDOW_UPDATE, 0, 9, &5_000u32.to_be_bytes());
        client.send(WINDOW_UPDATE, 0, 0, &50_000u32.to_be_bytes());
        client.send(WINDOW_UPDATE, 0, 7, &1_000u32.to_be_bytes());
        let wanted_big = 20_000 + 5_000 * (usize::from(round) + 1);
        let count = |bodies: &BTreeMap<u32, Vec<u8>>, stream| {
            let text = String::from_utf8_lossy(bodies.get(&stream).map_or(&[][..], |body| body));
            text.matches("\"n\": ").count()
        };
        while count(&bodies, 1) <= usize::from(round)
            || count(&bodies, 3) <= usize::from(round)
            || bodies.get(&5).map_or(0, Vec::len) < sent.len()
            || bodies.get(&9).map_or(0, Vec::len) < wanted_big
            || bodies.get(&7).map_or(0, Vec::len) < 30 * usize::from(round)
        {
            let frame = client.read().expect("the connection lives");
            assert_ne!(frame.kind, GOAWAY, "never for a handoff");
            assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
            if frame.kind == DATA {
                bodies.entry(frame.stream).or_default().extend(frame.payload);
            }
        }
        assert_eq!(bodies[&9].len(), wanted_big, "no more than the window");
        let mut pair = Pair::join(blue, TestWorker::spawn_with(2 + u32::from(round), &options(2)));
        let report = pair.hand_off();
        assert_eq!((report.moved, report.refused), (1, 0), "{report:?}");
        pair.blue.commit(pair.reload, Some(0));
        pair.green.commit(pair.reload, None);
        blue = pair.green;
    }
    assert_eq!(bodies[&5], sent);
    let big: Vec<u8> = (0..50_000).map(zdt_engine::service::demo::big_byte).collect();
    assert_eq!(bodies[&9], big);
    let text = String::from_utf8_lossy(&bodies[&1]).into_owned();
    for (n, generation) in (1..=6).zip(1..) {
        assert!(text.contains(&format!("\"n\": {n}, ")), "{text}");
        assert!(text.contains(&format!("\"generation\": {generation}}}")), "{text}");
    }
    let chunks = String::from_utf8_lossy(&bodies[&7]).into_owned();
    for (number, line) in chunks.lines().enumerate().take(chunks.lines().count() - 1) {
        assert_eq!(line, format!("chunk {number}"));
    }
    assert_eq!(blue.status().by_protocol.get("http2-websocket"), Some(&1));
    client.send(DATA, END_STREAM, 5, b"");
    client.read_until(|f| f.stream == 5 && f.has(END_STREAM)).expect("the end of the echo");
}

#[test]
fn a_drain_says_goaway_and_serves_what_was_asked_for() {
    let mut worker = TestWorker::spawn(1);
    let address = worker.listen();
    let mut client = Http2Client::greet(address);
    client.send(HEADERS, END_HEADERS, 1, &block(&request("POST", "/digest", &[])));
    client.ping();
    worker.send(&zdt_engine::control::ToWorker::Drain { timeout_ms: 10_000 }, &[]);
    let first = client.read_until(|f| f.kind == GOAWAY).expect("GOAWAY");
    assert_eq!((&first.payload[..4], first.code()), (&[0x7f, 0xff, 0xff, 0xff][..], 0));
    // Begun before the client heard of it.
    client.get(3, "/id?id=late");
    let ping = client.read_until(|f| f.kind == PING).expect("PING");
    client.send(PING, ACK, 0, &ping.payload);
    assert_eq!(client.response(3), (200, b"late".to_vec()));
    client.send(DATA, END_STREAM, 1, b"test");
    let mut frames = Vec::new();
    while let Some(frame) = client.read() {
        frames.push(frame);
    }
    let last = frames.iter().find(|f| f.kind == GOAWAY).expect("the second GOAWAY");
    assert_eq!((&last.payload[..4], last.code()), (&[0, 0, 0, 3][..], 0));
    assert!(frames.iter().any(|f| f.stream == 1 && f.kind == DATA && f.has(END_STREAM)));
    drop(client);
    worker.wait_dead();
}

#[test]
fn who_stalls_loses_the_stream_and_not_the_others() {
    let mut config = WorkerConfig::default();
    config.limits.stall_timeout_ms = 300;
    let mut worker = TestWorker::spawn_with(1, &Options { config, ..Options::default() });
    let address = worker.listen();
    let mut client = Http2Client::greet_with(address, &[(4, 10)]);
    client.send(HEADERS, END_HEADERS, 1, &websocket_at("/ws/echo"));
    client.get(3, "/big?n=1000");
    client.send(HEADERS, END_HEADERS, 5, &block(&request("POST", "/digest", &[])));
    let mut reset = Vec::new();
    while reset.len() < 2 {
        let frame = client.read_until(|f| f.kind == RST_STREAM).expect("a reset");
        assert_eq!(frame.code(), 8, "CANCEL");
        reset.push(frame.stream);
    }
    reset.sort_unstable();
    assert_eq!(reset, [3, 5]);
    client.send(DATA, 0, 1, &websocket_frame(0x81, b"alive"));
    let answer = client.read_until(|f| f.kind == DATA && f.stream == 1).expect("an echo");
    assert_eq!(answer.payload, b"\x81\x05alive");
    eventually("the others are forgotten", || worker.status().connections == 1);
}

/// However often it moves, its time goes on.
#[test]
fn who_does_not_acknowledge_settings_is_told_and_closed() {
    use std::io::ErrorKind;
    let mut config = WorkerConfig::default();
    config.http2.settings_timeout_ms = 1_000;
    let options = Options { config, ..Options::default() };
    let mut worker = TestWorker::spawn_with(1, &options);
    let address = worker.listen();
    let (mut silent, mut polite) = (Http2Client::silent(address), Http2Client::greet(address));
    silent.write(&hello());
    silent.ping();
    silent.stream.set_read_timeout(Some(std::time::Duration::from_millis(1))).expect("time-out");
    let began = std::time::Instant::now();
    let goaway = 'moves: loop {
        assert!(began.elapsed().as_secs() < 20, "every move has put it off");
        // Moves follow each other faster than the time that is given.
        let mut pair = Pair::join(worker, TestWorker::spawn_with(2, &options));
        pair.hand_off();
        pair.blue.commit(pair.reload, Some(0));
        pair.green.commit(pair.reload, None);
        worker = pair.green;
        loop {
            match silent.try_read() {
                Ok(Some(frame)) if frame.kind == GOAWAY => break 'moves frame,
                Ok(frame) => assert!(frame.is_some(), "closed without a word"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert_eq!(goaway.code(), 4, "SETTINGS_TIMEOUT");
    polite.ping();
    polite.get(1, "/id?id=polite");
    assert_eq!(polite.response(1), (200, b"polite".to_vec()));
}
