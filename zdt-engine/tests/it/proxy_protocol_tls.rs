//! Proxies in front that pass TLS on as it is, and tell in clear before it who their clients are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;

use crate::lab::client::ReadOn;
use crate::lab::programs::{Guarded, curl, have, have_curl};
use crate::lab::secure::{self, Authority, Stream};
use crate::lab::system::while_reloading;
use crate::lab::{client, eventually};
use crate::proxy_protocol::{binary, haproxy, line};
use crate::supervisor::engine::{Engine, Options};

/// TLS on its only address, which asks for certificates of clients, behind headers of proxies of this machine; who
/// asked for what is in `access.log` beside the certificates.
fn engine(authority: &Authority, workers: u32, limits: &str) -> Engine {
    Engine::start(Options::config(&format!(
        "workers = {workers}\n[tls]\nclient_ca = {:?}\nclient_certificates = \"optional\"\n{}\
         [proxy_protocol]\nlisteners = [\"127.0.0.1:0\"]\ntrusted = [\"127.0.0.1\"]\nheader_timeout_ms = 120000\n\
         [access_log]\nformat = \"json\"\nfile = {:?}\n{limits}",
        authority.path("client.pem"),
        authority.config(),
        authority.path("access.log"),
    )))
}

/// Who asked for that target, as the access log has it, once it has so many of them.
#[track_caller]
fn who_asked(authority: &Authority, target: &str, count: usize) -> Vec<IpAddr> {
    let path = authority.path("access.log");
    let read = |path: &Path| -> Vec<IpAddr> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let asked = lines.filter(|line| line["target"] == target);
        asked.map(|line| line["client"].as_str().expect("client").parse().expect("ip")).collect()
    };
    eventually("the access log has it", || read(&path).len() >= count);
    read(&path)
}

/// What the service knows of the client.
#[track_caller]
fn seen(stream: &mut Stream) -> Value {
    stream.write_all(b"GET /tls HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    let mut text = String::new();
    while !text.ends_with('}') {
        let mut buffer = [0; 1024];
        let count = stream.read_on(&mut buffer).expect("read");
        assert!(count > 0, "it ended: {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).expect("text"));
    }
    serde_json::from_str(text.split("\r\n\r\n").nth(1).expect("body")).expect("JSON")
}

/// A reload at every byte of the header, between it and the ClientHello, in that, and twice in the same place: the
/// client's address arrives, and so does its certificate.
#[test]
fn a_reload_at_any_byte_before_the_handshake() {
    let authority = Authority::new();
    let me = authority.write("client", "some.client");
    let limits = "[limits]\nheader_timeout_ms = 120000\n";
    let engine = engine(&authority, 2, limits);
    let config = Arc::new(authority.client_config_as(me));
    let name = ServerName::try_from("localhost").expect("name");
    let mut waiting: Vec<(ClientConnection, TcpStream, Vec<u8>, String)> = Vec::new();
    for (version, header) in [(1, line("192.0.2.1")), (2, binary([192, 0, 2, 2]))] {
        let behind = [1, 4, 5, 6, 9, 40, 100].map(|more| header.len() + more);
        for cut in (0..=header.len()).chain(behind) {
            let mut connection =
                ClientConnection::new(config.clone(), name.clone()).expect("client");
            let mut all = header.clone();
            while connection.wants_write() {
                connection.write_tls(&mut all).expect("ClientHello");
            }
            let mut socket = client::connect(engine.address());
            socket.write_all(&all[..cut]).expect("write");
            waiting.push((connection, socket, all.split_off(cut), format!("v{version}-{cut}")));
        }
    }
    let count = waiting.len();
    eventually("all are there", || engine.status()["active_connections"] == count);
    for _ in 0..2 {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], count, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
    }
    let mut open: Vec<(Stream, String)> = Vec::new();
    for (mut connection, mut socket, rest, id) in waiting {
        socket.write_all(&rest).expect("write");
        connection.complete_io(&mut socket).unwrap_or_else(|error| panic!("{id}: {error}"));
        open.push((StreamOwned::new(connection, client::Steady(socket)), id));
    }
    let verdict = engine.reload_well();
    assert_eq!(verdict["migrated_connections"], count, "{verdict}");
    for (stream, id) in &mut open {
        let request = format!("GET /id?id={id} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{id}: {error}"));
        assert!(answer.ends_with(&*id), "{id}: {answer}");
        let client: IpAddr = [192, 0, 2, if id.starts_with("v1") { 1 } else { 2 }].into();
        assert_eq!(who_asked(&authority, &format!("/id?id={id}"), 1), [client], "{id}");
    }
    authority.check_nonces();
}

