//! The demo's traffic: many WebSockets and HTTP connections whose every byte is checked.
//!
//! Runs against any server that has the demo service's endpoints, until a controller ends it.
//!
//! Must not know: what happens to the server meanwhile.

mod http;
mod websocket;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;

use crate::check::Tally;
use crate::io::{Client, ConnId, End, Handler, Io};
use crate::payload::mix;

/// How much traffic.
#[derive(Debug, Clone)]
pub struct Options {
    /// WebSockets: half echo, three eighths counters, one eighth clocks.
    pub websockets: usize,
    /// Half of the WebSockets over HTTP/2, some with a connection of their own, some with others on it.
    pub http2: bool,
    /// HTTP connections that are kept.
    pub kept: usize,
    /// HTTP connections that are made anew for each request, at any time.
    pub fresh: usize,
    /// Slow downloads and streams at any time.
    pub slow: usize,
    /// WebSocket messages a second, all connections together.
    pub messages_per_s: f64,
    /// How long to wait at the end for what is outstanding.
    pub patience: Duration,
    /// Seed of all choices.
    pub seed: u64,
}

/// What the traffic saw.
#[derive(Debug)]
pub struct Outcome {
    /// Verdicts.
    pub tally: Tally,
    /// Round trips of WebSocket messages from their intended send time, in microseconds.
    pub rtt_us: Histogram<u64>,
    /// Times between two ticks of a clock, in microseconds, less the interval.
    pub clock_delay_us: Histogram<u64>,
    /// Times that a counter's answers came from another generation than before.
    pub generation_changes: u64,
    /// Connections that were opened at the start and kept.
    pub connections: usize,
    /// WebSockets among them that are streams of HTTP/2 connections.
    pub http2_websockets: usize,
    /// Those HTTP/2 connections.
    pub http2_connections: usize,
}

/// Numbers that repeat with the seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A payload length: every order of magnitude, and the edges of the framing.
    pub(crate) fn length(&mut self) -> u32 {
        match self.below(20) {
            0 => 0,
            1 => [1, 125, 126, 127, 65535, 65536][self.below(6) as usize],
            _ => {
                let bits = self.below(16);
                (1 + (1 << bits) + self.below(1 << bits)) as u32 & 0xffff
            }
        }
    }
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Send the next message or request.
    Next,
    /// Send what was held back.
    Release,
    /// Take more of a slow download.
    Receive,
    /// Connect (again).
    Connect,
}

/// What all clients share.
pub(crate) struct Shared {
    pub tally: Tally,
    pub rtt_us: Histogram<u64>,
    pub clock_delay_us: Histogram<u64>,
    pub random: Random,
    /// Bytes of `/big`, learned before the traffic starts.
    pub big: Vec<u8>,
    /// No new messages and requests.
    pub quiet: bool,
    pub now_us: u64,
    start: Instant,
    timers: BinaryHeap<Reverse<(u64, u32, Timer)>>,
}

impl Shared {
    pub(crate) fn after_us(&mut self, delay_us: u64, client: u32, timer: Timer) {
        self.timers.push(Reverse((self.now_us + delay_us, client, timer)));
    }

    pub(crate) fn at_us(&mut self, due_us: u64, client: u32, timer: Timer) {
        self.timers.push(Reverse((due_us, client, timer)));
    }

    fn look_at_clock(&mut self) {
        self.now_us = self.start.elapsed().as_micros() as u64;
    }
}

enum Kind {
    WebSocket(Box<websocket::Client>),
    Http(http::Client),
}

struct Member {
    id: Option<ConnId>,
    kind: Kind,
}

struct Traffic {
    members: Vec<Member>,
    by_connection: Vec<u32>,
    shared: Shared,
}

/// A client's view of the world while it handles something.
pub(crate) struct Scope<'a> {
    pub io: &'a mut Io,
    pub id: ConnId,
    pub number: u32,
    pub shared: &'a mut Shared,
}

