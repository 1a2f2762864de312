//! Active health checks: each upstream is asked in a task of its own, and bounded in time and bytes.
//!
//! A check is a request of the supervisor's own; clients' bytes never come here.
//!
//! Must not know: how workers use an upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::GatewayEvent;
use crate::config::{HealthOptions, UpstreamAddress, UpstreamTarget};
use crate::supervisor::core::Core;

/// `HTTP/1.1 200`.
const STATUS_BYTES: usize = 12;

/// A head that is longer is none.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Of the rest of an answer so much is read, so that the upstream need not see its connection reset.
const MAX_REST_BYTES: u64 = 64 << 10;

/// What is known of the upstreams.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Health {
    pub unhealthy: BTreeSet<String>,
    /// Answers in a row by URL: good ones above zero, bad ones below.
    streaks: BTreeMap<String, i64>,
    pub next_check: Option<Instant>,
    checking: BTreeSet<String>,
}

impl Health {
    /// It has just been proven.
    pub fn on_proven(&mut self, url: &str) {
        self.unhealthy.remove(url);
        self.streaks.remove(url);
    }

    /// A check has ended. True if that changes what the upstream counts as.
    fn on_checked(&mut self, options: &HealthOptions, url: &str, healthy: bool) -> bool {
        self.checking.remove(url);
        let Some(streak) = self.streaks.get_mut(url) else { return false };
        *streak = match healthy {
            true => (*streak).max(0) + 1,
            false => (*streak).min(0) - 1,
        };
        if *streak >= i64::from(options.healthy_after.max(1)) {
            self.unhealthy.remove(url)
        } else if *streak <= -i64::from(options.unhealthy_after.max(1)) {
            self.unhealthy.insert(url.to_owned())
        } else {
            false
        }
    }

    /// Those of these upstreams that are to be asked now; the others are forgotten.
    fn due(
        &mut self,
        upstreams: BTreeMap<String, UpstreamTarget>,
    ) -> Vec<(String, UpstreamTarget)> {
        self.streaks.retain(|url, _| upstreams.contains_key(url));
        self.unhealthy.retain(|url| upstreams.contains_key(url));
        upstreams
            .into_iter()
            .filter(|(url, _)| {
                self.streaks.entry(url.clone()).or_default();
                // Otherwise the one before has not ended.
                self.checking.insert(url.clone())
            })
            .collect()
    }
}

/// Connects, and asks for the path if there is one. Takes no longer than that, whatever the upstream does.
pub(in crate::supervisor) async fn check(
    upstream: &UpstreamTarget,
    path: &str,
    timeout: Duration,
) -> bool {
    let asked = async {
        match &upstream.address {
            UpstreamAddress::Tcp(address) => {
                ask(tokio::net::TcpStream::connect(address).await.ok()?, upstream, path).await
            }
            UpstreamAddress::Unix(socket) => {
                ask(tokio::net::UnixStream::connect(socket).await.ok()?, upstream, path).await
            }
        }
    };
    matches!(tokio::time::timeout(timeout, asked).await, Ok(Some(())))
}

async fn ask<S>(mut stream: S, upstream: &UpstreamTarget, path: &str) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    if path.is_empty() {
        return Some(());
    }
    let authority = &upstream.authority;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: zdt-health\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let status = read_status(&mut stream).await?;
    tokio::task::spawn_local(async move {
        let rest = async {
            tokio::io::copy(&mut stream.take(MAX_REST_BYTES), &mut tokio::io::sink()).await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    });
    (200..400).contains(&status).then_some(())
}

/// Status of an answer whose head has come to its end: half of one helps nobody.
async fn read_status(stream: &mut (impl AsyncRead + Unpin)) -> Option<u16> {
    let (mut head, mut piece) = (Vec::new(), [0; 2 << 10]);
    loop {
        let count = stream.read(&mut piece).await.ok().filter(|&count| count > 0)?;
        let mut from = head.len().saturating_sub(3);
        head.extend_from_slice(&piece[..count]);
        while let Some(end) = head[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let status = status_of(head.first_chunk()?)?;
            if status == 101 || !(100..200).contains(&status) {
                return Some(status);
            }
            head.drain(..from + end + 4); // an interim answer
            from = 0;
        }
        if head.first_chunk().is_some_and(|start| status_of(start).is_none())
            || head.len() > MAX_HEAD_BYTES
        {
            return None;
        }
    }
}

