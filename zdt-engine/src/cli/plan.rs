//! `zdt test-migration` and `zdt plan`: what a reload would do, without doing it.
//!
//! Must not know: how it is found out.

use std::process::ExitCode;

use super::client::Client;
use super::{PlanArgs, TestMigrationArgs};
use crate::supervisor::handle::{Plan, Reply, Request, TestMigration};

pub(super) fn test_migration(args: &TestMigrationArgs) -> Result<ExitCode, String> {
    let mut client = Client::connect(&args.run_dir.path()?)?;
    let result = rehearse(&mut client)?;
    if args.json {
        println!("{}", serde_json::to_string(&result).map_err(|error| error.to_string())?);
    } else {
        print_test(&result);
    }
    Ok(if result.test_successful { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn plan(args: &PlanArgs) -> Result<ExitCode, String> {
    let mut client = Client::connect(&args.run_dir.path()?)?;
    let plan = match client.ask(&Request::Plan)? {
        Reply::Plan(plan) => plan,
        _ => return Err("the supervisor did not answer".to_owned()),
    };
    let test = rehearse(&mut client)?;
    if args.json {
        let mut all = serde_json::to_value(&plan).map_err(|error| error.to_string())?;
        all["test_migration"] = serde_json::to_value(&test).map_err(|error| error.to_string())?;
        println!("{all}");
    } else {
        print_plan(&plan);
        print_test(&test);
    }
    Ok(if plan.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rehearse(client: &mut Client) -> Result<TestMigration, String> {
    client.send(&Request::TestMigration)?;
    match client.next_when_it_comes()? {
        Some(Reply::TestMigration(result)) => Ok(*result),
        _ => Err("the supervisor did not answer".to_owned()),
    }
}

fn print_plan(plan: &Plan) {
    if plan.ready {
        println!(
            "a reload would replace generation {} ({} workers) by {} ({} workers), {}",
            plan.generation, plan.workers, plan.next_generation, plan.next_workers, plan.strategy
        );
    } else {
        println!("a reload would not begin, or not at once:");
        for problem in &plan.problems {
            println!("  {problem}");
        }
    }
    let changed = if plan.executable_changed { "changed since" } else { "the same as now" };
    if !plan.executable.is_empty() {
        println!("program: {} ({changed})", plan.executable);
    }
    for change in &plan.changes {
        let when =
            if change.needs_restart { " (not before a restart of the supervisor)" } else { "" };
        println!("setting {}: {} -> {}{when}", change.setting, change.from, change.to);
    }
    if plan.ready && !plan.migrates {
        println!("connections would drain: handing them over is switched off");
    }
}

fn print_test(test: &TestMigration) {
    println!(
        "{} of {} connections can be moved, {} bytes of state (the largest {}); tested in {:.0} ms",
        test.movable_connections,
        test.tested_connections,
        test.bytes,
        test.largest_bytes,
        test.duration_ms
    );
    for (reason, count) in &test.drain_reasons {
        println!("  {count} would drain: {reason}");
    }
    for one in &test.would_drain {
        let connection = &one.connection;
        println!(
            "  connection {} of {} ({}, worker {}): {}",
            connection.connection,
            connection.peer,
            connection.protocol,
            one.worker,
            connection.reason
        );
    }
    if test.unnamed > 0 {
        println!("  and {} more", test.unnamed);
    }
    for worker in &test.silent_workers {
        println!("  worker {worker} did not answer");
    }
    if !test.migration_enabled {
        println!("migrate_connections is off: all of them would drain");
    }
}
