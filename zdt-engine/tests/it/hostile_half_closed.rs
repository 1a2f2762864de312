//! Clients that end their direction at awkward moments.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::gateway::half_closed::{Sender, Way};
use crate::lab::client::ReadOn;
use crate::lab::secure::Authority;
use crate::lab::worker::Options;
use crate::lab::{Pair, TestWorker, client, eventually};

/// Much less than the stall time-out, after which anything would end.
const SOON: Duration = crate::lab::PATIENCE;

/// Requests whose body stays incomplete.
const CUT_OFF: [&str; 6] = [
    "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel",
    "POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel",
    "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2",
    "POST /digest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n0\r\n",
];

fn open_all() -> (TestWorker, Vec<TcpStream>) {
    let mut blue = TestWorker::spawn_with(1, &Options::patient());
    let address = blue.listen();
    let mut streams = Vec::new();
    for request in CUT_OFF {
        let mut stream = client::connect(address);
        stream.write_all(request.as_bytes()).expect("write");
        streams.push(stream);
    }
    eventually("the requests are there", || blue.status().requests == CUT_OFF.len() as u64);
    (blue, streams)
}

/// Every connection ends soon, and no answer looks complete.
fn check_ends(streams: Vec<TcpStream>) {
    let began = Instant::now();
    for (mut stream, request) in streams.into_iter().zip(CUT_OFF) {
        stream.set_read_timeout(Some(SOON)).expect("read timeout");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{request:?}: {error}"));
        assert!(!answer.ends_with(b"0\r\n\r\n"), "{request:?} was answered in full");
    }
    assert!(began.elapsed() < SOON);
}

#[test]
fn a_fin_in_a_request_body_ends_the_exchange() {
    let (mut blue, streams) = open_all();
    for stream in &streams {
        stream.shutdown(Shutdown::Write).expect("FIN");
    }
    check_ends(streams);
    eventually("nothing is left", || blue.status().connections == 0);
}

#[test]
fn a_fin_in_a_request_body_ends_the_exchange_where_it_has_moved_to() {
    let (blue, streams) = open_all();
    let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &Options::patient()));
    assert_eq!(pair.hand_off().moved, streams.len() as u64);
    for stream in &streams {
        stream.shutdown(Shutdown::Write).expect("FIN");
    }
    check_ends(streams);
    eventually("nothing is left", || pair.green.status().connections == 0);
}

/// An upload and the end behind it, with and without what TLS says of it, find a worker that has not looked for a
/// while, and perhaps is to hand over.
#[test]
fn an_upload_before_an_end_of_any_kind_is_answered() {
    let authority = Authority::new();
    for way in [Way::Plain, Way::Tls, Way::Cut, Way::NotifyOnly] {
        for moves in [false, true] {
            let tls = (way != Way::Plain).then_some(&authority);
            let options = Options { tls, ..Options::patient() };
            let mut blue = TestWorker::spawn_with(1, &options);
            let address = blue.listen();
            let mut pair = Pair::join(blue, TestWorker::spawn_with(2, &options));
            let sizes: Vec<usize> = (1_000..200_000).step_by(33_000).collect();
            let mut senders: Vec<Sender> =
                sizes.iter().map(|_| Sender::connect(way, address, &authority)).collect();
            pair.blue.signal(Signal::SIGSTOP);
            pair.blue.wait_stopped();
            if moves {
                pair.begin();
            }
            for (sender, size) in senders.iter_mut().zip(&sizes) {
                let head =
                    format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n");
                sender.send(way, &[head.as_bytes(), &vec![b'x'; *size]].concat());
            }
            pair.blue.signal(Signal::SIGCONT);
            if moves {
                let report = pair.blue.wait_empty();
                assert!(report.staying.is_empty(), "{way:?}: {report:?}");
            }
            for (sender, size) in senders.iter_mut().zip(sizes) {
                let answer = sender.read_to_end();
                let sent = answer.iter().filter(|byte| **byte == b'x').count();
                assert!(answer.starts_with(b"HTTP/1.1 200 ") && sent >= size, "{way:?}: {sent}");
            }
        }
    }
}

/// The session waits for a send that may end, in full, in the very moment of the freeze: green has
/// nothing to send then whose end would give the session its turn.
#[test]
fn downloads_of_half_closed_clients_go_on() {
    const TOTAL: usize = 16 << 20;
    let mut blue = TestWorker::spawn_with(1, &Options::patient());
    let address = blue.listen();
    // Nobody comes to the end before the first handoff begins, however long that takes.
    let begins = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..48)
        .map(|_| {
            let mut stream = client::connect(address);
            let request = format!("GET /big?n={TOTAL} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("write");
            stream.shutdown(Shutdown::Write).expect("FIN");
            stream.set_read_timeout(Some(SOON)).expect("read timeout");
            let begins = Arc::clone(&begins);
            std::thread::spawn(move || {
                let (mut total, mut chunk) = (0, vec![0; 256 << 10]);
                loop {
                    if total > TOTAL / 4 {
                        eventually("the handoff begins", || begins.load(Ordering::Relaxed));
                    }
                    match stream.read_on(&mut chunk) {
                        Ok(0) => return total,
                        Ok(count) => total += count,
                        Err(error) => panic!("after {total} bytes: {error}"),
                    }
                }
            })
        })
        .collect();
    eventually("all are answered", || blue.status().requests == 48);
    let mut worker = blue;
    let mut moved = 0;
    for generation in 2..8 {
        let mut pair = Pair::join(worker, TestWorker::spawn_with(generation, &Options::patient()));
        begins.store(true, Ordering::Relaxed);
        moved += pair.hand_off().moved;
        worker = pair.green;
    }
    assert!(moved > 0);
    for reader in readers {
        assert!(reader.join().expect("a download came to its end") > TOTAL);
    }
}
