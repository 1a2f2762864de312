//! `memory`: bytes that an idle WebSocket costs a worker, after one echoed message and one reload; over HTTP/2 with a
//! connection for each.
//!
//! Must not know: what the worker keeps.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Settings;
use crate::engine::Engine;
use crate::figures::{Figure, Report, Target};
use crate::load::Exchange;
use crate::load::open::OpenLoop;
use crate::process::pss_bytes;

/// PSS of the only worker.
fn worker_pss(engine: &Engine) -> Result<f64> {
    let pss: Result<Vec<u64>> = engine.worker_pids()?.into_iter().map(pss_bytes).collect();
    Ok(pss?.into_iter().sum::<u64>() as f64)
}

/// Runs it.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let connections = settings.connections();
    let mut samples = Vec::new();
    for _ in 0..if settings.quick { 1 } else { 3 } {
        let engine = settings.engine(None)?;
        let timeout = Duration::from_secs(60);
        // Without connections, after a reload as well.
        let reloader = engine.reloader();
        reloader.reload(timeout)?;
        let empty = worker_pss(&engine)?;
        let echo = Exchange::echo(Some("/ws/echo"), 64, 1);
        let mut load = OpenLoop::connect(engine.address, echo, connections, settings.h2)?;
        load.echo_once()?;
        let reload = std::thread::spawn(move || reloader.reload(timeout));
        load.idle_while(|| !reload.is_finished())?;
        match reload.join() {
            Ok(result) => result?,
            Err(_) => bail!("the reload panicked"),
        };
        let full = worker_pss(&engine)?;
        report.note(&format!("PSS {empty} without, {full} with {connections} connections"));
        samples.push((full - empty) / connections as f64);
        load.echo_once()?;
        if load.dropped() > 0 {
            bail!("{} connections were dropped", load.dropped());
        }
        load.close()?;
        engine.stop()?;
    }
    let (name, most) = match (settings.tls, settings.h2) {
        (false, false) => ("bytes_per_idle_websocket", 1024.0),
        (true, false) => ("bytes_per_idle_tls_websocket", 4096.0),
        (false, true) => ("bytes_per_idle_h2_websocket", 6144.0),
        (true, true) => ("bytes_per_idle_tls_h2_websocket", 6144.0),
    };
    report.add(Figure::alone("memory", name, "B", &samples, Target::AtMost(most)));
    Ok(())
}
