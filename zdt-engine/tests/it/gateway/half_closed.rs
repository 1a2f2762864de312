//! Tunnels of which one direction has ended: the other one goes on, as the bytes do, across reloads, and not for ever.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::switching::{Switching, pattern};
use super::{gateway_for, gateway_to};
use crate::lab::http2::*;
use crate::lab::secure::{self, Authority};
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client, cuts, eventually};

/// More than sockets and windows hold.
const BYTES: usize = 300_000;

fn data() -> Vec<u8> {
    pattern(BYTES)
}

/// A tunnel over HTTP/1.1.
#[track_caller]
fn open(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = client::connect(address);
    switch(&mut stream, path);
    stream
}

#[track_caller]
fn switch(stream: &mut (impl Read + Write), path: &str) {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    .expect("write");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
}

/// What a client speaks, and how it ends its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Plain,
    /// With close_notify before the FIN.
    Tls,
    /// Without one.
    Cut,
    /// With close_notify and no FIN.
    NotifyOnly,
}

pub enum Sender {
    Plain(TcpStream),
    Tls(Box<secure::Stream>),
}

impl Sender {
    #[track_caller]
    pub fn connect(way: Way, address: SocketAddr, authority: &Authority) -> Self {
        match way {
            Way::Plain => Self::Plain(client::connect(address)),
            Way::Tls | Way::Cut | Way::NotifyOnly => {
                Self::Tls(Box::new(authority.connect(address)))
            }
        }
    }

    #[track_caller]
    fn switch(mut self, path: &str) -> Self {
        match &mut self {
            Self::Plain(stream) => switch(stream, path),
            Self::Tls(stream) => switch(stream, path),
        }
        self
    }

    #[track_caller]
    /// Bytes and the end of this direction.
    pub fn send(&mut self, way: Way, data: &[u8]) {
        let socket = match self {
            Self::Plain(stream) => {
                stream.write_all(data).expect("write");
                stream
            }
            Self::Tls(stream) => {
                stream.write_all(data).expect("write");
                if way != Way::Cut {
                    stream.conn.send_close_notify();
                }
                stream.flush().expect("flush");
                &mut stream.sock
            }
        };
        if way != Way::NotifyOnly {
            socket.shutdown(Shutdown::Write).expect("FIN");
        }
    }

    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        match self {
            Self::Plain(stream) => read_to_end(stream),
            // Without a close_notify of the gateway this fails.
            Self::Tls(stream) => read_to_end(stream),
        }
    }
}

/// A worker that is told to hand everything over learns it before that comes, or behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handoff {
    No,
    Before,
    Behind,
}

/// Bytes and the end behind them find a worker that has not looked for a while: whatever it takes of them at once, keeps,
/// or holds back, in clear or sealed, the application gets all of it before the end.
fn end_behind_bytes(way: Way, handoff: Handoff) {
    let (upstream, url) = Switching::start();
    let authority = Authority::new();
    let tls = (way != Way::Plain).then_some(&authority);
    let options = Options { tls, ..gateway_to(&url) };
    let mut blue = TestWorker::spawn_with(1, &options);
    let address = blue.listen();
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options));
    let data = data();
    let sizes: Vec<usize> = (10_000..BYTES).step_by(29_000).collect();
    let path = |size: usize| format!("/sink?n={size}");
    let connect = || Sender::connect(way, address, &authority);
    let mut senders: Vec<Sender> =
        sizes.iter().map(|&size| connect().switch(&path(size))).collect();
    pair.blue.signal(Signal::SIGSTOP);
    pair.blue.wait_stopped();
    if handoff == Handoff::Before {
        pair.begin();
    }
    for (sender, &size) in senders.iter_mut().zip(&sizes) {
        sender.send(way, &data[..size]);
    }
    if handoff == Handoff::Behind {
        pair.begin();
    }
    pair.blue.signal(Signal::SIGCONT);
    if handoff != Handoff::No {
        // (Some may have come to their end before it was their turn.)
        let report = pair.blue.wait_empty();
        assert!(report.moved > 0 && report.staying.is_empty(), "{way:?}, {handoff:?}: {report:?}");
    }
    for (sender, size) in senders.iter_mut().zip(sizes) {
        assert_eq!(sender.read_to_end(), b"the end", "{way:?}, {handoff:?}, {size} bytes");
        let mut ended = Vec::new();
        eventually("it has ended", || {
            ended = upstream.ended(&path(size));
            !ended.is_empty()
        });
        assert!(ended[0] == data[..size], "{way:?}, {handoff:?}: {} of {size}", ended[0].len());
    }
}

