//! `proxy`: requests, and WebSocket messages, a second of server CPU through the gateway, beside nginx and
//! HAProxy in front of the same upstream. The upstream shares the client's CPU and is not counted.
//!
//! Must not know: how any of them works.

use std::net::SocketAddrV4;

use anyhow::Result;

use super::{Settings, pin_client, started};
use crate::engine::{Engine, Options};
use crate::figures::{Figure, Report, Target};
use crate::load::{Exchange, closed};
use crate::peers::{self, Builtin, Peer, proxies};
use crate::process::server_and_client_cpus;

const BENCH: &str = "proxy";
const CONNECTIONS: usize = 64;
const TARGET: &str = "/id?id=0123456789abcdef";
const BODY: &[u8] = b"0123456789abcdef";
const MESSAGE_BYTES: usize = 64;

/// Runs both.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let (cpu, _pinned) = pin_client(report)?;
    let other = server_and_client_cpus().1;
    let upstream = peers::nginx::start(other, false)?;
    compare(settings, report, cpu, upstream.address, None, "requests_per_server_cpu_s")?;
    drop(upstream);
    let upstream = peers::start(Builtin::Fastwebsockets, other)?;
    let name = "websocket_messages_per_server_cpu_s";
    compare(settings, report, cpu, upstream.address, Some("/"), name)
}

fn compare(
    settings: &Settings,
    report: &mut Report,
    cpu: usize,
    upstream: SocketAddrV4,
    echo: Option<&'static str>,
    name: &str,
) -> Result<()> {
    let theirs = started(
        report,
        vec![
            ("nginx", proxies::nginx(cpu, upstream, echo)),
            ("HAProxy", proxies::haproxy(cpu, upstream, echo)),
        ],
    );
    let service = ["proxy", "--upstream", &format!("http://{upstream}")].map(str::to_owned);
    let engine = Engine::start(Options {
        cpu: Some(cpu),
        service: service.to_vec(),
        steering: "off",
        answers_id: echo.is_none(),
        ..Options::new(&settings.zdt)
    })?;
    let exchange = |address| match echo {
        Some(target) => Ok(Exchange::echo(Some(target), MESSAGE_BYTES, 1)),
        None => Exchange::get(address, TARGET, Some(BODY)),
    };
    let own = exchange(engine.address)?;
    let exchanges: Result<Vec<Exchange>> =
        theirs.iter().map(|peer: &Peer| exchange(peer.address)).collect();
    let exchanges = exchanges?;
    let (warm_up, window) = settings.windows();
    let mut pairs = vec![Vec::new(); theirs.len()];
    for _ in 0..settings.pairs() {
        let measure = |address, exchange: &Exchange, pids: &[u32]| {
            closed::run(address, exchange, CONNECTIONS, warm_up, window, pids)
        };
        let zdt = measure(engine.address, &own, &engine.pids())?.per_server_cpu_s();
        for (index, peer) in theirs.iter().enumerate() {
            let sample = measure(peer.address, &exchanges[index], &peer.pids())?;
            pairs[index].push((zdt, sample.per_server_cpu_s()));
        }
    }
    for (peer, pairs) in theirs.iter().zip(pairs) {
        let figure = Figure::paired(BENCH, name, "1/s", peer.name, &pairs, Target::Ratio(1.0));
        report.add(figure.case(format!("{CONNECTIONS} kept connections")));
    }
    engine.stop()
}
