//! The gateway's settings: upstreams, routes, what is held and for how long.
//!
//! Must not know: who reads them, sockets.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::queue::{self, Overflow};

/// `[gateway]` of zdt.toml. Durations in milliseconds, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayOptions {
    /// Upstreams of the default route: `http://HOST:PORT` or `unix:/PATH`.
    pub upstream: Vec<String>,
    /// Pass the client's Host on; without, the upstream's own address is sent.
    pub preserve_host: bool,
    /// Add Forwarded and X-Forwarded-For, -Host, -Proto.
    pub forwarded: bool,
    /// An upstream that has not accepted a connection by then counts as down.
    pub connect_timeout_ms: u64,
    /// An upstream that answers nothing for so long: 504, or the end of the connection.
    pub response_timeout_ms: u64,
    /// Upstream connections without a request are closed after this.
    pub idle_timeout_ms: u64,
    /// So many of them are kept for each upstream in each worker.
    pub idle_connections: u32,
    /// What is held while a route has no upstream that works.
    pub hold: HoldOptions,
    /// Active health checks, by the supervisor.
    pub health: HealthOptions,
    /// The application that zdt runs itself.
    pub app: AppOptions,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            upstream: Vec::new(),
            preserve_host: true,
            forwarded: true,
            connect_timeout_ms: 2_000,
            response_timeout_ms: 60_000,
            idle_timeout_ms: 4_000,
            idle_connections: 256,
            hold: HoldOptions::default(),
            health: HealthOptions::default(),
            app: AppOptions::default(),
        }
    }
}

/// See [`GatewayOptions::hold`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoldOptions {
    /// Without, the answer is 503 at once.
    pub enabled: bool,
    /// Memory for held requests, divided among the workers.
    pub bytes: u64,
    /// Requests, divided among the workers.
    pub requests: u32,
    /// Longest time.
    pub time_ms: u64,
    /// What happens to requests beyond these bounds.
    pub overflow: Overflow,
    /// Fields that say how urgent a request is.
    pub priority_headers: Vec<String>,
    /// Held requests that are in flight at a time while they are replayed, in each worker.
    pub replay_concurrency: u32,
    /// Disk space for bodies of held requests, divided among the workers; 0 leaves them with their clients.
    pub spill_bytes: u64,
    /// What of a held body is kept in memory; the rest goes to the disk.
    pub spill_threshold_bytes: u64,
    /// Where to; in the run directory without.
    pub spill_dir: Option<PathBuf>,
}

impl Default for HoldOptions {
    fn default() -> Self {
        let queue = queue::Settings::default();
        Self {
            enabled: true,
            bytes: queue.max_bytes as u64,
            requests: queue.max_requests_per_buffer as u32,
            time_ms: queue.max_age_ms,
            overflow: queue.overflow,
            priority_headers: queue.priority_headers,
            replay_concurrency: 32,
            spill_bytes: 0,
            spill_threshold_bytes: 64 << 10,
            spill_dir: None,
        }
    }
}

/// See [`GatewayOptions::health`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthOptions {
    /// Path that a healthy upstream answers with 200 to 399; empty is no active check.
    pub path: String,
    /// From check to check.
    pub interval_ms: u64,
    /// An answer must be there by then.
    pub timeout_ms: u64,
    /// So many good answers in a row make an upstream healthy.
    pub healthy_after: u32,
    /// So many bad ones make it unhealthy.
    pub unhealthy_after: u32,
}

impl HealthOptions {
    /// # Errors
    /// The setting, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let path = &self.path;
        if !path.is_empty()
            && (!path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()))
        {
            let why = format!("{path:?} is no path: it begins with /, without spaces");
            return Err(("gateway.health.path", why));
        }
        if self.healthy_after == 0 || self.unhealthy_after == 0 {
            return Err(("gateway.health", "thresholds must be at least 1".to_owned()));
        }
        if self.interval_ms < 10 || self.timeout_ms == 0 {
            let why = "interval_ms must be at least 10, timeout_ms at least 1".to_owned();
            return Err(("gateway.health", why));
        }
        Ok(())
    }
}

impl Default for HealthOptions {
    fn default() -> Self {
        Self {
            path: String::new(),
            interval_ms: 1_000,
            timeout_ms: 1_000,
            healthy_after: 1,
            unhealthy_after: 2,
        }
    }
}

