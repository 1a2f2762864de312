//! `run`, `demo`, `bench`: build in release, and start.
//!
//! Must not know: what the arguments mean.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::process::{build_release, exec, is_root};

/// `cargo xtask run`: steering needs root, so by sudo for others.
pub fn serve(arguments: &[OsString]) -> Result<ExitCode> {
    let zdt = build_release("zdt-engine", "zdt")?;
    let mut all: Vec<OsString> = vec!["serve".into()];
    all.extend_from_slice(arguments);
    if is_root() {
        return Err(exec(zdt, &all));
    }
    all.insert(0, zdt.into());
    Err(exec("sudo", &all).context("zdt needs root (or `zdt serve --steering off`)"))
}

/// `cargo xtask demo` and `bench`: the load generator does it, with the engine that it is told.
pub fn load(command: &str, arguments: &[OsString]) -> Result<ExitCode> {
    let zdt = build_release("zdt-engine", "zdt")?;
    let load = build_release("benches", "zdt-load")?;
    let mut all: Vec<OsString> = vec![command.into()];
    all.extend_from_slice(arguments);
    all.push("--zdt".into());
    all.push(zdt.into());
    Err(exec(load, &all))
}
