//! Deadlines and limits of the real command, and its graceful end, as a client meets them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::client::ReadOn;
use crate::lab::system::sum;
use crate::lab::{client, eventually};
use crate::supervisor::engine::{Engine, Options};

fn engine(config: &str) -> Engine {
    Engine::start(Options::config(&format!("workers = 1\n{config}")))
}

/// Reads to the end of the connection, however that comes.
#[track_caller]
fn rest(stream: &mut TcpStream) -> String {
    let began = Instant::now();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        assert!(began.elapsed() < crate::lab::PATIENCE, "no end: {bytes:?}");
        match stream.read_on(&mut buffer) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                break;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn ask(stream: &mut TcpStream, id: &str) -> std::io::Result<()> {
    stream.write_all(format!("GET /id?id={id} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
    let mut answer = [0; 1024];
    let count = stream.read_on(&mut answer)?;
    if count == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    assert!(answer[..count].ends_with(id.as_bytes()));
    Ok(())
}

fn status_of(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = client::connect(address);
    // The server may refuse, and close, before it has read all of it.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read_on(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
        if answer.windows(4).any(|four| four == b"\r\n\r\n") {
            break;
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {answer:?}")).to_owned()
}

#[test]
fn a_slow_head_ends_with_408_however_steadily_it_trickles() {
    let engine = engine("[limits]\nheader_timeout_ms = 400\n");
    let mut silent = client::connect(engine.address());
    let mut stream = client::connect(engine.address());
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
    let began = Instant::now();
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    for byte in b"GET /id?id=1 HTTP/1.1\r\nHost: x\r\nX: ".iter().chain(std::iter::repeat(&b'x')) {
        // One byte whenever there was nothing to read for a while.
        let _ = stream.write_all(&[*byte]);
        match stream.read_on(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                break;
            }
        }
        assert!(began.elapsed() < Duration::from_secs(10), "still open");
    }
    // Server and client count from different moments of the accept.
    assert!(began.elapsed() >= Duration::from_millis(380), "{:?}", began.elapsed());
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    // Who has said nothing is told nothing.
    assert_eq!(rest(&mut silent), "");
}

#[test]
fn a_head_deadline_goes_on_in_the_next_generation() {
    let engine = engine("[limits]\nheader_timeout_ms = 2500\n");
    let mut stream = client::connect(engine.address());
    let began = Instant::now();
    stream.write_all(b"GET /id?id=1 HT").expect("write");
    let mut reloads = 0;
    while began.elapsed() < Duration::from_millis(1_500) {
        assert_eq!(engine.reload_well()["migrated_connections"], 1);
        reloads += 1;
    }
    assert!(reloads > 0);
    let answer = rest(&mut stream);
    let took = began.elapsed();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    // It would take 4 s if it began anew after the last reload.
    // Each move may round a millisecond away.
    assert!(took >= Duration::from_millis(2_500 - 2 * reloads), "{took:?} with {reloads} reloads");
    assert!(took < Duration::from_millis(3_800), "{took:?} with {reloads} reloads");
}

#[test]
fn an_unused_connection_is_closed_after_the_keep_alive_timeout() {
    let engine = engine("[limits]\nkeep_alive_timeout_ms = 300\n");
    let mut stream = client::connect(engine.address());
    ask(&mut stream, "one").expect("an answer");
    let began = Instant::now();
    ask(&mut stream, "two").expect("an answer");
    assert_eq!(rest(&mut stream), "");
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
}

#[test]
fn a_stalled_body_is_given_up() {
    let engine = engine("[limits]\nstall_timeout_ms = 300\n");
    let mut stream = client::connect(engine.address());
    let began = Instant::now();
    stream
        .write_all(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf of it")
        .expect("write");
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
}

#[test]
fn one_address_has_only_so_many_connections() {
    let engine = engine("[limits]\nmax_connections_per_address = 3\n");
    let address = engine.address();
    let mut streams: Vec<_> = (0..3).map(|_| client::connect(address)).collect();
    for reload in [false, true] {
        if reload {
            // Connections that came from elsewhere count too.
            assert_eq!(engine.reload_well()["migrated_connections"], 3);
        }
        for stream in &mut streams {
            ask(stream, "mine").expect("an answer");
        }
        let mut fourth = client::connect(address);
        ask(&mut fourth, "too many").expect_err("the fourth is refused");
        // Other addresses are not concerned.
        let other = std::net::SocketAddr::from(([127, 0, 0, 2], 0));
        ask(&mut connect_from(other, address), "other").expect("an answer");
        // Whoever leaves makes room.
        streams.pop();
        eventually("there is room again", || {
            let mut stream = client::connect(address);
            let admitted = ask(&mut stream, "mine").is_ok();
            if admitted {
                streams.push(stream);
            }
            admitted
        });
    }
    assert!(sum(&engine, "rejected") >= 1);
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    use std::os::fd::AsRawFd;
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("IPv4") };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("socket");
    bind(socket.as_raw_fd(), &SockaddrIn::from(from)).expect("bind");
    connect(socket.as_raw_fd(), &SockaddrIn::from(to)).expect("connect");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(crate::lab::PATIENCE)).expect("timeout");
    stream
}

#[test]
fn a_worker_has_only_so_many_connections() {
    let engine = engine("[limits]\nmax_connections = 4\n");
    let mut streams: Vec<_> = (0..4).map(|_| client::connect(engine.address())).collect();
    for stream in &mut streams {
        ask(stream, "mine").expect("an answer");
    }
    ask(&mut client::connect(engine.address()), "too many").expect_err("the fifth is refused");
    assert_eq!(engine.reload_well()["migrated_connections"], 4);
    for stream in &mut streams {
        ask(stream, "mine").expect("an answer");
    }
}

#[test]
fn sizes_have_their_limits() {
    let engine = engine(
        "[limits]\nmax_head_bytes = 2000\nmax_target_bytes = 500\nmax_header_count = 10\n\
         max_body_bytes = 1000\nmax_message_bytes = 1000\n",
    );
    let address = engine.address();
    let get = |target: &str, fields: &str| {
        status_of(address, format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes())
    };
    let post = |fields: &str, body: &str| {
        let head = format!("POST /digest HTTP/1.1\r\nHost: x\r\n{fields}\r\n{body}");
        status_of(address, head.as_bytes())
    };
    let long = |length: usize| "x".repeat(length);
    assert_eq!(get(&format!("/id?id={}", long(400)), ""), "200");
    assert_eq!(get(&format!("/id?id={}", long(600)), ""), "414");
    // Without an end in sight, too.
    assert_eq!(status_of(address, format!("GET /{}", long(3_000)).as_bytes()), "414");
    assert_eq!(get("/", &format!("X: {}\r\n", long(1_000))), "200");
    assert_eq!(get("/", &format!("X: {}\r\n", long(3_000))), "431");
    assert_eq!(get("/", &"X: y\r\n".repeat(9)), "200");
    assert_eq!(get("/", &"X: y\r\n".repeat(10)), "431");
    assert_eq!(post("Content-Length: 1000\r\n", &long(1_000)), "200");
    assert_eq!(post("Content-Length: 1001\r\n", ""), "413");
    let chunk = format!("1f4\r\n{}\r\n", long(500));
    let chunked = "Transfer-Encoding: chunked\r\n";
    assert_eq!(post(chunked, &format!("{chunk}{chunk}0\r\n\r\n")), "200");
    assert_eq!(post(chunked, &format!("{chunk}{chunk}1\r\nx\r\n0\r\n\r\n")), "413");

    let mut socket = client::websocket(address, "/ws/echo");
    client::echo(&mut socket, tungstenite::Message::text(long(1_000)));
    socket.send(tungstenite::Message::text(long(1_001))).expect("send");
    match socket.read().expect("read") {
        tungstenite::Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 1009),
        other => panic!("not a close frame: {other:?}"),
    }
}

/// A WebSocket of which every byte is ours.
fn raw_websocket(address: SocketAddr, path: &str) -> TcpStream {
    client::websocket(address, path).get_ref().try_clone().expect("clone")
}

#[test]
fn a_silent_peer_is_pinged_and_a_dead_one_dropped() {
    let engine = engine("[websocket]\nping_interval_ms = 250\npong_timeout_ms = 350\n");
    let mut stream = raw_websocket(engine.address(), "/ws/echo");
    let mut pings = 0;
    let mut frame = [0; 2];
    let mut since = Instant::now();
    for _ in 0..4 {
        stream.read_exact(&mut frame).expect("a ping");
        assert_eq!(frame, [0x89, 0]);
        assert!(since.elapsed() >= Duration::from_millis(240), "{:?}", since.elapsed());
        pings += 1;
        since = Instant::now();
        if pings < 4 {
            stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).expect("a pong");
        }
    }
    // The last one is not answered.
    assert_eq!(rest(&mut stream), "");
    let took = since.elapsed();
    assert!(took >= Duration::from_millis(340), "{took:?}");
    assert!(took < Duration::from_millis(1_500), "{took:?}");
}

