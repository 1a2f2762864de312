//! Upstreams and clients whose bytes come, or go, at awkward moments.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use serde_json::Value;

use crate::gateway::upstream::Upstream;
use crate::lab::client::ReadOn;
use crate::lab::http2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Http2Client, PING, block, request,
};
use crate::lab::{PATIENCE, client, eventually};
use crate::supervisor::engine::{Engine, Options};

/// With a chunk, a second one, an extension, and a trailer: a cut may be anywhere in it.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
    5\r\nhello\r\n10;x=y\r\n0123456789abcdef\r\n0\r\nX-Sum: 7\r\n\r\n";

fn gateway(upstream: SocketAddr) -> Engine {
    let options = Options::config("workers = 1").and("--steering", "off");
    let options =
        options.and("--service", "proxy").and("--upstream", &format!("http://{upstream}"));
    Engine::start(options)
}

fn ask(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    String::from_utf8(client::exchange(address, request.as_bytes())).expect("text")
}

/// Head, decoded body, and what follows the last chunk.
fn take_apart(answer: &str) -> (&str, String, &str) {
    let (head, mut rest) = answer.split_once("\r\n\r\n").expect("a head");
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a number");
        if size == 0 {
            return (head, body, after);
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
}

fn check(answer: &str, cut: usize) {
    let (head, body, trailers) = take_apart(answer);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "cut at {cut}: {answer}");
    assert_eq!(
        (body.as_str(), trailers),
        ("hello0123456789abcdef", "X-Sum: 7\r\n\r\n"),
        "at {cut}"
    );
}

/// The path of a request.
fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()?.split(' ').nth(1).map(str::to_owned)
}

/// Answers `/N` with [`ANSWER`], cut behind N bytes; between the two parts it does what it is told.
fn upstream_that_cuts(between: impl Fn() + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let between = between.clone();
            stream.set_nodelay(true).expect("nodelay");
            std::thread::spawn(move || {
                while let Some(path) = read_request(&mut stream) {
                    let (first, second) = ANSWER.split_at(path[1..].parse().expect("a number"));
                    stream.write_all(first).expect("write");
                    if !first.is_empty() {
                        between();
                    }
                    stream.write_all(second).expect("write");
                }
            });
        }
    });
    address
}

/// Wherever an answer is cut, what comes later belongs to what came before.
#[test]
fn answers_that_come_in_pieces_are_passed_on() {
    let gateway_address = Arc::new(OnceLock::new());
    let known = Arc::clone(&gateway_address);
    // Whoever answers a whole request meanwhile has seen the first part.
    let upstream = upstream_that_cuts(move || {
        check(&ask(*known.get().expect("the gateway's address"), "/0"), 0);
    });
    let engine = gateway(upstream);
    gateway_address.set(engine.address()).expect("once");
    for cut in 1..ANSWER.len() {
        check(&ask(engine.address(), &format!("/{cut}")), cut);
    }
}

#[test]
fn answers_that_come_in_pieces_around_a_reload_are_passed_on() {
    let (cut, is_cut) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    let upstream = upstream_that_cuts(move || {
        cut.send(()).expect("the test waits");
        may_go_on.lock().expect("lock").recv().expect("the test goes on");
    });
    let engine = gateway(upstream);
    let address = engine.address();
    // In the status line, a field, a chunk's size, its extension, the last chunk, the trailer.
    for place in [9, 30, 50, 61, 80, 88] {
        let client = std::thread::spawn(move || ask(address, &format!("/{place}")));
        is_cut.recv_timeout(PATIENCE).expect("a request");
        engine.reload_well();
        go_on.send(()).expect("the upstream waits");
        check(&client.join().expect("an answer"), place);
    }
}

/// A stream's window lets a body in although its request is held: it must follow the request.
#[test]
fn bodies_that_come_while_their_request_is_held_follow_it() {
    let upstream = Upstream::start("app");
    let engine = gateway(upstream.address());
    let zdt = |args: &[&str]| assert!(engine.zdt(args).status.success(), "{args:?}");
    let held = || {
        let output = engine.zdt(&["queue", "stats", "--json"]);
        let stats: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        stats["held_requests"].clone()
    };
    let body: Vec<u8> = (0..20_000).map(|at| (at % 253) as u8).collect();
    let sum = body.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte));
    let mut client = Http2Client::greet(engine.address());
    for (turn, reloads) in [false, true].into_iter().enumerate() {
        let stream = 1 + 2 * turn as u32;
        zdt(&["hold"]);
        client.send(HEADERS, END_HEADERS, stream, &block(&request("POST", "/sum", &[])));
        client.send(DATA, 0, stream, &body[..1]);
        eventually("it is held", || held() == 1);
        client.send(DATA, 0, stream, &body[1..10_000]);
        client.send(PING, 0, 0, b"all read");
        client.read_until(|frame| frame.kind == PING).expect("a PING");
        if reloads {
            engine.reload_well();
        }
        client.send(DATA, END_STREAM, stream, &body[10_000..]);
        client.send(PING, 0, 0, b"all read");
        client.read_until(|frame| frame.kind == PING).expect("a PING");
        zdt(&["resume"]);
        let (status, answer) = client.response(stream);
        let answer = String::from_utf8(answer).expect("text");
        assert_eq!((status, answer), (200, format!("20000 {sum}\n")), "reloads: {reloads}");
    }
}

/// The end of an answer is an event without bytes: it must not get lost where the client's queue was
/// full when the last byte came.
#[test]
fn downloads_by_slow_clients_come_to_their_end() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let upstream = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for (number, mut stream) in listener.incoming().flatten().enumerate() {
            std::thread::spawn(move || {
                // Around what socket buffers and queues hold together.
                let mut length = (1 << 20) + (number << 13);
                while read_request(&mut stream).is_some() {
                    length += 100_003;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    stream.write_all(head.as_bytes()).expect("write");
                    stream.write_all(&vec![b'z'; length]).expect("write");
                }
            });
        }
    });
    let engine = gateway(upstream);
    let address = engine.address();
    let download = move || {
        let mut stream = client::connect(address);
        let mut piece = vec![0; 64 << 10];
        for _ in 0..12 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("write");
            let mut received = Vec::new();
            loop {
                // Slower than the upstream.
                std::thread::sleep(Duration::from_micros(200));
                let count = stream.read_on(&mut piece).expect("the rest");
                assert!(count > 0, "cut off after {} bytes", received.len());
                received.extend_from_slice(&piece[..count]);
                let Some(at) = received.windows(4).take(4096).position(|four| four == b"\r\n\r\n")
                else {
                    continue;
                };
                let head = std::str::from_utf8(&received[..at]).expect("text");
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                let length: usize = length.expect("a length").parse().expect("a number");
                if received.len() >= at + 4 + length {
                    break;
                }
            }
        }
    };
    let clients: Vec<_> = (0..6).map(|_| std::thread::spawn(download)).collect();
    for client in clients {
        client.join().expect("every download came to its end");
    }
}
