//! `proxy-swap`: the application behind the gateway, and the gateway itself, are replaced again and again
//! under full load. Clients number their requests, so that a lost, doubled or mixed-up answer shows.
//!
//! Must not know: how the gateway works.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use super::Settings;
use crate::engine::{Engine, Options, find_zdt};
use crate::figures::{Figure, Report, Target, latencies};
use crate::peers::TemporaryFile;

const BENCH: &str = "proxy-swap";
const CLIENTS: usize = 16;

const QUIET: u8 = 0;
const SWAPPING: u8 = 1;
const OVER: u8 = 2;

/// What the clients have seen.
struct Seen {
    quiet: Histogram<u64>,
    swapping: Histogram<u64>,
    failed: u64,
    first_failure: Option<String>,
}

fn client(address: SocketAddrV4, number: usize, phase: &AtomicU8) -> Seen {
    let mut seen =
        Seen { quiet: latencies(), swapping: latencies(), failed: 0, first_failure: None };
    let mut stream = None;
    let mut count = 0u64;
    loop {
        let now = phase.load(Ordering::Relaxed);
        if now == OVER {
            return seen;
        }
        count += 1;
        let start = Instant::now();
        match exchange(address, &mut stream, &format!("{number}-{count}")) {
            Ok(()) => {
                let histogram = if now == QUIET { &mut seen.quiet } else { &mut seen.swapping };
                histogram.saturating_record(start.elapsed().as_micros() as u64);
            }
            Err(error) => {
                stream = None;
                seen.failed += 1;
                seen.first_failure.get_or_insert(format!("{error:#}"));
            }
        }
    }
}

fn exchange(address: SocketAddrV4, kept: &mut Option<TcpStream>, id: &str) -> Result<()> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            kept.insert(stream)
        }
    };
    write!(stream, "GET /id?id={id} HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece).context("no answer")?;
        ensure!(count > 0, "cut off");
        bytes.extend_from_slice(&piece[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(&bytes));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.context("no length")?.trim().parse()?;
        if bytes.len() < end + 4 + length {
            continue;
        }
        ensure!(&bytes[end + 4..] == id.as_bytes(), "another request's answer");
        if head.contains("connection: close") {
            *kept = None;
        }
        return Ok(());
    }
}

/// One round: swaps and reloads in turn, under load.
fn round(zdt: PathBuf, application: &str, swaps: usize, reloads: usize) -> Result<Seen> {
    let service = vec!["proxy".to_owned(), "--app".to_owned(), application.to_owned()];
    let engine = Engine::start(Options { service, workers: 2, ..Options::new(&zdt) })?;
    let phase = Arc::new(AtomicU8::new(QUIET));
    let address = engine.address;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let phase = Arc::clone(&phase);
            std::thread::spawn(move || client(address, number, &phase))
        })
        .collect();
    std::thread::sleep(Duration::from_secs(3));
    phase.store(SWAPPING, Ordering::Relaxed);
    let outcome = (0..swaps.max(reloads)).try_for_each(|turn| {
        if turn < swaps {
            engine.swap_application()?;
        }
        if turn < reloads {
            engine.reloader().reload(Duration::from_secs(60))?;
        }
        Ok::<_, anyhow::Error>(())
    });
    phase.store(OVER, Ordering::Relaxed);
    let mut total =
        Seen { quiet: latencies(), swapping: latencies(), failed: 0, first_failure: None };
    for client in clients {
        let seen = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        total.quiet.add(&seen.quiet)?;
        total.swapping.add(&seen.swapping)?;
        total.failed += seen.failed;
        total.first_failure = total.first_failure.or(seen.first_failure);
    }
    outcome?;
    engine.stop()?;
    Ok(total)
}

/// Runs it.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let (swaps, reloads) = if settings.quick { (2, 2) } else { (20, 20) };
    // The demo's peer is an application of its own process, started in milliseconds.
    let this = std::env::current_exe()?;
    let application = format!("exec {} peer-demo none --port $PORT", this.display());
    let seen = round(settings.zdt.clone(), &application, swaps, reloads)?;
    if let Some(failure) = &seen.first_failure {
        report.note(&format!("the first failure: {failure}"));
    }
    let p99 = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.99) as f64;
    let ratio = p99(&seen.swapping) / p99(&seen.quiet).max(1.0);
    let case = format!("{swaps} swaps, {reloads} reloads, {CLIENTS} clients");
    report.note(&format!("p99 {} us without, {} us during", p99(&seen.quiet), p99(&seen.swapping)));
    let failed = [seen.failed as f64];
    let figure = Figure::alone(BENCH, "failed_requests", "", &failed, Target::AtMost(0.0));
    report.add(figure.case(&case));
    let figure = Figure::alone(BENCH, "p99_ratio", "", &[ratio], Target::AtMost(3.0));
    report.add(figure.case(&case));
    Ok(())
}

/// An application as anybody could write it.
const PYTHON: &str = r#"
import os, socketserver, threading
from urllib.parse import urlsplit, parse_qs
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.connection.setsockopt(6, 1, 1)
        while True:
            line = self.rfile.readline()
            if not line: return
            while self.rfile.readline() not in (b"\r\n", b""): pass
            query = parse_qs(urlsplit(line.split(b" ")[1].decode()).query)
            body = query.get("id", ["hello"])[0].encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128
Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// `cargo xtask demo --gateway`: an application in Python, replaced ten times under load.
pub fn demo(zdt: Option<PathBuf>, json: bool) -> Result<bool> {
    let file = TemporaryFile::new("app.py", Some(PYTHON))?;
    let application = format!("exec python3 {}", file.path().display());
    let (swaps, reloads) = (10, 5);
    let seen = round(find_zdt(zdt)?, &application, swaps, reloads)?;
    let (before, during) = (&seen.quiet, &seen.swapping);
    if json {
        println!(
            "{}",
            serde_json::json!({
                "swaps": swaps, "reloads": reloads, "requests": before.len() + during.len(),
                "failed_requests": seen.failed,
                "p99_us": { "without": before.value_at_quantile(0.99), "during": during.value_at_quantile(0.99) },
            })
        );
        return Ok(seen.failed == 0);
    }
    println!("an application in Python behind zdt, {CLIENTS} clients with numbered requests");
    println!("{:<34}{:>12}{:>12}", "", "without", "during");
    println!("{:<34}{:>12}{:>12}", "swaps of the application", 0, swaps);
    println!("{:<34}{:>12}{:>12}", "reloads of zdt", 0, reloads);
    println!("{:<34}{:>12}{:>12}", "requests answered", before.len(), during.len());
    for (name, quantile) in [("median, us", 0.5), ("99 %, us", 0.99), ("longest, us", 1.0)] {
        let (first, second) =
            (before.value_at_quantile(quantile), during.value_at_quantile(quantile));
        println!("{name:<34}{first:>12}{second:>12}");
    }
    println!("{:<34}{:>12}{:>12}", "lost, doubled or mixed up", "", seen.failed);
    match &seen.first_failure {
        None => println!("nobody noticed"),
        Some(failure) => println!("the first failure: {failure}"),
    }
    Ok(seen.failed == 0)
}
