//! The gateway's routes as they are in force: as configured, with what is held, what was replaced by
//! command, and what the health checks have found. Every change is written down, and then goes to all workers.
//!
//! | file | what |
//! |---|---|
//! | `health` | whether upstreams answer |
//! | `swapping` | new upstreams take a route over, the old ones end |
//! | `application` | a process that zdt starts |
//! | `inheriting` | what the next supervisor finds |
//!
//! Must not know: how workers use a route.

mod application;
mod health;
mod inheriting;
mod restarts;
mod swapping;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use self::health::Health;
pub use self::inheriting::end_orphaned_applications;
use self::swapping::{Swap, Swaps};
use crate::config::{GatewayConfig, GatewayOptions, PROXY_SERVICE, RouteTarget, UpstreamTarget};
use crate::control::{ToWorker, total};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::{
    ApplicationStats, FlushReport, GatewayReply, GatewayRequest, Status,
};
use crate::supervisor::takeover::store;
use crate::supervisor::workers::generations::Generation;

/// What tasks report to the loop.
#[derive(Debug)]
pub(in crate::supervisor) enum GatewayEvent {
    /// A health check has ended.
    Checked { url: String, healthy: bool },
    /// The addresses of new upstreams were looked up.
    Found { route: String, targets: Result<Vec<UpstreamTarget>, String>, answer: GatewayAnswer },
    /// The upstreams of a swap answer, or have not in time.
    Proven { swap: u64, result: Result<(), String> },
}

/// Where a command's answer goes.
pub(in crate::supervisor) type GatewayAnswer = oneshot::Sender<Result<GatewayReply, String>>;

/// Upstreams of which workers may say that they have nothing left before anybody wants to know, and how long their
/// names are.
const MAX_IDLE_URLS: usize = 256;
const MAX_IDLE_URL_BYTES: usize = 1_024;

/// WebSockets are to leave an upstream.
#[derive(Debug)]
struct Departure {
    url: String,
    /// They go on with what is there instead.
    reconnect: bool,
    over_ms: u64,
}

/// See the module.
pub(in crate::supervisor) struct Gateway {
    held: BTreeSet<String>,
    /// Upstreams by route that are in force instead of the configured ones.
    replaced: BTreeMap<String, store::Replaced>,
    health: Health,
    /// Workers by replaced upstream of which they have nothing left.
    idle: BTreeMap<String, BTreeSet<WorkerId>>,
    pub swaps: Swaps,
    /// Commands whose upstreams are being looked up.
    finding: usize,
    // What has been decided, and waits until it is written down:
    /// The routes have changed.
    routes_due: bool,
    departures: Vec<Departure>,
    answers: Vec<(GatewayAnswer, Result<GatewayReply, String>)>,
    events: mpsc::UnboundedSender<GatewayEvent>,
    receiver: Option<mpsc::UnboundedReceiver<GatewayEvent>>,
}

impl Default for Gateway {
    fn default() -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        Self {
            held: BTreeSet::new(),
            replaced: BTreeMap::new(),
            health: Health::default(),
            idle: BTreeMap::new(),
            swaps: Swaps::default(),
            finding: 0,
            routes_due: false,
            departures: Vec::new(),
            answers: Vec::new(),
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
            if let Some(replaced) = self.replaced.get(&route.name)
                && replaced.instead_of.iter().eq(urls)
            {
                route.upstreams.clone_from(&replaced.upstreams);
            }
            route.held = self.held.contains(&route.name);
            for upstream in &mut route.upstreams {
                upstream.healthy = !self.health.unhealthy.contains(&upstream.url);
            }
        }
        routes
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.health.next_check.into_iter().chain(self.swaps.deadline()).min()
    }

    /// True while somebody waits for a swap, whose answer no other supervisor could give.
    pub fn is_asked(&self) -> bool {
        self.finding > 0 || self.swaps.proving.iter().any(|swap| swap.answer.is_some())
    }

    /// The applications that zdt has started.
    pub fn applications(&self) -> Vec<ApplicationStats> {
        let stats = |(state, one): (&str, &application::Application)| ApplicationStats {
            pid: one.pid(),
            generation: one.generation,
            url: one.url.clone(),
            state: state.to_owned(),
        };
        self.swaps.applications().map(stats).collect()
    }
}

