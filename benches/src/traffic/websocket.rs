//! One WebSocket of the demo's traffic: an echo, a counter or a clock.
//!
//! Echoed messages have all sizes, are text or binary, compressed or not, whole or in fragments with
//! pings in between; some leave in two parts with a pause at any byte.
//!
//! Must not know: other connections, the server.

use std::collections::VecDeque;

use hyper::http::Request;

use super::{Scope, Shared, Timer};
use crate::check::{CountCheck, EchoCheck};
use crate::io::{ConnId, ConnectOptions, End, Io};
use crate::payload::Plan;
use crate::ws::{self, DeflateParameters, Endpoint, Event};

/// Interval of the clocks.
const CLOCK_MS: u64 = 200;
/// Tag of messages whose round trip is not recorded.
const UNTIMED: u64 = u64::MAX;
/// More than so many messages outstanding, and no more are sent: bounds the generator's memory.
const MAX_OUTSTANDING: usize = 64;

enum Check {
    Echo(EchoCheck),
    Counter(CountCheck),
    Clock { count: CountCheck, last_us: u64 },
}

/// See the module documentation.
pub struct Client {
    number: u32,
    target: String,
    offer: Option<DeflateParameters>,
    request: String,
    /// Its handshake where it is a stream, and the group that shares the connection.
    http2: Option<(u32, Request<()>)>,
    check: Check,
    endpoint: Option<Endpoint>,
    head: Vec<u8>,
    held: Vec<u8>,
    pings: VecDeque<Vec<u8>>,
    events: Vec<Event>,
    sequence: u32,
    interval_us: u64,
    ended: bool,
}

impl Client {
    /// The number decides what it does: of eight, four are echoes, three counters, one a clock.
    pub fn new(number: u32, host: &str, interval_us: u64) -> Self {
        let offer = match number % 8 {
            2 | 4 => Some(DeflateParameters::default()),
            5 => Some(DeflateParameters { client_no_context_takeover: true, ..Default::default() }),
            6 if number % 16 == 6 => Some(DeflateParameters {
                client_no_context_takeover: true,
                server_no_context_takeover: true,
            }),
            _ => None,
        };
        let (target, check) = match number % 8 {
            0 | 2 | 4 | 6 => ("/ws/echo".to_owned(), Check::Echo(EchoCheck::default())),
            7 => (
                format!("/ws/clock?interval_ms={CLOCK_MS}"),
                Check::Clock { count: CountCheck::default(), last_us: 0 },
            ),
            _ => ("/ws/counter".to_owned(), Check::Counter(CountCheck::from_one())),
        };
        Self {
            number,
            request: ws::handshake_request(host, &target, offer),
            target,
            offer,
            http2: None,
            check,
            endpoint: None,
            head: Vec::new(),
            held: Vec::new(),
            pings: VecDeque::new(),
            events: Vec::new(),
            sequence: 0,
            interval_us,
            ended: false,
        }
    }

    /// The same as a stream of the HTTP/2 connection of this group.
    pub fn over_http2(mut self, group: u32, scheme: &str, host: &str) -> Result<Self, String> {
        let request = ws::http2_request(scheme, host, &self.target, self.offer)?;
        self.http2 = Some((group, request));
        Ok(self)
    }

    /// Connects.
    pub(super) fn connect(&self, io: &mut Io) -> std::io::Result<ConnId> {
        match &self.http2 {
            Some((group, request)) => io.open_websocket(*group, request.clone()),
            None => io.connect(ConnectOptions::default()),
        }
    }

