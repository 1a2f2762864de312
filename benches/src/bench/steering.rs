//! `steering`: connections accepted a second with the eBPF program against plain SO_REUSEPORT.
//!
//! Every connection is made, finished by the client, and closed by the worker that accepted it. The
//! program runs where the SYN is handled, on the client's CPU here, so its cost shows in the rate and
//! in the CPU time of both sides together, not in the server's alone.
//!
//! Must not know: how steering works.

use anyhow::{Context, Result};

use super::{Settings, pin_client};
use crate::engine::{Engine, Options};
use crate::figures::{Figure, Report, Target};
use crate::load::closed::Sample;
use crate::load::connects;

const BENCH: &str = "steering";
const CONCURRENCY: usize = 64;
const REFERENCE: &str = "plain SO_REUSEPORT";

/// Runs it.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let (cpu, _pinned) = pin_client(report)?;
    let start = |steering| {
        Engine::start(Options {
            workers: 2,
            steering,
            cpu: Some(cpu),
            ..Options::new(&settings.zdt)
        })
    };
    let steered = start("ebpf").context("with --steering ebpf")?;
    let plain = start("off").context("with --steering off")?;
    report.note(&format!("two workers each, {CONCURRENCY} connections under way at any time"));
    let (warm_up, window) = settings.windows();
    let measure = |engine: &Engine| {
        connects::run(engine.address, CONCURRENCY, warm_up, window, &engine.pids())
    };
    let per_cpu_s =
        |sample: Sample| sample.replies as f64 / (sample.server_cpu_s + sample.client_cpu_s);
    let (mut rates, mut per_cpu) = (Vec::new(), Vec::new());
    // More pairs than elsewhere: the difference to be seen is small.
    for round in 0..settings.pairs() * 2 {
        let (ours, theirs) = if round % 2 == 0 {
            let ours = measure(&steered)?;
            (ours, measure(&plain)?)
        } else {
            let theirs = measure(&plain)?;
            (measure(&steered)?, theirs)
        };
        rates.push((ours.per_s(), theirs.per_s()));
        per_cpu.push((per_cpu_s(ours), per_cpu_s(theirs)));
    }
    let target = Target::Ratio(0.97);
    report.add(Figure::paired(BENCH, "accepts_per_s", "1/s", REFERENCE, &rates, target));
    let name = "accepts_per_cpu_s";
    report.add(Figure::paired(BENCH, name, "1/s", REFERENCE, &per_cpu, Target::None));
    steered.stop()?;
    plain.stop()
}
