//! Routes and upstreams: where a request goes, and whether anybody is there.
//!
//! Must not know: requests beyond host and path, sockets.

use slab::Slab;

use crate::config::{RouteTarget, UpstreamAddress};

/// Failures in a row (other than a refused connection, which says enough) that make an upstream count
/// as down.
const MAX_FAILURES: u32 = 3;

/// How long an upstream that failed is left alone.
const DOWN_MS: u64 = 200;

/// So much longer while other upstreams do its work.
const PROBE_PAUSE_MS: u64 = 800;

/// One upstream, whatever routes use it.
#[derive(Debug)]
pub struct Upstream {
    pub url: String,
    pub authority: String,
    pub address: UpstreamAddress,
    /// What the supervisor's checks say.
    pub healthy: bool,
    /// In no route any more: it finishes what it has.
    pub retired: bool,
    /// Requests and tunnels in flight.
    pub outstanding: u32,
    /// Links without a request, the one used last at the end.
    pub idle: Vec<usize>,
    failures: u32,
    /// Not asked before; 0 if it is up.
    down_until_ms: u64,
    /// Somebody is trying whether it is back.
    pub probing: bool,
}

impl Upstream {
    fn is_usable(&self) -> bool {
        self.healthy && self.down_until_ms == 0 && !self.retired
    }

    /// It answers.
    pub fn on_success(&mut self) {
        self.failures = 0;
        self.down_until_ms = 0;
    }

    /// It accepts connections, which says little: one that failed often is left alone again at its next failure.
    pub fn on_connected(&mut self) {
        self.down_until_ms = 0;
    }

    /// It did not. `refused`: there was not even a connection.
    pub fn on_failure(&mut self, now_ms: u64, refused: bool) {
        self.failures = self.failures.saturating_add(1);
        if refused || self.failures >= MAX_FAILURES {
            self.down_until_ms = now_ms + DOWN_MS;
        }
    }

    /// True if it is time to try whether it is back; later if nobody waits for it.
    pub fn wants_probe(&self, now_ms: u64, awaited: bool) -> bool {
        let pause_ms = if awaited { 0 } else { PROBE_PAUSE_MS };
        self.healthy
            && !self.retired
            && !self.probing
            && self.down_until_ms != 0
            && now_ms >= self.down_until_ms + pause_ms
    }
}

/// One route. Its index is its name within this worker.
#[derive(Debug)]
pub struct Route {
    pub name: String,
    host: String,
    path: String,
    pub upstreams: Vec<usize>,
    pub held: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Table {
    pub routes: Vec<Route>,
    pub upstreams: Slab<Upstream>,
    turn: usize,
    /// Some upstream is retired, perhaps.
    has_retired: bool,
}

impl Table {
    /// Takes over what the supervisor says. Upstreams are known by their URL and keep what they have;
    /// those that are in no route any more are returned.
    pub fn apply(&mut self, targets: &[RouteTarget]) -> Vec<usize> {
        for (_, upstream) in &mut self.upstreams {
            upstream.retired = true;
        }
        for (index, target) in targets.iter().enumerate() {
            let upstreams = target.upstreams.iter().map(|one| self.upstream(one)).collect();
            let route = Route {
                name: target.name.clone(),
                host: target.host.clone(),
                path: target.path.clone(),
                upstreams,
                held: target.held,
            };
            match self.routes.iter().position(|known| known.name == target.name) {
                Some(known) => self.routes[known] = route,
                None => self.routes.insert(index.min(self.routes.len()), route),
            }
        }
        // Those that are gone stay, because indices are names, and nobody is there.
        for route in &mut self.routes {
            route.upstreams.retain(|&upstream| !self.upstreams[upstream].retired);
        }
        self.has_retired = self.upstreams.iter().any(|(_, upstream)| upstream.retired);
        self.upstreams.iter().filter(|(_, one)| one.retired).map(|(index, _)| index).collect()
    }

    fn upstream(&mut self, target: &crate::config::UpstreamTarget) -> usize {
        let known = self
            .upstreams
            .iter()
            .find(|(_, one)| one.url == target.url && one.address == target.address)
            .map(|(index, _)| index);
        let index = known.unwrap_or_else(|| {
            self.upstreams.insert(Upstream {
                url: target.url.clone(),
                authority: target.authority.clone(),
                address: target.address.clone(),
                healthy: target.healthy,
                retired: false,
                outstanding: 0,
                idle: Vec::new(),
                failures: 0,
                down_until_ms: 0,
                probing: false,
            })
        });
        let upstream = &mut self.upstreams[index];
        if target.healthy && (!upstream.healthy || upstream.retired) {
            upstream.on_success();
        }
        upstream.healthy = target.healthy;
        upstream.retired = false;
        index
    }

