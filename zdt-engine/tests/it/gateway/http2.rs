//! Requests of HTTP/2 clients through the gateway: what HTTP/1.1 gets to see of them, uploads and downloads
//! across holds and reloads, and upstreams that misbehave.

use std::net::SocketAddr;

use super::upstream::Upstream;
use super::{gateway, gateway_for};
use crate::lab::eventually;
use crate::lab::http2::*;
use crate::supervisor::engine::Engine;

fn held(engine: &Engine) -> u64 {
    let output = engine.zdt(&["queue", "stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    stats["held_requests"].as_u64().expect("a number")
}

/// What the upstream says of a body.
fn sum(data: &[u8]) -> String {
    let sum = data.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte));
    format!("{} {sum}\n", data.len())
}

/// Sends a body as the windows allow; its server has announced none but the defaults.
fn upload(client: &mut Http2Client, stream: u32, data: &[u8], window: &mut i64) {
    let mut sent = 0;
    while sent < data.len() {
        let count = (*window).clamp(0, 8_192).min((data.len() - sent) as i64) as usize;
        if count == 0 {
            let update = |frame: &Frame| frame.kind == WINDOW_UPDATE && frame.stream == stream;
            let frame = client.read_until(update).expect("a window update");
            *window +=
                i64::from(u32::from_be_bytes(frame.payload[..4].try_into().expect("4 bytes")));
            continue;
        }
        client.send(DATA, 0, stream, &data[sent..sent + count]);
        sent += count;
        *window -= count as i64;
    }
}

fn nowhere() -> SocketAddr {
    Upstream::start("before").stop()
}

#[test]
fn an_upload_that_is_held_arrives_whole() {
    for length in [None, Some("200000")] {
        for reloads in [0, 2] {
            let place = nowhere();
            let engine = gateway_for(&[format!("http://{place}")], "workers = 1");
            let mut client = Http2Client::greet(engine.address());
            let more: Vec<(&str, &str)> =
                length.iter().map(|length| ("content-length", *length)).collect();
            let data: Vec<u8> = (0..200_000).map(|at| (at % 241) as u8).collect();
            client.send(HEADERS, END_HEADERS, 1, &block(&request("POST", "/sum", &more)));
            eventually("it is held", || held(&engine) == 1);
            let mut window = 65_535;
            // As much as the window lets in goes to a request that is held already.
            upload(&mut client, 1, &data[..60_000], &mut window);
            client.ping();
            for _ in 0..reloads {
                let verdict = engine.reload_well();
                assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
                assert_eq!(held(&engine), 1);
            }
            let upstream = Upstream::start_at("after", place);
            upload(&mut client, 1, &data[60_000..], &mut window);
            client.send(DATA, END_STREAM, 1, b"");
            let (status, text) = client.response(1);
            assert_eq!((status, String::from_utf8(text).expect("text")), (200, sum(&data)));
            drop(upstream);
        }
    }
}

