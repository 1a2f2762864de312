//! Open loop: WebSocket messages leave at intended times that do not depend on the answers, and the
//! latency counts from the intended time, so a stall of the server cannot hide (no coordinated
//! omission). Also holds idle connections open.
//!
//! Must not know: which server answers, what happens to it meanwhile.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;

use super::{Exchange, buffers_for};
use crate::io::{Client, ConnId, ConnectOptions, End, Handler, Io};
use crate::ws::{self, Endpoint};

/// The generator looks at the clock at least so often. It delays messages by at most this, which
/// counts as latency.
const TICK: Duration = Duration::from_micros(100);

/// What the load should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Send, but do not record.
    Run,
    /// Send and record.
    Record,
    /// Send nothing more, await what is outstanding, return.
    Stop,
}

struct Connection {
    id: ConnId,
    ready: bool,
    head: Vec<u8>,
    partial: usize,
    outstanding: VecDeque<Option<Instant>>,
}

/// Connections that are echoed to.
pub struct OpenLoop {
    client: Client,
    state: State,
}

struct State {
    exchange: Exchange,
    connections: Vec<Option<Connection>>,
    order: Vec<ConnId>,
    ready: usize,
    outstanding: usize,
    histogram: Histogram<u64>,
    dropped: u64,
    failure: Option<String>,
}

impl State {
    fn on_open(&mut self, id: ConnId) {
        if let Some(connection) = &mut self.connections[id.index()] {
            connection.ready = true;
            self.order.push(id);
            self.ready += 1;
        }
    }
}

impl Handler for State {
    fn on_connected(&mut self, io: &mut Io, id: ConnId) {
        if let Some(request) = &self.exchange.handshake {
            io.send(id, request.as_bytes());
        }
    }

    fn on_websocket(&mut self, _: &mut Io, id: ConnId, _: &str) {
        self.on_open(id);
    }

    fn on_data(&mut self, io: &mut Io, id: ConnId, mut data: &[u8]) {
        let Some(connection) = &mut self.connections[id.index()] else { return };
        if !connection.ready {
            connection.head.extend_from_slice(data);
            if connection.head.ends_with(b"\r\n\r\n") {
                let head = std::mem::take(&mut connection.head);
                if let Err(error) = ws::check_handshake(&String::from_utf8_lossy(&head)) {
                    self.failure.get_or_insert(error);
                }
                self.on_open(id);
            }
            return;
        }
        // The server pings the silent ones. Two bytes and a short payload arrive in one piece.
        while connection.partial == 0 && data.first() == Some(&(0x80 | ws::PING)) {
            let end = 2 + usize::from(data.get(1).copied().unwrap_or_default());
            let Some(payload) = data.get(2..end) else {
                self.failure.get_or_insert("a ping in pieces".to_owned());
                return;
            };
            let mut pong = Vec::new();
            Endpoint::new(true, None).write_frame(&mut pong, 0x80, ws::PONG, payload);
            io.send(id, &pong);
            data = &data[end..];
        }
        let total = connection.partial + data.len();
        connection.partial = total % self.exchange.reply_bytes;
        let now = Instant::now();
        for _ in 0..total / self.exchange.reply_bytes {
            let Some(intended) = connection.outstanding.pop_front() else {
                self.failure.get_or_insert("a reply that nobody asked for".to_owned());
                return;
            };
            self.outstanding -= 1;
            if let Some(intended) = intended {
                let latency = now.saturating_duration_since(intended);
                self.histogram.saturating_record(latency.as_micros() as u64);
            }
        }
    }

    fn on_end(&mut self, io: &mut Io, id: ConnId, end: End) {
        io.abort(id);
        if let Some(connection) = self.connections[id.index()].take() {
            self.outstanding -= connection.outstanding.len();
            self.dropped += 1;
            if !connection.ready {
                self.failure.get_or_insert(format!("cannot connect: {end:?}"));
            }
        }
    }
}

