//! WebSockets on streams of HTTP/2 (RFC 8441) that pass through the gateway, which opens each of them
//! over HTTP/1.1 on an upstream connection of its own.

use std::collections::BTreeMap;

use serde_json::Value;
use zdt_engine::config::Http2Options;

use super::moving::websocket_upstream;
use super::switching::Switching;
use super::upstream::Upstream;
use super::{gateway, gateway_for, gateway_to};
use crate::freeze::frame as websocket_frame;
use crate::http2_freeze::{read_all, tell};
use crate::lab::http2::*;
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client, eventually};
use crate::supervisor::engine::Engine;

const CANCEL: u32 = 8;

impl Http2Client {
    /// Asks for a WebSocket and waits until it is there.
    #[track_caller]
    fn open(&mut self, stream: u32, path: &str) -> Vec<(String, String)> {
        self.send(HEADERS, END_HEADERS, stream, &websocket_at(path));
        let frame = self
            .read_until(|frame| frame.stream == stream)
            .unwrap_or_else(|| panic!("no answer for {path}"));
        assert_eq!((frame.kind, frame.has(END_STREAM)), (HEADERS, false), "{path}: {frame:?}");
        let fields = self.decode(&frame.payload);
        assert_eq!(fields[0].1, "200", "{path}");
        fields
    }

    /// Reads so many bytes of a stream, and what else comes is passed over.
    #[track_caller]
    fn take(&mut self, stream: u32, bytes: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < bytes {
            let frame = self.read().expect("the connection lives");
            if frame.stream == stream {
                assert!(matches!(frame.kind, DATA | WINDOW_UPDATE), "{frame:?}");
                if frame.kind == DATA {
                    data.extend(frame.payload);
                }
            }
        }
        data
    }
}

#[track_caller]
fn figure(engine: &Engine, name: &str) -> u64 {
    let output = engine.zdt(&["queue", "stats", "--json"]);
    let stats: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    stats[name].as_u64().unwrap_or_else(|| panic!("{name} in {stats}"))
}

#[test]
fn tunnels_can_be_cut_anywhere() {
    let (_upstream, url) = Switching::start();
    let mut script = hello();
    script.extend(frame(SETTINGS, ACK, 0, &[]));
    script.extend(frame(HEADERS, END_HEADERS, 1, &websocket_at("/echo?one")));
    // Before anybody has agreed to it.
    script.extend(frame(DATA, 0, 1, b"early "));
    script.extend(frame(HEADERS, END_HEADERS, 3, &websocket_at("/echo?two")));
    script.extend(frame(DATA, PADDED, 3, b"\x02padded \0\0"));
    script.extend(frame(HEADERS, END_STREAM | END_HEADERS, 5, &websocket_at("/echo?silent")));
    script.extend(frame(HEADERS, END_HEADERS, 7, &websocket_at("/forbidden")));
    script.extend(frame(DATA, END_STREAM, 7, b"GET /smuggled HTTP/1.1\r\n\r\n"));
    script.extend(frame(DATA, 0, 1, &websocket_frame(0x81, b"whole")));
    let cut = websocket_frame(0x82, b"cut in the middle of it");
    script.extend(frame(DATA, 0, 3, &cut[..9]));
    script.extend(frame(DATA, END_STREAM, 1, b"last"));
    script.extend(frame(DATA, 0, 3, &cut[9..]));
    script.extend(frame(DATA, END_STREAM, 3, b""));
    script.extend(frame(PING, 0, 0, b"the last"));

    let ends = [1, 3, 5, 7];
    let options = gateway_to(&url);
    let mut blue = TestWorker::spawn_with(1, &options);
    let address = blue.listen();
    let expected = {
        let mut client = Http2Client::silent(address);
        client.write(&script);
        tell(&read_all(&mut client, &ends))
    };
    assert!(expected[&1].ends_with("lastthe end end"), "{expected:?}");
    assert!(expected[&1].contains("x-application=switching"), "{expected:?}");
    assert!(!expected[&1].contains("sec-websocket-accept"), "{expected:?}");
    assert!(expected[&5].ends_with(" the end end"), "{expected:?}");
    assert!(expected[&7].starts_with(":status=403 "), "{expected:?}");
    eventually("the first client is gone", || blue.status().connections == 0);
    let before = blue.status().bytes_received;
    let (mut clients, mut sent) = (Vec::new(), 0);
    for cut in (0..script.len()).step_by(2) {
        let mut client = Http2Client::silent(address);
        client.write(&script[..cut]);
        sent += cut as u64;
        clients.push((cut, client));
    }
    eventually("blue receives the first parts", || {
        let status = blue.status();
        status.bytes_received == before + sent && status.connections == clients.len() as u64
    });
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options));
    let report = pair.hand_off();
    assert_eq!(report.moved, clients.len() as u64, "{report:?}");
    for (cut, client) in &mut clients {
        client.write(&script[*cut..]);
        let mut seen = tell(&read_all(client, &ends));
        // Whether the client's end came before the refusal depends on the cut.
        seen.entry(7).and_modify(|text| *text = text.replace(" 3:0:[0, 0, 0, 0] ", ""));
        assert_eq!(seen, expected, "cut at {cut} of {}", script.len());
    }
}

