//! Closed loop: every connection keeps the same number of requests in flight, as fast as answers
//! come. Measures throughput, against the server's CPU time.
//!
//! Replies are recognised by their length and their beginning, so that the generator stays cheaper
//! than any server; the demo is what checks every byte.
//!
//! Must not know: which server answers.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Exchange, buffers_for};
use crate::io::{Client, ConnId, ConnectOptions, End, Handler, Io};
use crate::process::total_cpu_ns;

/// How long to connect, at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait for the first reply of a measurement.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one run measured.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Replies.
    pub replies: u64,
    /// Time that they took.
    pub seconds: f64,
    /// CPU time that the server's processes spent in that time.
    pub server_cpu_s: f64,
    /// CPU time of the client in that time.
    pub client_cpu_s: f64,
}

impl Sample {
    /// Replies for each second of the server's CPU time.
    pub fn per_server_cpu_s(&self) -> f64 {
        self.replies as f64 / self.server_cpu_s
    }

    /// How busy the servers and the client were, in per cent of a CPU each.
    pub fn busy_percent(&self) -> (f64, f64) {
        (100.0 * self.server_cpu_s / self.seconds, 100.0 * self.client_cpu_s / self.seconds)
    }

    /// Replies for each second.
    pub fn per_s(&self) -> f64 {
        self.replies as f64 / self.seconds
    }
}

#[derive(Default, Clone)]
struct Connection {
    id: Option<ConnId>,
    ready: bool,
    head: Vec<u8>,
    partial: usize,
    owed: usize,
}

struct Load<'a> {
    exchange: &'a Exchange,
    connections: Vec<Connection>,
    ready: usize,
    running: bool,
    replies: u64,
    failure: Option<String>,
}

impl Load<'_> {
    fn fail(&mut self, text: String) {
        self.failure.get_or_insert(text);
    }

    fn connection(&mut self, id: ConnId) -> &mut Connection {
        if self.connections.len() <= id.index() {
            self.connections.resize(id.index() + 1, Connection::default());
        }
        &mut self.connections[id.index()]
    }

    fn send(&mut self, io: &mut Io, id: ConnId, count: usize) {
        io.send_static(id, self.exchange.requests(count));
    }

    fn on_ready(&mut self, id: ConnId) {
        let connection = self.connection(id);
        connection.ready = true;
        connection.id = Some(id);
        self.ready += 1;
    }

    fn on_handshake(&mut self, id: ConnId, data: &[u8]) {
        let connection = self.connection(id);
        connection.head.extend_from_slice(data);
        if connection.head.ends_with(b"\r\n\r\n") {
            let head = std::mem::take(&mut connection.head);
            if let Err(error) = crate::ws::check_handshake(&String::from_utf8_lossy(&head)) {
                self.fail(error);
            }
            self.on_ready(id);
        }
    }
}

impl Handler for Load<'_> {
    fn on_connected(&mut self, io: &mut Io, id: ConnId) {
        match &self.exchange.handshake {
            Some(request) => io.send(id, request.as_bytes()),
            None => self.on_ready(id),
        }
    }

    fn on_data(&mut self, io: &mut Io, id: ConnId, data: &[u8]) {
        if !self.connection(id).ready {
            return self.on_handshake(id, data);
        }
        let Exchange { reply_bytes, reply_prefix, .. } = self.exchange;
        let running = self.running;
        let connection = &mut self.connections[id.index()];
        let mut start = if connection.partial == 0 { 0 } else { reply_bytes - connection.partial };
        let mut wrong = false;
        while let Some(prefix) = data.get(start..start + reply_prefix.len()) {
            wrong |= prefix != reply_prefix;
            start += reply_bytes;
        }
        let total = connection.partial + data.len();
        let replies = total / reply_bytes;
        connection.partial = total % reply_bytes;
        connection.owed += replies;
        if running && connection.owed > 0 && !io.is_sending(id) {
            let count = std::mem::take(&mut connection.owed);
            self.send(io, id, count);
        }
        self.replies += replies as u64;
        if wrong {
            self.fail("a reply is not what was expected".to_owned());
        }
    }

    fn on_sent(&mut self, io: &mut Io, id: ConnId) {
        let running = self.running;
        let connection = self.connection(id);
        if running && connection.ready && connection.owed > 0 {
            let count = std::mem::take(&mut connection.owed);
            self.send(io, id, count);
        }
    }

    fn on_end(&mut self, io: &mut Io, id: ConnId, end: End) {
        io.abort(id);
        self.fail(format!("a connection ended: {end:?}"));
    }
}

/// Runs the load: connects, warms up, measures for `window`, closes. `server_pids` are those whose
/// CPU time counts.
pub fn run(
    address: SocketAddrV4,
    exchange: &Exchange,
    connections: usize,
    warm_up: Duration,
    window: Duration,
    server_pids: &[u32],
) -> Result<Sample> {
    let in_flight = exchange.in_flight();
    let (count, bytes) = buffers_for(connections, exchange.reply_bytes * in_flight);
    let mut client = Client::new(address, count, bytes)?;
    let mut load = Load {
        exchange,
        connections: Vec::new(),
        ready: 0,
        running: false,
        replies: 0,
        failure: None,
    };
    connect(&mut client, &mut load, connections)?;
    load.running = true;
    for id in load.connections.iter().filter_map(|connection| connection.id).collect::<Vec<_>>() {
        load.send(&mut client.io, id, in_flight);
    }
    let mut turn_until = |load: &mut Load<'_>, end: Instant| -> Result<()> {
        while Instant::now() < end && load.failure.is_none() {
            client.turn(load, Duration::from_millis(5))?;
        }
        Ok(())
    };
    turn_until(&mut load, Instant::now() + warm_up)?;
    let own = [std::process::id()];
    let (before, start) = (load.replies, Instant::now());
    let (cpu, own_cpu) = (total_cpu_ns(server_pids), total_cpu_ns(&own));
    turn_until(&mut load, start + window)?;
    // A server that is slow, or on a busy machine, gets more time rather than no figure.
    while load.replies == before && start.elapsed() < PATIENCE && load.failure.is_none() {
        turn_until(&mut load, Instant::now() + window)?;
    }
    let cpu = total_cpu_ns(server_pids) - cpu;
    let own_cpu = total_cpu_ns(&own) - own_cpu;
    let sample = Sample {
        replies: load.replies - before,
        seconds: start.elapsed().as_secs_f64(),
        server_cpu_s: cpu as f64 / 1e9,
        client_cpu_s: own_cpu as f64 / 1e9,
    };
    load.running = false;
    client.close_all()?;
    match load.failure {
        Some(failure) => bail!("{failure}"),
        None if sample.replies == 0 => bail!("no replies"),
        None => Ok(sample),
    }
}

fn connect(client: &mut Client, load: &mut Load<'_>, connections: usize) -> Result<()> {
    let end = Instant::now() + CONNECT_TIMEOUT;
    let mut started = 0;
    while load.ready < connections {
        // No more at once than any accept queue takes.
        while started < connections && started - load.ready < 100 {
            client.io.connect(ConnectOptions::default())?;
            started += 1;
        }
        client.turn(load, Duration::from_millis(10))?;
        if let Some(failure) = &load.failure {
            bail!("while connecting: {failure}");
        }
        if Instant::now() > end {
            bail!("only {} of {connections} connections within {CONNECT_TIMEOUT:?}", load.ready);
        }
    }
    Ok(())
}
