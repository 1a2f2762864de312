//! Freezing at any byte of the ciphertext: what a moved connection answers is what was sent.

use std::io::{Read, Write};
use std::time::Duration;

use rustls::ClientConnection;
use zdt_engine::control::ToWorker;

use crate::lab::secure::{self, Authority};
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client, eventually};

const REQUESTS: &[u8] = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789\
    GET /id?id=last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

fn options(authority: &Authority) -> Options<'_> {
    Options { tls: Some(authority), ..Options::patient() }
}

/// The ciphertext of the script in records of a few bytes, with key updates between them.
fn sealed(connection: &mut ClientConnection, script: &[u8]) -> Vec<u8> {
    let is_13 = connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
    let mut wire = Vec::new();
    for (number, part) in script.chunks(40).enumerate() {
        connection.writer().write_all(part).expect("write");
        if is_13 && number % 2 == 1 {
            connection.refresh_traffic_keys().expect("key update");
        }
        while connection.wants_write() {
            connection.write_tls(&mut wire).expect("write");
        }
    }
    wire
}

#[test]
fn every_byte_of_every_record_is_a_place_to_stop() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let authority = Authority::new();
        let config = std::sync::Arc::new(authority.client_config(version));
        let mut blue = TestWorker::spawn_with(1, &options(&authority));
        let address = blue.listen();
        let mut streams = Vec::new();
        let mut expected = 0;
        let length = sealed(&mut secure::connect(address, &config).conn, REQUESTS).len();
        for cut in (0..length).step_by(3) {
            let mut stream = secure::connect(address, &config);
            let wire = sealed(&mut stream.conn, REQUESTS);
            stream.sock.write_all(&wire[..cut]).expect("write");
            expected += 1;
            streams.push((stream, wire, cut));
        }
        eventually("blue has all of them", || blue.status().tls_handshakes == expected + 1);
        let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options(&authority)));
        let report = pair.hand_off();
        assert_eq!(report.staying.len(), 0, "{report:?}");
        for (stream, wire, cut) in &mut streams {
            stream.sock.write_all(&wire[*cut..]).expect("write");
        }
        for (stream, _, cut) in &mut streams {
            let mut answer = String::new();
            // An end without close_notify would be an error here.
            stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
            assert!(answer.contains("0123456789"), "cut {cut}: {answer}");
            assert!(answer.ends_with("last"), "cut {cut}: {answer}");
        }
        assert!(authority.check_nonces() > streams.len());
    }
}

/// A download that the client takes slowly: what is sealed and not sent moves as it is.
#[test]
fn sealed_output_that_was_not_sent_is_sent_by_the_next() {
    const TOTAL: usize = 12 << 20;
    let authority = Authority::new();
    let mut worker = TestWorker::spawn_with(1, &options(&authority));
    let address = worker.listen();
    let mut stream = authority.connect(address);
    write!(stream, "GET /big?n={TOTAL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("write");
    let mut received = Vec::new();
    for generation in 2..6 {
        let mut pair = Pair::join(worker, TestWorker::spawn_with(generation, &options(&authority)));
        let mut part = vec![0; 1 << 20];
        stream.read_exact(&mut part).expect("read");
        received.extend_from_slice(&part);
        assert_eq!(pair.hand_off().moved, 1);
        pair.blue.send(&ToWorker::Exit, &[]);
        worker = pair.green;
    }
    stream.read_to_end(&mut received).expect("the rest, and close_notify");
    let body = received.windows(4).position(|part| part == b"\r\n\r\n").expect("head") + 4;
    assert_eq!(received.len() - body, TOTAL);
    for (at, byte) in received[body..].iter().enumerate().step_by(997) {
        assert_eq!(*byte, zdt_engine::service::demo::big_byte(at as u64), "byte {at}");
    }
    authority.check_nonces();
}

/// A peer that floods and does not read is paused, moved like this, and loses nothing.
#[test]
fn a_paused_connection_moves_with_what_it_has_not_opened() {
    const TOTAL: usize = 6 << 20;
    let authority = Authority::new();
    let mut blue = TestWorker::spawn_with(1, &options(&authority));
    let address = blue.listen();
    let mut stream = authority.connect(address);
    write!(
        stream,
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {TOTAL}\r\nConnection: close\r\n\r\n"
    )
    .expect("write");
    stream.sock.set_write_timeout(Some(Duration::from_millis(300))).expect("timeout");
    // Until the worker takes no more.
    let body = vec![b'e'; 1 << 16];
    let mut sent = 0;
    while sent < TOTAL {
        stream.conn.writer().write_all(&body).expect("write");
        sent += body.len();
        let mut is_full = false;
        while stream.conn.wants_write() && !is_full {
            is_full = stream.conn.write_tls(&mut stream.sock).is_err();
        }
        if is_full {
            break;
        }
    }
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options(&authority)));
    assert_eq!(pair.hand_off().moved, 1);
    stream.sock.set_write_timeout(Some(crate::lab::PATIENCE)).expect("timeout");
    stream.sock.set_nonblocking(true).expect("nonblocking");
    let mut came_back = 0;
    let mut last = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    eventually("everything comes back", || {
        loop {
            if !stream.conn.wants_write() && sent < TOTAL {
                stream.conn.writer().write_all(&body).expect("write");
                sent += body.len();
            }
            let wrote =
                stream.conn.wants_write() && stream.conn.write_tls(&mut stream.sock).is_ok();
            let read = matches!(stream.conn.read_tls(&mut stream.sock), Ok(1..));
            stream.conn.process_new_packets().expect("records");
            while let Ok(count @ 1..) = stream.conn.reader().read(&mut buffer) {
                came_back += buffer[..count].iter().filter(|&&byte| byte == b'e').count();
                last = buffer[..count].to_vec();
            }
            if !wrote && !read {
                return came_back >= TOTAL && last.ends_with(b"\r\n\r\n");
            }
        }
    });
    authority.check_nonces();
}

#[test]
fn plain_connections_beside_it_stay_plain() {
    // The same worker program without TLS, as ever.
    let mut worker = TestWorker::spawn(1);
    let address = worker.listen();
    let answer =
        client::exchange(address, b"GET /tls HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.ends_with(b"null"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(worker.status().by_transport.get("tls1.3"), None);
}
