//! Twenty reloads in a row under load whose every answer is checked.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tungstenite::Message;

use crate::lab::client;
use crate::lab::client::ReadOn;
use crate::supervisor::engine::{Engine, Options, ask};

/// Turns of all clients of one kind.
#[derive(Default)]
struct Tally(AtomicU64);

impl Tally {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters that are asked in turn: none may skip or repeat a number.
fn count(address: SocketAddr, stop: &AtomicBool, tally: &Tally) {
    let mut clients: Vec<_> = (0..25).map(|_| client::websocket(address, "/ws/counter")).collect();
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for client in &mut clients {
            client.write(Message::text("tick")).expect("write");
            client.flush().expect("flush");
        }
        for client in &mut clients {
            let answer = client.read().expect("read").into_text().expect("text");
            assert!(answer.starts_with(&format!("{{\"n\": {n},")), "{n}: {answer}");
            tally.add();
        }
    }
}

/// Messages of growing size, three on the way at a time.
fn echo(address: SocketAddr, stop: &AtomicBool, tally: &Tally) {
    let mut client = client::websocket(address, "/ws/echo");
    let message = |n: usize| {
        let letter = char::from(b'a' + (n % 26) as u8);
        Message::text(format!("{n} {}", letter.to_string().repeat(n * 37 % 70_000)))
    };
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        for part in 0..3 {
            client.write(message(n + part)).expect("write");
        }
        client.flush().expect("flush");
        for part in 0..3 {
            assert!(client.read().expect("read") == message(n + part), "message {}", n + part);
            tally.add();
        }
        n += 3;
    }
}

/// Requests on one kept connection, two pipelined at a time; it is never opened again.
fn request(address: SocketAddr, stop: &AtomicBool, tally: &Tally) {
    let mut stream = client::connect(address);
    let mut buffer = vec![0; 4096];
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let ids = [format!("a{n}"), format!("b{n}")];
        for id in &ids {
            let request = format!("GET /id?id={id} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("write");
        }
        let mut answers = String::new();
        while !answers.ends_with(&ids[1]) {
            let count = stream.read_on(&mut buffer).expect("read");
            assert_ne!(count, 0, "closed after {answers:?}");
            answers.push_str(std::str::from_utf8(&buffer[..count]).expect("UTF-8"));
        }
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answers:?}");
        let first = answers.find(&format!("\r\n\r\n{}HTTP/1.1 200", ids[0]));
        assert!(first.is_some(), "{answers:?}");
        tally.add();
    }
}

#[test]
fn twenty_reloads_under_load_lose_nothing() {
    let engine = Engine::start(Options::default());
    let address = engine.address();
    let stop = AtomicBool::new(false);
    let (counted, echoed, requested, opened) =
        (Tally::default(), Tally::default(), Tally::default(), Tally::default());
    let fresh = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            ask(client::connect(address), &opened.get().to_string());
            opened.add();
        }
    };
    std::thread::scope(|scope| {
        // Also when an assertion here fails: the threads must end.
        let _guard = StopOnDrop(&stop);
        scope.spawn(|| count(address, &stop, &counted));
        scope.spawn(|| count(address, &stop, &counted));
        scope.spawn(|| echo(address, &stop, &echoed));
        scope.spawn(|| request(address, &stop, &requested));
        scope.spawn(|| request(address, &stop, &requested));
        scope.spawn(|| fresh(&stop));
        for _ in 0..20 {
            let before = [&counted, &echoed, &requested, &opened].map(Tally::get);
            let verdict = engine.reload_well();
            assert_eq!(verdict["drained_connections"], 0, "{verdict}");
            // Everybody is served by the new generation before the next comes.
            crate::lab::eventually("every kind of client goes on", || {
                let now = [&counted, &echoed, &requested, &opened].map(Tally::get);
                now.iter().zip(before).all(|(now, before)| *now > before)
            });
        }
    });
    let status = engine.status();
    assert_eq!(status["generation"], 21, "{status}");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
