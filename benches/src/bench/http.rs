//! `http`: small HTTP/1.1 answers a second of server CPU, beside nginx and a bare io_uring server.
//!
//! Must not know: how any of them works.

use anyhow::Result;

use super::{Settings, pin_client, started};
use crate::figures::{Figure, Report, Target};
use crate::load::{Exchange, closed};
use crate::peers::{self, Builtin};

const BENCH: &str = "http";
const CONNECTIONS: usize = 64;
const TARGET: &str = "/id?id=0123456789abcdef";
const BODY: &[u8] = b"0123456789abcdef";

/// Runs it.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let (cpu, _pinned) = pin_client(report)?;
    let peers = started(
        report,
        vec![
            ("nginx", peers::nginx::start(cpu, false)),
            ("bare io_uring", peers::start(Builtin::BareHttp, cpu)),
        ],
    );
    let engine = settings.engine(Some(cpu))?;
    let own = Exchange::get(engine.address, TARGET, Some(BODY))?;
    report.note(&format!("an answer of zdt: {} bytes", own.reply_bytes));
    let mut theirs = Vec::new();
    for peer in &peers {
        let body = (peer.name == "nginx").then_some(BODY);
        let exchange = Exchange::get(peer.address, TARGET, body)?;
        report.note(&format!("an answer of {}: {} bytes", peer.name, exchange.reply_bytes));
        theirs.push(exchange);
    }
    let (warm_up, window) = settings.windows();
    let mut pairs = vec![Vec::new(); peers.len()];
    for _ in 0..settings.pairs() {
        let measure = |address, exchange: &Exchange, pids: &[u32]| {
            closed::run(address, exchange, CONNECTIONS, warm_up, window, pids)
        };
        let zdt = measure(engine.address, &own, &engine.pids())?.per_server_cpu_s();
        for (index, peer) in peers.iter().enumerate() {
            let sample = measure(peer.address, &theirs[index], &peer.pids())?;
            pairs[index].push((zdt, sample.per_server_cpu_s()));
        }
    }
    for (peer, pairs) in peers.iter().zip(pairs) {
        let target = if peer.name == "nginx" { Target::Ratio(1.0) } else { Target::None };
        let name = "requests_per_server_cpu_s";
        let figure = Figure::paired(BENCH, name, "1/s", peer.name, &pairs, target);
        report.add(figure.case(format!("{CONNECTIONS} kept connections")));
    }
    engine.stop()
}
