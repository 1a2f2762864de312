//! Handshakes across a handoff, and those that never end.

use std::io::{Read, Write};

use zdt_engine::control::{FromWorker, ToWorker};

use crate::lab::client::ReadOn;
use crate::lab::secure::Authority;
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client, eventually};

fn options(authority: &Authority) -> Options<'_> {
    Options { tls: Some(authority), ..Options::default() }
}

/// It finishes in blue and moves then.
#[test]
fn a_handshake_in_progress_moves_when_it_is_over() {
    let authority = Authority::new();
    let mut blue = TestWorker::spawn_with(1, &options(&authority));
    let address = blue.listen();
    let config = authority.client_config(&rustls::version::TLS13);
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut socket = client::connect(address);
    connection.write_tls(&mut socket).expect("ClientHello");
    eventually("blue has it", || blue.status().by_transport.get("tls-handshake") == Some(&1));
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options(&authority)));
    pair.begin();
    // Blue waits for it.
    pair.blue.wait("progress", |message| match message {
        FromWorker::Progress(report) => (report.remaining == 1).then_some(()),
        _ => None,
    });
    connection.complete_io(&mut socket).expect("the rest of the handshake");
    let report = pair.blue.wait_empty();
    assert_eq!((report.moved, report.staying.len()), (1, 0), "{report:?}");
    let mut stream = rustls::StreamOwned::new(connection, socket);
    stream.write_all(b"GET /tls HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert!(answer.contains("\"server_name\":\"localhost\""), "the name has moved: {answer}");
    assert_eq!(pair.green.status().requests, 1);
    authority.check_nonces();
}

/// Whoever has not been answered moves with what it has said so far, and shakes hands in green; also where the message
/// comes in several records.
#[test]
fn who_has_not_been_answered_moves() {
    let authority = Authority::new();
    let mut options = options(&authority);
    options.config.limits.header_timeout_ms = 120_000;
    let mut blue = TestWorker::spawn_with(1, &options);
    let address = blue.listen();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut clients = Vec::new();
    let mut sent = 0;
    for (version, fragment, step) in [
        (&rustls::version::TLS13, None, 1),
        (&rustls::version::TLS12, None, 7),
        (&rustls::version::TLS13, Some(64), 7),
    ] {
        let mut config = authority.client_config(version);
        config.max_fragment_size = fragment;
        let config = std::sync::Arc::new(config);
        for cut in (0..).step_by(step) {
            let mut connection =
                rustls::ClientConnection::new(config.clone(), name.clone()).unwrap();
            let mut hello = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut hello).expect("ClientHello");
            }
            if cut >= hello.len() {
                break;
            }
            let mut socket = client::connect(address);
            socket.write_all(&hello[..cut]).expect("write");
            sent += cut as u64;
            clients.push((connection, socket, hello.split_off(cut)));
        }
    }
    let count = clients.len() as u64;
    eventually("blue has it all", || {
        let status = blue.status();
        (status.bytes_received, status.connections) == (sent, count)
    });
    assert_eq!(blue.status().by_transport.get("tls-hello"), Some(&count));
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options));
    let report = pair.hand_off();
    assert_eq!((report.moved, report.staying.len()), (count, 0), "{report:?}");
    for (mut connection, mut socket, rest) in clients {
        let left = rest.len();
        socket.write_all(&rest).expect("the rest of the ClientHello");
        connection.complete_io(&mut socket).unwrap_or_else(|error| panic!("{left} left: {error}"));
        let mut stream = rustls::StreamOwned::new(connection, socket);
        stream.write_all(b"GET /id?id=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        assert!(answer.ends_with('x'), "{left} left: {answer}");
    }
    let status = pair.green.status();
    assert_eq!((status.requests, status.tls_handshakes), (count, count));
    authority.check_nonces();
}

/// Whoever takes longer than blue has patience stays there, with a reason, and is served.
#[test]
fn a_slow_handshake_stays_and_is_served() {
    let authority = Authority::new();
    let mut blue = TestWorker::spawn_with(1, &options(&authority));
    let address = blue.listen();
    let config = authority.client_config(&rustls::version::TLS12);
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut socket = client::connect(address);
    connection.write_tls(&mut socket).expect("ClientHello");
    eventually("it is answered", || blue.status().by_transport.get("tls-handshake") == Some(&1));
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options(&authority)));
    let report = pair.hand_off();
    assert_eq!(report.staying.get("tls-handshake"), Some(&1), "{report:?}");
    assert_eq!(pair.blue.status().draining.get("tls-handshake"), Some(&1));
    pair.blue.commit(pair.reload, Some(20_000));
    connection.complete_io(&mut socket).expect("handshake");
    let mut stream = rustls::StreamOwned::new(connection, socket);
    stream.write_all(b"GET /id?id=late HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert!(answer.ends_with("late") && answer.contains("close"), "{answer}");
}

/// A generation without TLS has nobody who could shake hands: blue keeps what has not begun.
#[test]
fn a_generation_without_tls_refuses_what_has_not_begun() {
    let authority = Authority::new();
    let mut blue = TestWorker::spawn_with(1, &options(&authority));
    let address = blue.listen();
    let mut socket = client::connect(address);
    eventually("blue has it", || blue.status().connections == 1);
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &Options::default()));
    let report = pair.hand_off();
    assert_eq!(report.staying.get("refused"), Some(&1), "{report:?}");
    let incoming = pair.green.commit(pair.reload, None);
    assert_eq!(incoming.refused.get("tls-off"), Some(&1), "{incoming:?}");
    let config = authority.client_config(&rustls::version::TLS13);
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    connection.complete_io(&mut socket).expect("handshake");
    assert_eq!(pair.blue.status().tls_handshakes, 1);
}

#[test]
fn what_is_no_tls_gets_an_alert_and_an_end() {
    let authority = Authority::new();
    let mut worker = TestWorker::spawn_with(1, &options(&authority));
    let address = worker.listen();
    let answer = client::exchange(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(answer.first(), Some(&21), "an alert, not an HTTP answer: {answer:?}");
    let failures = worker.status().tls_failures;
    assert_eq!(failures.get("handshake"), Some(&1), "{failures:?}");
}

/// Clients that stay silent, or send a handshake byte by byte, have as long as others for a request.
#[test]
fn a_handshake_has_a_deadline() {
    let authority = Authority::new();
    let mut options = options(&authority);
    options.config.limits.header_timeout_ms = 200;
    let mut worker = TestWorker::spawn_with(1, &options);
    let address = worker.listen();
    let mut silent = client::connect(address);
    let mut slow = client::connect(address);
    slow.write_all(&[22, 3, 1]).expect("write");
    for stream in [&mut silent, &mut slow] {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("an end");
        assert!(bytes.is_empty(), "nothing in clear: {bytes:?}");
    }
}

/// Records that do not open end a connection with an alert that arrives, also where more comes in.
#[test]
fn a_corrupted_record_is_answered_with_an_alert() {
    let authority = Authority::new();
    let mut worker = TestWorker::spawn_with(1, &options(&authority));
    let address = worker.listen();
    for _ in 0..20 {
        let mut stream = authority.connect(address);
        let mut wire = Vec::new();
        stream.conn.writer().write_all(&[b'x'; 50_000]).expect("write");
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut wire).expect("write");
        }
        wire[100] ^= 1;
        stream.sock.write_all(&wire).expect("write");
        let error = stream.read_on(&mut [0; 100]).expect_err("an alert");
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
    }
    eventually("all are counted", || worker.status().tls_failures.get("bad-record") == Some(&20));
    worker.send(&ToWorker::Exit, &[]);
}
