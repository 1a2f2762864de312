//! Clients that read more slowly than they are answered.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use crate::lab::client::ReadOn;
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client, eventually};

const BODY_BYTES: usize = 4 << 20;

/// Sends an upload to be echoed, ends its direction if told so, and reads the answer slowly.
fn echo_slowly(address: SocketAddr, fin: bool) {
    let stream = client::connect(address);
    stream.set_read_timeout(Some(crate::lab::PATIENCE)).expect("read timeout");
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    );
    let writer = {
        let mut stream = stream.try_clone().expect("clone");
        std::thread::spawn(move || {
            stream.write_all(head.as_bytes()).expect("write");
            stream.write_all(&vec![b'z'; BODY_BYTES]).expect("write");
            if fin {
                stream.shutdown(Shutdown::Write).expect("FIN");
            }
        })
    };
    let mut answer = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        // Slower than the echo, so that the last byte comes while there is much to be sent.
        std::thread::sleep(Duration::from_micros(300));
        match (&stream).read_on(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) => panic!("after {} bytes: {error}", answer.len()),
        }
    }
    writer.join().expect("writer");
    assert!(answer.ends_with(b"\r\n0\r\n\r\n"), "the answer has no end");
    assert_eq!(answer.iter().filter(|byte| **byte == b'z').count(), BODY_BYTES);
}

/// The end of a request is an event of its own: it must not get lost where the send queue was over
/// its bound when the last byte of the body was consumed.
#[test]
fn an_echo_to_a_slow_reader_comes_to_its_end() {
    let mut worker = TestWorker::spawn_with(1, &Options::patient());
    let address = worker.listen();
    for _ in 0..6 {
        echo_slowly(address, false);
        echo_slowly(address, true);
    }
}

#[test]
fn an_echo_to_a_slow_reader_comes_to_its_end_where_it_has_moved_to() {
    const CLIENTS: u64 = 16;
    let mut worker = TestWorker::spawn_with(1, &Options::patient());
    let address = worker.listen();
    let readers: Vec<_> = (0..CLIENTS)
        .map(|number| std::thread::spawn(move || echo_slowly(address, number % 2 == 0)))
        .collect();
    eventually("all have asked", || worker.status().requests == CLIENTS);
    for generation in 2..8 {
        let mut pair = Pair::join(worker, TestWorker::spawn_with(generation, &Options::patient()));
        pair.hand_off();
        worker = pair.green;
    }
    for reader in readers {
        reader.join().expect("an echo came to its end");
    }
}