#[test]
fn the_end_stays_behind_the_bytes() {
    for handoff in [Handoff::No, Handoff::Before, Handoff::Behind] {
        end_behind_bytes(Way::Plain, handoff);
    }
}

#[test]
fn the_end_stays_behind_sealed_bytes() {
    for way in [Way::Tls, Way::Cut, Way::NotifyOnly] {
        for handoff in [Handoff::No, Handoff::Before, Handoff::Behind] {
            end_behind_bytes(way, handoff);
        }
    }
}

#[track_caller]
fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an end in good order");
    bytes
}

#[test]
fn what_the_client_sends_after_the_applications_end_arrives() {
    for reloads in [0, 1, 2] {
        let (upstream, url) = Switching::start();
        let engine = gateway_for(&[url], "workers = 1");
        let mut stream = open(engine.address(), "/bye");
        stream.write_all(b"x").expect("write");
        assert_eq!(read_to_end(&mut stream), b"bye");
        let data = data();
        for part in data.chunks(BYTES / 3) {
            stream.write_all(part).expect("write");
            if reloads > 0 {
                for _ in 0..reloads {
                    assert_eq!(engine.reload_well()["migrated_connections"], 1);
                }
            }
        }
        assert!(upstream.ended("/bye").is_empty(), "its client has not ended");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        eventually("all of it has arrived", || upstream.ended("/bye").len() == 1);
        assert!(upstream.ended("/bye")[0] == data, "{reloads} reloads");
        eventually("nothing is left", || engine.status()["active_connections"] == 0);
    }
}

#[test]
fn what_the_application_sends_after_the_clients_end_arrives() {
    let (_upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1");
    let mut stream = open(engine.address(), "/echo");
    stream.write_all(b"half").expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_to_end(&mut stream), b"halfthe end");
    eventually("nothing is left", || engine.status()["active_connections"] == 0);
}

#[test]
fn streams_of_http2_half_close_as_connections_do() {
    for reloads in [0, 2] {
        let (upstream, url) = Switching::start();
        let engine = gateway_for(&[url], "workers = 1");
        let mut client = Http2Client::greet(engine.address());
        client.send(HEADERS, END_HEADERS, 1, &websocket_at("/bye"));
        let head = client.read_until(|frame| frame.stream == 1).expect("an answer");
        assert_eq!(client.decode(&head.payload)[0].1, "200");
        client.send(DATA, 0, 1, b"x");
        let mut received = Vec::new();
        while let Some(frame) = client.read_until(|f| f.stream == 1 && f.kind == DATA) {
            received.extend_from_slice(&frame.payload);
            if frame.has(END_STREAM) {
                break;
            }
        }
        assert_eq!(received, b"bye");
        let data = data();
        let (mut sent, mut window) = (0, 65_535 - 1);
        while sent < data.len() {
            let count = window.clamp(0, 8_192).min((data.len() - sent) as i64) as usize;
            if count == 0 {
                let update = |frame: &Frame| {
                    assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
                    frame.kind == WINDOW_UPDATE && frame.stream == 1
                };
                let frame = client.read_until(update).expect("a window update");
                let more = u32::from_be_bytes(frame.payload[..4].try_into().expect("4 bytes"));
                window += i64::from(more);
                continue;
            }
            client.send(DATA, 0, 1, &data[sent..sent + count]);
            sent += count;
            window -= count as i64;
        }
        for _ in 0..reloads {
            assert_eq!(engine.reload_well()["migrated_connections"], 1);
        }
        assert!(upstream.ended("/bye").is_empty(), "its client has not ended");
        client.send(DATA, END_STREAM, 1, b"last");
        eventually("all of it has arrived", || upstream.ended("/bye").len() == 1);
        let seen = upstream.ended("/bye").remove(0);
        assert!(seen[..BYTES] == data && &seen[BYTES..] == b"last", "{reloads} reloads");
        // The connection goes on.
        client.ping();
    }
}

