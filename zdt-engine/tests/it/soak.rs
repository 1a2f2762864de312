//! Everything at once, for some seconds: clients of every kind, honest and rude, over TCP and TLS, while
//! reloads of every strategy follow each other and the supervisor is killed. The seed is printed;
//! `ZDT_TEST_SEED` sets it, `ZDT_TEST_SOAK_SECONDS` how long.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use tungstenite::Message;

use crate::lab::client::ReadOn;
use crate::lab::http2::{DATA, END_HEADERS, END_STREAM, HEADERS, Http2Client, block, request};
use crate::lab::secure::{self, Authority};
use crate::lab::{client, eventually};
use crate::supervisor::engine::{Engine, Options};

trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// Makes a connection: over TCP, or after a TLS handshake.
type Connect = Arc<dyn Fn() -> Box<dyn Stream> + Send + Sync>;

/// What clients need to know, and what they have got done.
struct Soak {
    connect: Connect,
    stop: AtomicBool,
    seed: u64,
    done: [AtomicU64; 6],
}

impl Soak {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Writes in pieces of any size.
fn dribble(random: &mut StdRng, stream: &mut impl Write, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let most = *[1, 3, 50, 4_000, 40_000].choose(random).expect("some");
        let (piece, rest) = bytes.split_at(random.random_range(1..=most).min(bytes.len()));
        stream.write_all(piece).expect("write");
        bytes = rest;
    }
}

/// A response with a length, behind whatever the buffer holds.
fn read_response(stream: &mut impl Read, buffer: &mut Vec<u8>) -> Vec<u8> {
    let mut piece = vec![0; 16 << 10];
    let mut total = None;
    loop {
        if total.is_none()
            && let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let head = std::str::from_utf8(&buffer[..at]).expect("text").to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            total = Some((at + 4, at + 4 + length));
        }
        if let Some((start, end)) = total
            && buffer.len() >= end
        {
            let rest = buffer.split_off(end);
            return std::mem::replace(buffer, rest).split_off(start);
        }
        let count = stream.read_on(&mut piece).expect("an answer");
        assert!(
            count > 0,
            "cut off: {:?}",
            String::from_utf8_lossy(&buffer[..buffer.len().min(200)])
        );
        buffer.extend_from_slice(&piece[..count]);
    }
}

/// Requests in batches, cut anywhere.
fn pipelined(soak: &Soak, random: &mut StdRng) {
    let (mut stream, mut buffer) = ((soak.connect)(), Vec::new());
    for _ in 0..random.random_range(1..50) {
        let ids: Vec<u64> = (0..random.random_range(1..8)).map(|_| random.next_u64()).collect();
        let head = |id| format!("GET /id?id={id} HTTP/1.1\r\nHost: x\r\n\r\n");
        let batch: String = ids.iter().map(head).collect();
        dribble(random, &mut stream, batch.as_bytes());
        for id in ids {
            assert_eq!(read_response(&mut stream, &mut buffer), id.to_string().into_bytes());
        }
        if !soak.goes_on() {
            return;
        }
    }
}

/// Uploads whose sum is known, downloads that are read slowly.
fn transfers(soak: &Soak, random: &mut StdRng) {
    let (mut stream, mut buffer) = ((soak.connect)(), Vec::new());
    for _ in 0..random.random_range(1..10) {
        let mut body = vec![0; random.random_range(0..200_000)];
        random.fill_bytes(&mut body);
        let head =
            format!("POST /digest HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        dribble(random, &mut stream, head.as_bytes());
        dribble(random, &mut stream, &body);
        let digest = ring::digest::digest(&ring::digest::SHA256, &body);
        let expected: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = read_response(&mut stream, &mut buffer);
        assert_eq!(String::from_utf8_lossy(&answer).trim(), expected);
        let wanted = random.random_range(0..1_000_000);
        let head = format!("GET /big?n={wanted} HTTP/1.1\r\nHost: x\r\n\r\n");
        dribble(random, &mut stream, head.as_bytes());
        let answer = read_response(&mut stream, &mut buffer);
        assert_eq!(answer.len(), wanted);
        assert!((0..).zip(&answer).all(|(at, byte): (usize, _)| *byte == (at % 251) as u8));
        if !soak.goes_on() {
            return;
        }
    }
}

/// A session that counts: nothing lost, nothing doubled, whoever serves it.
fn counting(soak: &Soak, random: &mut StdRng) {
    let stream = (soak.connect)();
    let (mut client, _) =
        tungstenite::client("ws://localhost/ws/counter", stream).expect("handshake");
    for n in 1..random.random_range(2..300) {
        assert_eq!(client::count(&mut client).0, n);
        if !soak.goes_on() {
            return;
        }
    }
}

fn echoing(soak: &Soak, random: &mut StdRng) {
    let stream = (soak.connect)();
    let (mut client, _) = tungstenite::client("ws://localhost/ws/echo", stream).expect("handshake");
    for _ in 0..random.random_range(1..100) {
        let mut bytes = vec![0; *[0, 1, 126, 5_000, 70_000].choose(random).expect("some")];
        random.fill_bytes(&mut bytes);
        client::echo(&mut client, Message::binary(bytes));
        if !soak.goes_on() {
            return;
        }
    }
}

/// Streams side by side: requests, an upload that is echoed, one that is reset.
fn multiplexed(soak: &Soak, random: &mut StdRng) {
    let mut client = Http2Client::over((soak.connect)());
    client.exchange_settings(&[(4, random.random_range(1_000..100_000))]);
    let mut stream = 1;
    for _ in 0..random.random_range(1..30) {
        let ids: Vec<u64> = (0..random.random_range(1..8)).map(|_| random.next_u64()).collect();
        let mut bytes = Vec::new();
        for (number, id) in (0u32..).zip(&ids) {
            let fields = block(&request("GET", &format!("/id?id={id}"), &[]));
            bytes.extend(crate::lab::http2::frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                stream + 2 * number,
                &fields,
            ));
        }
        dribble(random, &mut client.stream, &bytes);
        // Answered in the order in which they were asked: all are in one receive, or alone.
        for id in ids {
            assert_eq!(client.response(stream), (200, id.to_string().into_bytes()));
            stream += 2;
        }
        let mut body = vec![0; random.random_range(1..900)];
        random.fill_bytes(&mut body);
        client.send(HEADERS, END_HEADERS, stream, &block(&request("POST", "/echo", &[])));
        client.send(DATA, END_STREAM, stream, &body);
        assert_eq!(client.response(stream), (200, body));
        stream += 2;
        if !soak.goes_on() {
            return;
        }
    }
}

