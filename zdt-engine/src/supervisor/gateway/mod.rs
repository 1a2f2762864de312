//! The gateway's routes as they are in force: as configured, with what is held, what was replaced by
//! command, and what the health checks have found. Every change goes to all workers.
//!
//! A check is a request of the supervisor's own; clients' bytes never come here.
//!
//! Must not know: how workers use a route.

pub mod application;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use self::application::{Applications, Deploy};
use crate::config::{
    DEFAULT_ROUTE, GatewayConfig, GatewayOptions, RouteTarget, SwapPolicy, UpstreamAddress,
    UpstreamTarget,
};
use crate::control::ToWorker;
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::{FlushReport, GatewayReply, GatewayRequest};

/// Longest beginning of an answer that a check reads.
const MAX_ANSWER_BYTES: usize = 64;

/// What tasks report to the loop.
#[derive(Debug)]
pub(in crate::supervisor) enum GatewayEvent {
    /// A health check has ended.
    Checked { url: String, healthy: bool },
    /// The upstreams of a deploy answer, or have not in time.
    Proven { deploy: u64, result: Result<(), String> },
}

/// Where a command's answer goes.
pub(in crate::supervisor) type GatewayAnswer = oneshot::Sender<Result<GatewayReply, String>>;

/// See the module.
pub(in crate::supervisor) struct Gateway {
    held: BTreeSet<String>,
    /// Upstreams by route that are in force instead of the configured ones, which were these.
    replaced: BTreeMap<String, (Vec<String>, Vec<UpstreamTarget>)>,
    unhealthy: BTreeSet<String>,
    /// Answers in a row by URL: good ones above zero, bad ones below.
    streaks: BTreeMap<String, i64>,
    /// Workers by replaced upstream of which they have nothing left.
    idle: BTreeMap<String, BTreeSet<WorkerId>>,
    next_check: Option<Instant>,
    checking: BTreeSet<String>,
    pub applications: Applications,
    pub events: mpsc::UnboundedSender<GatewayEvent>,
    receiver: Option<mpsc::UnboundedReceiver<GatewayEvent>>,
}

impl Default for Gateway {
    fn default() -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        Self {
            held: BTreeSet::new(),
            replaced: BTreeMap::new(),
            unhealthy: BTreeSet::new(),
            streaks: BTreeMap::new(),
            idle: BTreeMap::new(),
            next_check: None,
            checking: BTreeSet::new(),
            applications: Applications::default(),
            events,
            receiver: Some(receiver),
        }
    }
}

impl Gateway {
    /// What tasks report; for the loop, once.
    pub fn take_events(&mut self) -> Option<mpsc::UnboundedReceiver<GatewayEvent>> {
        self.receiver.take()
    }

    /// These routes as they are in force.
    pub fn in_force(&self, configured: &[RouteTarget]) -> Vec<RouteTarget> {
        let mut routes = configured.to_vec();
        for route in &mut routes {
            let urls: Vec<&String> = route.upstreams.iter().map(|one| &one.url).collect();
            if let Some((instead_of, upstreams)) = self.replaced.get(&route.name)
                && instead_of.iter().eq(urls)
            {
                route.upstreams.clone_from(upstreams);
            }
            route.held = self.held.contains(&route.name);
            for upstream in &mut route.upstreams {
                upstream.healthy = !self.unhealthy.contains(&upstream.url);
            }
        }
        routes
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.next_check.into_iter().chain(self.applications.deadline()).min()
    }
}

/// Connects, and asks for the path if there is one.
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