#[test]
fn a_dead_peer_is_found_out_while_it_is_sent_things() {
    let engine = engine("[websocket]\nping_interval_ms = 250\npong_timeout_ms = 350\n");
    // It takes every tick, as a socket buffer of a machine that is gone would, and says nothing.
    let mut stream = raw_websocket(engine.address(), "/ws/clock?interval_ms=50");
    let began = Instant::now();
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stream.read_on(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
        assert!(began.elapsed() < Duration::from_secs(5), "still served");
    }
    assert!(began.elapsed() >= Duration::from_millis(590), "{:?}", began.elapsed());
    assert!(bytes.windows(2).any(|two| two == [0x89, 0]), "it was pinged");
}

#[test]
fn a_ping_that_is_out_is_awaited_by_the_next_generation() {
    let engine = engine("[websocket]\nping_interval_ms = 300\npong_timeout_ms = 4000\n");
    let mut stream = raw_websocket(engine.address(), "/ws/echo");
    let mut frame = [0; 2];
    stream.read_exact(&mut frame).expect("a ping");
    let began = Instant::now();
    assert_eq!(frame, [0x89, 0]);
    while began.elapsed() < Duration::from_millis(1_000) {
        assert_eq!(engine.reload_well()["migrated_connections"], 1);
    }
    assert_eq!(rest(&mut stream), "", "no second ping");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(3_900), "{took:?}");
    assert!(took < Duration::from_millis(4_900), "{took:?}");
}

