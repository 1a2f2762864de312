//! `cargo xtask test`: all tests, with the clients they need, and what was skipped.
//!
//! Must not know: single tests.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::clients;
use crate::process::{cargo, root, run as execute, target_dir};

/// How a test says that it was skipped: `SKIPPED: NAME: REASON`, at the start of a line.
const SKIPPED: &str = "SKIPPED: ";

#[derive(clap::Args)]
pub struct Options {
    /// Passed to `cargo test`; what follows `--` goes to the tests
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let clients = clients::fetch();
    let mut skipped = clients.missing;
    let mut environment = clients.environment;
    if let Some(binary) = build_with_next_format()? {
        environment.push(("ZDT_TEST_FORMAT_NEXT", binary.into()));
    }

    let mut command = cargo();
    command
        .args(["test", "--workspace", "--features", "zdt-engine/fault-points"])
        .args(&options.arguments)
        .envs(environment)
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo test")?;
    // Tests write these lines past the harness, which means to standard error.
    let mut lines = BufReader::new(child.stderr.take().context("no standard error")?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context("read what the tests say")? > 0 {
        // Nobody is left to tell if standard error is gone.
        let _ = std::io::stderr().write_all(&line);
        let text = String::from_utf8_lossy(&line);
        if let Some(test) = text.trim_end().strip_prefix(SKIPPED) {
            skipped.push(test.to_owned());
        }
        line.clear();
    }
    let status = child.wait().context("wait for cargo test")?;

    if !skipped.is_empty() {
        eprintln!("\nSKIPPED, {} in all:", skipped.len());
        for test in &skipped {
            eprintln!("  {test}");
        }
    }
    if !status.success() {
        eprintln!("error: tests failed");
        return Ok(ExitCode::FAILURE);
    }
    if !skipped.is_empty() && std::env::var("CI").as_deref() == Ok("true") {
        eprintln!("error: with CI=true nothing may be skipped");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The same sources as a build that writes the next state format, for tests with two builds. Built in
/// the same directory, where all dependencies are, and copied away.
fn build_with_next_format() -> Result<Option<PathBuf>> {
    const FEATURE: &str = "state-format-next";
    let manifest = fs::read_to_string(root().join("zdt-engine/Cargo.toml"))
        .context("read the engine's manifest")?;
    if !manifest.lines().any(|line| line.starts_with(FEATURE)) {
        return Ok(None);
    }
    let features = format!("zdt-engine/fault-points,zdt-engine/{FEATURE}");
    execute(cargo().args(["build", "--workspace", "--bin", "zdt", "--features", &features]))?;
    let dir = target_dir().join("clients");
    fs::create_dir_all(&dir).context("create target/clients")?;
    let copy = dir.join("zdt-format-next");
    // A running one cannot be overwritten, but replaced.
    let fresh = dir.join("zdt-format-next.fresh");
    fs::copy(target_dir().join("debug/zdt"), &fresh).context("copy the other build")?;
    fs::rename(&fresh, &copy).context("rename the other build")?;
    Ok(Some(copy))
}