impl OpenLoop {
    /// Opens the connections; over HTTP/2 with one WebSocket each.
    pub fn connect(
        address: SocketAddrV4,
        exchange: Exchange,
        connections: usize,
        http2: bool,
    ) -> Result<Self> {
        let (count, bytes) = buffers_for(connections, exchange.reply_bytes);
        let mut client = Client::new(address, count, bytes)?;
        let mut state = State {
            exchange,
            connections: Vec::new(),
            order: Vec::new(),
            ready: 0,
            outstanding: 0,
            histogram: crate::figures::latencies(),
            dropped: 0,
            failure: None,
        };
        let end = Instant::now() + Duration::from_secs(30);
        let mut started = 0;
        while state.ready < connections {
            while started < connections && started - state.ready < 100 {
                let id = match &state.exchange.target {
                    Some(target) if http2 => {
                        let scheme = crate::secure::scheme(address);
                        let request = ws::http2_request(scheme, "127.0.0.1", target, None)
                            .map_err(anyhow::Error::msg)?;
                        client.io.open_websocket(started as u32, request)?
                    }
                    _ => client.io.connect(ConnectOptions::default())?,
                };
                if state.connections.len() <= id.index() {
                    state.connections.resize_with(id.index() + 1, || None);
                }
                state.connections[id.index()] = Some(Connection {
                    id,
                    ready: false,
                    head: Vec::new(),
                    partial: 0,
                    outstanding: VecDeque::new(),
                });
                started += 1;
            }
            client.turn(&mut state, Duration::from_millis(10))?;
            if let Some(failure) = &state.failure {
                bail!("{failure}");
            }
            if Instant::now() > end {
                bail!("only {} of {connections} connections were made", state.ready);
            }
        }
        Ok(Self { client, state })
    }

    /// Connections that have ended on their own.
    pub fn dropped(&self) -> u64 {
        self.state.dropped
    }

    /// Handles what happens, without sending, while `go_on` says so.
    pub fn idle_while(&mut self, mut go_on: impl FnMut() -> bool) -> Result<()> {
        while go_on() {
            self.client.turn(&mut self.state, Duration::from_millis(2))?;
        }
        Ok(())
    }

    /// Sends one message on every connection and awaits the replies.
    pub fn echo_once(&mut self) -> Result<()> {
        for id in self.state.order.clone() {
            self.send(id, None);
            if self.state.outstanding >= 500 {
                self.await_replies()?;
            }
        }
        self.await_replies()
    }

    fn send(&mut self, id: ConnId, intended: Option<Instant>) {
        if let Some(connection) = &mut self.state.connections[id.index()]
            && connection.id == id
        {
            connection.outstanding.push_back(intended);
            self.state.outstanding += 1;
            self.client.io.send(id, self.state.exchange.requests(1));
        }
    }

    fn await_replies(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while self.state.outstanding > 0 && Instant::now() < end {
            self.client.turn(&mut self.state, Duration::from_millis(2))?;
        }
        match (&self.state.failure, self.state.outstanding) {
            (Some(failure), _) => bail!("{failure}"),
            (None, 0) => Ok(()),
            (None, missing) => bail!("{missing} replies are missing"),
        }
    }

    /// Sends `rate` messages a second, over all connections in turn, until `phase` says stop; the
    /// latencies of the recorded messages in microseconds.
    pub fn run(
        &mut self,
        rate: f64,
        mut phase: impl FnMut(Instant) -> Phase,
    ) -> Result<Histogram<u64>> {
        self.state.histogram.reset();
        let start = Instant::now();
        let mut sent = 0u64;
        loop {
            let now = Instant::now();
            let phase = phase(now);
            if phase == Phase::Stop {
                break;
            }
            let due = (now.duration_since(start).as_secs_f64() * rate) as u64;
            while sent < due {
                let intended = start + Duration::from_secs_f64(sent as f64 / rate);
                let id = self.state.order[sent as usize % self.state.order.len()];
                self.send(id, (phase == Phase::Record).then_some(intended));
                sent += 1;
            }
            self.client.turn(&mut self.state, TICK)?;
        }
        self.await_replies()?;
        Ok(self.state.histogram.clone())
    }

    /// Closes all connections.
    pub fn close(mut self) -> Result<()> {
        self.client.close_all()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::*;
    use crate::peers::{demo, demo2};

    #[test]
    fn echoes_come_back_over_both_versions() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(back) = listener.local_addr().unwrap() else { unreachable!() };
        std::thread::spawn(move || demo::serve(listener, demo::Fault::None));
        let front = demo2::front(back).unwrap();
        for http2 in [false, true] {
            let exchange = Exchange::echo(Some("/ws/echo"), 64, 1);
            let mut load = OpenLoop::connect(front, exchange, 20, http2).unwrap();
            load.echo_once().unwrap();
            let start = Instant::now();
            let latencies = load
                .run(1000.0, |now| match now - start {
                    past if past < Duration::from_millis(100) => Phase::Record,
                    _ => Phase::Stop,
                })
                .unwrap();
            assert!(latencies.len() > 20, "{http2}: {}", latencies.len());
            assert_eq!(load.dropped(), 0);
            load.close().unwrap();
        }
    }
}
