//! `queue`: typical requests of mixed priorities into the request queue and out again, beside a copy of
//! the same bytes into an arena.
//!
//! Rates are per second of the thread's own CPU time: the queue is one core's work.
//!
//! Must not know: how the queue keeps requests.

use std::hint::black_box;

use anyhow::Result;
use zdt_engine::queue::{Priority, Request, RequestQueue, Scope, Settings as QueueSettings};

use super::Settings;
use crate::figures::{Figure, Report, Target};
use crate::process::{Pinned, server_and_client_cpus};

const BENCH: &str = "queue";

/// Held at a time: about 6 MB, as much as a default queue takes.
const REQUESTS: usize = 10_000;

/// Requests of the ordering figure.
const ORDERED: usize = 5_000;

/// Head and body of the typical request: 600 bytes.
const HEAD_BYTES: usize = 440;
const BODY_BYTES: usize = 160;

fn cpu_s() -> Result<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

fn queue() -> RequestQueue {
    let mut queue =
        RequestQueue::new(QueueSettings { max_bytes: 64 << 20, ..QueueSettings::default() });
    queue.start_buffering();
    queue
}

fn fill(queue: &mut RequestQueue, count: usize, head: &[u8], body: &[u8]) {
    for number in 0..count as u64 {
        // Scattered over all levels.
        let priority = Priority::new(number.wrapping_mul(0x9e37_79b9) >> 7 & 7);
        let request =
            Request { parts: [black_box(head), body], priority, tag: number, ..Request::new(&[]) };
        queue.hold(number >> 8, request).expect("the bounds are far away");
    }
}

/// Runs all figures.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let _pinned = Pinned::to(server_and_client_cpus().0)?;
    let (head, body) = (vec![b'h'; HEAD_BYTES], vec![b'b'; BODY_BYTES]);
    let rounds = if settings.quick { 5 } else { 60 };
    let mut queue = queue();
    let mut arena = vec![0u8; REQUESTS * (HEAD_BYTES + BODY_BYTES)];
    let mut out = Vec::new();
    let (mut held, mut replayed) = (Vec::new(), Vec::new());
    // The first pair warms up.
    for _ in 0..=settings.pairs() {
        let (mut hold_s, mut replay_s, mut copy_s) = (0.0, 0.0, 0.0);
        for _ in 0..rounds {
            let start = cpu_s()?;
            fill(&mut queue, REQUESTS, &head, &body);
            let filled = cpu_s()?;
            while queue.take(100, Scope::All, &mut out).is_some() {
                black_box(&out);
                out.clear();
            }
            let emptied = cpu_s()?;
            for place in arena.chunks_exact_mut(HEAD_BYTES + BODY_BYTES) {
                place[..HEAD_BYTES].copy_from_slice(black_box(&head));
                place[HEAD_BYTES..].copy_from_slice(black_box(&body));
            }
            black_box(&arena);
            copy_s += cpu_s()? - emptied;
            hold_s += filled - start;
            replay_s += emptied - filled;
        }
        let requests = (REQUESTS * rounds) as f64;
        held.push((requests / hold_s, requests / copy_s));
        replayed.push((requests / replay_s, requests / copy_s));
    }
    let case = format!("{} B, 8 priorities", HEAD_BYTES + BODY_BYTES);
    for (name, pairs) in [("held_per_s", &held), ("replayed_per_s", &replayed)] {
        let target = Target::Both(5e6, 0.0);
        let figure = Figure::paired(BENCH, name, "1/s", "copy into an arena", &pairs[1..], target);
        report.add(figure.case(&case));
    }

    fill(&mut queue, REQUESTS, &head, &body);
    let bytes = REQUESTS * (HEAD_BYTES + BODY_BYTES);
    let bounded = (queue.memory() - bytes) as f64 / REQUESTS as f64;
    let figure =
        Figure::alone(BENCH, "overhead_bytes_per_request", "B", &[bounded], Target::AtMost(200.0));
    report.add(figure.case(&case));

    let mut times = Vec::new();
    for _ in 0..=settings.pairs() {
        queue.flush();
        fill(&mut queue, ORDERED, &head, &body);
        let start = cpu_s()?;
        let mut last = Priority::HIGHEST;
        for held in queue.requests(100, Scope::All) {
            anyhow::ensure!(held.priority <= last, "out of order");
            last = held.priority;
        }
        times.push((cpu_s()? - start) * 1e3);
    }
    let target = Target::AtMost(2.0);
    report.add(Figure::alone(BENCH, "priority_order_5000_ms", "ms", &times[1..], target));
    Ok(())
}
