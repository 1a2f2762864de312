//! Peers on both sides that stall, or trickle: each is bounded by a time-out that no trickle puts off, has a clear
//! answer, and leaves nothing behind.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::hold::figure;
use super::switching::{Switching, read_head};
use super::upstream::Upstream;
use super::{begin, gateway, gateway_for, parse};
use crate::lab::client::ReadOn;
use crate::lab::http2::*;
use crate::lab::{client, eventually};
use crate::supervisor::engine::Engine;

/// What follows the beginning of an answer.
#[derive(Debug, Clone, Copy)]
enum Then {
    Silence,
    /// One byte after the other.
    Trickle,
    /// As much of that as it takes.
    Flood(&'static str),
}

/// An upstream that begins each answer in the same way, and waits for the end of the connection.
struct Slow {
    url: String,
    asked: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Slow {
    fn start(begin: &'static str, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let (asked, ended) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let slow = Self { url, asked: Arc::clone(&asked), ended: Arc::clone(&ended) };
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (asked, ended) = (Arc::clone(&asked), Arc::clone(&ended));
                std::thread::spawn(move || {
                    if read_head(&mut stream).is_some() {
                        asked.fetch_add(1, Ordering::SeqCst);
                        wait_for_end(&mut stream, begin, then);
                        ended.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        slow
    }

    /// A gateway in front of it.
    #[track_caller]
    fn gateway(&self, config: &str) -> Engine {
        gateway_for(std::slice::from_ref(&self.url), config)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

/// Reads, and says something whenever nothing has come for a moment.
fn wait_for_end(stream: &mut TcpStream, begin: &str, then: Then) {
    let _ = stream.write_all(begin.as_bytes());
    if let Then::Flood(piece) = then {
        let piece = piece.repeat(1 << 10);
        while stream.write_all(piece.as_bytes()).is_ok() {}
        return;
    }
    trickle(stream, |stream| match then {
        Then::Trickle => stream.write_all(b"a").is_ok(),
        _ => true,
    });
}

/// What comes until the end; after every moment of silence so far something may be said. False: nothing can be.
fn trickle(stream: &mut TcpStream, mut say: impl FnMut(&mut TcpStream) -> bool) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_millis(10))).expect("read timeout");
    let (mut read, mut piece) = (Vec::new(), [0; 4 << 10]);
    loop {
        match stream.read_on(&mut piece) {
            Ok(0) => return read,
            Ok(count) => read.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if read.is_empty() && !say(stream) {
                    return read;
                }
            }
            Err(_) => return read,
        }
    }
}

#[test]
fn a_clients_head_that_trickles_in_is_refused_in_time() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1\n[limits]\nheader_timeout_ms = 400");
    let mut stream = client::connect(engine.address());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nX: ").expect("write");
    let answer = parse(&trickle(&mut stream, |stream| stream.write_all(b"a").is_ok()));
    assert_eq!((answer.status, upstream.connections()), (408, 0), "{answer:?}");
}

/// In however many frames it comes.
#[test]
fn a_head_of_http2_that_trickles_in_ends_the_connection_in_time() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1\n[limits]\nheader_timeout_ms = 400");
    let mut http2 = Http2Client::greet(engine.address());
    let head = block(&request("GET", "/", &[]));
    http2.send(HEADERS, END_STREAM, 1, &head);
    http2.stream.set_read_timeout(Some(Duration::from_millis(20))).expect("read timeout");
    let goaway = loop {
        match http2.try_read() {
            Ok(Some(frame)) if frame.kind == GOAWAY => break frame,
            Ok(frame) => assert!(frame.is_some(), "it says why"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                http2.send(CONTINUATION, 0, 1, &[]);
            }
        }
    };
    assert_eq!((goaway.code(), upstream.connections()), (0, 0), "no rule was broken");
}

#[test]
fn a_clients_body_that_stalls_is_refused_and_its_upstream_let_go() {
    let slow = Slow::start("", Then::Silence);
    let engine = slow.gateway("workers = 1\n[limits]\nstall_timeout_ms = 300");
    let head = "POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n";
    let answer = parse(&client::exchange(engine.address(), format!("{head}abc").as_bytes()));
    assert_eq!(answer.status, 408, "{answer:?}");
    assert!(answer.text().contains("did not arrive in time"), "{answer:?}");
    eventually("the upstream's connection has ended", || slow.ended() == 1);

    let mut http2 = Http2Client::greet(engine.address());
    let fields = request("POST", "/x", &[("content-length", "9")]);
    http2.send(HEADERS, END_HEADERS, 1, &block(&fields));
    http2.send(DATA, 0, 1, b"abc");
    assert_eq!(http2.response(1).0, 408);
    eventually("the upstream's connection has ended", || slow.ended() == 2);
    http2.ping();
    assert_eq!(figure(&engine, "upstream_failures"), 0, "it is not to blame");
}

/// Nor for the time in which nobody takes its body.
#[test]
fn a_stream_whose_body_waits_for_an_upstream_is_not_to_blame() {
    let place = Upstream::start("app").stop();
    let config = "workers = 1\n[limits]\nstall_timeout_ms = 200\n[gateway.hold]\ntime_ms = 1000";
    let engine = gateway_for(&[format!("http://{place}")], config);
    let mut http2 = Http2Client::greet(engine.address());
    http2.send(HEADERS, END_HEADERS, 1, &block(&request("POST", "/x", &[])));
    http2.send(DATA, 0, 1, &[b'x'; 16_000]);
    let (status, body) = http2.response(1);
    assert_eq!(status, 503, "{}", String::from_utf8_lossy(&body));
}

#[test]
fn upstreams_that_stall_or_trickle_are_cut_off_in_time() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let chunk_line: &'static str = Box::leak(format!("{chunked}1;x=").into_boxed_str());
    let trailer: &'static str = Box::leak(format!("{chunked}0\r\nx-sum: ").into_boxed_str());
    for (begin, then, status) in [
        ("", Then::Silence, 504),
        ("HTTP/1.1 200 OK\r\nX: ", Then::Silence, 504),
        ("HTTP/1.1 200 OK\r\nX: ", Then::Trickle, 504),
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nX: ", Then::Trickle, 504),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", Then::Silence, 200),
        (chunk_line, Then::Trickle, 200),
        (trailer, Then::Trickle, 200),
    ] {
        let slow = Slow::start(begin, then);
        let config = "workers = 1\n[gateway]\nresponse_timeout_ms = 300";
        let engine = slow.gateway(config);
        let request = b"GET /x HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        let bytes = client::exchange(engine.address(), request);
        let text = String::from_utf8_lossy(&bytes);
        let answer = text.rsplit("HTTP/1.1 ").next().expect("an answer");
        assert!(answer.starts_with(&status.to_string()), "{begin:?}: {text}");
        if status == 200 {
            assert!(answer.contains("abc") && !answer.ends_with("0\r\n\r\n"), "{begin:?}: {text}");
        }
        eventually("the upstream's connection has ended", || slow.ended() == 1);
        let mut http2 = Http2Client::greet(engine.address());
        http2.get(1, "/x");
        let last = http2.read_until(|frame| {
            frame.stream == 1 && (frame.kind == RST_STREAM || frame.has(END_STREAM))
        });
        let last = last.expect("an end");
        assert_eq!(last.kind == RST_STREAM, status == 200, "{begin:?}: {last:?}");
        eventually("the upstream's connection has ended", || slow.ended() == 2);
        http2.ping();
    }
}

