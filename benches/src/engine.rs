//! The engine under test: the `zdt` command as a process, driven as its users drive it.
//!
//! Must not know: anything of zdt but its command line, its verdict and its processes.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::load::ask;
use crate::peers::{TemporaryFile, free_address};
use crate::process::{Server, descendants};
use crate::secure;

/// How to start the engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `zdt` command.
    pub zdt: PathBuf,
    /// Workers of a generation.
    pub workers: usize,
    /// `auto`, `ebpf` or `off`.
    pub steering: &'static str,
    /// The CPU for all its processes.
    pub cpu: Option<usize>,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Contents of its configuration file; without any, it gets none.
    pub configuration: String,
    /// Name of the service, and what it needs.
    pub service: Vec<String>,
    /// It answers `/id`, so that it can be seen to serve; otherwise its port is waited for.
    pub answers_id: bool,
}

impl Options {
    /// One worker, on any CPU.
    pub fn new(zdt: &Path) -> Self {
        Self {
            zdt: zdt.to_owned(),
            workers: 1,
            steering: "auto",
            cpu: None,
            tls: false,
            configuration: String::new(),
            service: vec!["demo".to_owned()],
            answers_id: true,
        }
    }
}

/// `zdt` beside this program, if none is named.
pub fn find_zdt(named: Option<PathBuf>) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("zdt"),
    };
    path.canonicalize().with_context(|| {
        format!(
            "no zdt at {}: build it (cargo build --release) or name it by --zdt",
            path.display()
        )
    })
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// What `zdt reload --json` prints.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// Whether the new generation serves.
    pub reload_successful: bool,
    /// Connections that were handed off.
    pub migrated_connections: u64,
    /// Connections that stayed behind.
    pub drained_connections: u64,
    /// Connections that died.
    pub lost_connections: u64,
    /// From the begin of the reload to the verdict.
    pub duration_ms: f64,
    /// From the begin of the handoff to the last connection's start.
    pub handoff_ms: Option<f64>,
    /// Blackouts.
    pub blackout_us: Percentiles,
    /// Why connections stayed behind.
    pub drain_reasons: BTreeMap<String, u64>,
}

/// Can reload the engine from any thread.
#[derive(Debug, Clone)]
pub struct Reloader {
    zdt: PathBuf,
    run_dir: PathBuf,
}

impl Reloader {
    /// Reloads and waits for the verdict; that, and the time it took.
    pub fn reload(&self, timeout: Duration) -> Result<(Verdict, Duration)> {
        self.reload_with(&[], timeout)
    }

    /// The same with more arguments.
    pub fn reload_with(
        &self,
        arguments: &[&str],
        timeout: Duration,
    ) -> Result<(Verdict, Duration)> {
        let start = Instant::now();
        let mut command = Command::new(&self.zdt);
        command.arg("reload").arg("--run-dir").arg(&self.run_dir).arg("--json").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Server::start("zdt reload", &mut command, None)?;
        let (stdout, stderr) = (child.child().stdout.take(), child.child().stderr.take());
        // Read to the end elsewhere, so that a full pipe cannot stop it.
        let reader = |pipe: Option<Box<dyn std::io::Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = String::new();
                if let Some(mut pipe) = pipe {
                    let _ = pipe.read_to_string(&mut text);
                }
                text
            })
        };
        let stdout = reader(stdout.map(|pipe| Box::new(pipe) as _));
        let stderr = reader(stderr.map(|pipe| Box::new(pipe) as _));
        if !child.wait(timeout)? {
            bail!("zdt reload gave no verdict within {timeout:?}");
        }
        let took = start.elapsed();
        let (stdout, stderr) =
            (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        let verdict = stdout.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        let Some(verdict) = verdict.or_else(|| serde_json::from_str::<Verdict>(&stdout).ok())
        else {
            bail!("zdt reload printed no verdict: {} {}", stdout.trim(), stderr.trim());
        };
        if !verdict.reload_successful {
            bail!("the reload failed: {} {}", stdout.trim(), stderr.trim());
        }
        Ok((verdict, took))
    }
}

/// A running engine; stopped when dropped.
pub struct Engine {
    /// Where it serves.
    pub address: SocketAddrV4,
    options: Options,
    server: Server,
    run_dir: TemporaryFile,
    _configuration: TemporaryFile,
}

impl Engine {
    /// Starts it, and waits until its service answers.
    pub fn start(options: Options) -> Result<Self> {
        let (address, admin) = (free_address()?, free_address()?);
        let run_dir = TemporaryFile::new("run", None)?;
        let mut command = Command::new(&options.zdt);
        command
            .args(["serve", "--listen", &address.to_string(), "--service"])
            .args(&options.service)
            .args(["--admin", &admin.to_string(), "--workers", &options.workers.to_string()])
            .args(["--steering", options.steering, "--run-dir"])
            .arg(run_dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let configuration = TemporaryFile::new("zdt.toml", Some(&options.configuration))?;
        if !options.configuration.is_empty() {
            command.arg("--config").arg(configuration.path());
        }
        if options.tls {
            let (certificate, key) = secure::Identity::own()?.paths();
            command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
            secure::register(address);
        }
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        let mut server = Server::start("zdt serve", &mut command, options.cpu)?;
        let end = Instant::now() + Duration::from_secs(15);
        let request = b"GET /id?id=ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
        loop {
            server.check_alive()?;
            let asked = match options.answers_id {
                true => ask(address, request).map(drop),
                false => std::net::TcpStream::connect(address).map(drop).map_err(Into::into),
            };
            match asked {
                Ok(()) => break,
                Err(error) if Instant::now() > end => {
                    return Err(error.context("zdt serve does not answer after 15 s"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Ok(Self { address, options, server, run_dir, _configuration: configuration })
    }

    /// For reloads while the calling thread does something else.
    pub fn reloader(&self) -> Reloader {
        Reloader { zdt: self.options.zdt.clone(), run_dir: self.run_dir.path().to_owned() }
    }

    /// Replaces the gateway's application.
    pub fn swap_application(&self) -> Result<()> {
        let output = Command::new(&self.options.zdt)
            .args(["reload", "--app", "--json", "--run-dir"])
            .arg(self.run_dir.path())
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("zdt reload --app failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Supervisor and all workers.
    pub fn pids(&self) -> Vec<u32> {
        let root = self.server.pid();
        std::iter::once(root).chain(descendants(root).into_iter().map(|(pid, _)| pid)).collect()
    }

    /// The workers, once none of an earlier generation is left.
    pub fn worker_pids(&self) -> Result<Vec<u32>> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let workers: Vec<u32> = descendants(self.server.pid())
                .into_iter()
                .map(|(pid, _)| pid)
                .filter(|pid| {
                    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                        line.split(|&byte| byte == 0).nth(1) == Some(b"worker".as_slice())
                    })
                })
                .collect();
            if workers.len() == self.options.workers {
                return Ok(workers);
            }
            if Instant::now() > end {
                bail!("{} workers instead of {} for 10 s", workers.len(), self.options.workers);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) -> Result<()> {
        let status = Command::new(&self.options.zdt)
            .arg("stop")
            .arg("--run-dir")
            .arg(self.run_dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        if !self.server.wait(Duration::from_secs(15))? {
            bail!("zdt serve is still there 15 s after zdt stop ({status})");
        }
        Ok(())
    }
}
