//! One HTTP client of the demo's traffic: on a kept connection, on a new one for each request, or a
//! slow download or stream.
//!
//! Must not know: other connections, the server.

use std::collections::VecDeque;

use super::{Scope, Shared, Timer};
use crate::check::BodyCheck;
use crate::http::{Event, Responses};
use crate::io::{ConnectOptions, End};
use crate::payload::Plan;

/// Longest download.
pub const BIG_BYTES: usize = 4 << 20;

const STREAM_CHUNKS: u64 = 20;

/// How the client uses its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All requests on one, some pipelined.
    Kept,
    /// A new one for each request.
    Fresh,
    /// Large downloads, read slowly through small buffers.
    Download,
    /// Chunked answers that are produced over time.
    Stream,
}

enum Expected {
    Bytes(Vec<u8>),
    Big(usize),
    Anything,
}

struct Request {
    what: String,
    expected: Expected,
    at: usize,
    status: u16,
    wrong: bool,
    body: Vec<u8>,
}

/// See the module documentation.
pub struct Client {
    mode: Mode,
    host: String,
    responses: Responses,
    requests: VecDeque<Request>,
    held: Vec<u8>,
    closing: bool,
    alive: bool,
}

impl Client {
    /// A client that is not connected.
    pub fn new(mode: Mode, host: &str) -> Self {
        Self {
            mode,
            host: host.to_owned(),
            responses: Responses::default(),
            requests: VecDeque::new(),
            held: Vec::new(),
            closing: false,
            alive: false,
        }
    }

    /// For its next connection.
    pub fn connect_options(&self) -> ConnectOptions {
        match self.mode {
            Mode::Download => ConnectOptions {
                paced_bytes: Some(16 << 10),
                receive_buffer: Some(32 << 10),
                source: None,
            },
            _ => ConnectOptions::default(),
        }
    }