impl Traffic {
    fn with(&mut self, io: &mut Io, id: ConnId, f: impl FnOnce(&mut Kind, &mut Scope<'_>)) {
        let Some(&number) = self.by_connection.get(id.index()) else { return };
        let member = &mut self.members[number as usize];
        if member.id == Some(id) {
            self.shared.look_at_clock();
            f(&mut member.kind, &mut Scope { io, id, number, shared: &mut self.shared });
        }
    }

    fn connect(&mut self, io: &mut Io, number: u32) -> Result<()> {
        let member = &mut self.members[number as usize];
        let id = match &member.kind {
            Kind::WebSocket(client) => client.connect(io),
            Kind::Http(client) => io.connect(client.connect_options()),
        };
        let id = id.context("the generator has no descriptors left?")?;
        member.id = Some(id);
        if self.by_connection.len() <= id.index() {
            self.by_connection.resize(id.index() + 1, u32::MAX);
        }
        self.by_connection[id.index()] = number;
        Ok(())
    }

    fn run_timers(&mut self, io: &mut Io) -> Result<()> {
        self.shared.look_at_clock();
        while let Some(&Reverse((due, number, timer))) = self.shared.timers.peek()
            && due <= self.shared.now_us
        {
            self.shared.timers.pop();
            if timer == Timer::Connect {
                if !self.shared.quiet {
                    self.connect(io, number)?;
                }
                continue;
            }
            if let Some(id) = self.members[number as usize].id {
                self.with(io, id, |kind, scope| match kind {
                    Kind::WebSocket(client) => client.on_timer(scope, timer, due),
                    Kind::Http(client) => client.on_timer(scope, timer),
                });
            }
        }
        Ok(())
    }

    fn outstanding(&self) -> usize {
        let of = |member: &Member| match &member.kind {
            Kind::WebSocket(client) => client.outstanding(),
            Kind::Http(client) => client.outstanding(),
        };
        self.members.iter().map(of).sum()
    }
}

impl Handler for Traffic {
    fn on_connected(&mut self, io: &mut Io, id: ConnId) {
        self.with(io, id, |kind, scope| match kind {
            Kind::WebSocket(client) => client.on_connected(scope),
            Kind::Http(client) => client.on_connected(scope),
        });
    }

    fn on_websocket(&mut self, io: &mut Io, id: ConnId, extensions: &str) {
        self.with(io, id, |kind, scope| {
            if let Kind::WebSocket(client) = kind {
                client.on_websocket(scope, extensions);
            }
        });
    }

    fn on_data(&mut self, io: &mut Io, id: ConnId, data: &[u8]) {
        self.with(io, id, |kind, scope| match kind {
            Kind::WebSocket(client) => client.on_data(scope, data),
            Kind::Http(client) => client.on_data(scope, data),
        });
    }