fn status_of(start: &[u8; STATUS_BYTES]) -> Option<u16> {
    let rest = start.strip_prefix(b"HTTP/1.")?;
    let [minor, b' ', digits @ ..] = rest else { return None };
    if !minor.is_ascii_digit() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl Core {
    pub fn on_checked(&mut self, url: &str, healthy: bool) {
        let options = self.gateway_options().health;
        if self.gateway.health.on_checked(&options, url, healthy) {
            tracing::info!(upstream = url, healthy, "health check");
            self.gateway_changed();
        }
    }

    /// Asks every upstream, if it is time.
    pub fn check_on_time(&mut self, now: Instant) {
        let options = self.gateway_options().health;
        if options.path.is_empty() || self.stopping.is_some() {
            self.gateway.health.next_check = None;
            if options.path.is_empty() && !self.gateway.health.unhealthy.is_empty() {
                // Nobody would ever find them healthy again.
                self.gateway.health.unhealthy.clear();
                self.gateway_changed();
            }
            return;
        }
        if self.gateway.health.next_check.is_some_and(|at| now < at) {
            return;
        }
        let interval = Duration::from_millis(options.interval_ms.max(10));
        self.gateway.health.next_check = Some(now + interval);
        let upstreams = self
            .routes_in_force()
            .into_iter()
            .flat_map(|route| route.upstreams)
            .map(|upstream| (upstream.url.clone(), upstream))
            .collect();
        let timeout = Duration::from_millis(options.timeout_ms.max(1));
        for (url, upstream) in self.gateway.health.due(upstreams) {
            let events = self.gateway.events.clone();
            let path = options.path.clone();
            tokio::task::spawn_local(async move {
                let healthy = check(&upstream, &path, timeout).await;
                let _ = events.send(GatewayEvent::Checked { url, healthy });
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:1";

    fn health() -> Health {
        let mut health = Health::default();
        let target = UpstreamTarget::parse(URL).unwrap();
        assert_eq!(health.due(BTreeMap::from([(URL.to_owned(), target)])).len(), 1);
        health
    }

    #[test]
    fn so_many_answers_in_a_row_decide() {
        let options =
            HealthOptions { healthy_after: 2, unhealthy_after: 3, ..HealthOptions::default() };
        let mut health = health();
        // One that comes and goes changes nothing, whatever it was before.
        let flapping = [false, false, true, false, false, true];
        assert!(!flapping.iter().any(|healthy| health.on_checked(&options, URL, *healthy)));
        assert!(
            !health.on_checked(&options, URL, false) && !health.on_checked(&options, URL, false)
        );
        assert!(health.on_checked(&options, URL, false), "the third");
        assert!(!health.on_checked(&options, URL, false), "is known");
        let flapping = [true, false, true, false];
        assert!(!flapping.iter().any(|healthy| health.on_checked(&options, URL, *healthy)));
        assert!(!health.on_checked(&options, URL, true) && health.on_checked(&options, URL, true));
    }

    #[test]
    fn what_is_in_no_route_any_more_is_forgotten() {
        let options = HealthOptions { unhealthy_after: 1, ..HealthOptions::default() };
        let mut health = health();
        assert!(health.on_checked(&options, URL, false));
        assert!(health.due(BTreeMap::new()).is_empty() && health.unhealthy.is_empty());
        assert!(!health.on_checked(&options, URL, false), "an answer that comes too late");
        assert!(health.unhealthy.is_empty() && health.streaks.is_empty());
    }

    #[test]
    fn an_upstream_is_not_asked_twice_at_a_time() {
        let mut health = health();
        let again = BTreeMap::from([(URL.to_owned(), UpstreamTarget::parse(URL).unwrap())]);
        assert!(health.due(again.clone()).is_empty());
        health.on_checked(&HealthOptions::default(), URL, true);
        assert_eq!(health.due(again).len(), 1);
    }

    #[test]
    fn a_status_is_three_digits() {
        assert_eq!(status_of(b"HTTP/1.1 200"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 404"), Some(404));
        for bad in
            [b"HTTP/2.0 200", b"HTTP/1.1 2 0", b"HTTP/1.1200 ", b"SSH-2.0-Open", b"HTTP/1.x 200"]
        {
            assert_eq!(status_of(bad), None);
        }
    }
}
