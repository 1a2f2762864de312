//! `state`: save and restore of connections, with envelope, checksum and session, through one pooled
//! buffer, beside a memcpy of the same bytes twice.
//!
//! Both go round [`CONNECTIONS`] connections, as a handoff does: one that is saved again and again
//! would sit in the innermost cache, and so would its copy.
//!
//! Must not know: what a record holds.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Settings;
use crate::figures::{Figure, Report, Target};
use crate::process::{Pinned, server_and_client_cpus};

const BENCH: &str = "state";
const NAME: &str = "roundtrips_per_s";

/// With 4 KiB each, about the 4 MiB that copies are usually measured over.
const CONNECTIONS: usize = 1_000;

/// Calls a second, measured over about `window`.
fn rate(window: Duration, mut call: impl FnMut()) -> f64 {
    let (start, mut calls) = (Instant::now(), 0u64);
    while start.elapsed() < window {
        (0..256).for_each(|_| call());
        calls += 256;
    }
    calls as f64 / start.elapsed().as_secs_f64()
}

/// Runs both sizes.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let _pinned = Pinned::to(server_and_client_cpus().0)?;
    let window = Duration::from_millis(if settings.quick { 20 } else { 100 });
    for (buffered_bytes, target) in
        [(0, Target::Both(2_000_000.0, 0.0)), (4096, Target::Ratio(0.4))]
    {
        let mut connections: Vec<_> =
            (0..CONNECTIONS).map(|_| zdt_engine::worker::bench_roundtrip(buffered_bytes)).collect();
        let mut record = Vec::new();
        let length = connections[0].run(&mut record);
        let mut copies: Vec<_> = (0..CONNECTIONS).map(|_| vec![7u8; length]).collect();
        let mut once = vec![0u8; length];
        let (mut turn, mut copy_turn) = (0, 0);
        let mut pairs = Vec::new();
        // The first pair warms up.
        for _ in 0..=settings.pairs() {
            let own = rate(window, || {
                black_box(connections[turn % CONNECTIONS].run(&mut record));
                turn += 1;
            });
            let reference = rate(window, || {
                let copy = &mut copies[copy_turn % CONNECTIONS];
                copy_turn += 1;
                once.copy_from_slice(black_box(copy));
                copy.copy_from_slice(black_box(&once));
                black_box(copy);
            });
            pairs.push((own, reference));
        }
        let pairs = &pairs[1..];
        let figure = Figure::paired(BENCH, NAME, "1/s", "memcpy twice", pairs, target);
        let kind = if buffered_bytes == 0 { "idle WebSocket" } else { "with 4 KiB of buffer" };
        report.add(figure.case(format!("{kind}, {length} bytes")));
    }
    Ok(())
}