/// Half of something, and gone.
fn rude(soak: &Soak, random: &mut StdRng) {
    let pieces: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\nabc",
        b"GET /big?n=90000000 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05\x01\x04\0\0\0\x01\x82\x86",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 and no more of it",
    ];
    let piece = *pieces.choose(random).expect("some");
    let mut stream = (soak.connect)();
    // The engine may have had enough of it already.
    let _ = stream.write_all(&piece[..random.random_range(0..=piece.len())]);
    if random.random() {
        let _ = stream.read_on(&mut [0; 100][..random.random_range(0..2)]);
    }
}

type Kind = (fn(&Soak, &mut StdRng), u64);

/// Each with so many threads.
const KINDS: [Kind; 6] =
    [(pipelined, 2), (transfers, 2), (counting, 3), (echoing, 2), (multiplexed, 2), (rude, 1)];

/// Replaces whatever can be replaced, in any order.
fn direct(engine: &mut Engine, random: &mut StdRng, until: Instant) {
    while Instant::now() < until {
        match random.random_range(0..6) {
            0 => {
                let supervisor = engine.only_supervisor();
                kill(Pid::from_raw(supervisor as i32), Signal::SIGKILL).expect("kill");
                eventually("it is dead", || engine.supervisors().is_empty());
                engine.restart();
            }
            1 => drop(engine.zdt(&["test-migration", "--json"])),
            2 => drop(engine.zdt(&["rollback", "--json"])),
            number => {
                let strategy = ["blue-green", "rolling", "socket-handoff"][number - 3];
                let output = engine.zdt(&["reload", "--json", "--strategy", strategy]);
                assert!(output.status.success(), "{strategy}: {output:?}");
            }
        }
    }
}

fn open_descriptors(engine: &Engine) -> usize {
    let status = engine.status();
    let workers = status["worker_stats"].as_object().expect("workers");
    let count = |pid: &serde_json::Value| {
        std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
    };
    workers.values().map(|worker| count(&worker["pid"])).sum()
}

fn soak(mut engine: Engine, connect: Connect) {
    let set = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = set("ZDT_TEST_SEED").unwrap_or_else(rand::random);
    let seconds = set("ZDT_TEST_SOAK_SECONDS").unwrap_or(8);
    println!("ZDT_TEST_SEED={seed}");
    let before = open_descriptors(&engine);
    let soak = Soak { connect, stop: AtomicBool::new(false), seed, done: Default::default() };
    std::thread::scope(|scope| {
        // Also when an assertion here fails: the threads must end.
        let _guard = StopOnDrop(&soak.stop);
        for (kind, &(act, threads)) in KINDS.iter().enumerate() {
            for thread in 0..threads {
                let soak = &soak;
                scope.spawn(move || {
                    let number = soak.seed ^ (kind as u64) << 32 ^ thread;
                    let mut random = StdRng::seed_from_u64(number);
                    while soak.goes_on() {
                        act(soak, &mut random);
                        soak.done[kind].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        direct(&mut engine, &mut StdRng::seed_from_u64(seed), until);
    });
    let done: Vec<u64> = soak.done.iter().map(|done| done.load(Ordering::Relaxed)).collect();
    assert!(done.iter().all(|done| *done > 0), "{done:?}");
    engine.only_supervisor();
    eventually("everybody is gone, and all is as before", || {
        let status = engine.status();
        status["active_connections"] == 0
            && status["generations"].as_array().is_some_and(|all| all.len() == 1)
            && open_descriptors(&engine) <= before
    });
    let status = engine.status();
    assert_eq!((&status["totals"]["crashes"], &status["totals"]["hung"]), (&0.into(), &0.into()));
    assert!(!engine.log().contains("panicked"), "a panic");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn everything_at_once_over_tcp() {
    let engine = Engine::start(Options::default());
    let address = engine.address();
    soak(engine, Arc::new(move || Box::new(client::connect(address))));
}

#[test]
fn everything_at_once_over_tls_with_readable_states() {
    let authority = Authority::new();
    let config = format!("state.encoding = \"json\"\n{}", authority.config());
    let engine = Engine::start(Options::config(&config));
    let address = engine.address();
    let clients = Arc::new(authority.client_config(&rustls::version::TLS13));
    soak(engine, Arc::new(move || Box::new(secure::connect(address, &clients))));
}
