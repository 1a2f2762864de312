//! Clients that ask for much work with few bytes: it is done in pieces, the others are served in between, and a
//! connection moves between any two of them.
//!
//! Nothing here depends on time: a worker that stops itself before it goes on with what it has put off shows what
//! was done until then.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use nix::sys::signal::Signal;
use tungstenite::Message;
use zdt_engine::control::HandoffReport;

use crate::freeze::frame as websocket_frame;
use crate::lab::http2::*;
use crate::lab::secure::Authority;
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client};
use crate::supervisor::engine::{Engine, Options as EngineOptions};

const MESSAGE_BYTES: usize = 4 << 20;
/// Stops blue before it goes on for the second time: what came with the first piece has been answered then.
const STOPPED: &str = "work.resume@1=stop:2";

fn patient(faults: &str) -> Options<'_> {
    Options { faults, ..Options::patient() }
}

/// A message of zeroes, a thousandth of its length.
fn bomb() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MESSAGE_BYTES / 100);
    let zeroes = vec![0; MESSAGE_BYTES];
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(&zeroes, &mut bytes, FlushCompress::Sync).expect("deflate");
    assert!(bytes.ends_with(&[0, 0, 0xff, 0xff]));
    bytes.truncate(bytes.len() - 4);
    websocket_frame(0xc2, &bytes)
}

/// A WebSocket with compression, as bytes.
fn compressing(address: SocketAddr) -> TcpStream {
    let mut stream = client::connect(address);
    let request = "GET /ws/echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; \
        server_no_context_takeover\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("write");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("read");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
    stream
}

/// Takes a server's message off the front, and compares it with the bomb's contents.
#[track_caller]
fn read_bomb(stream: &mut impl Read) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).expect("read");
    let mut length = [0; 8];
    let bytes = match head[1] {
        126 => 6..8,
        127 => 0..8,
        short => {
            length[7] = short;
            8..8
        }
    };
    stream.read_exact(&mut length[bytes]).expect("read");
    let mut payload = vec![0; u64::from_be_bytes(length) as usize];
    stream.read_exact(&mut payload).expect("read");
    let mut message = Vec::with_capacity(MESSAGE_BYTES + 1);
    match head[0] {
        0x82 => message = payload,
        0xc2 => {
            payload.extend([0, 0, 0xff, 0xff]);
            let mut inflate = Decompress::new(false);
            let status = inflate.decompress_vec(&payload, &mut message, FlushDecompress::Sync);
            assert_eq!(status.expect("inflate"), Status::Ok);
        }
        other => panic!("a frame {other:#x}"),
    }
    assert!(message.len() == MESSAGE_BYTES && message.iter().all(|byte| *byte == 0));
}

