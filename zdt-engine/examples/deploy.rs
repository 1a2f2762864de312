//! Deploys by program instead of `zdt reload`: looks whether all connections can move, reloads, checks the
//! health. Run it with the run directory of a running `zdt serve`.

use std::process::ExitCode;

use zdt_engine::{ClientError, ZeroDowntime};

fn main() -> ExitCode {
    let Some(run_dir) = std::env::args().nth(1) else {
        eprintln!("usage: deploy RUN_DIR");
        return ExitCode::from(2);
    };
    match deploy(&ZeroDowntime::at(run_dir)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("deploy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn deploy(zdt: &ZeroDowntime) -> Result<bool, ClientError> {
    if zdt.is_reloading()? {
        println!("somebody else is deploying");
        return Ok(false);
    }
    let test = zdt.test_migration()?;
    for (reason, count) in &test.drain_reasons {
        println!("{count} connections would stay behind: {reason}");
    }
    let verdict = zdt.reload()?;
    println!(
        "generation {}: {} connections migrated in {:.0} ms",
        verdict.generation, verdict.migrated_connections, verdict.duration_ms
    );
    let health = zdt.health()?;
    println!("{}, up {:.0} s", health.status, health.uptime_seconds);
    Ok(verdict.reload_successful && health.status == "healthy")
}