    /// Whether the handshake is done.
    pub fn is_ready(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Whether the connection has ended before the handshake was done.
    pub fn is_refused(&self) -> bool {
        self.ended && self.endpoint.is_none()
    }

    /// Answers that are awaited.
    pub fn outstanding(&self) -> usize {
        let pings = if self.ended { 0 } else { self.pings.len() };
        pings
            + match &self.check {
                Check::Echo(check) => check.outstanding(),
                Check::Counter(check) => check.outstanding(),
                Check::Clock { .. } => 0,
            }
    }

    pub(super) fn on_connected(&mut self, scope: &mut Scope<'_>) {
        scope.io.send(scope.id, self.request.as_bytes());
    }

    pub(super) fn on_websocket(&mut self, scope: &mut Scope<'_>, extensions: &str) {
        let deflate = match extensions {
            "" => Ok(None),
            extensions => DeflateParameters::parse(extensions).map(Some),
        };
        match deflate {
            Ok(deflate) => self.begin(scope, deflate),
            Err(error) => self.fail(scope, &error),
        }
    }

    fn begin(&mut self, scope: &mut Scope<'_>, deflate: Option<DeflateParameters>) {
        self.endpoint = Some(Endpoint::new(true, deflate));
        let first = scope.shared.random.below(self.interval_us);
        if !matches!(self.check, Check::Clock { .. }) {
            scope.shared.after_us(first, scope.number, Timer::Next);
        }
    }

    pub(super) fn on_data(&mut self, scope: &mut Scope<'_>, mut data: &[u8]) {
        if self.ended {
            return;
        }
        if self.endpoint.is_none() {
            let before = self.head.len();
            self.head.extend_from_slice(data);
            let Some(end) = self.head.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                return;
            };
            let head = String::from_utf8_lossy(&self.head[..end]).into_owned();
            data = &data[end + 4 - before..];
            match ws::check_handshake(&head) {
                Ok(deflate) => self.begin(scope, deflate),
                Err(error) => return self.fail(scope, &error),
            }
            self.head = Vec::new();
        }
        let mut events = std::mem::take(&mut self.events);
        if let Some(endpoint) = &mut self.endpoint
            && let Err(error) = endpoint.receive(data, &mut events)
        {
            scope.shared.tally.corrupted += 1;
            self.fail(scope, &error);
        }
        for event in events.drain(..) {
            self.on_event(scope, event);
        }
        self.events = events;
    }

    fn on_event(&mut self, scope: &mut Scope<'_>, event: Event) {
        let now_us = scope.shared.now_us;
        let Shared { tally, rtt_us, clock_delay_us, .. } = &mut *scope.shared;
        match event {
            Event::Message { text, payload } => {
                let tag = match &mut self.check {
                    Check::Echo(check) => check.received(&payload, text, tally),
                    Check::Counter(check) => check.received(&payload, tally),
                    Check::Clock { count, last_us } => {
                        count.received(&payload, tally);
                        if *last_us > 0 {
                            let delay = (now_us - *last_us).saturating_sub(CLOCK_MS * 1000);
                            clock_delay_us.saturating_record(delay);
                        }
                        *last_us = now_us;
                        None
                    }
                };
                if let Some(intended_us) = tag.filter(|&tag| tag != UNTIMED) {
                    rtt_us.saturating_record(now_us.saturating_sub(intended_us));
                }
            }
            Event::Ping(payload) => {
                let mut out = Vec::new();
                if let Some(endpoint) = &mut self.endpoint {
                    endpoint.write_frame(&mut out, 0x80, ws::PONG, &payload);
                }
                self.send(scope, &out);
            }
            // RFC 6455 §5.5.3: only the latest ping has to be answered.
            Event::Pong(payload) => match self.pings.iter().position(|ping| *ping == payload) {
                Some(at) => drop(self.pings.drain(..=at)),
                None => {
                    tally.corrupted += 1;
                    tally.problem(|| format!("pong {payload:?} answers no ping"));
                }
            },
            Event::Close(code) => self.fail(scope, &format!("closed by the server with {code:?}")),
        }
    }

    pub(super) fn on_timer(&mut self, scope: &mut Scope<'_>, timer: Timer, due_us: u64) {
        if self.ended {
            return;
        }
        if timer == Timer::Release {
            let held = std::mem::take(&mut self.held);
            scope.io.send(scope.id, &held);
            return;
        }
        if scope.shared.quiet {
            return;
        }
        let burst = if scope.shared.random.chance(5) { 4 } else { 1 };
        for _ in 0..burst {
            if self.outstanding() < MAX_OUTSTANDING {
                self.send_next(scope, due_us);
            }
        }
        scope.shared.at_us(due_us + self.interval_us, scope.number, Timer::Next);
    }