/// True if nothing has come.
fn is_silent(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("non-blocking");
    let seen = stream.peek(&mut [0]);
    stream.set_nonblocking(false).expect("blocking");
    matches!(seen, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Lets a worker find what both have to say, the greedy one first, and waits until it has put that off twice.
fn begin(worker: &TestWorker, greedy: impl FnOnce(), bystander: &mut client::Client) {
    worker.signal(Signal::SIGSTOP);
    worker.wait_stopped();
    greedy();
    bystander.send(Message::text("and me?")).expect("send");
    worker.signal(Signal::SIGCONT);
    worker.wait_stopped();
    assert_eq!(bystander.read().expect("read"), Message::text("and me?"));
}

fn pair() -> (Pair, SocketAddr) {
    let mut blue = TestWorker::spawn_with(1, &patient(STOPPED));
    let address = blue.listen();
    (Pair::join(blue, TestWorker::spawn_with(2, &patient(""))), address)
}

/// Blue, which has stopped, learns of the handoff before it has gone on with much.
#[track_caller]
fn go_on_elsewhere(pair: &mut Pair) -> HandoffReport {
    pair.begin();
    pair.blue.signal(Signal::SIGCONT);
    pair.blue.wait_empty()
}

#[test]
fn a_bomb_is_inflated_behind_the_others() {
    let mut worker = TestWorker::spawn_with(1, &patient(STOPPED));
    let address = worker.listen();
    let (mut greedy, mut bystander) =
        (compressing(address), client::websocket(address, "/ws/echo"));
    begin(&worker, || greedy.write_all(&bomb()).expect("write"), &mut bystander);
    assert!(is_silent(&greedy), "all of it was done at once");
    worker.signal(Signal::SIGCONT);
    read_bomb(&mut greedy);
    let status = worker.status();
    assert_eq!((status.messages_received, status.buffered_bytes), (2, 0));
}

#[test]
fn a_bomb_moves_between_two_pieces() {
    let (mut pair, address) = pair();
    let (mut greedy, mut bystander) =
        (compressing(address), client::websocket(address, "/ws/echo"));
    begin(&pair.blue, || greedy.write_all(&bomb().repeat(2)).expect("write"), &mut bystander);
    let report = go_on_elsewhere(&mut pair);
    assert_eq!(report.moved, 2, "{report:?}");
    for _ in 0..2 {
        read_bomb(&mut greedy);
    }
    client::echo(&mut bystander, Message::text("here"));
    assert!(pair.green.status().messages_received >= 2, "a bomb and the echo");
}

#[test]
fn a_bomb_on_a_stream_of_http2_is_inflated_behind_the_others() {
    let mut worker = TestWorker::spawn_with(1, &patient(STOPPED));
    let address = worker.listen();
    let mut bystander = client::websocket(address, "/ws/echo");
    let mut greedy = Http2Client::greet(address);
    let mut head = websocket_at("/ws/echo");
    head.extend(block(&[("sec-websocket-extensions", "permessage-deflate")]));
    greedy.send(HEADERS, END_HEADERS, 1, &head);
    greedy.read_until(|frame| frame.stream == 1 && frame.kind == HEADERS).expect("an answer");
    let bomb = bomb();
    begin(&worker, || greedy.send(DATA, 0, 1, &bomb), &mut bystander);
    worker.signal(Signal::SIGCONT);
    let mut data = Vec::new();
    while data.len() < 4 {
        let frame = greedy.read_until(|f| f.stream == 1 && f.kind == DATA).expect("an answer");
        data.extend(frame.payload);
    }
    assert_eq!(data[0] & 0x0f, 2, "a binary message");
    assert_eq!(worker.status().messages_received, 2);
}

const REQUESTS: usize = 3_000;

fn pipelined() -> Vec<u8> {
    (0..REQUESTS)
        .flat_map(|n| format!("GET /id?id={n} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes())
        .collect()
}

#[track_caller]
fn check_answers(greedy: &mut TcpStream) {
    let mut answers = Vec::new();
    greedy.read_to_end(&mut answers).expect("read");
    let answers = String::from_utf8(answers).expect("text");
    // Each body lies between the end of its head and the next one.
    let ids = answers.split("\r\n\r\n").skip(1);
    let ids: Vec<&str> = ids.map(|rest| rest.split("HTTP/").next().expect("an id")).collect();
    let wanted: Vec<String> = (0..REQUESTS).map(|n| n.to_string()).collect();
    assert_eq!(ids, wanted);
}

/// Also the end of the client's direction waits until all that was asked for before it is answered.
#[test]
fn pipelined_requests_are_answered_in_pieces() {
    let mut worker = TestWorker::spawn_with(1, &patient(STOPPED));
    let address = worker.listen();
    let (mut greedy, mut bystander) =
        (client::connect(address), client::websocket(address, "/ws/echo"));
    let ask = || {
        greedy.write_all(&pipelined()).expect("write");
        greedy.shutdown(Shutdown::Write).expect("FIN");
    };
    begin(&worker, ask, &mut bystander);
    worker.signal(Signal::SIGCONT);
    check_answers(&mut greedy);
    assert_eq!(worker.status().requests, REQUESTS as u64 + 1);
}

#[test]
fn pipelined_requests_move_between_two_pieces() {
    let (mut pair, address) = pair();
    let (mut greedy, mut bystander) =
        (client::connect(address), client::websocket(address, "/ws/echo"));
    let ask = || {
        greedy.write_all(&pipelined()).expect("write");
        greedy.shutdown(Shutdown::Write).expect("FIN");
    };
    begin(&pair.blue, ask, &mut bystander);
    let report = go_on_elsewhere(&mut pair);
    assert_eq!(report.moved, 2, "{report:?}");
    check_answers(&mut greedy);
    let (before, after) = (pair.blue.status().requests, pair.green.status().requests);
    assert_eq!(before + after, REQUESTS as u64 + 1);
    assert!(after > 0 && before < REQUESTS as u64, "{before} and {after}");
}

/// A WebSocket without a close handshake is over at its FIN, but not before what came first.
#[test]
fn messages_before_a_fin_are_answered() {
    const MESSAGES: usize = 20_000;
    let mut worker = TestWorker::spawn_with(1, &patient(STOPPED));
    let address = worker.listen();
    let mut greedy = client::websocket(address, "/ws/echo");
    let stream = greedy.get_mut();
    let mut bystander = client::websocket(address, "/ws/echo");
    let ask = || {
        stream.write_all(&websocket_frame(0x82, b"x").repeat(MESSAGES)).expect("write");
        stream.shutdown(Shutdown::Write).expect("FIN");
    };
    begin(&worker, ask, &mut bystander);
    worker.signal(Signal::SIGCONT);
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).expect("read");
    assert!(answers == [0x82, 1, b'x'].repeat(MESSAGES), "{} bytes", answers.len());
}

/// Answers that are too long for one send queue, to requests that all came at once, with the end behind them.
#[test]
fn what_waits_for_room_is_answered_behind_a_fin() {
    const REQUESTS: usize = 200;
    let authority = Authority::new();
    for tls in [None, Some(&authority)] {
        let mut worker = TestWorker::spawn_with(1, &Options { tls, ..Options::patient() });
        let address = worker.listen();
        let asked = "GET /id?id=x HTTP/1.1\r\nHost: x\r\n\r\n".repeat(REQUESTS);
        let mut answers = Vec::new();
        let stop = || {
            worker.signal(Signal::SIGSTOP);
            worker.wait_stopped();
        };
        match tls {
            None => {
                let mut stream = client::connect(address);
                stop();
                stream.write_all(asked.as_bytes()).expect("write");
                stream.shutdown(Shutdown::Write).expect("FIN");
                worker.signal(Signal::SIGCONT);
                stream.read_to_end(&mut answers).expect("read");
            }
            Some(authority) => {
                let mut stream = authority.connect(address);
                stop();
                // A record for each of them.
                for request in asked.as_bytes().chunks(asked.len() / REQUESTS) {
                    stream.write_all(request).expect("write");
                    stream.flush().expect("flush");
                }
                stream.sock.shutdown(Shutdown::Write).expect("FIN");
                worker.signal(Signal::SIGCONT);
                stream.read_to_end(&mut answers).expect("read");
            }
        }
        let heads = answers.windows(12).filter(|bytes| bytes == b"HTTP/1.1 200").count();
        assert_eq!(heads, REQUESTS);
    }
}

/// A deploy goes on beside bombs that never end, and each of them comes back.
#[test]
fn reloads_commit_beside_bombs() {
    let engine = Engine::start(EngineOptions::config(
        "workers = 1\n[handoff]\nfreeze_budget_ms = 600000\noffer_timeout_ms = 600000\n\
         [reload]\nhandoff_timeout_ms = 600000\n",
    ));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut greedy = compressing(engine.address());
            let is_over = &is_over;
            scope.spawn(move || {
                let bomb = bomb();
                while !is_over.load(Ordering::Relaxed) {
                    greedy.write_all(&bomb).expect("write");
                    read_bomb(&mut greedy);
                }
            });
        }
        let mut bystander = client::websocket(engine.address(), "/ws/echo");
        for _ in 0..3 {
            let verdict = engine.reload();
            is_over.store(verdict["reload_successful"] != true, Ordering::Relaxed);
            assert_eq!(verdict["migrated_connections"], 4, "{verdict}");
            client::echo(&mut bystander, Message::text("still here"));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