#[test]
fn what_is_left_of_a_tunnel_is_not_kept_for_ever() {
    let (upstream, url) = Switching::start();
    let engine = gateway_for(&[url], "workers = 1\n[gateway]\nresponse_timeout_ms = 300");
    let mut stream = begin(
        engine.address(),
        "GET /stuck HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    );
    stream.write_all(b"x").expect("write");
    let mut read = Vec::new();
    stream.read_to_end(&mut read).expect("the upstream has ended its direction");
    assert!(read.ends_with(b"\r\n\r\nbye"));
    // It takes nothing any more.
    while stream.write_all(&[0; 64 << 10]).is_ok() {}
    eventually("nothing is left", || engine.status()["active_connections"] == 0);
    upstream.go();
}

#[test]
fn who_gives_up_is_not_answered_by_anybody() {
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\nabc";
    for begin in ["", begun] {
        let slow = Slow::start(begin, Then::Silence);
        let engine = slow.gateway("workers = 1");
        let mut http2 = Http2Client::greet(engine.address());
        http2.get(1, "/x");
        http2.send(HEADERS, END_HEADERS, 3, &block(&request("POST", "/x", &[])));
        eventually("both have asked", || slow.asked() == 2);
        for stream in [1, 3] {
            http2.send(RST_STREAM, 0, stream, &8u32.to_be_bytes());
        }
        eventually("the upstream's connections have ended", || slow.ended() == 2);
        http2.ping();
        let upstreams = upstreams(&engine);
        assert_eq!((&upstreams[0]["outstanding"], &upstreams[0]["idle"]), (&0.into(), &0.into()));
    }
}

/// What the only worker says of its upstreams.
fn upstreams(engine: &Engine) -> Vec<Value> {
    let status = engine.status();
    let workers = status["worker_stats"].as_object().expect("workers");
    let worker = workers.values().next().expect("a worker");
    worker["gateway"]["upstreams"].as_array().expect("upstreams").clone()
}

#[test]
fn health_checks_are_bounded_whatever_an_upstream_does() {
    let head = "HTTP/1.1 200 OK\r\n";
    let bad = [
        Slow::start("", Then::Silence),
        Slow::start("HTTP/1.1 20", Then::Silence),
        Slow::start("HTTP/1.1 200 OK\r\nX: ", Then::Silence),
        Slow::start("HTTP/1.1 200 OK\r\nX: ", Then::Trickle),
        Slow::start(head, Then::Flood("X: a\r\n")),
        Slow::start("", Then::Flood("HTTP/1.1 102 Processing\r\n\r\n")),
        Slow::start("SSH-2.0-OpenSSH\r\n", Then::Silence),
        Slow::start("HTTP/1.1 500 No\r\n\r\n", Then::Flood("x")),
    ];
    let good = [
        Slow::start("HTTP/1.1 204 No Content\r\n\r\n", Then::Silence),
        Slow::start("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Then::Silence),
        Slow::start("HTTP/1.1 200 OK\r\n\r\n", Then::Flood("x")),
    ];
    let urls: Vec<String> = bad.iter().chain(&good).map(|slow| slow.url.clone()).collect();
    let engine = gateway_for(
        &urls,
        "workers = 1\n[gateway.health]\npath = \"/health\"\ninterval_ms = 20\ntimeout_ms = 2000\n\
         unhealthy_after = 1",
    );
    eventually("they are told apart", || {
        let known = upstreams(&engine);
        urls.iter().enumerate().all(|(number, url)| {
            let one = known.iter().find(|one| one["url"] == url.as_str()).expect("it is known");
            one["healthy"] == (number >= bad.len())
        })
    });
    for slow in bad.iter().chain(&good) {
        eventually("its connections end, and it is asked again", || slow.ended() > 1);
    }
    engine.reload_well();
}

#[test]
fn replaced_upstreams_are_forgotten_once_nothing_is_left_of_them() {
    let slow = Slow::start("", Then::Silence);
    let engine = slow.gateway("workers = 1");
    let unfinished = begin(engine.address(), "GET /x HTTP/1.1\r\nHost: test");
    eventually("it has been asked", || slow.asked() == 1);
    let others: Vec<Upstream> = (0..4).map(|_| Upstream::start("app")).collect();
    for number in 0..12 {
        let url = others[number % others.len()].url();
        assert!(engine.zdt(&["upstream", "set", "default", &url]).status.success());
        assert_eq!(super::get(engine.address(), "/x").text(), "app /x\n");
    }
    let known = |count: usize| upstreams(&engine).len() == count;
    eventually("the others are forgotten", || known(2));
    engine.reload_well();
    eventually("the next worker knows as many", || known(2));
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&unfinished, nix::sys::socket::sockopt::Linger, &linger)
        .expect("SO_LINGER");
    drop(unfinished); // by a reset
    eventually("only the one in force is left", || known(1));
}
