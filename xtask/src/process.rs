//! Starting other programs.
//!
//! Must not know: which.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The cargo that runs this, in the workspace.
pub fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}

/// Says what it does, does it, and fails if that fails.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", describe(command));
    let status = command.status().with_context(|| format!("cannot start {}", describe(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", describe(command));
    }
    Ok(())
}

/// Standard output of a program, or `None` if it is not there or fails.
pub fn output_of<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        // Writing to a string does not fail.
        let _ = write!(text, " {}", argument.to_string_lossy());
    }
    text
}

/// True for the user that may do everything.
pub fn is_root() -> bool {
    output_of("id", ["-u"]).as_deref() == Some("0")
}

/// Builds `bin` of `package` in release, with cargo's own progress, and says where it is.
pub fn build_release(package: &str, bin: &str) -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "--package", package, "--bin", bin]))?;
    Ok(target_dir().join("release").join(bin))
}

/// Replaces this process.
pub fn exec(program: impl AsRef<OsStr>, arguments: &[OsString]) -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.args(arguments);
    eprintln!("+ {}", describe(&command));
    let error = command.exec();
    anyhow::Error::new(error).context(format!("cannot start {}", describe(&command)))
}
