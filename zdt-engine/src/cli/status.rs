//! `zdt status`.
//!
//! Must not know: where the figures come from.

use std::process::ExitCode;

use super::StatusArgs;
use super::client::Client;
use crate::supervisor::handle::{Reply, Request, Status};

pub(super) fn run(args: &StatusArgs) -> Result<ExitCode, String> {
    let mut client = Client::connect(&args.run_dir.path()?)?;
    match client.ask(&Request::Status)? {
        Reply::Status(status) if args.json => {
            println!("{}", serde_json::to_string(&status).map_err(|error| error.to_string())?);
        }
        Reply::Status(status) => print(&status),
        _ => return Err("the supervisor did not answer".to_owned()),
    }
    Ok(ExitCode::SUCCESS)
}

/// `name 3, other 4`.
fn listed(counts: &std::collections::BTreeMap<String, u64>) -> String {
    let counts: Vec<String> =
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    counts.join(", ")
}

fn print(status: &Status) {
    println!(
        "{}: generation {}, supervisor {} (zdt {}), up {:.0} s, {:.1} MB",
        status.status,
        status.generation,
        status.pid,
        status.version,
        status.uptime_seconds,
        status.memory_usage_mb
    );
    let addresses: Vec<String> =
        status.socket_stats.addresses.iter().map(ToString::to_string).collect();
    println!(
        "listening on {} ({} steering, {} sockets)",
        addresses.join(", "),
        status.socket_stats.steering,
        status.socket_stats.listeners
    );
    for problem in &status.problems {
        println!("problem: {problem}");
    }
    if let Some(progress) = &status.reload {
        println!(
            "reload {}: {}, {} moved, {} to go",
            progress.reload, progress.stage, progress.moved, progress.remaining
        );
    }
    for generation in &status.generations {
        let until = generation
            .drain_ms_left
            .map(|left| {
                format!(
                    " for another {:.0} s",
                    std::time::Duration::from_millis(left).as_secs_f64()
                )
            })
            .unwrap_or_default();
        println!(
            "generation {} {}{until}: {}",
            generation.number, generation.state, generation.executable
        );
        for (reason, count) in &generation.drain_reasons {
            println!("  {count} connections stayed behind: {reason}");
        }
        for id in &generation.workers {
            let Some(worker) = status.worker_stats.get(id) else { continue };
            println!(
                "  worker {id}: process {}, {}, {} connections, {} requests, {} messages, {:.1} MB{}",
                worker.figures.pid,
                worker.state,
                worker.figures.connections,
                worker.figures.requests,
                worker.figures.messages_received,
                worker.memory_usage_mb,
                if worker.answers { "" } else { " (does not answer)" }
            );
            let figures = &worker.figures;
            for (what, counts) in [("over", &figures.by_transport), ("speak", &figures.by_protocol)]
            {
                if !counts.is_empty() {
                    println!("    {what} {}", listed(counts));
                }
            }
            if !figures.draining.is_empty() {
                println!("    stay here: {}", listed(&figures.draining));
            }
            if figures.tls_handshakes > 0 || !figures.tls_failures.is_empty() {
                println!(
                    "    {} TLS handshakes; failed: {}",
                    figures.tls_handshakes,
                    if figures.tls_failures.is_empty() {
                        "none".to_owned()
                    } else {
                        listed(&figures.tls_failures)
                    }
                );
            }
        }
    }
    let confinement = &status.confinement;
    println!(
        "limits of a worker: memory {}, CPU {}, descriptors {}; system calls: {}",
        confinement.memory, confinement.cpu, confinement.open_files, confinement.seccomp
    );
    if let Some(why) = &confinement.no_cgroup_because {
        println!("  no control groups: {why}");
    }
    let totals = status.totals;
    println!(
        "{} reloads, {} failed; {} crashes, {} restarts; {} connections migrated, {} lost",
        totals.reloads,
        totals.failed_reloads,
        totals.crashes,
        totals.respawns,
        totals.migrated_connections,
        totals.lost_connections
    );
}