async fn ask(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    upstream: &UpstreamTarget,
    path: &str,
) -> Option<()> {
    if path.is_empty() {
        return Some(());
    }
    let authority = &upstream.authority;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: zdt-health\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    while answer.len() < 12 {
        let mut piece = [0; MAX_ANSWER_BYTES];
        match stream.read(&mut piece).await {
            Ok(count @ 1..) => answer.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    }
    let is_http = answer.starts_with(b"HTTP/1.");
    (is_http && matches!(answer[9], b'2' | b'3')).then_some(())
}

impl Core {
    /// The settings of the gateway that serves, or is to serve.
    pub fn gateway_config(&self) -> Option<&GatewayConfig> {
        let config = &self.serving().or(self.generations.values().next_back())?.config;
        (config.service == crate::config::PROXY_SERVICE).then_some(&config.gateway)
    }

    fn gateway_options(&self) -> GatewayOptions {
        self.gateway_config().map(|config| config.options.clone()).unwrap_or_default()
    }

    /// The routes in force.
    pub fn routes_in_force(&self) -> Vec<RouteTarget> {
        self.gateway_config().map_or_else(Vec::new, |config| self.gateway.in_force(&config.routes))
    }

    /// Tells every worker what is in force.
    pub fn broadcast_routes(&mut self) {
        let workers: Vec<(WorkerId, Vec<RouteTarget>)> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.hello.is_some())
            .filter_map(|(&id, worker)| {
                let config = &self.generations.get(&worker.identity.generation)?.config;
                let is_gateway = config.service == crate::config::PROXY_SERVICE;
                is_gateway.then(|| (id, self.gateway.in_force(&config.gateway.routes)))
            })
            .collect();
        for (worker, routes) in workers {
            self.send(worker, &ToWorker::Routes { routes });
        }
    }

    fn tell_gateways(&mut self, message: &ToWorker) -> u32 {
        let workers: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.hello.is_some())
            .map(|(&id, _)| id)
            .collect();
        for &worker in &workers {
            self.send(worker, message);
        }
        workers.len() as u32
    }

    pub fn on_gateway_request(&mut self, request: GatewayRequest, answer: GatewayAnswer) {
        if self.gateway_config().is_none() {
            let why = "the service is not the gateway; start it with `--service proxy`";
            let _ = answer.send(Err(why.to_owned()));
            return;
        }
        let names: Vec<String> =
            self.routes_in_force().into_iter().map(|route| route.name).collect();
        let unknown = |route: &str| {
            Err(format!("there is no route {route:?}; there are: {}", names.join(", ")))
        };
        match request {
            GatewayRequest::Hold { route, held } => {
                if let Some(route) = &route
                    && !names.contains(route)
                {
                    let _ = answer.send(unknown(route));
                    return;
                }
                for name in route.map_or(names, |route| vec![route]) {
                    tracing::info!(route = name, held, "hold by command");
                    if held {
                        self.gateway.held.insert(name);
                    } else {
                        self.gateway.held.remove(&name);
                    }
                }
                self.broadcast_routes();
                let _ = answer.send(Ok(GatewayReply::Routes(self.routes_in_force())));
            }
            GatewayRequest::Flush { route } => {
                if let Some(route) = &route
                    && !names.contains(route)
                {
                    let _ = answer.send(unknown(route));
                    return;
                }
                let workers = self.tell_gateways(&ToWorker::FlushQueue { route });
                let _ = answer.send(Ok(GatewayReply::Flushed { workers }));
            }
            GatewayRequest::SetUpstreams { route, urls } => {
                if !names.contains(&route) {
                    let _ = answer.send(unknown(&route));
                    return;
                }
                let parsed: Result<Vec<_>, _> =
                    urls.iter().map(|url| UpstreamTarget::parse(url)).collect();
                match parsed {
                    Ok(targets) if !targets.is_empty() => {
                        self.begin_deploy(Deploy::of(route, targets, None), Some(answer));
                    }
                    Ok(_) => drop(answer.send(Err("no upstream was given".to_owned()))),
                    Err(why) => drop(answer.send(Err(why))),
                }
            }
            GatewayRequest::ReloadApp => {
                if self.gateway_options().app.command.is_empty() {
                    let why = "zdt runs no application; `zdt serve --app 'COMMAND'` starts one";
                    let _ = answer.send(Err(why.to_owned()));
                    return;
                }
                self.start_application(Some(answer));
            }
        }
    }

    pub fn on_gateway_event(&mut self, event: GatewayEvent) {
        match event {
            GatewayEvent::Checked { url, healthy } => self.on_checked(&url, healthy),
            GatewayEvent::Proven { deploy, result } => self.on_proven(deploy, result),
        }
    }

    /// Everything that is held is answered with 503. How much that is, the workers say just before.
    pub fn begin_flush(&mut self, reply: oneshot::Sender<FlushReport>) {
        if self.gateway_config().is_none() {
            let _ = reply.send(FlushReport::default());
            return;
        }
        let (status, before) = oneshot::channel();
        self.begin_status(status);
        self.tell_gateways(&ToWorker::FlushQueue { route: None });
        tokio::task::spawn_local(async move {
            let flushed_requests = before.await.map_or(0, |status| status.buffered_requests);
            let _ = reply.send(FlushReport { flushed_requests, buffered_requests: 0 });
        });
    }

    /// A worker has nothing left of an upstream. The old application may go when none has.
    pub fn on_worker_upstream_idle(&mut self, worker: WorkerId, url: &str) {
        let idle = self.gateway.idle.entry(url.to_owned()).or_default();
        idle.insert(worker);
        let all = self.workers.iter().filter(|(_, one)| one.hello.is_some());
        if all.into_iter().all(|(id, _)| idle.contains(id)) {
            self.gateway.idle.remove(url);
            self.on_upstream_idle(url);
        }
    }

    fn on_checked(&mut self, url: &str, healthy: bool) {
        self.gateway.checking.remove(url);
        let options = self.gateway_options().health;
        let streak = self.gateway.streaks.entry(url.to_owned()).or_default();
        *streak = match healthy {
            true => (*streak).max(0) + 1,
            false => (*streak).min(0) - 1,
        };
        let changed = if *streak >= i64::from(options.healthy_after) {
            self.gateway.unhealthy.remove(url)
        } else if *streak <= -i64::from(options.unhealthy_after) {
            self.gateway.unhealthy.insert(url.to_owned())
        } else {
            false
        };
        if changed {
            tracing::info!(upstream = url, healthy, "health check");
            self.broadcast_routes();
        }
    }

    /// Health checks, and the application's process.
    pub fn gateway_on_time(&mut self, now: Instant) {
        if self.gateway_config().is_none() {
            return;
        }
        self.applications_on_time(now);
        let options = self.gateway_options().health;
        if options.path.is_empty() || self.stopping.is_some() {
            self.gateway.next_check = None;
            return;
        }
        if self.gateway.next_check.is_some_and(|at| now < at) {
            return;
        }
        self.gateway.next_check = Some(now + Duration::from_millis(options.interval_ms.max(10)));
        let upstreams: BTreeMap<String, UpstreamTarget> = self
            .routes_in_force()
            .into_iter()
            .flat_map(|route| route.upstreams)
            .map(|upstream| (upstream.url.clone(), upstream))
            .collect();
        self.gateway.streaks.retain(|url, _| upstreams.contains_key(url));
        self.gateway.unhealthy.retain(|url| upstreams.contains_key(url));
        for (url, upstream) in upstreams {
            if !self.gateway.checking.insert(url.clone()) {
                continue; // the one before has not ended
            }
            let events = self.gateway.events.clone();
            let path = options.path.clone();
            let timeout = Duration::from_millis(options.timeout_ms.max(1));
            tokio::task::spawn_local(async move {
                let healthy = check(&upstream, &path, timeout).await;
                let _ = events.send(GatewayEvent::Checked { url, healthy });
            });
        }
    }

    /// New upstreams take a route over. Returns those that leave it.
    pub fn replace_upstreams(&mut self, route: &str, targets: Vec<UpstreamTarget>) -> Vec<String> {
        let configured = self.gateway_config().and_then(|config| {
            config.routes.iter().find(|known| known.name == route).map(|known| &known.upstreams)
        });
        let configured: Vec<String> =
            configured.into_iter().flatten().map(|one| one.url.clone()).collect();
        let before = self.routes_in_force().into_iter().find(|known| known.name == route);
        for target in &targets {
            // It has just been proven.
            self.gateway.unhealthy.remove(&target.url);
            self.gateway.streaks.remove(&target.url);
        }
        let stay: BTreeSet<String> = targets.iter().map(|one| one.url.clone()).collect();
        self.gateway.replaced.insert(route.to_owned(), (configured, targets));
        self.broadcast_routes();
        before
            .into_iter()
            .flat_map(|route| route.upstreams)
            .map(|one| one.url)
            .filter(|url| !stay.contains(url))
            .collect()
    }

    /// The WebSockets of upstreams that have been replaced leave them, now or when time is up.
    pub fn leave_upstreams(&mut self, urls: &[String], reconnect: bool, over_ms: u64) {
        for url in urls {
            let message = ToWorker::LeaveUpstream { url: url.clone(), reconnect, over_ms };
            self.tell_gateways(&message);
        }
    }

    /// What becomes of WebSockets when their upstream is replaced.
    pub fn swap_policy(&self) -> SwapPolicy {
        self.gateway_options().app.websockets
    }

    /// Name of the route that the application serves.
    pub fn application_route() -> &'static str {
        DEFAULT_ROUTE
    }
}
