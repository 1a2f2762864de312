//! `zdt stop`: the supervisor and its workers, or workers that a dead supervisor left behind.
//!
//! Must not know: how connections drain.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::StopArgs;
use super::client::{Client, PATIENCE, process_state, silence};
use crate::control::{PROTOCOL_VERSIONS, ToWorker};
use crate::supervisor::handle::{Reply, Request};
use crate::supervisor::{connect_to_worker, workers_in};
use crate::{fdpass, sys};

/// For workers without a supervisor, whose configuration nobody knows.
const ORPHAN_DRAIN_MS: u64 = 30_000;

pub(super) fn run(args: &StopArgs) -> Result<ExitCode, String> {
    let begun = Instant::now();
    let run_dir = args.run_dir.path()?;
    let workers = match Client::connect(&run_dir) {
        Ok(mut client) => stop_supervisor(&mut client, args.now)?,
        Err(nobody) => match stop_orphans(&run_dir, args.now)? {
            0 => return Err(nobody),
            stopped => stopped,
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

fn stop_supervisor(client: &mut Client, now: bool) -> Result<u32, String> {
    // Before the request, while it is certain who has this number.
    let process = sys::pidfd_open(client.pid)
        .map_err(|error| format!("the supervisor's process {}: {error}", client.pid))?;
    let workers = match client.ask(&Request::Stop { now })? {
        Reply::Stopping { workers } => workers,
        _ => return Err("the supervisor did not answer".to_owned()),
    };
    // For as long as the configured drain lasts; but not for one that cannot go on.
    while !is_readable(&process, PATIENCE)? {
        if matches!(process_state(client.pid), Some('T' | 't')) {
            return Err(silence(client.pid));
        }
    }
    Ok(workers)
}

/// Workers serve on when their supervisor is killed; this ends them without a new one.
fn stop_orphans(run_dir: &Path, now: bool) -> Result<u32, String> {
    let Ok(workers) = workers_in(run_dir) else { return Ok(0) };
    let mut links: Vec<OwnedFd> = Vec::new();
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
        links.push(link);
    }
    let patience = Duration::from_millis(ORPHAN_DRAIN_MS + 5_000);
    let deadline = Instant::now() + patience;
    for link in &links {
        drain_link(link, deadline)?;
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
    match is_readable(descriptor, left)? {
        true => Ok(()),
        false => Err("workers have not ended in time; try --now".to_owned()),
    }
}

/// Waits that long at most; true once there is something to read.
fn is_readable(descriptor: &OwnedFd, patience: Duration) -> Result<bool, String> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(format!("cannot wait for the end: {error}")),
        }
    }
}