/// See [`GatewayOptions::app`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppOptions {
    /// Command, run by `/bin/sh -c`, with `PORT` in its environment; empty is none.
    pub command: String,
    /// Whom it runs as, if the supervisor is root; empty is as the workers (`user`).
    pub user: String,
    /// A new application must be healthy by then.
    pub start_timeout_ms: u64,
    /// An old one gets TERM once its requests are done, or this is over, and KILL after as much again.
    pub stop_timeout_ms: u64,
    /// What becomes of the old application's WebSockets.
    pub websockets: SwapPolicy,
}

impl Default for AppOptions {
    fn default() -> Self {
        Self {
            command: String::new(),
            user: String::new(),
            start_timeout_ms: 30_000,
            stop_timeout_ms: 10_000,
            websockets: SwapPolicy::default(),
        }
    }
}

/// See [`AppOptions::websockets`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwapPolicy {
    /// They go on until the old application is to end, then they are closed with 1012, spread over
    /// time.
    #[default]
    Drain,
    /// They go on with the new application at once: it gets the same opening request with
    /// `X-Zdt-Resume`.
    Reconnect,
}

/// `[[route]]` of zdt.toml.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteOptions {
    /// By which commands name it; `HOST/PATH` by default.
    pub name: String,
    /// Host that it is for, `*.example.org` for all below one; empty is any.
    pub host: String,
    /// Prefix of the path, whole segments.
    pub path: String,
    /// Upstreams.
    pub upstream: Vec<String>,
}

/// Where an upstream listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(String),
}

/// An upstream as the workers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamTarget {
    /// As it was configured: its name.
    pub url: String,
    /// Value of Host where the client's is not passed on.
    pub authority: String,
    /// Where it listens.
    pub address: UpstreamAddress,
    /// What the active checks say.
    pub healthy: bool,
}

/// A route as the workers see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteTarget {
    /// See [`RouteOptions::name`].
    pub name: String,
    /// See [`RouteOptions::host`].
    pub host: String,
    /// See [`RouteOptions::path`].
    pub path: String,
    /// Its upstreams.
    pub upstreams: Vec<UpstreamTarget>,
    /// Requests are held whatever the upstreams say.
    pub held: bool,
}

/// What a gateway's worker is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayConfig {
    /// The settings.
    pub options: GatewayOptions,
    /// All routes.
    pub routes: Vec<RouteTarget>,
    /// Workers that share the bounds.
    pub workers: u32,
}

impl UpstreamTarget {
    /// Understands a URL. A host name is looked up once, here.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let expected = "an upstream is http://HOST:PORT or unix:/PATH";
        if let Some(path) = url.strip_prefix("unix:") {
            if !path.starts_with('/') || path.len() > 107 || path.contains('\0') {
                return Err(format!(
                    "{url:?}: a socket's path is absolute and has at most 107 bytes"
                ));
            }
            return Ok(Self {
                url: url.to_owned(),
                authority: "localhost".to_owned(),
                address: UpstreamAddress::Unix(path.to_owned()),
                healthy: true,
            });
        }
        let Some(authority) = url.strip_prefix("http://") else {
            return Err(format!("{url:?}: {expected}"));
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(format!("{url:?}: {expected}, without a path"));
        }
        let has_port =
            authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        let mut found = std::net::ToSocketAddrs::to_socket_addrs(&with_port)
            .map_err(|error| format!("{url:?}: {error}"))?;
        let address = found.next().ok_or_else(|| format!("{url:?}: the name has no address"))?;
        Ok(Self {
            url: url.to_owned(),
            authority: authority.to_owned(),
            address: UpstreamAddress::Tcp(address),
            healthy: true,
        })
    }
}

