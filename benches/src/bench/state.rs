//! `state`: save and restore of one connection, with envelope, checksum and session, in pooled
//! buffers, beside a memcpy of the same bytes twice.
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
        let mut round_trip = zdt_engine::worker::bench_roundtrip(buffered_bytes);
        let length = round_trip.run();
        let from = vec![7u8; length];
        let (mut once, mut twice) = (vec![0u8; length], vec![0u8; length]);
        let mut pairs = Vec::new();
        // The first pair warms up.
        for _ in 0..=settings.pairs() {
            let own = rate(window, || {
                black_box(round_trip.run());
            });
            let reference = rate(window, || {
                once.copy_from_slice(black_box(&from));
                twice.copy_from_slice(black_box(&once));
                black_box(&mut twice);
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