/// Address, certificate and the session of a WebSocket, before and after reloads and a replaced supervisor.
#[test]
fn a_client_behind_a_proxy_keeps_its_identity() {
    let authority = Authority::new();
    let me = authority.write("client", "some.client");
    let engine = engine(&authority, 1, "[limits]\nmax_connections_per_address = 2\n");
    let config = Arc::new(authority.client_config_as(me));
    let connect = |header: &[u8]| {
        let name = ServerName::try_from("localhost").expect("name");
        let mut connection = ClientConnection::new(config.clone(), name).expect("client");
        let mut socket = client::connect(engine.address());
        socket.write_all(header).expect("write");
        connection
            .complete_io(&mut socket)
            .map(|_| StreamOwned::new(connection, client::Steady(socket)))
    };
    let header = binary([198, 51, 100, 7]);
    let mut stream = connect(&header).expect("handshake");
    let mut socket = secure::websocket(connect(&header).expect("handshake"), "/ws/counter");
    let before = seen(&mut stream);
    assert_eq!(before["client_certificate_sha256"].as_str().map(str::len), Some(64), "{before}");
    for number in 1..=3 {
        assert_eq!(client::count(&mut socket).0, number);
        let more: &[&str] = if number == 2 { &["--strategy", "socket-handoff"] } else { &[] };
        let output = engine.zdt(&[&["reload", "--json"], more].concat());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(seen(&mut stream), before);
        // It counts as that client everywhere.
        connect(&header).expect_err("the third of its address");
        connect(&line("198.51.100.8")).expect("somebody else");
    }
    let client: IpAddr = [198, 51, 100, 7].into();
    assert_eq!(who_asked(&authority, "/tls", 4), [client; 4]);
}

/// HAProxy that passes TLS on, as clients of other people meet it: one connection each, over reloads.
#[test]
fn haproxy_passes_tls_on() {
    let test = "proxy_protocol_tls::haproxy_passes_tls_on";
    if !have(test, "haproxy", "-v") || !have(test, "openssl", "version") || !have_curl(test) {
        return;
    }
    let authority = Authority::new();
    authority.write("client", "some.client");
    let engine = engine(&authority, 2, "");
    for (number, option) in
        ["send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id"].iter().enumerate()
    {
        let (_haproxy, front) = haproxy(&engine, option);
        let source = format!("127.0.0.{}", 7 + number);
        let curl_http2 = || {
            curl(&["--http2", "--rate", "300/m", "--cacert"])
                .arg(authority.path("server.pem"))
                .args(["--resolve", &format!("localhost:{}:127.0.0.1", front.port())])
                .args([
                    "--interface",
                    &source,
                    "-w",
                    " %{http_code} %{http_version} %{num_connects}\n",
                ])
                .arg(format!("https://localhost:{}/id?id=[1-6]", front.port()))
                .output()
                .expect("run curl")
        };
        let (output, reloads) = while_reloading(&engine, Duration::from_millis(100), curl_http2);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected: String =
            (1..=6).map(|id| format!("{id} 200 2 {}\n", u8::from(id == 1))).collect();
        assert_eq!(lines, expected, "{option}: {output:?}");
        assert!(reloads > 0);
        let client: IpAddr = source.parse().expect("ip");
        assert_eq!(who_asked(&authority, "/id?id=6", number + 1)[number], client, "{option}");
        openssl_asks_over_reloads(&engine, &authority, front, option);
    }
}

/// One connection, three requests, a reload behind each.
fn openssl_asks_over_reloads(
    engine: &Engine,
    authority: &Authority,
    front: SocketAddr,
    what: &str,
) {
    for version in ["-tls1_3", "-tls1_2"] {
        let mut child = Guarded(
            Command::new("openssl")
                .args(["s_client", "-quiet", "-servername", "localhost", version, "-connect"])
                .args([&front.to_string(), "-verify_return_error", "-CAfile"])
                .arg(authority.path("server.pem"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("run openssl"),
        );
        let mut input = child.0.stdin.take().expect("stdin");
        let mut lines = BufReader::new(child.0.stdout.take().expect("stdout")).lines();
        for id in ["a", "bb", "ccc"] {
            write!(input, "GET /id?id={id} HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
            input.flush().expect("flush");
            let length = format!("Content-Length: {}", id.len());
            let found = lines.by_ref().map_while(Result::ok).any(|line| line == length);
            assert!(found, "{what} {version}: no answer to {id}");
            engine.reload_well();
        }
    }
}