impl Core {
    /// The generation whose settings count: the one that serves, or is to serve.
    fn gateway_generation(&self) -> Option<&Generation> {
        let generation = self.serving().or(self.generations.values().next_back())?;
        (generation.config.service == PROXY_SERVICE).then_some(generation)
    }

    /// The settings of the gateway.
    pub fn gateway_config(&self) -> Option<&GatewayConfig> {
        self.gateway_generation().map(|generation| &generation.config.gateway)
    }

    fn gateway_options(&self) -> GatewayOptions {
        self.gateway_config().map(|config| config.options.clone()).unwrap_or_default()
    }

    /// The routes in force.
    pub fn routes_in_force(&self) -> Vec<RouteTarget> {
        self.gateway_config().map_or_else(Vec::new, |config| self.gateway.in_force(&config.routes))
    }

    /// The routes in force have changed: workers are told once that is written down.
    fn gateway_changed(&mut self) {
        self.gateway.routes_due = true;
        self.dirty = true;
    }

    /// A command is answered once what it has changed is written down.
    fn answer_gateway(&mut self, answer: GatewayAnswer, result: Result<GatewayReply, String>) {
        self.gateway.answers.push((answer, result));
    }

    /// What was decided is written down: now it is done.
    pub fn gateway_written(&mut self) {
        self.gateway.swaps.begin_all();
        if std::mem::take(&mut self.gateway.routes_due) {
            fault_point!("gateway.written");
            self.broadcast_routes();
            fault_point!("gateway.told");
        }
        for Departure { url, reconnect, over_ms } in std::mem::take(&mut self.gateway.departures) {
            self.tell_gateways(&ToWorker::LeaveUpstream { url, reconnect, over_ms });
        }
        for (answer, result) in std::mem::take(&mut self.gateway.answers) {
            let _ = answer.send(result);
        }
    }

