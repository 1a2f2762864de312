//! `handoff`: idle connections a second from blue to green beside the bare transfer, blackouts, round trips of
//! busy connections during a reload, and what options and protocols cost.
//!
//! Must not know: how connections are handed off.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Settings, variants};
use crate::engine::{Reloader, Verdict};
use crate::figures::{Figure, Report, Target};
use crate::load::open::{OpenLoop, Phase};
use crate::load::{Exchange, closed};

const BENCH: &str = "handoff";
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Replies are recorded until so long after the verdict.
const AFTERMATH: Duration = Duration::from_millis(50);

/// Runs all parts; over TLS or HTTP/2, those beside plain HTTP/1.1.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    if settings.tls || settings.h2 {
        return variants::protocols(settings, report);
    }
    idle(settings, report).context("with idle connections")?;
    busy(settings, report).context("with busy connections")?;
    variants::options(settings, report).context("with each option")
}

/// Reloads in the background while the load goes on.
pub(super) fn reload_beside(load: &mut OpenLoop, reloader: &Reloader) -> Result<Verdict> {
    let reloader = reloader.clone();
    let reload = std::thread::spawn(move || reloader.reload(RELOAD_TIMEOUT));
    load.idle_while(|| !reload.is_finished())?;
    match reload.join() {
        Ok(result) => Ok(result?.0),
        Err(_) => bail!("the reload panicked"),
    }
}

/// The bare transfer, in processes of its own.
fn bare(connections: usize) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["peer-handoff", "--measure", &connections.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("the bare handoff said {text:?}"))
}

fn idle(settings: &Settings, report: &mut Report) -> Result<()> {
    let connections = settings.connections();
    let engine = settings.engine(None)?;
    let reloader = engine.reloader();
    let mut load = OpenLoop::connect(
        engine.address,
        Exchange::echo(Some("/ws/echo"), 64, 1),
        connections,
        false,
    )?;
    load.echo_once()?;
    let (mut pairs, mut p99, mut max, mut p50, mut reload_ms) =
        (Vec::new(), Vec::new(), 0f64, Vec::new(), Vec::new());
    for _ in 0..settings.pairs() {
        let verdict = reload_beside(&mut load, &reloader)?;
        load.echo_once().context("after a reload")?;
        if verdict.migrated_connections < connections as u64 || load.dropped() > 0 {
            bail!("{} were dropped: {verdict:?}", load.dropped());
        }
        let handoff_ms = verdict.handoff_ms.unwrap_or_else(|| {
            report.note("the verdict has no handoff_ms: the whole reload counts");
            verdict.duration_ms
        });
        let rate = verdict.migrated_connections as f64 / handoff_ms * 1e3;
        pairs.push((rate, bare(connections)?));
        p50.push(verdict.blackout_us.p50);
        p99.push(verdict.blackout_us.p99);
        max = max.max(verdict.blackout_us.max);
        reload_ms.push(verdict.duration_ms);
    }
    load.close()?;
    engine.stop()?;
    let case = format!("{connections} idle WebSockets");
    let mut add = |figure: Figure| report.add(figure.case(case.clone()));
    let target = Target::Both(120_000.0, 0.6);
    add(Figure::paired(BENCH, "connections_per_s", "1/s", "bare transfer", &pairs, target));
    add(Figure::alone(BENCH, "blackout_p50_us", "us", &p50, Target::None));
    add(Figure::alone(BENCH, "blackout_p99_us", "us", &p99, Target::AtMost(2_000.0)));
    // The worst of all reloads, not the median of the worst.
    add(Figure::alone(BENCH, "blackout_max_us", "us", &[max], Target::AtMost(20_000.0)));
    add(Figure::alone(BENCH, "reload_ms", "ms", &reload_ms, Target::None));
    Ok(())
}

fn busy(settings: &Settings, report: &mut Report) -> Result<()> {
    const CONNECTIONS: usize = 500;
    let engine = settings.engine(None)?;
    let exchange = Exchange::echo(Some("/ws/echo"), 64, 1);
    let window = Duration::from_millis(if settings.quick { 200 } else { 1000 });
    let sample =
        closed::run(engine.address, &exchange, CONNECTIONS, window / 4, window, &engine.pids())?;
    let rate = sample.per_s() / 2.0;
    report.note(&format!("closed loop: {:.0} messages/s; open loop at half of it", sample.per_s()));
    let mut load = OpenLoop::connect(engine.address, exchange, CONNECTIONS, false)?;
    let (mut p50, mut p999, mut max, mut quiet_p999) = (Vec::new(), Vec::new(), 0u64, Vec::new());
    for _ in 0..settings.pairs() {
        // The same load without a reload, to know what the machine does on its own.
        let start = Instant::now();
        let quiet = load.run(rate, |now| match now - start {
            past if past < Duration::from_millis(100) => Phase::Run,
            past if past < Duration::from_millis(400) => Phase::Record,
            _ => Phase::Stop,
        })?;
        quiet_p999.push(quiet.value_at_quantile(0.999) as f64);
        let finished = AtomicBool::new(false);
        let reloader = engine.reloader();
        let histogram = std::thread::scope(|scope| -> Result<_> {
            let (mut begun, mut reload, mut ended) = (None, None, None);
            let start = Instant::now();
            let histogram = load.run(rate, |now| {
                if now - start < Duration::from_millis(100) {
                    return Phase::Run;
                }
                if begun.is_none() {
                    begun = Some(now);
                    reload = Some(scope.spawn(|| {
                        let result = reloader.reload(RELOAD_TIMEOUT);
                        finished.store(true, Ordering::SeqCst);
                        result
                    }));
                }
                if ended.is_none() && finished.load(Ordering::SeqCst) {
                    ended = Some(now);
                }
                match ended {
                    Some(at) if now - at >= AFTERMATH => Phase::Stop,
                    _ => Phase::Record,
                }
            })?;
            match reload.map(|reload| reload.join()) {
                Some(Ok(result)) => result.map(|_| histogram),
                _ => bail!("the reload panicked"),
            }
        })?;
        p50.push(histogram.value_at_quantile(0.5) as f64);
        p999.push(histogram.value_at_quantile(0.999) as f64);
        max = max.max(histogram.max());
        if load.dropped() > 0 {
            bail!("{} connections were dropped", load.dropped());
        }
    }
    load.close()?;
    engine.stop()?;
    let case = format!("{CONNECTIONS} connections, {rate:.0} messages/s");
    let mut add = |figure: Figure| report.add(figure.case(case.clone()));
    add(Figure::alone(BENCH, "rtt_p50_us", "us", &p50, Target::None));
    add(Figure::alone(BENCH, "rtt_p999_us", "us", &p999, Target::AtMost(5_000.0)));
    add(Figure::alone(BENCH, "rtt_max_us", "us", &[max as f64], Target::AtMost(30_000.0)));
    add(Figure::alone(BENCH, "rtt_p999_us without reload", "us", &quiet_p999, Target::None));
    Ok(())
}