#[test]
fn a_graceful_stop_finishes_what_is_in_progress() {
    let mut engine = engine("drain_timeout_ms = 15000\n");
    let address = engine.address();
    let mut idle = client::connect(address);
    ask(&mut idle, "idle").expect("an answer");
    let mut download = client::connect(address);
    download
        .write_all(b"GET /stream?chunks=20&interval_ms=40 HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("write");
    let mut upload = client::connect(address);
    upload
        .write_all(b"POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
        .expect("write");
    let mut begun = [0; 15];
    download.read_exact(&mut begun).expect("the response begins");
    eventually("the upload has begun", || sum(&engine, "requests") == 3);
    let began = Instant::now();
    engine.signal(Signal::SIGTERM);
    // A connection without a request is closed at once.
    assert_eq!(rest(&mut idle), "");
    upload.write_all(b"def").expect("write");
    let answer = rest(&mut upload);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    assert!(answer.contains("bef57ec7f53a6d40beb640a780a639c8"), "{answer:?}");
    assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{answer:?}");
    let answer = rest(&mut download);
    assert!(answer.contains("chunk 19\n") && answer.ends_with("\r\n0\r\n\r\n"), "{answer:?}");
    assert!(engine.wait().success());
    // `idle` still holds its end; the server has closed its own long before the deadline.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(idle);
}