#[test]
fn uploads_and_downloads_side_by_side_cross_reloads() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let mut client = Http2Client::greet(engine.address());
    let data: Vec<u8> = (0..3_000_000).map(|at| (at % 239) as u8).collect();
    client.send(HEADERS, END_HEADERS, 1, &block(&request("POST", "/sum", &[])));
    client.send(
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &block(&request("GET", "/big?n=900000", &[])),
    );
    let mut window = 65_535;
    let mut received = Vec::new();
    let part = data.len() / 6;
    for turn in 0..6 {
        let mut sent = turn * part;
        while sent < (turn + 1) * part {
            let count = window.clamp(0, 8_192).min(((turn + 1) * part - sent) as i64) as usize;
            if count > 0 {
                client.send(DATA, 0, 1, &data[sent..sent + count]);
                (sent, window) = (sent + count, window - count as i64);
            }
            while let Some(frame) = client.read_now(count == 0) {
                assert!(!matches!(frame.kind, RST_STREAM | GOAWAY), "{frame:?}");
                if frame.kind == WINDOW_UPDATE && frame.stream == 1 {
                    let more = u32::from_be_bytes(frame.payload[..4].try_into().expect("4 bytes"));
                    window += i64::from(more);
                    break;
                }
                if frame.kind == DATA {
                    received.extend_from_slice(&frame.payload);
                    if !frame.payload.is_empty() && !frame.has(END_STREAM) {
                        let more = (frame.payload.len() as u32).to_be_bytes();
                        client.send(WINDOW_UPDATE, 0, 3, &more);
                        client.send(WINDOW_UPDATE, 0, 0, &more);
                    }
                }
            }
        }
        assert_eq!(engine.reload_well()["migrated_connections"], 1);
    }
    client.send(DATA, END_STREAM, 1, b"");
    let mut answer = Vec::new();
    while received.len() < 900_000 || !answer.ends_with(b"\n") {
        let frame = client.read().expect("the connection lives");
        if frame.kind == DATA && frame.stream == 1 {
            answer.extend_from_slice(&frame.payload);
        } else if frame.kind == DATA {
            received.extend_from_slice(&frame.payload);
            let more = (frame.payload.len() as u32).max(1).to_be_bytes();
            client.send(WINDOW_UPDATE, 0, 3, &more);
            client.send(WINDOW_UPDATE, 0, 0, &more);
        }
    }
    assert_eq!(String::from_utf8(answer).expect("text"), sum(&data));
    let expected = |at: usize| (at % 251) as u8;
    assert!(received.iter().enumerate().all(|(at, &byte)| byte == expected(at)));
}

#[test]
fn misbehaving_upstreams_cost_one_stream_and_no_more() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1\n[gateway]\nresponse_timeout_ms = 300");
    let mut client = Http2Client::greet(engine.address());
    let mut stream = 1;
    let mut ask = |client: &mut Http2Client, path: &str| {
        stream += 2;
        client.get(stream, path);
        stream
    };
    for (path, status, why) in [
        ("/die/silent", 502, "closed the connection before it answered"),
        ("/die/head", 502, "closed the connection before it answered"),
        ("/nonsense", 502, "malformed status line"),
        ("/two-lengths", 502, "Content-Length appears more than once"),
        ("/length-and-chunks", 502, "both Content-Length and Transfer-Encoding"),
        ("/never", 504, "within 300 ms"),
    ] {
        let id = ask(&mut client, path);
        let (seen, text) = client.response(id);
        let text = String::from_utf8(text).expect("text");
        assert!(seen == status && text.contains(why), "{path}: {seen} {text}");
        eventually("the upstream is used again", || {
            let id = ask(&mut client, "/ok");
            client.response(id).0 == 200
        });
    }
    // What has begun can only be cut off, visibly: one stream is.
    for path in ["/die/body", "/die/chunk"] {
        let id = ask(&mut client, path);
        let reset = client.read_until(|f| f.stream == id && f.kind == RST_STREAM).expect("a reset");
        assert_eq!(reset.code(), 2, "INTERNAL_ERROR");
        eventually("the upstream is used again", || {
            let id = ask(&mut client, "/ok");
            client.response(id).0 == 200
        });
    }
    for (path, body) in
        [("/too-much", "ok"), ("/drip", "abcde"), ("/trailers", "ok"), ("/hints", "ok")]
    {
        let id = ask(&mut client, path);
        // (Trailers would be taken for the head.)
        assert_eq!(client.response(id).1, body.as_bytes(), "{path}");
    }
}

