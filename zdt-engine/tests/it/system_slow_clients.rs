//! Clients that take no bytes cannot hold a worker's memory, and get every byte once they do.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use zdt_engine::service::demo::big_byte;

use crate::lab::client;
use crate::lab::client::ReadOn;
use crate::lab::system::{pss, sum, wait_until_settled};
use crate::supervisor::engine::{Engine, Options};

const QUEUE_BYTES: u64 = 64 << 10;

/// All that the kernel can put into buffers before a cancel reaches it.
const BUFFERED_BYTES: u64 = 32 * (16 << 10);

fn engine() -> Engine {
    let text = format!(
        "workers = 1\n[limits]\nsend_queue_bytes = {QUEUE_BYTES}\n\
         [receive_buffers]\ncount = 32\nbytes = 16384\n"
    );
    Engine::start(Options::config(&text))
}

/// A worker's figure once it no longer moves.
#[track_caller]
fn at_rest(engine: &Engine, figure: &str) -> u64 {
    let mut last = sum(engine, figure);
    let mut same = 0;
    crate::lab::eventually("the traffic comes to rest", || {
        let now = sum(engine, figure);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= 20
    });
    last
}

#[track_caller]
fn only_worker(engine: &Engine) -> u32 {
    let status = wait_until_settled(engine);
    let workers = status["worker_stats"].as_object().expect("workers");
    assert_eq!(workers.len(), 1, "{status}");
    let pid = workers.values().next().and_then(|worker| worker["pid"].as_u64());
    u32::try_from(pid.expect("pid")).expect("pid")
}

#[test]
fn readers_that_hang_hold_no_memory() {
    const READERS: u64 = 50;
    const TOTAL: usize = 24 << 20;
    let engine = engine();
    let _warm = engine.clients(10);
    client::exchange(
        engine.address(),
        b"GET /big?n=4000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    let before = pss(only_worker(&engine));
    let request = format!("GET /big?n={TOTAL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut readers: Vec<_> = (0..READERS).map(|_| client::connect(engine.address())).collect();
    for reader in &mut readers {
        reader.write_all(request.as_bytes()).expect("write");
        // It has begun.
        reader.read_exact(&mut [0; 100]).expect("read");
    }
    at_rest(&engine, "bytes_sent");
    // What is queued, as much again for the send in flight, and the allocator's share.
    let bound = READERS * 3 * QUEUE_BYTES + (1 << 20);
    let check = |when: &str| {
        let now = pss(only_worker(&engine));
        let grown = now.saturating_sub(before);
        assert!(grown < bound, "{when}: grown by {grown} bytes, {bound} are allowed");
    };
    check("at first");
    let verdict = engine.reload_well();
    assert_eq!(verdict["migrated_connections"], READERS + 10, "{verdict}");
    at_rest(&engine, "bytes_sent");
    check("after a reload");
    // Two of them come to life: nothing is missing.
    for reader in &mut readers[..2] {
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).expect("read");
        let body = answer.len() - TOTAL;
        let wrong = (0..).zip(&answer[body..]).find(|&(at, &byte)| byte != big_byte(at));
        assert_eq!(wrong, None);
        assert!(answer[..body].ends_with(b"\r\n\r\n"));
    }
    check("after two were served");
}

/// An endless echo of numbered 16 KiB messages, written and read by the byte.
pub struct Flood {
    stream: TcpStream,
    pub written: u64,
    read: u64,
}

const PAYLOAD: usize = 16 << 10;
const SENT_FRAME: u64 = PAYLOAD as u64 + 8;
const ECHOED_FRAME: u64 = PAYLOAD as u64 + 4;

/// The byte at that place of all messages put together.
fn payload_byte(message: u64, at: u64) -> u8 {
    (message.wrapping_mul(7).wrapping_add(at) % 251) as u8
}

impl Flood {
    pub fn new(address: SocketAddr) -> Flood {
        let stream = client::websocket(address, "/ws/echo").get_ref().try_clone().expect("clone");
        Flood { stream, written: 0, read: 0 }
    }

    fn frame(message: u64, header: &[u8]) -> Vec<u8> {
        let mut frame = header.to_vec();
        frame.extend((0..PAYLOAD as u64).map(|at| payload_byte(message, at)));
        frame
    }

    /// Writes until `limit` bytes, or until nothing is taken any more for a while.
    pub fn write(&mut self, limit: u64) {
        self.stream.set_write_timeout(Some(Duration::from_millis(700))).expect("timeout");
        while self.written < limit {
            let (message, at) = (self.written / SENT_FRAME, self.written % SENT_FRAME);
            // A mask of zeroes leaves the payload as it is.
            let frame = Self::frame(message, &[0x82, 0xfe, 0x40, 0, 0, 0, 0, 0]);
            match self.stream.write(&frame[at as usize..]) {
                Ok(count) => self.written += count as u64,
                Err(error) => {
                    let full = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
                    assert!(full.contains(&error.kind()), "{error}");
                    return;
                }
            }
        }
    }

    /// Reads and checks all echoes that are due.
    pub fn read_all(&mut self) {
        let due = self.written / SENT_FRAME * ECHOED_FRAME;
        let mut buffer = vec![0; 64 << 10];
        let mut expected = (u64::MAX, Vec::new());
        while self.read < due {
            let most = buffer.len().min((due - self.read) as usize);
            let count = self.stream.read_on(&mut buffer[..most]).expect("read");
            assert_ne!(count, 0, "closed at {} of {due}", self.read);
            for byte in &buffer[..count] {
                let (message, at) = (self.read / ECHOED_FRAME, self.read % ECHOED_FRAME);
                if expected.0 != message {
                    expected = (message, Self::frame(message, &[0x82, 0x7e, 0x40, 0]));
                }
                assert_eq!(*byte, expected.1[at as usize], "byte {at} of message {message}");
                self.read += 1;
            }
        }
    }
}

#[test]
fn an_echo_that_nobody_reads_stops_the_sender() {
    const FLOODS: u64 = 4;
    let engine = engine();
    let _warm = engine.clients(10);
    let before = pss(only_worker(&engine));
    let mut floods: Vec<_> = (0..FLOODS).map(|_| Flood::new(engine.address())).collect();
    for flood in &mut floods {
        // Socket buffers grow to 10 MB together; without back-pressure there is no end.
        flood.write(64 << 20);
        assert!(flood.written < 64 << 20, "the server takes everything");
    }
    at_rest(&engine, "bytes_received");
    // What is queued, and what was received before the cancel took effect, in vectors that have doubled.
    let bound = FLOODS * 2 * (QUEUE_BYTES + BUFFERED_BYTES) + (1 << 20);
    for when in ["at first", "after a reload"] {
        let grown = pss(only_worker(&engine)).saturating_sub(before);
        assert!(grown < bound, "{when}: grown by {grown} bytes, {bound} are allowed");
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], FLOODS + 10, "{verdict}");
    }
    for flood in &mut floods {
        flood.read_all();
        // And it goes on.
        flood.write(flood.written + (1 << 20));
        flood.read_all();
    }
}
