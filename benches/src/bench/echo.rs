//! `echo`: WebSocket messages a second of server CPU, beside a bare io_uring echo and other servers.
//!
//! Must not know: how any of them works.

use anyhow::Result;

use super::{Settings, pin_client, started};
use crate::figures::{Figure, Report, Target, median};
use crate::load::{Exchange, closed};
use crate::peers::{self, Builtin, Peer};

const BENCH: &str = "echo";

struct Row {
    payload_bytes: usize,
    connections: usize,
    in_flight: usize,
}

impl Row {
    fn name(&self) -> String {
        let size = match self.payload_bytes {
            bytes if bytes >= 1024 => format!("{} KiB", bytes / 1024),
            bytes => format!("{bytes} B"),
        };
        format!("{size}, {} connections, {} in flight", self.connections, self.in_flight)
    }

    /// Whether this peer belongs into this row. Large buffers are for large messages: of the two bare echoes, one is
    /// in; with tungstenite the small ones stay beside them, since either may be the better choice.
    fn wants(&self, peer: &Peer) -> bool {
        let (is_large, has_large) =
            (self.payload_bytes > 4096, peer.configuration.contains("32 KiB"));
        is_large == has_large || (is_large && peer.echo_target.is_some())
    }

    fn target(&self, peer: &Peer) -> Target {
        match (peer.echo_target, self.in_flight) {
            (None, 1) => Target::Ratio(0.85),
            (None, _) => Target::Ratio(0.6),
            (Some(_), _) => Target::Ratio(1.0),
        }
    }
}

/// Runs all rows.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let (cpu, _pinned) = pin_client(report)?;
    let wanted = if settings.tls {
        let name = "tokio-rustls with tungstenite";
        vec![
            (name, peers::start(Builtin::TungsteniteTls, cpu)),
            ("the same with 32 KiB buffers", peers::start(Builtin::TungsteniteTlsLarge, cpu)),
        ]
    } else {
        vec![
            ("bare io_uring", peers::start(Builtin::BareEcho, cpu)),
            ("bare io_uring", peers::start(Builtin::BareEchoLarge, cpu)),
            ("tokio-tungstenite", peers::start(Builtin::Tungstenite, cpu)),
            ("the same with 32 KiB buffers", peers::start(Builtin::TungsteniteLarge, cpu)),
            ("fastwebsockets", peers::start(Builtin::Fastwebsockets, cpu)),
            ("Bun", peers::bun::start(cpu)),
        ]
    };
    let peers = started(report, wanted);
    let engine = settings.engine(Some(cpu))?;
    let sizes: &[usize] = &[64, 16 << 10];
    for &payload_bytes in sizes {
        for connections in [100, 1000] {
            for in_flight in [1, 16] {
                let row = Row { payload_bytes, connections, in_flight };
                run_row(settings, report, &row, &engine, &peers)?;
            }
        }
    }
    engine.stop()
}

fn run_row(
    settings: &Settings,
    report: &mut Report,
    row: &Row,
    engine: &crate::engine::Engine,
    peers: &[Peer],
) -> Result<()> {
    let peers: Vec<&Peer> = peers.iter().filter(|peer| row.wants(peer)).collect();
    let exchange = |target| Exchange::echo(target, row.payload_bytes, row.in_flight);
    let own = exchange(Some("/ws/echo"));
    let theirs: Vec<Exchange> = peers.iter().map(|peer| exchange(peer.echo_target)).collect();
    let (warm_up, window) = settings.windows();
    let mut pairs = vec![Vec::new(); peers.len()];
    let (mut server_busy, mut client_busy) = (Vec::new(), Vec::new());
    for round in 0..settings.pairs() {
        let measure = |address, exchange: &Exchange, pids: &[u32]| {
            closed::run(address, exchange, row.connections, warm_up, window, pids)
        };
        let sample = measure(engine.address, &own, &engine.pids())?;
        let zdt = sample.per_server_cpu_s();
        server_busy.push(sample.busy_percent().0);
        client_busy.push(sample.busy_percent().1);
        // Another order each time, so that no peer always comes after the same one.
        for turn in 0..peers.len() {
            let index = (turn + round) % peers.len();
            match measure(peers[index].address, &theirs[index], &peers[index].pids()) {
                Ok(sample) => pairs[index].push((zdt, sample.per_server_cpu_s())),
                Err(error) => report.note(&format!("{}: {error:#}", peers[index].name)),
            }
        }
    }
    let (server, client) = (median(&server_busy), median(&client_busy));
    report.note(&format!("{}: zdt was {server:.0} % busy, the client {client:.0} %", row.name()));
    for (peer, pairs) in peers.iter().zip(pairs) {
        let name = "messages_per_server_cpu_s";
        let figure = Figure::paired(BENCH, name, "1/s", peer.name, &pairs, row.target(peer));
        report.add(figure.case(row.name()));
    }
    Ok(())
}
