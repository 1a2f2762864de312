//! WebSocket echo of Bun, fetched from npm into `target/peers` the first time it is needed.
//!
//! Must not know: who measures.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Peer, TemporaryFile, await_listener, free_address};
use crate::process::Server;

const PACKAGE: &str = "@oven/bun-linux-x64";

const SCRIPT: &str = r#"
Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch(request, server) { if (!server.upgrade(request)) return new Response("ok"); },
  websocket: {
    perMessageDeflate: false, idleTimeout: 0, maxPayloadLength: 16 << 20,
    backpressureLimit: 64 << 20,
    message(socket, message) { socket.send(message); },
  },
});
"#;

/// `target/peers` of this build.
fn directory() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let target = executable
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "target"))
        .map_or_else(std::env::temp_dir, PathBuf::from);
    Ok(target.join("peers"))
}

fn program() -> Result<PathBuf> {
    let directory = directory()?;
    let path = directory.join("node_modules").join(PACKAGE).join("bin/bun");
    if !path.exists() {
        eprintln!("# fetching {PACKAGE} into {}", directory.display());
        std::fs::create_dir_all(&directory)?;
        let status = Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(&directory)
            .arg(PACKAGE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("npm is needed to fetch Bun: apt-get install npm")?;
        if !status.success() || !path.exists() {
            bail!("npm install {PACKAGE} failed");
        }
    }
    Ok(path)
}

/// Starts it on the CPU.
pub fn start(cpu: usize) -> Result<Peer> {
    let program = program()?;
    let version = Command::new(&program).arg("--version").output().context("bun --version")?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let script = TemporaryFile::new("echo.js", Some(SCRIPT))?;
    let address = free_address()?;
    let mut command = Command::new(program);
    command.arg(script.path()).arg(address.port().to_string()).stdin(Stdio::null());
    let mut server = Server::start("Bun", &mut command, Some(cpu))?;
    await_listener(address, &mut server)?;
    Ok(Peer {
        name: "Bun",
        configuration: format!("{version}, Bun.serve, no compression, no idle timeout"),
        address,
        echo_target: Some("/"),
        server,
        _files: vec![script],
    })
}