    /// Requests without a whole answer.
    pub fn outstanding(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn on_connected(&mut self, scope: &mut Scope<'_>) {
        self.alive = true;
        self.closing = false;
        self.responses = Responses::default();
        self.held.clear();
        if self.mode == Mode::Kept {
            self.pause(scope);
        } else {
            self.ask(scope);
        }
    }

    fn pause(&mut self, scope: &mut Scope<'_>) {
        let delay_us = 5_000 + scope.shared.random.below(40_000);
        scope.shared.after_us(delay_us, scope.number, Timer::Next);
    }

    pub(super) fn on_timer(&mut self, scope: &mut Scope<'_>, timer: Timer) {
        match timer {
            _ if !self.alive => {}
            Timer::Next if !scope.shared.quiet && self.requests.is_empty() => self.ask(scope),
            Timer::Release => {
                let held = std::mem::take(&mut self.held);
                scope.io.send(scope.id, &held);
            }
            Timer::Receive => scope.io.receive(scope.id),
            _ => {}
        }
    }

    fn ask(&mut self, scope: &mut Scope<'_>) {
        if scope.shared.quiet {
            return;
        }
        let choice = scope.shared.random.below(100);
        match self.mode {
            Mode::Download => self.get_big(scope, BIG_BYTES),
            Mode::Stream => self.get_stream(scope),
            Mode::Fresh if choice < 80 => self.get_id(scope),
            Mode::Kept if choice < 60 => self.get_id(scope),
            Mode::Kept if choice < 75 => (0..3).for_each(|_| self.get_id(scope)),
            _ if choice < 92 => self.post_echo(scope),
            _ => {
                let bytes = scope.shared.random.below(1 << 20) as usize;
                self.get_big(scope, bytes);
            }
        }
    }

    fn push(&mut self, what: String, expected: Expected) {
        let (at, status, wrong, body) = (0, 0, false, Vec::new());
        self.requests.push_back(Request { what, expected, at, status, wrong, body });
    }

    fn get(&mut self, scope: &mut Scope<'_>, target: String, expected: Expected) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host);
        self.push(target, expected);
        scope.io.send(scope.id, request.as_bytes());
    }

    fn get_id(&mut self, scope: &mut Scope<'_>) {
        let id = format!("{:016x}", scope.shared.random.next());
        self.get(scope, format!("/id?id={id}"), Expected::Bytes(id.into_bytes()));
    }

    fn get_big(&mut self, scope: &mut Scope<'_>, bytes: usize) {
        self.get(scope, format!("/big?n={bytes}"), Expected::Big(bytes));
    }

    fn get_stream(&mut self, scope: &mut Scope<'_>) {
        let target = format!("/stream?chunks={STREAM_CHUNKS}&interval_ms=25");
        self.get(scope, target, Expected::Anything);
    }

    fn post_echo(&mut self, scope: &mut Scope<'_>) {
        let random = &mut scope.shared.random;
        let (connection, sequence) = (random.next() as u32, random.next() as u32);
        let body = Plan { connection, sequence, length: random.length(), text: false }.bytes();
        let mut out = format!("POST /echo HTTP/1.1\r\nHost: {}\r\n", self.host).into_bytes();
        if random.chance(50) {
            out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            out.extend_from_slice(&body);
        } else {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(1 + random.below(10_000) as usize) {
                out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
        }
        self.push(format!("POST /echo of {} bytes", body.len()), Expected::Bytes(body));
        if random.chance(50) {
            let now = random.below(out.len() as u64) as usize;
            self.held = out.split_off(now);
            let delay_us = 1000 + random.below(60_000);
            scope.shared.after_us(delay_us, scope.number, Timer::Release);
        }
        scope.io.send(scope.id, &out);
    }

    pub(super) fn on_data(&mut self, scope: &mut Scope<'_>, data: &[u8]) {
        if self.closing {
            return;
        }
        let Self { responses, requests, mode, .. } = self;
        let mut close = *mode == Mode::Fresh;
        let (shared, mut finished) = (&mut *scope.shared, false);
        let result = responses.receive(data, |event| {
            let Some(request) = requests.front_mut() else {
                shared.tally.doubled += 1;
                shared.tally.problem(|| "an answer that nobody asked for".to_owned());
                return;
            };
            match event {
                Event::Head { status, keep_alive } => {
                    request.status = status;
                    close |= !keep_alive;
                }
                Event::Body(bytes) => request.body_bytes(bytes, &shared.big),
                Event::End => {
                    request.judge(shared);
                    requests.pop_front();
                    finished = requests.is_empty();
                }
            }
        });
        if let Err(error) = result {
            shared.tally.corrupted += 1;
            shared.tally.problem(|| format!("bad response: {error}"));
            return self.on_end(scope, End::Fin);
        }
        if finished && close {
            self.closing = true;
            self.alive = false;
            scope.io.close(scope.id);
            let delay_us = 2_000 + scope.shared.random.below(20_000);
            scope.shared.after_us(delay_us, scope.number, Timer::Connect);
        } else if finished {
            self.pause(scope);
        }
        if self.mode == Mode::Download && self.alive {
            // About 30 MB/s while a download lasts.
            scope.shared.after_us(500, scope.number, Timer::Receive);
        }
    }

    pub(super) fn on_end(&mut self, scope: &mut Scope<'_>, end: End) {
        if self.closing {
            return;
        }
        self.closing = true;
        let tally = &mut scope.shared.tally;
        let failed = self.requests.len() as u64;
        let refused = matches!(end, End::NotConnected(_));
        tally.failed_requests += failed.max(u64::from(refused));
        if self.alive {
            tally.dropped += 1;
        }
        let (mode, what) = (self.mode, self.requests.pop_front().map(|request| request.what));
        tally.problem(|| format!("{mode:?} HTTP connection ended ({end:?}) during {what:?}"));
        self.requests.clear();
        self.alive = false;
        scope.io.close(scope.id);
        scope.shared.after_us(100_000, scope.number, Timer::Connect);
    }

    pub(super) fn finish(self, shared: &mut Shared) {
        for request in self.requests {
            shared.tally.failed_requests += 1;
            shared.tally.problem(|| format!("no whole answer to {}", request.what));
        }
    }
}

impl Request {
    fn body_bytes(&mut self, bytes: &[u8], big: &[u8]) {
        let expected = match &self.expected {
            Expected::Bytes(expected) => &expected[..],
            Expected::Big(length) => &big[..*length],
            Expected::Anything => {
                self.at += bytes.len();
                return;
            }
        };
        self.wrong |= !BodyCheck::new(expected, &mut self.at).piece(bytes);
        if self.body.len() < 64 {
            self.body.extend_from_slice(&bytes[..bytes.len().min(64)]);
        }
    }

    fn judge(&mut self, shared: &mut Shared) {
        let whole = match &self.expected {
            Expected::Bytes(expected) => self.at == expected.len(),
            Expected::Big(length) => self.at == *length,
            Expected::Anything => self.at > 0,
        };
        let tally = &mut shared.tally;
        let (what, status, at) = (&self.what, self.status, self.at);
        if status != 200 {
            tally.failed_requests += 1;
            tally.problem(|| format!("status {status} for {what}"));
        } else if self.wrong || !whole {
            // An answer that has the form of an id is that of another request.
            let text = std::str::from_utf8(&self.body).unwrap_or_default();
            let other = what.starts_with("/id?")
                && text.len() == 16
                && u64::from_str_radix(text, 16).is_ok();
            *(if other { &mut tally.mixed_up } else { &mut tally.corrupted }) += 1;
            tally.problem(|| format!("wrong body for {what}: {at} bytes that begin {text:?}"));
        } else {
            tally.requests += 1;
        }
    }
}
