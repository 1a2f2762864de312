//! No allocation per message, nor per request with a small answer: a worker that counts its own, and
//! tells the count with every answer.

use std::alloc::System;
use std::io::Write as _;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tungstenite::Message as Sent;
use zdt_engine::config::WorkerConfig;
use zdt_engine::service::{
    Busy, Context, Message, Outcome, Request, RestoreError, SavedSession, Service, Services,
    Session,
};

use crate::lab::client::ReadOn;
use crate::lab::worker::{Options, WORKER_CONTROL};
use crate::lab::{TestWorker, client};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

struct Counting;

/// Allocations of this process so far, in decimal.
fn allocations(buffer: &mut [u8; 20]) -> &str {
    let stats = ALLOCATOR.stats();
    let mut rest = &mut buffer[..];
    write!(rest, "{}", stats.allocations + stats.reallocations).expect("room for 20 digits");
    let length = 20 - rest.len();
    std::str::from_utf8(&buffer[..length]).expect("digits")
}

impl Service for Counting {
    fn on_request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Outcome {
        if request.is_websocket {
            context.accept_websocket(None);
            return Outcome::Session(Box::new(Counting));
        }
        context.respond(200, &[], allocations(&mut [0; 20]).as_bytes());
        Outcome::Done
    }

    fn restore(&mut self, _saved: &SavedSession<'_>) -> Result<Box<dyn Session>, RestoreError> {
        Ok(Box::new(Counting))
    }
}

impl Session for Counting {
    fn on_message(&mut self, _message: Message<'_>, context: &mut Context<'_>) {
        context.send_text(allocations(&mut [0; 20]));
    }

    fn kind(&self) -> &'static str {
        "counting"
    }

    fn save(&self, _bytes: &mut Vec<u8>) -> Result<(), Busy> {
        Ok(())
    }
}

/// Not a test of its own: the process of the worker. Without a control connection it has nothing to do.
#[test]
fn worker_process() {
    let Ok(number) = std::env::var(WORKER_CONTROL) else { return };
    let number = number.parse().expect("a descriptor's number");
    let control = zdt_engine::sys::unix::take_inherited(number).expect("control connection");
    let services = Services::builtin().with("counting", || Box::new(Counting));
    let _ = zdt_engine::worker::main(control, None, &services);
}

fn counting_worker() -> TestWorker {
    let config = WorkerConfig { service: "counting".to_owned(), ..WorkerConfig::default() };
    let test = Some("allocations::worker_process");
    TestWorker::spawn_with(1, &Options { config, test, ..Options::default() })
}

/// The first ones may allocate: pools fill, timers are set.
const WARM_UP: usize = 50;
const TURNS: usize = 500;

/// What belongs to the passing of time, such as a new Date header or a timer, may still allocate.
const NOW_AND_THEN: u64 = TURNS as u64 / 50;

#[track_caller]
fn assert_steady(counts: &[u64]) {
    let during = counts[WARM_UP + TURNS - 1] - counts[WARM_UP];
    assert!(during <= NOW_AND_THEN, "{during} allocations in {TURNS} turns");
}

#[test]
fn a_message_allocates_nothing() {
    let mut worker = counting_worker();
    let address = worker.listen();
    for size in [1, 64, 1_024, 16 << 10] {
        let mut client = client::websocket(address, "/");
        let message = Sent::binary(vec![7; size]);
        let counts: Vec<u64> = (0..WARM_UP + TURNS)
            .map(|_| {
                client.send(message.clone()).expect("send");
                let answer = client.read().expect("read");
                answer.to_text().expect("text").parse().expect("a number")
            })
            .collect();
        assert_steady(&counts);
    }
}

#[test]
fn a_request_with_a_small_answer_allocates_nothing() {
    let mut worker = counting_worker();
    let address = worker.listen();
    let mut stream = client::connect(address);
    let mut answer = [0; 1_024];
    let counts: Vec<u64> = (0..WARM_UP + TURNS)
        .map(|_| {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
            let length = stream.read_on(&mut answer).expect("read");
            let text = std::str::from_utf8(&answer[..length]).expect("text");
            let (_, body) = text.split_once("\r\n\r\n").expect("a whole small answer");
            body.parse().expect("a number")
        })
        .collect();
    assert_steady(&counts);
}