/// The routes of these settings; the default one is the last.
///
/// # Errors
/// The setting, and what is wrong with it.
pub fn routes(
    options: &GatewayOptions,
    routes: &[RouteOptions],
) -> Result<Vec<RouteTarget>, (&'static str, String)> {
    let parse = |name: &'static str, urls: &[String]| {
        let parsed: Result<Vec<_>, _> = urls.iter().map(|url| UpstreamTarget::parse(url)).collect();
        parsed.map_err(|why| (name, why))
    };
    let mut targets: Vec<RouteTarget> = Vec::new();
    for route in routes {
        if !route.path.is_empty() && !route.path.starts_with('/') {
            return Err(("route", format!("the path {:?} does not begin with /", route.path)));
        }
        let path = if route.path.is_empty() { "/" } else { &route.path };
        let host = if route.host.is_empty() { "*" } else { &route.host };
        let name = if route.name.is_empty() { format!("{host}{path}") } else { route.name.clone() };
        if route.upstream.is_empty() {
            return Err(("route", format!("{name} has no upstream")));
        }
        if targets.iter().any(|known| known.name == name) || name == DEFAULT_ROUTE {
            return Err(("route", format!("the name {name:?} is there twice")));
        }
        targets.push(RouteTarget {
            name,
            host: route.host.to_ascii_lowercase(),
            path: path.to_owned(),
            upstreams: parse("route", &route.upstream)?,
            held: false,
        });
    }
    if !options.upstream.is_empty() || !options.app.command.is_empty() {
        targets.push(RouteTarget {
            name: DEFAULT_ROUTE.to_owned(),
            host: String::new(),
            path: "/".to_owned(),
            upstreams: parse("gateway.upstream", &options.upstream)?,
            held: false,
        });
    }
    Ok(targets)
}

/// Name of the route for all that no other one takes.
pub const DEFAULT_ROUTE: &str = "default";

/// Name of the service that is the gateway.
pub const PROXY_SERVICE: &str = "proxy";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_say_what_is_wrong() {
        let tcp = UpstreamTarget::parse("http://127.0.0.1:9000/").unwrap();
        assert_eq!(tcp.address, UpstreamAddress::Tcp(([127, 0, 0, 1], 9000).into()));
        assert_eq!(tcp.authority, "127.0.0.1:9000");
        let plain = UpstreamTarget::parse("http://127.0.0.1").unwrap();
        assert_eq!(plain.address, UpstreamAddress::Tcp(([127, 0, 0, 1], 80).into()));
        let v6 = UpstreamTarget::parse("http://[::1]:9000").unwrap();
        assert_eq!(v6.address, UpstreamAddress::Tcp("[::1]:9000".parse().unwrap()));
        let unix = UpstreamTarget::parse("unix:/run/app.sock").unwrap();
        assert_eq!(unix.address, UpstreamAddress::Unix("/run/app.sock".to_owned()));
        for bad in
            ["https://x", "127.0.0.1:9000", "unix:relative", "http://h:1/path", "http://u@h:1"]
        {
            assert!(UpstreamTarget::parse(bad).unwrap_err().contains(bad), "{bad}");
        }
    }

    #[test]
    fn health_checks_that_make_no_sense_are_refused() {
        HealthOptions::default().check().unwrap();
        for bad in ["health", "/a b", "/a\r\nX: y"] {
            let options = HealthOptions { path: bad.to_owned(), ..HealthOptions::default() };
            assert_eq!(options.check().unwrap_err().0, "gateway.health.path", "{bad}");
        }
        let options = HealthOptions { unhealthy_after: 0, ..HealthOptions::default() };
        assert_eq!(options.check().unwrap_err().0, "gateway.health");
        let options = HealthOptions { interval_ms: 0, ..HealthOptions::default() };
        assert_eq!(options.check().unwrap_err().0, "gateway.health");
    }

    #[test]
    fn routes_have_names_and_the_default_is_last() {
        let options = GatewayOptions {
            upstream: vec!["http://127.0.0.1:1".to_owned()],
            ..GatewayOptions::default()
        };
        let api = RouteOptions {
            path: "/api".to_owned(),
            upstream: vec!["http://127.0.0.1:2".to_owned()],
            ..RouteOptions::default()
        };
        let found = routes(&options, std::slice::from_ref(&api)).unwrap();
        let names: Vec<&str> = found.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["*/api", "default"]);
        assert!(routes(&options, &[api.clone(), api]).is_err());
        let bad = RouteOptions { path: "api".to_owned(), ..RouteOptions::default() };
        assert_eq!(routes(&options, &[bad]).unwrap_err().0, "route");
    }
}