#[test]
fn a_client_that_is_silent_after_the_applications_end_is_given_up() {
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1\n[limits]\nstall_timeout_ms = 300");
    let mut stream = open(engine.address(), "/bye");
    stream.write_all(b"x").expect("write");
    let mut http2 = Http2Client::greet(engine.address());
    http2.send(HEADERS, END_HEADERS, 1, &websocket_at("/bye?2"));
    http2.send(DATA, 0, 1, b"x");
    assert_eq!(read_to_end(&mut stream), b"bye");
    eventually("the application is told", || {
        upstream.ended("/bye").len() == 1 && upstream.ended("/bye?2").len() == 1
    });
    let reset = http2.read_until(|f| f.stream == 1 && f.kind == RST_STREAM).expect("a reset");
    assert_eq!(reset.code(), 8, "CANCEL");
    http2.ping();
}

#[test]
fn an_application_that_is_gone_ends_the_tunnel_when_something_is_sent_to_it() {
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1");
    let mut stream = open(engine.address(), "/gone");
    stream.write_all(b"x").expect("write");
    assert_eq!(read_to_end(&mut stream), b"gone");
    eventually("it has closed its socket", || upstream.ended("/gone").len() == 1);
    eventually("the tunnel ends", || {
        // Once nobody is there any more, this fails.
        let _ = stream.write_all(b"more");
        engine.status()["active_connections"] == 0
    });
}

/// Much or little in either direction, which ends whenever all of it has been said, while the tunnels move. Each client
/// keeps the rest of what it has to say until some handoff is over, so that none is over before the handoffs begin.
#[test]
fn directions_of_any_length_end_where_they_should_and_move_at_any_place() {
    const TUNNELS: usize = 32;
    let mut random = StdRng::seed_from_u64(cuts::seed());
    let (upstream, url) = Switching::start();
    let options = gateway_to(&url);
    let mut worker = TestWorker::spawn_with(1, &options);
    let address = worker.listen();
    let length = |random: &mut StdRng| match random.random_range(0..4) {
        0 => 0,
        1 => random.random_range(1..2_000),
        _ => random.random_range(2_000..6_000_000),
    };
    let generations = 2..8;
    let clients: Vec<_> = (0..TUNNELS)
        .map(|number| {
            let (up, down) = (length(&mut random), length(&mut random));
            let (first, until) =
                (random.random_range(0..=up), random.random_range(generations.clone()));
            let (go_on, told) = std::sync::mpsc::channel();
            let path = format!("/both?{number}={down}");
            let mut reader = open(address, &path);
            let mut writer = reader.try_clone().expect("clone");
            let written = std::thread::spawn(move || {
                let data = pattern(up);
                writer.write_all(&data[..first]).expect("write");
                told.recv().expect("it is told to go on");
                writer.write_all(&data[first..]).expect("write");
                writer.shutdown(Shutdown::Write).expect("FIN");
            });
            let read = std::thread::spawn(move || read_to_end(&mut reader));
            (path, up, down, written, read, until, go_on)
        })
        .collect();
    for generation in generations {
        let mut pair = Pair::join(worker, TestWorker::spawn_with(generation, &options));
        let report = pair.hand_off();
        assert!(report.staying.is_empty(), "{report:?}");
        let waiting = clients.iter().filter(|client| client.5 >= generation);
        assert!(report.moved >= waiting.count() as u64, "generation {generation}: {report:?}");
        for (.., go_on) in clients.iter().filter(|client| client.5 == generation) {
            go_on.send(()).expect("it waits");
        }
        worker = pair.green;
    }
    for (path, up, down, written, read, ..) in clients {
        written.join().expect("all of it was taken");
        let read = read.join().expect("an end in good order");
        assert!(read == pattern(down), "{path}: {} of {down} bytes", read.len());
        eventually("the application has come to the end", || upstream.ended(&path).len() == 1);
        let ended = upstream.ended(&path).remove(0);
        assert!(ended == pattern(up), "{path}: {} of {up} bytes", ended.len());
    }
    eventually("nothing is left", || worker.status().connections == 0);
}
