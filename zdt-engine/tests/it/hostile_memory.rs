//! Clients that make a worker hold as much as they can: what one may, what all together may, who is
//! given up for it, and that the others are served all the while.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tungstenite::Message;

use crate::lab::{client, eventually};
use crate::supervisor::engine::{Engine, Options};
use crate::system_slow_clients::Flood;

const MESSAGE_BYTES: u64 = 1 << 20;

/// With a patience that no test waits for, unless it is one of a few milliseconds.
fn engine(budget: u64, send_queue: u64, patience_ms: u64) -> Engine {
    Engine::start(Options::config(&format!(
        "workers = 1\n[limits]\nmax_message_bytes = {MESSAGE_BYTES}\n\
         worker_buffer_bytes = {budget}\nsend_queue_bytes = {send_queue}\n\
         buffer_patience_ms = {patience_ms}\nstall_timeout_ms = {LONG_MS}\n\
         [receive_buffers]\ncount = 16\nbytes = 16384\n"
    )))
}

/// An hour.
const LONG_MS: u64 = 3_600_000;
/// All that the kernel has put into buffers when a cancel reaches it, and once more after that.
const UNDER_WAY: u64 = 2 * 16 * 16_384;

/// A figure of the only worker.
#[track_caller]
fn figure(engine: &Engine, name: &str) -> u64 {
    let status = engine.status();
    let workers = status["worker_stats"].as_object().expect("workers");
    workers.values().map(|worker| worker[name].as_u64().expect(name)).sum()
}

/// Ends the writers' loops, also by a panic.
struct SetAtTheEnd<'a>(&'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A WebSocket with nine tenths of a message, which a thread writes for as long as it is taken.
struct HalfAMessage(TcpStream);

impl HalfAMessage {
    fn begin(engine: &Engine) -> Self {
        let client = client::websocket(engine.address(), "/ws/echo");
        let stream = client.get_ref().try_clone().expect("clone");
        let mut writer = client.get_ref().try_clone().expect("clone");
        let mut frame = vec![0x82, 0xff];
        frame.extend(MESSAGE_BYTES.to_be_bytes());
        // The mask, which leaves the payload as it is, and the payload.
        frame.resize(frame.len() + 4 + MESSAGE_BYTES as usize / 10 * 9, 0);
        writer.set_write_timeout(None).expect("timeout");
        std::thread::spawn(move || {
            let _ = writer.write_all(&frame);
        });
        Self(stream)
    }
}

impl Drop for HalfAMessage {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both); // whoever still writes is woken
    }
}

/// The code of the close frame that a stream ends with, if it does.
fn close_code(stream: &mut TcpStream) -> Option<u16> {
    stream.set_read_timeout(Some(Duration::from_millis(10))).expect("timeout");
    let mut frame = [0; 4];
    stream.read_exact(&mut frame).ok()?;
    (frame[0] == 0x88).then(|| u16::from_be_bytes([frame[2], frame[3]]))
}

/// Without reading, a client makes its worker hold the send queue and a receive or two, not all that the
/// kernel would deliver.
#[test]
fn a_flood_that_nobody_reads_holds_little() {
    const FLOODS: u64 = 6;
    const QUEUE: u64 = 256 << 10;
    let engine = engine(0, QUEUE, LONG_MS);
    let mut floods: Vec<_> = (0..FLOODS).map(|_| Flood::new(engine.address())).collect();
    std::thread::scope(|scope| {
        for flood in &mut floods {
            scope.spawn(|| flood.write(64 << 20));
        }
    });
    for flood in &floods {
        assert!(flood.written < 64 << 20, "the server takes everything");
    }
    let held = figure(&engine, "buffered_bytes");
    assert!(held > FLOODS * QUEUE / 2, "{held} bytes: they do not press at all");
    assert!(held < FLOODS * (QUEUE + UNDER_WAY), "{held} bytes are held for {FLOODS} of them");
    for flood in &mut floods {
        flood.read_all();
    }
    drop(floods); // the last message of each was cut off
    eventually("nothing is held any more", || figure(&engine, "buffered_bytes") == 0);
}