    fn send_next(&mut self, scope: &mut Scope<'_>, due_us: u64) {
        let Some(endpoint) = &mut self.endpoint else { return };
        let random = &mut scope.shared.random;
        let mut out = Vec::new();
        let dribble = random.chance(15);
        let tag = if dribble || !self.held.is_empty() { UNTIMED } else { due_us };
        let written = match &mut self.check {
            Check::Echo(check) => {
                let plan = Plan {
                    connection: self.number,
                    sequence: self.sequence,
                    length: random.length(),
                    text: random.chance(50),
                };
                let compress = random.chance(75);
                let mut cuts = [0; 3].map(|_| random.next() as u16);
                cuts.sort_unstable();
                let cuts =
                    if random.chance(25) { &cuts[..1 + random.below(3) as usize] } else { &[] };
                let ping = random.chance(50);
                let (sequence, pings) = (self.sequence, &mut self.pings);
                check.sent(plan, tag);
                endpoint.write_message(&mut out, plan.text, &plan.bytes(), compress, cuts, || {
                    ping.then(|| {
                        let payload = format!("ping {sequence}.{}", pings.len()).into_bytes();
                        pings.push_back(payload.clone());
                        payload
                    })
                })
            }
            Check::Counter(check) => {
                check.asked(tag);
                let text = format!("question {}", self.sequence);
                endpoint.write_message(&mut out, true, text.as_bytes(), true, &[], || None)
            }
            Check::Clock { .. } => Ok(()),
        };
        self.sequence += 1;
        if let Err(error) = written {
            return self.fail(scope, &error);
        }
        if dribble && self.held.is_empty() {
            let now = scope.shared.random.below(out.len() as u64) as usize;
            self.held.extend_from_slice(&out[now..]);
            let delay_us = 1000 + scope.shared.random.below(40_000);
            scope.shared.after_us(delay_us, scope.number, Timer::Release);
            out.truncate(now);
            scope.io.send(scope.id, &out);
        } else {
            self.send(scope, &out);
        }
    }

    /// Sends behind what is held back.
    fn send(&mut self, scope: &mut Scope<'_>, bytes: &[u8]) {
        if self.held.is_empty() {
            scope.io.send(scope.id, bytes);
        } else {
            self.held.extend_from_slice(bytes);
        }
    }

    pub(super) fn on_end(&mut self, scope: &mut Scope<'_>, end: End) {
        self.fail(scope, &format!("{end:?}"));
    }

    fn fail(&mut self, scope: &mut Scope<'_>, text: &str) {
        if !self.ended {
            self.ended = true;
            let (number, tally) = (self.number, &mut scope.shared.tally);
            tally.dropped += 1;
            tally.problem(|| format!("WebSocket {number} dropped: {text}"));
            match &mut self.check {
                Check::Echo(check) => check.finish(tally),
                Check::Counter(check) => check.finish(tally),
                Check::Clock { .. } => {}
            }
            scope.io.close(scope.id);
        }
    }

    /// The last verdict, and how often the generation changed.
    pub(super) fn finish(self, shared: &mut Shared) -> u64 {
        let tally = &mut shared.tally;
        let number = self.number;
        if !self.ended && !self.pings.is_empty() {
            tally.lost += 1;
            tally.problem(|| format!("WebSocket {number}: pings without a pong"));
        }
        match self.check {
            Check::Echo(mut check) => check.finish(tally),
            Check::Counter(mut check) => {
                check.finish(tally);
                return u64::from(check.generation_changes());
            }
            Check::Clock { last_us, .. } => {
                let silent_us = shared.now_us - last_us;
                if !self.ended && silent_us > CLOCK_MS * 1000 + 500_000 {
                    tally.lost += 1;
                    tally.problem(|| format!("clock {number} stopped {silent_us} us ago"));
                }
            }
        }
        0
    }
}
