//! `reload`: how long each strategy takes from the command to the verdict, and what memory it takes
//! meanwhile, with a thousand connections under load and two workers.
//!
//! Must not know: how a reload is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Settings;
use crate::engine::{Engine, Options, Reloader};
use crate::figures::{Figure, Report, Target};
use crate::load::open::{OpenLoop, Phase};
use crate::load::{Exchange, closed};
use crate::process::pss_bytes;

const BENCH: &str = "reload";
const CONNECTIONS: usize = 1_000;
const WORKERS: usize = 2;
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The figure of each strategy, the arguments that choose it, and the target in milliseconds.
const STRATEGIES: [(&str, &[&str], f64); 2] = [
    ("blue_green_ms", &["--strategy", "blue-green"], 300.0),
    ("rolling_ms", &["--strategy", "rolling"], 1_000.0),
];

/// What a reload may take: 8 MiB for each green worker, 1 KiB for each connection.
const MEMORY_TARGET: f64 = (WORKERS * (8 << 20) + CONNECTIONS * 1024) as f64;
/// The engine is in its steady state again when no more than this is left.
const STEADY_WITHIN: f64 = (1 << 20) as f64;
/// Between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Nobody waits longer for the steady state.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs it.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let options = Options { workers: WORKERS, ..Options::new(&settings.zdt) };
    let engine = Engine::start(options)?;
    let exchange = Exchange::echo(Some("/ws/echo"), 64, 1);
    let window = Duration::from_millis(if settings.quick { 200 } else { 1000 });
    let sample =
        closed::run(engine.address, &exchange, CONNECTIONS, window / 4, window, &engine.pids())?;
    let rate = sample.per_s() / 2.0;
    report.note(&format!("closed loop: {:.0} messages/s; open loop at half of it", sample.per_s()));
    let mut load = OpenLoop::connect(engine.address, exchange, CONNECTIONS, false)?;
    let case = format!("{CONNECTIONS} connections, {WORKERS} workers, {rate:.0} messages/s");
    let reloader = engine.reloader();

    let mut took_ms = vec![Vec::new(); STRATEGIES.len()];
    for _ in 0..settings.pairs() {
        for ((_, arguments, _), took_ms) in STRATEGIES.iter().zip(&mut took_ms) {
            let took = beside(&mut load, rate, || reload(&reloader, arguments))?;
            took_ms.push(took.as_secs_f64() * 1e3);
            // The listeners of the outgoing workers, and so their last memory, go later.
            engine.worker_pids()?;
        }
    }
    for ((figure, _, target), took_ms) in STRATEGIES.iter().zip(&took_ms) {
        let line = Figure::alone(BENCH, figure, "ms", took_ms, Target::AtMost(*target));
        report.add(line.case(case.clone()));
    }

    let (mut peaks, mut settles) = (Vec::new(), Vec::new());
    for _ in 0..if settings.quick { 1 } else { 5 } {
        let (peak, settle) = beside(&mut load, rate, || memory(&engine, &reloader))?;
        peaks.push(peak);
        settles.push(settle.as_secs_f64());
    }
    let target = Target::AtMost(MEMORY_TARGET);
    let line = Figure::alone(BENCH, "memory_peak_extra_bytes", "B", &peaks, target);
    report.add(line.case(case.clone()));
    let line = Figure::alone(BENCH, "memory_settle_s", "s", &settles, Target::AtMost(1.0));
    report.add(line.case(case));
    if load.dropped() > 0 {
        bail!("{} connections were dropped", load.dropped());
    }
    load.close()?;
    engine.stop()?;
    socket_handoff(settings, rate, report)
}

/// The supervisor is replaced as well: with an engine of its own, because the process that was started
/// as its supervisor goes with the first of these reloads.
fn socket_handoff(settings: &Settings, rate: f64, report: &mut Report) -> Result<()> {
    let engine = Engine::start(Options { workers: WORKERS, ..Options::new(&settings.zdt) })?;
    let exchange = Exchange::echo(Some("/ws/echo"), 64, 1);
    let reloader = engine.reloader();
    let arguments = ["--strategy", "socket-handoff"];
    let measure = || -> Result<Vec<f64>> {
        let mut load = OpenLoop::connect(engine.address, exchange, CONNECTIONS, false)?;
        let mut took_ms = Vec::new();
        for _ in 0..settings.pairs() {
            let took = beside(&mut load, rate, || reload(&reloader, &arguments))?;
            took_ms.push(took.as_secs_f64() * 1e3);
        }
        if load.dropped() > 0 {
            bail!("{} connections were dropped", load.dropped());
        }
        load.close()?;
        Ok(took_ms)
    };
    let measured = measure();
    // Whoever is the supervisor by now.
    let stopped = engine.stop();
    let line = Figure::alone(BENCH, "socket_handoff_ms", "ms", &measured?, Target::AtMost(500.0));
    let case = format!("{CONNECTIONS} connections, {WORKERS} workers, {rate:.0} messages/s");
    report.add(line.case(case));
    stopped
}

/// Does something while the load goes on; it begins in the midst of it.
fn beside<T: Send>(
    load: &mut OpenLoop,
    rate: f64,
    action: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mut action, mut running) = (Some(action), None);
        let start = Instant::now();
        load.run(rate, |now| {
            if now - start < Duration::from_millis(100) {
                return Phase::Run;
            }
            if let Some(action) = action.take() {
                let finished = &finished;
                running = Some(scope.spawn(move || {
                    let result = action();
                    finished.store(true, Ordering::SeqCst);
                    result
                }));
            }
            if finished.load(Ordering::SeqCst) { Phase::Stop } else { Phase::Run }
        })?;
        match running.map(std::thread::ScopedJoinHandle::join) {
            Some(Ok(result)) => result,
            _ => bail!("what ran beside the load panicked"),
        }
    })
}

/// The time from the command to the verdict, as whoever types it has it.
fn reload(reloader: &Reloader, arguments: &[&str]) -> Result<Duration> {
    let (verdict, took) = reloader.reload_with(arguments, RELOAD_TIMEOUT)?;
    if verdict.migrated_connections < CONNECTIONS as u64 || verdict.lost_connections > 0 {
        bail!("not every connection has moved: {verdict:?}");
    }
    Ok(took)
}

/// PSS of the supervisor and all workers. A process that has just ended counts nothing.
fn pss(engine: &Engine) -> f64 {
    engine.pids().into_iter().filter_map(|pid| pss_bytes(pid).ok()).sum::<u64>() as f64
}

/// What a blue-green reload takes at its peak beyond the steady state, and how long after the verdict
/// that is given back.
fn memory(engine: &Engine, reloader: &Reloader) -> Result<(f64, Duration)> {
    engine.worker_pids()?;
    let steady = pss(engine);
    let reload = {
        let reloader = reloader.clone();
        std::thread::spawn(move || self::reload(&reloader, STRATEGIES[0].1))
    };
    let mut peak = steady;
    while !reload.is_finished() {
        peak = peak.max(pss(engine));
        std::thread::sleep(LOOK_EVERY);
    }
    match reload.join() {
        Ok(result) => result?,
        Err(_) => bail!("the reload panicked"),
    };
    let over = Instant::now();
    loop {
        let now = pss(engine);
        peak = peak.max(now);
        if now <= steady + STEADY_WITHIN {
            return Ok((peak - steady, over.elapsed()));
        }
        if over.elapsed() > SETTLE_TIMEOUT {
            bail!(
                "{now} bytes of memory instead of {steady}, {SETTLE_TIMEOUT:?} after the verdict"
            );
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