    /// The upstream with that URL, to which a connection from another worker belongs; made if it is in
    /// no route any more.
    pub fn by_url(&mut self, url: &str, address: UpstreamAddress) -> usize {
        if let Some((index, _)) = self.upstreams.iter().find(|(_, one)| one.url == url) {
            return index;
        }
        self.has_retired = true;
        self.upstreams.insert(Upstream {
            url: url.to_owned(),
            authority: String::new(),
            address,
            healthy: true,
            retired: true,
            outstanding: 0,
            idle: Vec::new(),
            failures: 0,
            down_until_ms: 0,
            probing: false,
        })
    }

    /// True if [`Table::forget_retired`] may have something to do.
    pub fn has_retired(&self) -> bool {
        self.has_retired
    }

    /// Removes the upstreams in no route to which nothing belongs any more; `of_links` are those that links name.
    pub fn forget_retired(&mut self, of_links: impl Iterator<Item = usize>) {
        let named: std::collections::HashSet<usize> = of_links.collect();
        self.upstreams.retain(|index, upstream| {
            !upstream.retired || upstream.outstanding > 0 || named.contains(&index)
        });
        self.has_retired = self.upstreams.iter().any(|(_, upstream)| upstream.retired);
    }

    /// The route for a request: the most specific host, then the longest path.
    pub fn find(&self, host: &[u8], path: &str) -> Option<usize> {
        let host = without_port(host);
        self.routes
            .iter()
            .enumerate()
            .filter_map(|(index, route)| {
                let rank = host_rank(&route.host, host)?;
                is_prefix(&route.path, path).then_some(((rank, route.path.len()), index))
            })
            // The first of equals.
            .max_by_key(|&(rank, index)| (rank, std::cmp::Reverse(index)))
            .map(|(_, index)| index)
    }

    /// The upstream of a route that has the least to do, if any can be used; `but` only if it is the only one.
    pub fn choose(&mut self, route: usize, but: Option<usize>) -> Option<usize> {
        let route = &self.routes[route];
        self.turn = self.turn.wrapping_add(1);
        let count = route.upstreams.len();
        (0..count)
            .map(|offset| route.upstreams[(self.turn + offset) % count])
            .filter(|&index| self.upstreams[index].is_usable())
            .min_by_key(|&index| (but == Some(index), self.upstreams[index].outstanding))
    }

