//! `zdt reload` and `zdt rollback`.
//!
//! Must not know: how a reload is done.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use super::client::Client;
use super::{ReloadArgs, RollbackArgs};
use crate::supervisor::handle::{CanaryRequest, Progress, ReloadRequest, Reply, Request};
use crate::supervisor::reload::Verdict;

pub(super) fn run(args: &ReloadArgs) -> Result<ExitCode, String> {
    if args.app {
        return super::gateway::reload_app(args);
    }
    let mut client = Client::connect(&args.run_dir.path()?)?;
    let (no_rollback, strategy) = (args.no_rollback, args.strategy);
    let for_ms = u64::try_from(args.watch.as_millis()).unwrap_or(u64::MAX);
    let canary = args.canary.map(|permille| CanaryRequest { permille, for_ms });
    client.send(&Request::Reload(ReloadRequest { no_rollback, strategy, canary }))?;
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
    if let Some(canary) = &verdict.canary {
        for (name, side) in [("the canary", canary.green), ("the old workers", canary.blue)] {
            if side.requests == 0 {
                println!("{name}: no requests or messages");
                continue;
            }
            println!(
                "{name}: {} requests and messages, {} failed, under {} us (99 %)",
                side.requests, side.errors, side.p99_us
            );
        }
    }
    for warning in &verdict.warnings {
        println!("warning: {warning}");
    }
    Ok(())
}

/// A number with a unit, `ms`, `s` or `m`, up to a day; without one it is seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|one: char| one.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        _ => return Err("expected a time such as 30s, 500ms or 2m".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "expected a time such as 30s, 500ms or 2m".to_owned())?;
    let ms = number.saturating_mul(unit_ms);
    if ms > 86_400_000 {
        return Err("a day at most".to_owned());
    }
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let ms = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(ms("30s"), Ok(30_000));
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("2m"), Ok(120_000));
        assert_eq!(ms("7"), Ok(7_000));
        for wrong in ["", "s", "-1s", "1h", "2d", "99999999999999999999s", "25000m"] {
            assert!(ms(wrong).is_err(), "{wrong}");
        }
    }
}
