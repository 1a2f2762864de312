//! `zdt reload` and `zdt rollback`.
//!
//! Must not know: how a reload is done.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use super::client::Client;
use super::{ReloadArgs, RollbackArgs};
use crate::supervisor::handle::{Progress, ReloadRequest, Reply, Request};
use crate::supervisor::reload::Verdict;

pub(super) fn run(args: &ReloadArgs) -> Result<ExitCode, String> {
    let mut client = Client::connect(&args.run_dir.path()?)?;
    let (no_rollback, strategy) = (args.no_rollback, args.strategy);
    client.send(&Request::Reload(ReloadRequest { no_rollback, strategy, canary: None }))?;
    if args.no_wait {
        if args.json {
            println!("{}", serde_json::json!({ "reload_requested": true }));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let verdict = await_verdict(&mut client, args.json)?;
    print_verdict(&verdict, args.json)?;
    Ok(if verdict.reload_successful { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn roll_back(args: &RollbackArgs) -> Result<ExitCode, String> {
    let mut client = Client::connect(&args.run_dir.path()?)?;
    client.send(&Request::Rollback)?;
    let verdict = await_verdict(&mut client, args.json)?;
    print_verdict(&verdict, args.json)?;
    Ok(if verdict.rolled_back() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn await_verdict(client: &mut Client, json: bool) -> Result<Box<Verdict>, String> {
    let show = std::io::stderr().is_terminal() && !json;
    loop {
        match client.next_when_it_comes()? {
            Some(Reply::Progress(progress)) if show => show_progress(&progress),
            Some(Reply::Verdict(verdict)) => {
                if show {
                    eprint!("\r\x1b[K");
                }
                return Ok(verdict);
            }
            Some(Reply::Error { message }) => return Err(message),
            Some(_) => {}
            None => {
                return Err("the supervisor ended before the reload did; its workers serve on, \
                            and the next `zdt serve` takes over"
                    .to_owned());
            }
        }
    }
}

fn show_progress(progress: &Progress) {
    let stage = progress.stage.replace('_', " ");
    let mut line = format!("\r\x1b[Kreload {}: {stage}", progress.reload);
    if progress.moved + progress.remaining > 0 {
        line.push_str(&format!(", {} moved, {} to go", progress.moved, progress.remaining));
    }
    // A progress line that cannot be shown is no reason to fail.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn print_verdict(verdict: &Verdict, json: bool) -> Result<(), String> {
    if json {
        println!("{}", serde_json::to_string(verdict).map_err(|error| error.to_string())?);
        return Ok(());
    }
    if verdict.reload_successful {
        println!(
            "reload {} succeeded in {:.0} ms: generation {} serves with {} workers",
            verdict.reload, verdict.duration_ms, verdict.generation, verdict.workers
        );
    } else {
        println!(
            "reload {} failed after {:.0} ms ({}): {}",
            verdict.reload,
            verdict.duration_ms,
            verdict.outcome.replace('_', " "),
            verdict.error.as_deref().unwrap_or("no reason known")
        );
        println!("generation {} serves on", verdict.generation);
    }
    println!(
        "connections: {} migrated, {} returned, {} draining, {} lost",
        verdict.migrated_connections,
        verdict.returned_connections,
        verdict.drained_connections,
        verdict.lost_connections
    );
    for (reason, count) in &verdict.drain_reasons {
        println!("  {count} stay behind: {reason}");
    }
    if verdict.migrated_connections + verdict.returned_connections > 0 {
        let blackout = verdict.blackout_us;
        println!(
            "not served for: {} us (median), {} us (99 %), {} us (longest)",
            blackout.p50, blackout.p99, blackout.max
        );
    }
    for setting in &verdict.restart_required {
        println!("not in force before a restart of the supervisor: {setting}");
    }
    for warning in &verdict.warnings {
        println!("warning: {warning}");
    }
    Ok(())
}
