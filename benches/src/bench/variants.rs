//! Handing off idle connections in several ways, each beside the same connections in the plainest way: what
//! protocols and options cost.
//!
//! Must not know: how connections are handed off.

use anyhow::{Context, Result, bail};

use super::Settings;
use super::handoff::reload_beside;
use crate::engine::{Engine, Options, Reloader};
use crate::figures::{Figure, Report, Target};
use crate::load::Exchange;
use crate::load::open::OpenLoop;

const BENCH: &str = "handoff";

/// An engine with idle WebSockets, which are handed off again and again.
struct Variant {
    case: &'static str,
    target: Target,
    engine: Engine,
    reloader: Reloader,
    load: OpenLoop,
    rates: Vec<f64>,
    p99: Vec<f64>,
}

impl Variant {
    fn open(
        case: &'static str,
        target: Target,
        engine: Engine,
        connections: usize,
        http2: bool,
    ) -> Result<Self> {
        let echo = Exchange::echo(Some("/ws/echo"), 64, 1);
        let mut load = OpenLoop::connect(engine.address, echo, connections, http2).context(case)?;
        load.echo_once().context(case)?;
        let reloader = engine.reloader();
        Ok(Self { case, target, engine, reloader, load, rates: Vec::new(), p99: Vec::new() })
    }

    fn hand_off(&mut self, connections: usize) -> Result<()> {
        let verdict = reload_beside(&mut self.load, &self.reloader)?;
        self.load.echo_once().context("after a reload")?;
        if verdict.migrated_connections < connections as u64 || self.load.dropped() > 0 {
            bail!("{} were dropped: {verdict:?}", self.load.dropped());
        }
        let handoff_ms = verdict.handoff_ms.unwrap_or(verdict.duration_ms);
        self.rates.push(verdict.migrated_connections as f64 / handoff_ms * 1e3);
        self.p99.push(verdict.blackout_us.p99);
        Ok(())
    }
}

/// Hands all of them off in turn. The last one is the reference of the others.
fn compare(
    settings: &Settings,
    report: &mut Report,
    mut variants: Vec<Variant>,
    connections: usize,
) -> Result<()> {
    // All are open all the time, so that none has the machine to itself. A handoff takes but some tens of
    // milliseconds: twice as many pairs.
    for _ in 0..settings.pairs() * 2 {
        for variant in &mut variants {
            variant.hand_off(connections).context(variant.case)?;
        }
    }
    let Some(plain) = variants.pop() else { bail!("nothing to compare with") };
    for variant in &variants {
        let pairs: Vec<(f64, f64)> =
            variant.rates.iter().copied().zip(plain.rates.iter().copied()).collect();
        let case = format!("{connections} idle WebSockets, {}", variant.case);
        let name = "connections_per_s";
        let figure = Figure::paired(BENCH, name, "1/s", plain.case, &pairs, variant.target);
        report.add(figure.case(case.clone()));
        let name = "blackout_p99_us";
        report.add(Figure::alone(BENCH, name, "us", &variant.p99, Target::None).case(case));
    }
    for variant in variants.into_iter().chain([plain]) {
        variant.load.close()?;
        variant.engine.stop()?;
    }
    Ok(())
}

/// TLS, HTTP/2 with one WebSocket on each connection, or both, beside plain HTTP/1.1.
pub fn protocols(settings: &Settings, report: &mut Report) -> Result<()> {
    let connections = settings.connections();
    let (case, target) = match (settings.tls, settings.h2) {
        (true, false) => ("over TLS", Target::Ratio(0.7)),
        (false, _) => ("over HTTP/2", Target::Ratio(0.6)),
        (true, true) => ("over HTTP/2 with TLS", Target::None),
    };
    let variants = vec![
        Variant::open(case, target, settings.engine(None)?, connections, settings.h2)?,
        Variant::open(
            "plain HTTP/1.1",
            Target::None,
            settings.plain_engine(None)?,
            connections,
            false,
        )?,
    ];
    compare(settings, report, variants, connections)
}

/// Encryption (the default), compression of every record, JSON, beside records as they are.
pub fn options(settings: &Settings, report: &mut Report) -> Result<()> {
    let connections = settings.connections() / 3;
    let cases = [
        ("encrypted (default)", ""),
        ("encrypted and compressed", "[state]\ncompress_above_bytes = 1\n"),
        ("JSON, encrypted", "[state]\nencoding = \"json\"\n"),
        ("plain records", "[state]\nencryption = false\ncompression = false\n"),
    ];
    let mut variants = Vec::new();
    for (case, configuration) in cases {
        let configuration = configuration.to_owned();
        let engine = Engine::start(Options { configuration, ..Options::new(&settings.zdt) })?;
        variants.push(Variant::open(case, Target::None, engine, connections, false)?);
    }
    compare(settings, report, variants, connections)
}