#[test]
fn only_a_proper_101_opens_a_tunnel() {
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    for (stream, path, wanted, body) in [
        (1, "/forbidden", 403, "no\n"),
        (3, "/ok", 502, "answered 200 to a request for a WebSocket"),
        (5, "/wrong", 502, "does not fit the handshake"),
    ] {
        client.send(HEADERS, END_HEADERS, stream, &websocket_at(path));
        client.send(DATA, 0, stream, b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n");
        let (status, answer) = client.response(stream);
        let answer = String::from_utf8(answer).expect("text");
        assert!(status == wanted && answer.contains(body), "{path}: {status} {answer}");
    }
    client.open(7, "/echo");
    client.send(DATA, 0, 7, b"still here");
    assert_eq!(client.take(7, 10), b"still here");
    drop(client);
    eventually("they have ended", || {
        ["/wrong", "/echo"].iter().all(|target| upstream.ended(target).len() == 1)
    });
    assert_eq!(upstream.ended("/wrong"), [b""], "nothing came behind the head");
    let heads = upstream.heads();
    assert_eq!(heads.len(), 4, "{heads:?}");
    for head in &heads {
        let lower = head.to_ascii_lowercase();
        assert!(head.starts_with("GET /") && !head.contains("smuggled"), "{head}");
        assert_eq!(lower.matches("\r\nsec-websocket-key: ").count(), 1, "{head}");
        assert_eq!(lower.matches("\r\nhost: zdt.test\r\n").count(), 1, "{head}");
        assert!(lower.contains("\r\nsec-websocket-protocol: chat\r\n"), "{head}");
        for never in ["transfer-encoding", "content-length", ":protocol", ":scheme"] {
            assert!(!lower.contains(never), "{never} in {head}");
        }
    }
}

#[test]
fn a_handshake_that_the_client_brings_along_is_not_passed_on() {
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    let mut head = websocket_at("/echo");
    let more = [
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("content-length", "3"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
    ];
    head.extend(block(&more));
    client.send(HEADERS, END_HEADERS, 1, &head);
    let answer = client.read_until(|frame| frame.stream == 1).expect("an answer");
    assert_eq!(client.decode(&answer.payload)[0].1, "200");
    let head = upstream.heads().remove(0).to_ascii_lowercase();
    assert!(!head.contains("aaaaaaaa") && !head.contains("accept"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    assert!(head.contains("\r\nsec-websocket-extensions: permessage-deflate\r\n"), "{head}");
    assert!(head.contains("\r\ncookie: a=1; b=2\r\n"), "{head}");
}

#[test]
fn every_kind_of_end_is_mapped_and_harms_no_other_stream() {
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    client.open(1, "/echo?neighbour");

    // The upstream's FIN, behind its bytes.
    client.open(3, "/bye");
    client.send(DATA, 0, 3, b"x");
    let mut data = Vec::new();
    loop {
        let frame =
            client.read_until(|f| f.stream == 3 && f.kind != WINDOW_UPDATE).expect("a frame");
        assert_eq!(frame.kind, DATA, "{frame:?}");
        data.extend_from_slice(&frame.payload);
        if frame.has(END_STREAM) {
            break;
        }
    }
    assert_eq!(data, b"bye");
    client.send(DATA, END_STREAM, 3, b"");
    eventually("it has ended there", || upstream.ended("/bye").len() == 1);

    // The upstream's reset.
    client.open(5, "/reset");
    client.send(DATA, 0, 5, b"x");
    let frame = client.read_until(|f| f.stream == 5 && f.kind != WINDOW_UPDATE).expect("a frame");
    assert_eq!((frame.kind, frame.code()), (RST_STREAM, CANCEL));

    // The client's reset.
    client.open(7, "/echo?reset");
    client.send(DATA, 0, 7, b"abc");
    assert_eq!(client.take(7, 3), b"abc");
    client.send(RST_STREAM, 0, 7, &CANCEL.to_be_bytes());
    eventually("it has ended there", || upstream.ended("/echo?reset") == [b"abc"]);

    // The client's end: the other direction goes on.
    client.open(9, "/echo?half");
    client.send(DATA, END_STREAM, 9, b"half");
    let mut data = Vec::new();
    while let Some(frame) = client.read_until(|f| f.stream == 9 && f.kind == DATA) {
        data.extend_from_slice(&frame.payload);
        if frame.has(END_STREAM) {
            break;
        }
    }
    assert_eq!(data, b"halfthe end");

    // A client that gives up before the upstream has agreed.
    client.send(HEADERS, END_HEADERS, 11, &websocket_at("/patient"));
    client.send(DATA, 0, 11, b"early");
    client.ping();
    let is_there = |head: &String| head.starts_with("GET /patient ");
    eventually("the upstream has it", || upstream.heads().iter().any(is_there));
    client.send(RST_STREAM, 0, 11, &CANCEL.to_be_bytes());
    client.ping();
    upstream.go();
    eventually("it has ended there", || upstream.ended("/patient") == [b""]);

    client.send(DATA, 0, 1, b"neighbour");
    assert_eq!(client.take(1, 9), b"neighbour");
    assert_eq!(figure(&engine, "upstream_failures"), 0);
}

#[test]
fn what_comes_early_waits_for_the_upstream_across_a_reload() {
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    client.send(HEADERS, END_HEADERS, 1, &websocket_at("/patient"));
    client.send(DATA, 0, 1, b"early ");
    client.ping();
    assert_eq!(engine.reload_well()["migrated_connections"], 1);
    client.send(DATA, 0, 1, b"and later");
    client.ping();
    assert_eq!(engine.reload_well()["drained_connections"], 0);
    upstream.go();
    let answer = client.read_until(|f| f.stream == 1).expect("an answer");
    assert_eq!(client.decode(&answer.payload)[0].1, "200");
    assert_eq!(client.take(1, 15), b"early and later");
}

#[test]
fn a_side_that_does_not_read_stops_the_other_one_and_a_reload_changes_nothing() {
    const BYTES: usize = 48 << 20;
    /// What the sockets in between may swallow, and more.
    const MOST: u64 = 24 << 20;
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    client.open(3, &format!("/deaf?n={BYTES}"));
    client.open(5, &format!("/flood?n={BYTES}"));
    let data: Vec<u8> = (0..BYTES).map(|at| (at % 239) as u8).collect();
    let options = Http2Options::default();
    let (mut sent, mut windows) =
        (0, [i64::from(options.connection_window_bytes), i64::from(options.stream_window_bytes)]);
    let (mut received, mut pongs) = (Vec::new(), 0);
    let mut answer = Vec::new();
    let mut is_open = false;
    let mut reloads = 0;
    // The second stage begins when nothing has moved for a while, as pings see it.
    while received.len() < BYTES || answer.len() < 8 {
        let window = windows[0].min(windows[1]).clamp(0, 16_384) as usize;
        let count = window.min(BYTES - sent);
        if count > 0 {
            client.send(DATA, 0, 3, &data[sent..sent + count]);
            windows.iter_mut().for_each(|window| *window -= count as i64);
            sent += count;
        } else if !is_open {
            client.send(PING, 0, 0, b"anything");
        }
        while let Some(frame) = {
            let must_wait = count == 0;
            client.read_now(must_wait)
        } {
            match (frame.kind, frame.stream) {
                (DATA, 5) => {
                    received.extend_from_slice(&frame.payload);
                    if is_open {
                        let more = (frame.payload.len() as u32).to_be_bytes();
                        client.send(WINDOW_UPDATE, 0, 5, &more);
                        client.send(WINDOW_UPDATE, 0, 0, &more);
                    }
                }
                (DATA, 3) => answer.extend_from_slice(&frame.payload),
                (WINDOW_UPDATE, stream @ (0 | 3)) => {
                    let more = u32::from_be_bytes(frame.payload[..4].try_into().expect("4 bytes"));
                    windows[usize::from(stream == 3)] += i64::from(more);
                    pongs = 0;
                }
                (PING, _) => {
                    pongs += 1;
                    break;
                }
                (WINDOW_UPDATE, 5) | (SETTINGS, 0) => {}
                _ => panic!("{frame:?}"),
            }
            if count == 0 && is_open {
                break;
            }
        }
        if !is_open && pongs == 100 {
            pongs = 0;
            reloads += 1;
            if reloads < 3 {
                assert_eq!(engine.reload_well()["migrated_connections"], 1);
                continue;
            }
            assert_eq!(received.len(), 65_535, "no more than the window");
            assert!(upstream.written() < MOST, "{} bytes were taken", upstream.written());
            assert!((sent as u64) < MOST, "{sent} bytes were taken");
            is_open = true;
            upstream.go();
            client.send(WINDOW_UPDATE, 0, 5, &65_535u32.to_be_bytes());
            client.send(WINDOW_UPDATE, 0, 0, &65_535u32.to_be_bytes());
        }
    }
    assert!(received.iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8));
    let sum = data.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte));
    assert_eq!(answer, sum.to_be_bytes());
}

#[test]
fn many_tunnels_of_one_connection_move_with_their_sockets() {
    // More than one batch of descriptors usually has.
    const TUNNELS: u32 = 90;
    let engine = gateway_for(&[websocket_upstream()], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    let streams: Vec<u32> = (0..TUNNELS).map(|number| 2 * number + 1).collect();
    for &stream in &streams {
        client.open(stream, "/any");
    }
    for turn in 1..5 {
        for &stream in &streams {
            let text = format!("on {stream}");
            client.send(DATA, 0, stream, &websocket_frame(0x81, text.as_bytes()));
        }
        let mut answers: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let is_whole =
            |bytes: &Vec<u8>| bytes.len() >= 2 && bytes.len() == 2 + usize::from(bytes[1]);
        while answers.len() < streams.len() || !answers.values().all(is_whole) {
            let frame = client.read().expect("the connection lives");
            assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "{frame:?}");
            if frame.kind == DATA {
                answers.entry(frame.stream).or_default().extend(frame.payload);
            }
        }
        for (stream, answer) in answers {
            let text = format!("{turn} on {stream}");
            assert_eq!(&answer[2..], text.as_bytes(), "each has an upstream of its own");
        }
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
    }
}

#[test]
fn at_a_swap_tunnels_go_on_with_the_new_application_or_are_closed_in_good_order() {
    for policy in ["reconnect", "drain"] {
        let config = format!(
            "workers = 1\n[gateway.app]\nstop_timeout_ms = 1000\nwebsockets = \"{policy}\""
        );
        let (_old, url) = Switching::start();
        let engine = gateway_for(&[url], &config);
        let mut client = Http2Client::greet(engine.address());
        let hello = websocket_frame(0x81, b"hello");
        for stream in [1, 3] {
            client.open(stream, "/echo");
            client.send(DATA, 0, stream, &hello);
            assert_eq!(client.take(stream, hello.len()), hello);
        }
        let (new, url) = Switching::start();
        assert!(engine.zdt(&["upstream", "set", "default", &url]).status.success());
        if policy == "drain" {
            let mut closed = BTreeMap::new();
            while closed.len() < 2 {
                let frame = client.read().expect("the connection lives");
                if frame.kind == DATA && frame.has(END_STREAM) {
                    closed.entry(frame.stream).or_insert(Vec::<u8>::new());
                } else if frame.kind == DATA {
                    assert_eq!(frame.payload, [0x88, 2, 0x03, 0xf4], "1012");
                }
            }
            continue;
        }
        eventually("both have reconnected", || figure(&engine, "reconnected") == 2);
        let mut resumed: Vec<String> = new
            .heads()
            .iter()
            .filter_map(|head| head.lines().find_map(|line| line.strip_prefix("X-Zdt-Resume: ")))
            .map(str::to_owned)
            .collect();
        resumed.sort_unstable();
        assert_eq!(resumed.len(), 2);
        assert!(resumed[0].ends_with("-1") && resumed[1].ends_with("-3"), "{resumed:?}");
        assert_eq!(resumed[0][..16], resumed[1][..16], "one connection");
        for stream in [1, 3] {
            client.send(DATA, 0, stream, &hello);
            assert_eq!(client.take(stream, hello.len()), hello);
        }
    }
}

#[test]
fn a_stop_closes_them_with_1012() {
    let (_upstream, url) = Switching::start();
    let mut engine = gateway_for(&[url], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    for stream in [1, 3] {
        client.open(stream, "/echo");
    }
    engine.signal(nix::sys::signal::Signal::SIGTERM);
    let mut ends = 0;
    while ends < 2 {
        let frame = client.read().expect("the connection lives");
        match frame.kind {
            DATA if frame.has(END_STREAM) => {
                ends += 1;
                client.send(DATA, END_STREAM, frame.stream, b"");
            }
            DATA => assert_eq!(frame.payload, [0x88, 2, 0x03, 0xf4], "1012"),
            PING if !frame.has(ACK) => client.send(PING, ACK, 0, &frame.payload),
            _ => assert_ne!(frame.kind, RST_STREAM, "{frame:?}"),
        }
    }
    assert!(engine.wait().success());
}

#[test]
fn websockets_of_both_versions_are_held_while_the_application_is_away() {
    let place = Upstream::start("before").stop();
    let engine = gateway_for(&[format!("http://{place}")], "workers = 1");
    let mut http2 = Http2Client::greet(engine.address());
    http2.send(HEADERS, END_HEADERS, 1, &websocket_at("/any"));
    http2.send(DATA, 0, 1, &websocket_frame(0x81, b"early"));
    let address = engine.address();
    let http1 = std::thread::spawn(move || {
        let mut client = client::websocket(address, "/any");
        client.send(tungstenite::Message::text("late")).expect("send");
        assert_eq!(client.read().expect("read"), tungstenite::Message::text("1 late"));
    });
    eventually("both are held", || figure(&engine, "held_requests") == 2);
    assert_eq!(engine.reload_well()["drained_connections"], 0);
    assert_eq!(figure(&engine, "held_requests"), 2);
    super::moving::websocket_upstream_at(place);
    let answer = http2.read_until(|f| f.stream == 1 && f.kind == DATA).expect("an answer");
    assert_eq!(answer.payload, b"\x81\x071 early");
    http1.join().expect("the other one, too");
}

#[test]
fn a_refused_handoff_takes_the_tunnels_back() {
    let (_upstream, url) = Switching::start();
    let mut blue = TestWorker::spawn_with(1, &gateway_to(&url));
    let address = blue.listen();
    let mut client = Http2Client::greet(address);
    for stream in [1, 3, 5] {
        client.open(stream, "/echo");
    }
    let refusing = Options { faults: "adopt.refuse@2=fail:*", ..gateway_to(&url) };
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &refusing));
    let report = pair.hand_off();
    assert_eq!((report.moved, report.refused), (0, 1), "{report:?}");
    for stream in [1, 3, 5] {
        let text = format!("on {stream}");
        client.send(DATA, 0, stream, text.as_bytes());
        assert_eq!(client.take(stream, text.len()), text.as_bytes());
    }
}

#[test]
fn a_plain_gateway_still_answers_requests_beside_tunnels() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    client.send(HEADERS, END_HEADERS, 1, &websocket_at("/die/silent"));
    let (status, _) = client.response(1);
    assert_eq!(status, 502, "three times in vain");
    client.get(3, "/x");
    assert_eq!(client.response(3), (200, b"app /x\n".to_vec()));
}
