//! Proxies in front that tell who their clients are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use crate::lab::programs::{Guarded, have};
use crate::lab::{client, eventually, kept_address};
use crate::supervisor::engine::{Engine, Options};

const REQUEST: &[u8] = b"GET /id?id=proxied HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// An engine whose only address expects headers from `trusted`.
fn proxied(trusted: &str, more: &str) -> Engine {
    let config = format!(
        "{more}\n[proxy_protocol]\nlisteners = [\"127.0.0.1:0\"]\ntrusted = [\"{trusted}\"]\nheader_timeout_ms = 1500\n"
    );
    Engine::start(Options::config(&config))
}

pub fn line(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 127.0.0.1 4000 80\r\n").into_bytes()
}

pub fn binary(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(source);
    header.extend([127, 0, 0, 1, 0, 80, 0, 80]);
    header
}

/// What comes until the connection ends, which may be by a reset.
fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[track_caller]
fn ask(address: SocketAddr, header: &[u8]) -> String {
    let mut stream = client::connect(address);
    stream.write_all(&[header, REQUEST].concat()).expect("write");
    rest(stream)
}

#[test]
fn both_versions_are_understood_and_nothing_else_is() {
    let engine = proxied("127.0.0.0/8", "");
    for header in [line("192.0.2.1"), binary([192, 0, 2, 1]), b"PROXY UNKNOWN\r\n".to_vec()] {
        let answer = ask(engine.address(), &header);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("proxied"), "{answer}");
    }
    assert_eq!(ask(engine.address(), b""), "", "a client that passed by the proxy");
    assert_eq!(ask(engine.address(), b"PROXY TCP4 1.2.3.4\r\n"), "");
    // A header that never ends.
    let mut slow = client::connect(engine.address());
    slow.write_all(b"PROXY TCP4 192.0.2.1 ").expect("write");
    assert_eq!(rest(slow), "");
    let status = engine.status();
    let rejected: u64 = status["counters"]["rejected"].as_u64().expect("a number");
    assert_eq!(rejected, 3, "{status}");
}

#[test]
fn limits_count_the_client_and_not_the_proxy() {
    let engine = proxied("127.0.0.1", "workers = 1\n[limits]\nmax_connections_per_address = 1\n");
    let open = |source: &str| {
        let mut stream = client::connect(engine.address());
        stream.write_all(&line(source)).expect("write");
        stream
            .write_all(b"GET /stream?chunks=1000&interval_ms=50 HTTP/1.1\r\nHost: x\r\n\r\n")
            .expect("write");
        let mut first = [0; 12];
        stream.read_exact(&mut first).map(|()| stream)
    };
    let _one = open("192.0.2.1").expect("the first of its address");
    let _two = open("192.0.2.2").expect("the first of its address");
    assert!(open("192.0.2.1").is_err(), "the second of its address");
    engine.reload_well();
    assert!(open("192.0.2.2").is_err(), "the second of its address, after a reload");
    let _three = open("192.0.2.3").expect("the first of its address");
}

#[test]
fn who_is_not_trusted_is_closed_and_reloads_go_on() {
    let engine = proxied("10.0.0.0/8", "");
    for _ in 0..3 {
        assert_eq!(ask(engine.address(), &line("192.0.2.1")), "");
        engine.reload_well();
    }
}

#[test]
fn half_a_header_survives_reloads() {
    let engine = proxied("127.0.0.1", "drain_timeout_ms = 100\n");
    for header in [line("192.0.2.1"), binary([192, 0, 2, 1])] {
        // Cut in the header, at its end, and behind it.
        let whole = [&header[..], REQUEST].concat();
        let cuts = [0, 1, 7, 13, header.len() - 1, header.len(), header.len() + 3];
        let mut clients: Vec<(TcpStream, usize)> = Vec::new();
        for cut in cuts {
            let mut stream = client::connect(engine.address());
            stream.write_all(&whole[..cut]).expect("write");
            clients.push((stream, cut));
        }
        eventually("all are there", || engine.status()["active_connections"] == cuts.len());
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], cuts.len(), "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        for (mut stream, cut) in clients {
            stream.write_all(&whole[cut..]).expect("write");
            let answer = rest(stream);
            assert!(answer.ends_with("proxied"), "cut at {cut}: {answer:?}");
        }
    }
}

/// HAProxy in front of the engine, with this option, until it is dropped; and where it accepts.
#[track_caller]
pub fn haproxy(engine: &Engine, option: &str) -> (Guarded, SocketAddr) {
    let front = kept_address();
    let config = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n unique-id-format %pid\n\
         frontend f\n bind {front}\n default_backend b\nbackend b\n server s {} {option}\n",
        engine.address()
    );
    let path = engine.run_dir().with_file_name("haproxy.cfg");
    std::fs::write(&path, config).expect("write");
    let mut command = Command::new("haproxy");
    let command = command.args(["-db", "-f"]).arg(&path);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run haproxy");
    let haproxy = Guarded(child);
    eventually("haproxy accepts", || TcpStream::connect(front).is_ok());
    (haproxy, front)
}

#[test]
fn haproxy_in_front() {
    if !have("proxy_protocol::haproxy_in_front", "haproxy", "-v") {
        return;
    }
    let engine = proxied("127.0.0.1", "");
    for option in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"]
    {
        let (_haproxy, front) = haproxy(&engine, option);
        for number in 0..20 {
            if number % 5 == 0 {
                engine.reload_well();
            }
            let answer = ask(front, b"");
            assert!(answer.ends_with("proxied"), "{option}: {answer:?}");
        }
        let mut socket = client::websocket(front, "/ws/counter");
        assert_eq!(client::count(&mut socket).0, 1);
        engine.reload_well();
        assert_eq!(client::count(&mut socket).0, 2, "{option}");
    }
}
