//! `cargo xtask dist`: one archive with the binary and what a user reads.
//!
//! Must not know: how anything is installed.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::process::{build_release, root, run as execute, target_dir};

/// Files and directories of the workspace that go along, where they exist.
const PAPERS: [&str; 6] =
    ["README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "zdt.toml", "docs"];

pub fn run() -> Result<ExitCode> {
    let zdt = build_release("zdt-engine", "zdt")?;
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("zdt-{version}-{}-linux", std::env::consts::ARCH);
    let dist = target_dir().join("dist");
    let staged = dist.join(&name);
    if staged.exists() {
        fs::remove_dir_all(&staged).context("remove the last archive's directory")?;
    }
    fs::create_dir_all(&staged).context("create the archive's directory")?;
    fs::copy(&zdt, staged.join("zdt")).context("copy the binary")?;
    for paper in PAPERS.iter().map(|name| root().join(name)).filter(|path| path.exists()) {
        execute(Command::new("cp").arg("-r").arg(paper).arg(&staged))?;
    }
    let archive = dist.join(format!("{name}.tar.gz"));
    // The same bytes from the same files, whoever builds it when.
    execute(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"])
            .args(["--use-compress-program=gzip -n", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(&dist)
            .arg(&name),
    )?;
    execute(Command::new("sha256sum").arg(format!("{name}.tar.gz")).current_dir(&dist))?;
    println!("{}", archive.display());
    Ok(ExitCode::SUCCESS)
}