    /// Tells every worker what is in force.
    fn broadcast_routes(&mut self) {
        let workers: Vec<(WorkerId, Vec<RouteTarget>)> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.hello.is_some())
            .filter_map(|(&id, worker)| {
                let config = &self.generations.get(&worker.identity.generation)?.config;
                let is_gateway = config.service == PROXY_SERVICE;
                is_gateway.then(|| (id, self.gateway.in_force(&config.gateway.routes)))
            })
            .collect();
        let leaving: Vec<String> = self.gateway.swaps.busy().cloned().collect();
        for (worker, routes) in workers {
            self.send(worker, &ToWorker::Routes { routes, leaving: leaving.clone() });
        }
    }

    /// Connections may have moved, or a worker has begun: what was said of replaced upstreams is asked again.
    pub fn ask_what_is_left(&mut self) {
        self.gateway.idle.clear();
        if self.gateway.swaps.busy().next().is_some() {
            self.broadcast_routes();
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
        if self.heir.is_some() {
            let why = "the supervisor is just being replaced; ask again";
            let _ = answer.send(Err(why.to_owned()));
            return;
        }
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
                self.gateway_changed();
                let routes = self.routes_in_force();
                self.answer_gateway(answer, Ok(GatewayReply::Routes(routes)));
            }
            GatewayRequest::Flush { route } => {
                if let Some(route) = &route
                    && !names.contains(route)
                {
                    let _ = answer.send(unknown(route));
                    return;
                }
                self.flush(
                    route,
                    |workers, FlushReport { flushed_requests, buffered_requests }| {
                        let flushed =
                            GatewayReply::Flushed { workers, flushed_requests, buffered_requests };
                        let _ = answer.send(Ok(flushed));
                    },
                );
            }
            GatewayRequest::SetUpstreams { route, urls } => {
                if !names.contains(&route) {
                    let _ = answer.send(unknown(&route));
                    return;
                }
                if urls.is_empty() {
                    let _ = answer.send(Err("no upstream was given".to_owned()));
                    return;
                }
                self.gateway.finding += 1;
                let events = self.gateway.events.clone();
                tokio::task::spawn_local(async move {
                    // A host name may take its time to be looked up.
                    let parse = move || urls.iter().map(|url| UpstreamTarget::parse(url)).collect();
                    let found = tokio::task::spawn_blocking(parse).await;
                    let targets = found.unwrap_or_else(|error| Err(error.to_string()));
                    let _ = events.send(GatewayEvent::Found { route, targets, answer });
                });
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
            GatewayEvent::Found { route, targets, answer } => {
                self.gateway.finding -= 1;
                match targets {
                    Ok(targets) => self.begin_swap(Swap::of(route, targets, None), Some(answer)),
                    Err(why) => drop(answer.send(Err(why))),
                }
            }
            GatewayEvent::Proven { swap, result } => self.on_proven(swap, result),
        }
    }

    /// Everything that is held is answered with 503.
    pub fn begin_flush(&mut self, reply: oneshot::Sender<FlushReport>) {
        if self.gateway_config().is_none() {
            let _ = reply.send(FlushReport::default());
            return;
        }
        self.flush(None, |_, report| {
            let _ = reply.send(report);
        });
    }

    /// The workers say how much that was: their figures just before and just after, over the connection on
    /// which the command goes in between.
    fn flush(&mut self, route: Option<String>, then: impl FnOnce(u32, FlushReport) + 'static) {
        let ((status, before), (again, after)) = (oneshot::channel(), oneshot::channel());
        self.begin_status(status);
        let workers = self.tell_gateways(&ToWorker::FlushQueue { route });
        self.begin_status(again);
        tokio::task::spawn_local(async move {
            let (before, after) = (before.await, after.await);
            let flushed = |status: &Status| -> u64 {
                let figures = status.worker_stats.values().map(|worker| &worker.figures);
                let gateways = figures.filter_map(|one| one.gateway.as_ref());
                total(gateways.map(|gateway| gateway.flushed))
            };
            let count = |status: Option<&Status>| status.map_or(0, &flushed);
            let (before, after) = (before.ok(), after.ok());
            let flushed_requests = count(after.as_deref()).saturating_sub(count(before.as_deref()));
            let buffered_requests = after.map_or(0, |status| status.buffered_requests);
            then(workers, FlushReport { flushed_requests, buffered_requests });
        });
    }

    /// A worker has nothing left of an upstream.
    pub fn on_worker_upstream_idle(&mut self, worker: WorkerId, url: &str) {
        // A worker may say what it likes; what nobody waits for yet need not be kept.
        let idle = &mut self.gateway.idle;
        let is_awaited = self.gateway.swaps.busy().any(|busy| busy == url);
        let is_small = idle.len() < MAX_IDLE_URLS && url.len() <= MAX_IDLE_URL_BYTES;
        if is_awaited || idle.contains_key(url) || is_small {
            idle.entry(url.to_owned()).or_default().insert(worker);
            self.let_idle_upstreams_go();
        }
    }

    /// The old application may go when no worker has anything left of it. While connections move from worker to
    /// worker, nobody can tell: after a reload they are asked again.
    pub fn let_idle_upstreams_go(&mut self) {
        if self.reload.is_some() {
            return;
        }
        let workers: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.hello.is_some())
            .map(|(&id, _)| id)
            .collect();
        let idle = std::mem::take(&mut self.gateway.idle);
        for (url, by) in idle {
            if workers.iter().all(|id| by.contains(id)) {
                self.on_upstream_idle(&url);
            } else {
                self.gateway.idle.insert(url, by);
            }
        }
    }

    /// Health checks, and the application's process.
    pub fn gateway_on_time(&mut self, now: Instant) {
        self.swaps_on_time(now);
        self.check_on_time(now);
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
            self.gateway.health.on_proven(&target.url);
            // Nobody has finished with it; it begins.
            self.gateway.idle.remove(&target.url);
        }
        let stay: BTreeSet<String> = targets.iter().map(|one| one.url.clone()).collect();
        let replaced = store::Replaced { instead_of: configured, upstreams: targets };
        self.gateway.replaced.insert(route.to_owned(), replaced);
        self.gateway_changed();
        let before = before.into_iter().flat_map(|route| route.upstreams).map(|one| one.url);
        let left: Vec<String> = before.filter(|url| !stay.contains(url)).collect();
        for url in &left {
            // What was said of it is from an earlier time.
            self.gateway.idle.remove(url);
        }
        left
    }
}