    fn on_end(&mut self, io: &mut Io, id: ConnId, end: End) {
        io.close(id);
        self.with(io, id, |kind, scope| match kind {
            Kind::WebSocket(client) => client.on_end(scope, end),
            Kind::Http(client) => client.on_end(scope, end),
        });
    }
}

/// Called again and again while the traffic runs; false ends it.
pub trait Controller {
    /// All connections are there.
    fn on_ready(&mut self);
    /// Whether to go on.
    fn go_on(&mut self) -> bool;
}

/// What `/big` sends, and a check that it is the same each time.
fn learn_big(address: SocketAddrV4, bytes: usize) -> Result<Vec<u8>> {
    let fetch = |n: usize| -> Result<Vec<u8>> {
        let request = format!("GET /big?n={n} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let answer = crate::load::ask(address, request.as_bytes()).context("GET /big")?;
        let (mut parser, mut body) = (crate::http::Responses::default(), Vec::new());
        let collect = |event: crate::http::Event<'_>| {
            if let crate::http::Event::Body(bytes) = event {
                body.extend_from_slice(bytes);
            }
        };
        parser.receive(&answer, collect).map_err(anyhow::Error::msg)?;
        if body.len() != n {
            bail!("GET /big?n={n} sends {} bytes", body.len());
        }
        Ok(body)
    };
    let big = fetch(bytes)?;
    let small = fetch(1000)?;
    if big[..1000] != small[..] {
        bail!("GET /big does not begin with the same bytes each time");
    }
    Ok(big)
}

/// Runs the traffic until the controller ends it and what is outstanding has come back.
pub fn run(
    address: SocketAddrV4,
    options: &Options,
    controller: &mut dyn Controller,
) -> Result<Outcome> {
    let mut client = Client::new(address, 1024, 16 << 10)?;
    let mut traffic = Traffic {
        members: Vec::new(),
        by_connection: Vec::new(),
        shared: Shared {
            tally: Tally::default(),
            rtt_us: crate::figures::latencies(),
            clock_delay_us: crate::figures::latencies(),
            random: Random(options.seed),
            big: learn_big(address, http::BIG_BYTES)?,
            quiet: false,
            now_us: 0,
            start: Instant::now(),
            timers: BinaryHeap::new(),
        },
    };
    connect_all(&mut client, &mut traffic, address, options)?;
    let connections = options.websockets + options.kept;
    let groups: Vec<u32> = (0..options.websockets).filter_map(|n| group(options, n)).collect();
    let http2_websockets = groups.len();
    let http2_connections = groups.into_iter().collect::<HashSet<_>>().len();
    controller.on_ready();
    while controller.go_on() {
        turn(&mut client, &mut traffic)?;
    }
    traffic.shared.quiet = true;
    let end = Instant::now() + options.patience;
    while traffic.outstanding() > 0 && Instant::now() < end {
        turn(&mut client, &mut traffic)?;
    }
    // Longer than a clock's interval, and than a drop takes to be seen.
    let end = Instant::now() + Duration::from_millis(600);
    while Instant::now() < end {
        turn(&mut client, &mut traffic)?;
    }
    let Traffic { members, mut shared, .. } = traffic;
    shared.look_at_clock();
    let mut generation_changes = 0;
    for member in members {
        match member.kind {
            Kind::WebSocket(client) => generation_changes += client.finish(&mut shared),
            Kind::Http(client) => client.finish(&mut shared),
        }
    }
    client.close_all()?;
    let Shared { tally, rtt_us, clock_delay_us, .. } = shared;
    Ok(Outcome {
        tally,
        rtt_us,
        clock_delay_us,
        generation_changes,
        connections,
        http2_websockets,
        http2_connections,
    })
}

fn turn(client: &mut Client, traffic: &mut Traffic) -> Result<()> {
    traffic.run_timers(&mut client.io)?;
    let next = traffic.shared.timers.peek().map_or(5000, |Reverse((due, ..))| {
        due.saturating_sub(traffic.shared.now_us).clamp(50, 5000)
    });
    client.turn(traffic, Duration::from_micros(next))?;
    Ok(())
}

/// The HTTP/2 connection of a WebSocket, if it has one: of sixteen WebSockets, eight, which are of all kinds. Four of
/// these have a connection of their own, four share one.
fn group(options: &Options, number: usize) -> Option<u32> {
    let block = number / 16 * 16;
    match number % 16 {
        8..12 if options.http2 => Some(number as u32),
        12..16 if options.http2 => Some(block as u32),
        _ => None,
    }
}

fn connect_all(
    client: &mut Client,
    traffic: &mut Traffic,
    address: SocketAddrV4,
    options: &Options,
) -> Result<()> {
    let host = address.to_string();
    let scheme = crate::secure::scheme(address);
    // Clocks tick on their own; the rest share the messages.
    let talkers = (options.websockets - options.websockets / 8).max(1);
    let interval_us = (talkers as f64 * 1e6 / options.messages_per_s.max(1.0)) as u64;
    for number in 0..options.websockets {
        let mut kind = websocket::Client::new(number as u32, &host, interval_us.max(20_000));
        if let Some(group) = group(options, number) {
            kind = kind.over_http2(group, scheme, &host).map_err(anyhow::Error::msg)?;
        }
        traffic.members.push(Member { id: None, kind: Kind::WebSocket(Box::new(kind)) });
    }
    let modes = [
        (http::Mode::Kept, options.kept),
        (http::Mode::Fresh, options.fresh),
        (http::Mode::Download, options.slow.div_ceil(2)),
        (http::Mode::Stream, options.slow / 2),
    ];
    for (mode, count) in modes {
        for _ in 0..count {
            let kind = Kind::Http(http::Client::new(mode, &host));
            traffic.members.push(Member { id: None, kind });
        }
    }
    let end = Instant::now() + Duration::from_secs(60);
    let (mut started, total) = (0, traffic.members.len());
    loop {
        let count = |of: fn(&websocket::Client) -> bool, otherwise: usize| -> usize {
            let members = traffic.members[..started].iter();
            members
                .map(|member| match &member.kind {
                    Kind::WebSocket(client) => usize::from(of(client)),
                    Kind::Http(_) => otherwise,
                })
                .sum()
        };
        let ready = count(websocket::Client::is_ready, 1);
        if count(websocket::Client::is_refused, 0) > 0 {
            bail!("cannot connect: {:?}", traffic.shared.tally.problems);
        }
        if started == total && ready == total {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("only {ready} of {total} connections within 60 s");
        }
        for _ in 0..total.min(started + 128usize.saturating_sub(started - ready)) - started {
            traffic.connect(&mut client.io, started as u32)?;
            started += 1;
        }
        turn(client, traffic)?;
    }
}

#[cfg(test)]
mod tests;