/// Nobody is given up as long as clients take what is theirs, however unevenly they came. (When patience ends is
/// tested in virtual time, beside the budget.)
#[test]
fn a_worker_that_holds_too_much_waits_for_its_clients() {
    const BUDGET: u64 = 8 << 20;
    // From seven eighths on next to nothing is received: the rest is for what was under way.
    const _: () = assert!(UNDER_WAY < BUDGET / 8);
    let engine = engine(BUDGET, 4 << 20, LONG_MS);
    let is_tight = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut flood = Flood::new(engine.address());
            let is_tight = &is_tight;
            scope.spawn(move || {
                while !is_tight.load(Ordering::Relaxed) {
                    flood.write(flood.written + (64 << 10));
                }
                flood.read_all();
            });
        }
        let _set_at_the_end = SetAtTheEnd(&is_tight);
        let mut bystander = client::websocket(engine.address(), "/ws/echo");
        eventually("the worker receives no more from some", || {
            client::echo(&mut bystander, Message::text("and me?"));
            let held = figure(&engine, "buffered_bytes");
            assert!(held <= BUDGET, "{held} bytes are held");
            figure(&engine, "squeezed") > 0
        });
    });
    assert_eq!(figure(&engine, "shed"), 0, "all of them were read");
    eventually("nothing is held any more", || figure(&engine, "buffered_bytes") == 0);
}

/// Messages that never become complete cannot be waited for: the biggest go, and are told why.
#[test]
fn half_messages_do_not_fill_a_worker() {
    const BUDGET: u64 = 4 << 20;
    const ATTACKERS: usize = 16;
    let engine = engine(BUDGET, 256 << 10, 100);
    let mut bystander = client::websocket(engine.address(), "/ws/echo");
    let mut attackers: Vec<_> = (0..ATTACKERS).map(|_| HalfAMessage::begin(&engine)).collect();
    let mut most = 0;
    let mut told = 0;
    eventually("the biggest are told to go", || {
        client::echo(&mut bystander, Message::text("still here"));
        most = most.max(figure(&engine, "buffered_bytes"));
        told += attackers
            .iter_mut()
            .filter_map(|one| close_code(&mut one.0))
            .filter(|code| *code == 1013)
            .count();
        told > 1
    });
    assert!(most <= BUDGET, "{most} bytes were held");
    assert!(most > BUDGET / 2, "{most} bytes are no pressure");
    assert!(figure(&engine, "shed") >= told as u64);
    let counters = engine.status()["counters"].clone();
    assert!(counters["shed"].as_u64() >= Some(told as u64), "{counters}");

    // Whoever is left goes over to the next generation, in which the bound holds, too.
    let verdict = engine.reload();
    assert_eq!(verdict["reload_successful"], Value::Bool(true), "{verdict}");
    client::echo(&mut bystander, Message::text("here, too"));
    let held = figure(&engine, "buffered_bytes");
    assert!(held <= 2 * BUDGET, "{held} bytes are held by two generations");
    drop(attackers);
    eventually("all is as before", || figure(&engine, "buffered_bytes") == 0);
    // One message as large as may be passes again.
    client::echo(&mut bystander, Message::binary(vec![7; MESSAGE_BYTES as usize]));
}

/// What the bound is there for: without it the same clients get all that they ask for.
#[test]
fn without_a_bound_half_messages_are_all_kept() {
    const ATTACKERS: u64 = 16;
    let engine = engine(0, 256 << 10, LONG_MS);
    let attackers: Vec<_> = (0..ATTACKERS).map(|_| HalfAMessage::begin(&engine)).collect();
    eventually("all of it is kept", || {
        figure(&engine, "buffered_bytes") >= ATTACKERS * MESSAGE_BYTES / 2
    });
    drop(attackers);
}
