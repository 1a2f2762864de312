//! `http --h2`: small HTTP/2 answers a second of server CPU, asked for by h2load, beside nginx and hyper with h2.
//!
//! Must not know: how any of them works.

use std::net::SocketAddrV4;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Settings, pin_client, started};
use crate::figures::{Figure, Report, Target, median};
use crate::peers::{self, Builtin};
use crate::process::total_cpu_ns;

const BENCH: &str = "http";
const CONNECTIONS: u64 = 100;
const STREAMS: u64 = 32;
const TARGET: &str = "/id?id=0123456789abcdef";
const BODY_BYTES: u64 = 16;

/// What one run of h2load measured.
struct Sample {
    requests: u64,
    seconds: f64,
    cpu_s: f64,
    /// Of one answer: header block and body, without the frames' heads.
    answer_bytes: (f64, f64),
}

impl Sample {
    fn per_server_cpu_s(&self) -> f64 {
        self.requests as f64 / self.cpu_s
    }
}

/// Number before each of the words in the line that begins with `start`.
fn numbers(text: &str, start: &str) -> Result<Vec<(u64, String)>> {
    let line = text.lines().find_map(|line| line.strip_prefix(start));
    let line = line.with_context(|| format!("h2load printed no line {start:?}: {text}"))?;
    let parts = line.split(',').filter_map(|part| {
        let digits: String = part.chars().skip_while(|c| !c.is_ascii_digit()).collect();
        // Bytes stand in brackets behind their rounded form.
        let digits = part.split_once('(').map_or(digits.as_str(), |(_, exact)| exact);
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        Some((digits[..end].parse().ok()?, part.trim().to_owned()))
    });
    Ok(parts.collect())
}

/// Checks what h2load printed; requests, and bytes of one answer.
fn judge(text: &str, asked: u64) -> Result<(f64, f64)> {
    let counts = numbers(text, "requests:")?;
    let of = |name: &str| counts.iter().find(|(_, part)| part.ends_with(name)).map(|(n, _)| *n);
    let good = of("succeeded") == Some(asked)
        && of("failed") == Some(0)
        && numbers(text, "status codes:")?.first().map(|(n, _)| *n) == Some(asked);
    if !good {
        bail!("h2load got other answers than {asked} good ones: {text}");
    }
    let traffic = numbers(text, "traffic:")?;
    let bytes = |word: &str| traffic.iter().find(|(_, part)| part.contains(word)).map(|(n, _)| *n);
    if bytes("data") != Some(asked * BODY_BYTES) {
        bail!("h2load got bodies of other lengths than {BODY_BYTES}: {text}");
    }
    let headers = bytes("headers").context("h2load counted no headers")?;
    Ok((headers as f64 / asked as f64, BODY_BYTES as f64))
}

/// So many requests. The servers' CPU time includes the making of the connections.
fn load(address: SocketAddrV4, pids: &[u32], requests: u64) -> Result<Sample> {
    let before = total_cpu_ns(pids);
    let start = std::time::Instant::now();
    let output = Command::new("h2load")
        .args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-m", &STREAMS.to_string()])
        .args(["-n", &requests.to_string()])
        .arg(format!("http://{address}{TARGET}"))
        .stdin(Stdio::null())
        .output()
        .context("h2load is not there: apt-get install nghttp2-client")?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_s = (total_cpu_ns(pids) - before) as f64 / 1e9;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("h2load failed: {text} {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Sample { requests, seconds, cpu_s, answer_bytes: judge(&text, requests)? })
}

/// Runs it.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let (cpu, _pinned) = pin_client(report)?;
    let peers = started(
        report,
        vec![
            ("nginx", peers::nginx::start(cpu, true)),
            ("hyper with h2", peers::start(Builtin::Hyper2, cpu)),
        ],
    );
    let engine = settings.engine(Some(cpu))?;
    let servers: Vec<(&str, SocketAddrV4, Vec<u32>)> =
        std::iter::once(("zdt", engine.address, engine.pids()))
            .chain(peers.iter().map(|peer| (peer.name, peer.address, peer.pids())))
            .collect();
    // Warms each up, and learns how many requests fill a measurement.
    let first = if settings.quick { 2_000 } else { 20_000 };
    let mut counts = Vec::new();
    for (name, address, pids) in &servers {
        let sample = load(*address, pids, first)?;
        let (head, body) = sample.answer_bytes;
        report.note(&format!("an answer of {name}: {head:.1} bytes of head, {body:.0} of body"));
        let (_, window) = settings.windows();
        let wanted = sample.requests as f64 / sample.seconds * window.as_secs_f64() * 2.0;
        counts.push((wanted as u64).max(first));
    }
    let mut rates = vec![Vec::new(); servers.len()];
    let mut busy = Vec::new();
    for round in 0..settings.pairs() {
        // Another order each time, so that none always comes after the same one.
        for turn in 0..servers.len() {
            let index = (turn + round) % servers.len();
            let (_, address, pids) = &servers[index];
            let sample = load(*address, pids, counts[index])?;
            rates[index].push(sample.per_server_cpu_s());
            if index == 0 {
                busy.push(100.0 * sample.cpu_s / sample.seconds);
            }
        }
    }
    report.note(&format!("zdt was {:.0} % busy", median(&busy)));
    for (index, peer) in peers.iter().enumerate() {
        let own = rates[0].iter().copied();
        let pairs: Vec<(f64, f64)> = own.zip(rates[index + 1].iter().copied()).collect();
        let name = "requests_per_server_cpu_s";
        let figure = Figure::paired(BENCH, name, "1/s", peer.name, &pairs, Target::Ratio(1.0));
        let case = format!("HTTP/2, {CONNECTIONS} connections, {STREAMS} streams");
        report.add(figure.case(case));
    }
    engine.stop()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "finished in 1.00s, 1000.00 req/s, 1.00MB/s
requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 59.57KB (61000) total, 17.58KB (18000) headers (space savings 84.35%), 15.63KB (16000) data
";

    #[test]
    fn what_h2load_prints_is_judged() {
        assert_eq!(judge(PRINTED, 1000).unwrap(), (18.0, 16.0));
        assert!(judge(PRINTED, 1001).is_err());
        assert!(judge(&PRINTED.replace("0 failed", "3 failed"), 1000).is_err());
        assert!(judge(&PRINTED.replace("1000 2xx, 0 3xx", "999 2xx, 1 3xx"), 1000).is_err());
        assert!(judge(&PRINTED.replace("(16000) data", "(15999) data"), 1000).is_err());
        assert!(judge("", 1000).is_err());
    }
}
