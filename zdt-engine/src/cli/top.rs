//! `zdt top`: workers and rates, again and again.
//!
//! Must not know: where the figures come from.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::TopArgs;
use super::client::Client;
use crate::supervisor::handle::{Reply, Request, Status, WorkerStats};

/// One look.
#[derive(Debug, Serialize)]
struct Snapshot {
    status: String,
    generation: u32,
    connections: u64,
    /// Over all workers, the ended ones included.
    rates: Rates,
    workers: BTreeMap<u32, Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    generation: u32,
    state: String,
    pid: u32,
    connections: u64,
    memory_mb: f64,
    answers: bool,
    /// Since the worker was first seen, or since the last look.
    rates: Rates,
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Rates {
    accepted: f64,
    requests: f64,
    messages: f64,
    received_bytes: f64,
    sent_bytes: f64,
}

/// Counters that rates are made of.
type Counts = [u64; 5];

impl Rates {
    fn between(before: Counts, now: Counts, time: Duration) -> Self {
        let seconds = time.as_secs_f64().max(1e-3);
        let rate = |at: usize| (now[at].saturating_sub(before[at])) as f64 / seconds;
        Self {
            accepted: rate(0),
            requests: rate(1),
            messages: rate(2),
            received_bytes: rate(3),
            sent_bytes: rate(4),
        }
    }
}

fn counts_of(worker: &WorkerStats) -> Counts {
    let of = &worker.figures;
    [of.accepted, of.requests, of.messages_received, of.bytes_received, of.bytes_sent]
}

fn counts_of_all(status: &Status) -> Counts {
    let of = &status.counters;
    [of.accepted, of.requests, of.messages_received, of.bytes_received, of.bytes_sent]
}

pub(super) fn run(args: &TopArgs) -> Result<ExitCode, String> {
    let run_dir = args.run_dir.path()?;
    let interval = Duration::from_millis(args.interval_ms.max(10));
    let mut before: Option<(Status, Instant)> = None;
    let mut shown = 0;
    let redraws = !args.json && std::io::stdout().is_terminal();
    loop {
        // Anew each time: the supervisor may be another one by now.
        let status = match Client::connect(&run_dir)?.ask(&Request::Status)? {
            Reply::Status(status) => *status,
            _ => return Err("the supervisor answered something else".to_owned()),
        };
        let now = Instant::now();
        if let Some((earlier, then)) = &before {
            let snapshot = compare(earlier, &status, now.duration_since(*then));
            let text = if args.json {
                serde_json::to_string(&snapshot).map_err(|error| error.to_string())? + "\n"
            } else {
                table(&snapshot, redraws)
            };
            // Whoever has seen enough closes the pipe.
            let mut out = std::io::stdout().lock();
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Ok(ExitCode::SUCCESS);
            }
            shown += 1;
            if args.count.is_some_and(|count| shown >= count) {
                return Ok(ExitCode::SUCCESS);
            }
        }
        before = Some((status, now));
        std::thread::sleep(interval);
    }
}

fn compare(before: &Status, now: &Status, time: Duration) -> Snapshot {
    let row = |(&id, worker): (&u32, &WorkerStats)| {
        let earlier = before.worker_stats.get(&id).map_or([0; 5], counts_of);
        let row = Row {
            generation: worker.generation,
            state: worker.state.clone(),
            pid: worker.figures.pid,
            connections: worker.figures.connections,
            memory_mb: worker.memory_usage_mb,
            answers: worker.answers,
            rates: Rates::between(earlier, counts_of(worker), time),
        };
        (id, row)
    };
    Snapshot {
        status: now.status.clone(),
        generation: now.generation,
        connections: now.active_connections,
        rates: Rates::between(counts_of_all(before), counts_of_all(now), time),
        workers: now.worker_stats.iter().map(row).collect(),
    }
}

fn table(snapshot: &Snapshot, redraws: bool) -> String {
    // Home, and clear what is below: nothing flickers.
    let mut text = if redraws { "\x1b[H\x1b[J".to_owned() } else { String::new() };
    let rates = |rates: &Rates| {
        format!(
            "{:>9.0} {:>10.0} {:>10.0} {:>9.2} {:>9.2}",
            rates.accepted,
            rates.requests,
            rates.messages,
            rates.received_bytes / 1e6,
            rates.sent_bytes / 1e6
        )
    };
    text.push_str(&format!(
        "{}, generation {}, {} connections\n",
        snapshot.status, snapshot.generation, snapshot.connections
    ));
    text.push_str(
        "worker  gen  state      process  connections  memory MB  accepts/s requests/s messages/s   in MB/s  out MB/s\n",
    );
    for (id, row) in &snapshot.workers {
        text.push_str(&format!(
            "{id:>6} {:>4}  {:<9} {:>8}  {:>11}  {:>9.1}  {}{}\n",
            row.generation,
            row.state,
            row.pid,
            row.connections,
            row.memory_mb,
            rates(&row.rates),
            if row.answers { "" } else { "  (does not answer)" }
        ));
    }
    text.push_str(&format!("{:>6} {:>49}  {}\n", "all", "", rates(&snapshot.rates)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let rates = Rates::between([1, 2, 3, 4, 10], [3, 2, 9, 5, 0], Duration::from_millis(500));
        assert_eq!((rates.accepted, rates.requests, rates.messages), (4.0, 0.0, 12.0));
        assert_eq!(rates.sent_bytes, 0.0, "a worker in whose place another one is");
        assert!(Rates::between([0; 5], [1; 5], Duration::ZERO).accepted.is_finite());
    }
}
