//! `zdt stop`: the supervisor and its workers, or workers that a dead supervisor left behind.
//!
//! Must not know: how connections drain.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::StopArgs;
use super::client::Client;
use crate::client::is_readable;
use crate::control::{PROTOCOL_VERSIONS, ToWorker};
use crate::fdpass;
use crate::supervisor::{connect_to_worker, end_orphaned_applications, workers_in};

/// For workers without a supervisor, whose configuration nobody knows.
const ORPHAN_DRAIN_MS: u64 = 30_000;
/// For their application, which nobody asks anything any more then.
const ORPHAN_APPLICATION: Duration = Duration::from_secs(10);

pub(super) fn run(args: &StopArgs) -> Result<ExitCode, String> {
    let begun = Instant::now();
    let run_dir = args.run_dir.path()?;
    let workers = match Client::connect(&run_dir) {
        Ok(mut client) => client.stop(args.now)?,
        Err(nobody) => match stop_orphans(&run_dir, args.now)? {
            (0, 0) => return Err(nobody.into()),
            (workers, _) => workers,
        },
    };
    let duration_ms = begun.elapsed().as_secs_f64() * 1_000.0;
    if args.json {
        let result = serde_json::json!({
            "stopped": true, "workers": workers, "duration_ms": duration_ms,
        });
        println!("{result}");
    } else {
        println!("stopped with {workers} workers in {duration_ms:.0} ms");
    }
    Ok(ExitCode::SUCCESS)
}

/// Workers serve on when their supervisor is killed, and so does the application behind the gateway; this ends them
/// without a new one. How many there were of both.
fn stop_orphans(run_dir: &Path, now: bool) -> Result<(u32, usize), String> {
    let workers = stop_workers(run_dir, now)?;
    let patience = if now { Duration::from_secs(2) } else { ORPHAN_APPLICATION };
    Ok((workers, end_orphaned_applications(run_dir, patience)))
}

fn stop_workers(run_dir: &Path, now: bool) -> Result<u32, String> {
    let Ok(workers) = workers_in(run_dir) else { return Ok(0) };
    let mut links: Vec<(u32, OwnedFd)> = Vec::new();
    for worker in workers {
        let Ok(link) = connect_to_worker(run_dir, worker) else { continue };
        let hello = ToWorker::Hello(crate::control::Hello {
            protocol: PROTOCOL_VERSIONS,
            state_reads: crate::state::FORMAT_READS,
            state_writes: crate::state::FORMAT_WRITES,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        });
        let end =
            if now { ToWorker::Exit } else { ToWorker::Drain { timeout_ms: ORPHAN_DRAIN_MS } };
        for message in [hello, ToWorker::Adopt, end] {
            let bytes = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
            fdpass::send(link.as_fd(), &[IoSlice::new(&bytes)], &[])
                .map_err(|error| format!("worker {worker}: {error}"))?;
        }
        links.push((worker, link));
    }
    let patience = Duration::from_millis(ORPHAN_DRAIN_MS + 5_000);
    let deadline = Instant::now() + patience;
    for (worker, link) in &links {
        drain_link(link, deadline)?;
        // Nobody is behind it any more, though the process may take a moment to be gone; whoever looks next finds nobody.
        let _ = std::fs::remove_file(run_dir.join(format!("worker-{worker}.sock")));
    }
    u32::try_from(links.len()).map_err(|error| error.to_string())
}

/// Reads, and ignores, what a worker says until it is gone.
fn drain_link(link: &OwnedFd, deadline: Instant) -> Result<(), String> {
    let mut buffer = vec![0; crate::control::MAX_MESSAGE_BYTES];
    loop {
        wait_for(link, deadline)?;
        match fdpass::receive(link.as_fd(), &mut buffer, &mut Vec::new()) {
            Ok(received) if received.bytes == 0 => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Ok(()),
        }
    }
}

fn wait_for(descriptor: &OwnedFd, deadline: Instant) -> Result<(), String> {
    let left = deadline.saturating_duration_since(Instant::now());
    match is_readable(descriptor, left).map_err(|error| error.to_string())? {
        true => Ok(()),
        false => Err("workers have not ended in time; try --now".to_owned()),
    }
}