    /// True if requests of this route can be sent.
    pub fn is_open(&self, route: usize) -> bool {
        let route = &self.routes[route];
        !route.held && route.upstreams.iter().any(|&index| self.upstreams[index].is_usable())
    }
}

fn without_port(host: &[u8]) -> &[u8] {
    if host.first() == Some(&b'[') {
        let end = host.iter().position(|&byte| byte == b']').map_or(host.len(), |end| end + 1);
        return &host[..end];
    }
    let end = host.iter().position(|&byte| byte == b':').unwrap_or(host.len());
    &host[..end]
}

/// 0 for any host, then longer wildcards, then the host itself.
fn host_rank(pattern: &str, host: &[u8]) -> Option<usize> {
    if pattern.is_empty() {
        return Some(0);
    }
    if let Some(suffix) = pattern.strip_prefix('*') {
        let start = host.len().checked_sub(suffix.len()).filter(|&start| start > 0)?;
        return host[start..].eq_ignore_ascii_case(suffix.as_bytes()).then_some(suffix.len());
    }
    pattern.as_bytes().eq_ignore_ascii_case(host).then_some(usize::MAX)
}

/// Whole segments: `/api` is a prefix of `/api` and `/api/x`, not of `/apix`.
fn is_prefix(prefix: &str, path: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'),
        None => prefix == "/", // `*` of OPTIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamTarget;

    fn route(name: &str, host: &str, path: &str, ports: &[u16]) -> RouteTarget {
        RouteTarget {
            name: name.to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            upstreams: ports
                .iter()
                .map(|port| UpstreamTarget::parse(&format!("http://127.0.0.1:{port}")).unwrap())
                .collect(),
            held: false,
        }
    }

    #[test]
    fn the_most_specific_route_wins() {
        let mut table = Table::default();
        table.apply(&[
            route("api", "", "/api", &[1]),
            route("v2", "", "/api/v2", &[2]),
            route("wild", "*.example.org", "/", &[3]),
            route("host", "www.example.org", "/", &[4]),
            route("default", "", "/", &[5]),
        ]);
        let name = |host: &str, path: &str| {
            table.find(host.as_bytes(), path).map(|index| table.routes[index].name.as_str())
        };
        assert_eq!(name("x", "/api"), Some("api"));
        assert_eq!(name("x", "/api/1"), Some("api"));
        assert_eq!(name("x", "/apix"), Some("default"));
        assert_eq!(name("x", "/api/v2/1"), Some("v2"));
        assert_eq!(name("WWW.example.org:80", "/api"), Some("host"));
        assert_eq!(name("a.example.org", "/api"), Some("wild"));
        assert_eq!(name("example.org", "/"), Some("default"));
        assert_eq!(name("[::1]:80", "*"), Some("default"));
    }

    #[test]
    fn the_least_loaded_upstream_that_works_is_chosen() {
        let mut table = Table::default();
        table.apply(&[route("default", "", "/", &[1, 2])]);
        let first = table.choose(0, None).unwrap();
        table.upstreams[first].outstanding += 1;
        let second = table.choose(0, None).unwrap();
        assert_ne!(first, second);
        table.upstreams[second].on_failure(0, true);
        assert_eq!(table.choose(0, None), Some(first));
        table.upstreams[first].on_failure(0, false);
        assert_eq!(table.choose(0, None), Some(first), "one failure is not the end");
        for _ in 0..MAX_FAILURES {
            table.upstreams[first].on_failure(0, false);
        }
        assert!(table.choose(0, None).is_none() && !table.is_open(0));
        let wants_probe =
            |table: &Table, now_ms, awaited| table.upstreams[first].wants_probe(now_ms, awaited);
        assert!(!wants_probe(&table, 0, true) && wants_probe(&table, DOWN_MS, true));
        assert!(!wants_probe(&table, DOWN_MS, false));
        assert!(wants_probe(&table, DOWN_MS + PROBE_PAUSE_MS, false));
        table.upstreams[first].on_connected();
        assert!(table.is_open(0));
        table.upstreams[first].on_failure(0, false);
        assert!(!table.is_open(0), "it accepts connections and answers nothing");
        table.upstreams[first].on_success();
        table.upstreams[first].on_failure(0, false);
        assert!(table.is_open(0));
        table.routes[0].held = true;
        assert!(!table.is_open(0));
    }

    #[test]
    fn upstreams_keep_what_they_have_when_routes_change() {
        let mut table = Table::default();
        table.apply(&[route("default", "", "/", &[1, 2])]);
        let first = table.routes[0].upstreams[0];
        table.upstreams[first].outstanding = 7;
        let retired = table.apply(&[route("default", "", "/", &[2, 3])]);
        assert_eq!(retired, [first]);
        assert_eq!(table.upstreams[first].outstanding, 7);
        assert!(table.apply(&[route("default", "", "/", &[1])]).len() == 2);
        assert_eq!(table.routes[0].upstreams, [first]);
    }

    #[test]
    fn replaced_upstreams_are_forgotten_once_nothing_belongs_to_them() {
        let mut table = Table::default();
        table.apply(&[route("default", "", "/", &[1]), route("api", "", "/api", &[2])]);
        let [first, second] = [0, 1].map(|route: usize| table.routes[route].upstreams[0]);
        table.upstreams[first].outstanding = 1;
        table.forget_retired(std::iter::empty());
        assert_eq!(table.upstreams.len(), 2, "they are in force");
        table.apply(&[route("default", "", "/", &[3])]);
        assert!(table.has_retired() && table.choose(1, None).is_none() && !table.is_open(1));
        table.forget_retired(std::iter::once(second));
        assert_eq!(table.upstreams.len(), 3, "a request and a link");
        table.forget_retired(std::iter::empty());
        assert!(table.upstreams.contains(first) && !table.upstreams.contains(second));
        table.upstreams[first].outstanding = 0;
        table.forget_retired(std::iter::empty());
        assert!(!table.has_retired() && table.upstreams.len() == 1);
        // Back again, and moved in from elsewhere.
        let address = table.upstreams[table.routes[0].upstreams[0]].address.clone();
        table.apply(&[route("default", "", "/", &[1])]);
        table.by_url("http://127.0.0.1:9", address);
        assert!(table.has_retired());
        table.forget_retired(std::iter::empty());
        assert_eq!(table.upstreams.len(), 1);
    }
}