/// Fields that no HTTP/1.1 upstream may ever get to see, or only in one way.
#[test]
fn nothing_is_smuggled_through_the_translation() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let address = engine.address();
    let refused: [(&str, Vec<(&str, &str)>); 18] = [
        ("LF in a value", request("GET", "/x", &[("a", "b\nc: d")])),
        ("CR in a value", request("GET", "/x", &[("a", "b\rc")])),
        ("CRLF in a value", request("GET", "/x", &[("a", "b\r\n\r\nGET /smuggled HTTP/1.1")])),
        ("NUL in a value", request("GET", "/x", &[("a", "b\0c")])),
        ("CRLF in a name", request("GET", "/x", &[("a: b\r\nc", "d")])),
        ("colon in a name", request("GET", "/x", &[("a:b", "d")])),
        ("space in a name", request("GET", "/x", &[("transfer-encoding ", "chunked")])),
        ("upper case", request("GET", "/x", &[("Content-Length", "5")])),
        ("transfer-encoding", request("POST", "/x", &[("transfer-encoding", "chunked")])),
        ("connection", request("GET", "/x", &[("connection", "close")])),
        ("upgrade", request("GET", "/x", &[("upgrade", "websocket")])),
        ("two lengths", request("POST", "/x", &[("content-length", "1"), ("content-length", "2")])),
        ("a list of lengths", request("POST", "/x", &[("content-length", "1, 1")])),
        ("a signed length", request("POST", "/x", &[("content-length", "+1")])),
        ("another host", request("GET", "/x", &[("host", "other.test")])),
        ("space in the path", request("GET", "/x HTTP/1.1\r\nA: b", &[])),
        ("a method of two lines", request("GET /smuggled HTTP/1.1\r\nX:", "/x", &[])),
        ("an absolute path", request("GET", "http://other.test/x", &[])),
    ];
    for (what, fields) in &refused {
        let mut client = Http2Client::greet(address);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
        let end = client
            .read_until(|f| matches!(f.kind, RST_STREAM | GOAWAY | HEADERS))
            .unwrap_or_else(|| panic!("{what}: no answer"));
        if end.kind == HEADERS {
            let status = client.decode(&end.payload)[0].1.clone();
            assert!(status.starts_with('4'), "{what}: {status}");
        }
    }
    for authority in
        ["a b", "a\r\nX: y", "a/b", "user@host", "a\tb", "a\"b", "a,b", "[::1", "a:b", ""]
    {
        let mut client = Http2Client::greet(address);
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", authority)];
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
        let end = client
            .read_until(|f| matches!(f.kind, RST_STREAM | GOAWAY | HEADERS))
            .unwrap_or_else(|| panic!("{authority:?}: no answer"));
        if end.kind == HEADERS {
            let status = client.decode(&end.payload)[0].1.clone();
            assert!(status.starts_with('4') || authority.is_empty(), "{authority:?}: {status}");
        }
    }
    let seen = upstream.seen();
    assert!(seen.len() <= 1, "{seen:?}");

    // A body that is not what was announced never completes a request upstream.
    for (length, body) in [("5", &b"abc"[..]), ("2", b"abc")] {
        let mut client = Http2Client::greet(address);
        let fields = request("POST", "/sum", &[("content-length", length)]);
        client.send(HEADERS, END_HEADERS, 1, &block(&fields));
        client.send(DATA, END_STREAM, 1, body);
        let end = client.read_until(|f| f.kind == RST_STREAM).expect("a reset");
        assert_eq!(end.code(), 1, "PROTOCOL_ERROR");
        client.ping();
    }
    // Trailers of a request end it, and are not passed on.
    let mut client = Http2Client::greet(address);
    client.send(HEADERS, END_HEADERS, 1, &block(&request("POST", "/sum", &[("te", "trailers")])));
    client.send(DATA, 0, 1, b"abc");
    let trailers = [("content-length", "99"), ("x-sum", "1")];
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&trailers));
    let (status, text) = client.response(1);
    assert_eq!((status, String::from_utf8(text).expect("text")), (200, sum(b"abc")));
    let last = upstream.seen().pop().expect("a request").to_ascii_lowercase();
    assert!(last.contains("\r\ntransfer-encoding: chunked\r\n"), "{last}");
    assert!(!last.contains("x-sum") && !last.contains("content-length"), "{last}");
    assert!(!last.contains("\r\nte:"), "{last}");
    assert!(upstream.seen().iter().all(|one| !one.contains("smuggled")), "{:?}", upstream.seen());
}
