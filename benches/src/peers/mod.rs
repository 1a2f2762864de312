//! Servers that the benches compare with, each in a process of its own on the server's CPU.
//!
//! Must not know: zdt.

pub mod bare;
pub mod bun;
pub mod demo;
#[cfg(test)]
pub mod demo2;
pub mod fast;
pub mod handoff;
pub mod hyper2;
pub mod nginx;
pub mod proxies;
pub mod tungstenite;
pub mod tungstenite_tls;

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Server, descendants};

/// A running peer.
pub struct Peer {
    /// Short name, as in the figures.
    pub name: &'static str,
    /// What it runs with, for the report.
    pub configuration: String,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Path of its WebSocket echo; `None` if it does not speak the protocol.
    pub echo_target: Option<&'static str>,
    server: Server,
    _files: Vec<TemporaryFile>,
}

impl Peer {
    /// All processes whose CPU time counts.
    pub fn pids(&self) -> Vec<u32> {
        let root = self.server.pid();
        std::iter::once(root).chain(descendants(root).into_iter().map(|(pid, _)| pid)).collect()
    }
}

/// A file that goes with its owner.
pub struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// A new file, or a new directory without `contents`, in the system's directory for them.
    pub fn new(name: &str, contents: Option<&str>) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("zdt-load-{}-{number}-{name}", std::process::id()));
        match contents {
            Some(contents) => std::fs::write(&path, contents),
            None => std::fs::DirBuilder::new().mode(0o700).create(&path),
        }
        .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0).or_else(|_| std::fs::remove_dir_all(&self.0));
    }
}

/// A port on loopback that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// An address on loopback that is free now.
pub fn free_address() -> Result<SocketAddrV4> {
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, free_port()?))
}

/// Waits until somebody listens there.
pub fn await_listener(address: SocketAddrV4, server: &mut Server) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        server.check_alive()?;
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{} does not listen on {address} after 10 s", server.name());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Peers that are subcommands of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Builtin {
    /// io_uring echo of raw bytes with 4 KiB buffers.
    BareEcho,
    /// The same with 32 KiB buffers, for large messages.
    BareEchoLarge,
    /// io_uring server of one fixed HTTP answer.
    BareHttp,
    /// tokio-tungstenite echo.
    Tungstenite,
    /// The same with 32 KiB buffers, for large messages.
    TungsteniteLarge,
    /// tokio-tungstenite echo behind tokio-rustls.
    TungsteniteTls,
    /// The same with 32 KiB buffers.
    TungsteniteTlsLarge,
    /// fastwebsockets echo.
    Fastwebsockets,
    /// hyper with h2: small HTTP/2 answers.
    Hyper2,
}

/// A listener whose connections send without delay.
fn bind_listener(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    // The standard library asks for a backlog of 128 only.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(4096)?)?;
    nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::TcpNoDelay, &true)?;
    Ok(listener)
}

/// Accepts until the process ends, and serves all connections on this thread.
fn serve_each<F>(
    listener: TcpListener,
    serve: impl Fn(tokio::net::TcpStream) -> F,
) -> std::io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(serve(stream));
        }
    })
}

/// Serves as one of the built-in peers until it is killed.
pub fn serve(builtin: Builtin, port: u16, tls: Option<(PathBuf, PathBuf)>) -> Result<()> {
    let listener = bind_listener(port)?;
    match builtin {
        Builtin::BareEcho => bare::serve(&listener, false, 4096)?,
        Builtin::BareEchoLarge => bare::serve(&listener, false, 32 << 10)?,
        Builtin::BareHttp => bare::serve(&listener, true, 4096)?,
        Builtin::Tungstenite => tungstenite::serve(listener, 4096)?,
        Builtin::TungsteniteLarge => tungstenite::serve(listener, 32 << 10)?,
        Builtin::TungsteniteTls | Builtin::TungsteniteTlsLarge => {
            let (certificate, key) = tls.context("--tls-cert and --tls-key are needed")?;
            let buffer_bytes = if builtin == Builtin::TungsteniteTls { 4096 } else { 32 << 10 };
            tungstenite_tls::serve(listener, &certificate, &key, buffer_bytes)?;
        }
        Builtin::Fastwebsockets => fast::serve(listener)?,
        Builtin::Hyper2 => hyper2::serve(listener)?,
    }
    Ok(())
}

/// Starts a built-in peer on the CPU.
pub fn start(builtin: Builtin, cpu: usize) -> Result<Peer> {
    let (name, argument, target, configuration) = match builtin {
        Builtin::BareEcho => {
            ("bare io_uring", "bare-echo", None, "raw echo, direct descriptors, 4 KiB buffers")
        }
        Builtin::BareEchoLarge => (
            "bare io_uring",
            "bare-echo-large",
            None,
            "raw echo, direct descriptors, 32 KiB buffers",
        ),
        Builtin::BareHttp => ("bare io_uring", "bare-http", None, "fixed answer to every receive"),
        Builtin::Tungstenite => (
            "tokio-tungstenite",
            "tungstenite",
            Some("/"),
            "0.30, one thread, 4 KiB read and write buffers, flush when nothing more is waiting",
        ),
        Builtin::TungsteniteLarge => (
            "tokio-tungstenite, 32 KiB buffers",
            "tungstenite-large",
            Some("/"),
            "0.30, one thread, 32 KiB read and write buffers, flush when nothing more is waiting",
        ),
        Builtin::TungsteniteTls => (
            "tokio-rustls with tungstenite",
            "tungstenite-tls",
            Some("/"),
            "tokio-rustls 0.26 with ring, tungstenite 0.30 with 4 KiB buffers",
        ),
        Builtin::TungsteniteTlsLarge => (
            "tokio-rustls with tungstenite, 32 KiB buffers",
            "tungstenite-tls-large",
            Some("/"),
            "tokio-rustls 0.26 with ring, tungstenite 0.30 with 32 KiB buffers",
        ),
        Builtin::Fastwebsockets => {
            ("fastwebsockets", "fastwebsockets", Some("/"), "0.10, one thread, hyper upgrade")
        }
        Builtin::Hyper2 => ("hyper with h2", "hyper2", None, "hyper 1, h2 0.4, one thread"),
    };
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["peer", argument, "--port", &address.port().to_string()]).stdin(Stdio::null());
    if matches!(builtin, Builtin::TungsteniteTls | Builtin::TungsteniteTlsLarge) {
        let (certificate, key) = crate::secure::Identity::own()?.paths();
        command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
        crate::secure::register(address);
    }
    let mut server = Server::start(name, &mut command, Some(cpu))?;
    await_listener(address, &mut server)?;
    Ok(Peer {
        name,
        configuration: configuration.to_owned(),
        address,
        echo_target: target,
        server,
        _files: Vec::new(),
    })
}
