//! The swap of what is behind a route: new upstreams are proven, take it over, and the old ones finish what they have.
//!
//! The new ones are an application that zdt starts, or addresses of one that something else runs. What is decided is
//! written down before anybody acts on it (see `written` in `mod.rs`).
//!
//! Must not know: what a request is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::application::Application;
use super::health::check;
use super::restarts::Restarts;
use super::{Departure, GatewayAnswer, GatewayEvent};
use crate::config::{DEFAULT_ROUTE, GatewayOptions, SwapPolicy, UpstreamTarget};
use crate::supervisor::core::Core;
use crate::supervisor::handle::{GatewayReply, Swapped};
use crate::supervisor::workers::process::find_user;

/// How often the end of an application is looked for.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// From attempt to attempt of a proof.
const PROOF_PAUSE: Duration = Duration::from_millis(50);

/// New upstreams that are being proven.
#[derive(Debug)]
pub(in crate::supervisor) struct Swap {
    pub id: u64,
    pub route: String,
    pub targets: Vec<UpstreamTarget>,
    pub application: Option<Application>,
    pub answer: Option<GatewayAnswer>,
    begun: Instant,
}

impl Swap {
    pub fn of(
        route: String,
        targets: Vec<UpstreamTarget>,
        application: Option<Application>,
    ) -> Self {
        Self { id: 0, route, targets, application, answer: None, begun: Instant::now() }
    }
}

/// Upstreams that have been replaced.
#[derive(Debug)]
pub(super) struct Ending {
    pub urls: Vec<String>,
    /// Those of them of which some worker has something left.
    busy: BTreeSet<String>,
    pub application: Option<Application>,
    pub reconnect: bool,
    /// When what is left is told to go.
    leave_at: Option<Instant>,
    term_at: Instant,
    kill_at: Instant,
    termed: bool,
}

impl Ending {
    /// They have so long to finish what they have.
    pub fn of(
        urls: Vec<String>,
        application: Option<Application>,
        reconnect: bool,
        stop_ms: u64,
    ) -> Self {
        let part = |percent: u64| Instant::now() + Duration::from_millis(stop_ms * percent / 100);
        Self {
            busy: urls.iter().cloned().collect(),
            urls,
            application,
            reconnect,
            // The last third is for their clients to go, spread.
            leave_at: (!reconnect).then(|| part(66)),
            term_at: part(100),
            kill_at: part(200),
            termed: false,
        }
    }

    /// It has been told to end already.
    pub fn already_told(mut self) -> Self {
        self.leave_at = None;
        self.termed = true;
        self.kill_at -= self.term_at.saturating_duration_since(Instant::now());
        self
    }

    /// It ends now, and by then at the latest.
    fn end_by(&mut self, now: Instant, kill_at: Instant) {
        let Some(application) = &self.application else { return };
        self.leave_at = None;
        if !std::mem::replace(&mut self.termed, true) {
            application.signal(Signal::SIGTERM);
            self.kill_at = kill_at;
        }
        self.kill_at = self.kill_at.min(kill_at);
        if now >= self.kill_at {
            application.signal(Signal::SIGKILL);
        }
    }

    /// One that nobody has been served by ends at once.
    pub fn unwanted(application: Application) -> Self {
        application.signal(Signal::SIGKILL);
        Self { leave_at: None, termed: true, ..Self::of(Vec::new(), Some(application), false, 0) }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Swaps {
    /// The number of the last one.
    pub last: u64,
    pub current: Option<Application>,
    pub proving: Vec<Swap>,
    pub(super) ending: Vec<Ending>,
    pub(super) next_look: Option<Instant>,
    restarts: Restarts,
}

impl Swaps {
    pub fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// What has been started or has ended is looked at soon.
    pub(super) fn look_soon(&mut self) {
        self.next_look = Some(Instant::now() + LOOK);
    }

    /// All applications, and what they are.
    pub fn applications(&self) -> impl Iterator<Item = (&'static str, &Application)> {
        let proving = self.proving.iter().filter_map(|swap| swap.application.as_ref());
        let ending = self.ending.iter().filter_map(|ending| ending.application.as_ref());
        let named = |name| move |application| (name, application);
        let current = self.current.iter().map(named("serving"));
        current.chain(proving.map(named("starting"))).chain(ending.map(named("ending")))
    }

    /// Those that were started may begin: they are written down.
    pub(super) fn begin_all(&mut self) {
        for application in self.proving.iter_mut().filter_map(|swap| swap.application.as_mut()) {
            application.begin();
        }
    }

    /// Upstreams that have been replaced and of which a worker may have something left.
    pub fn busy(&self) -> impl Iterator<Item = &String> {
        self.ending.iter().flat_map(|ending| &ending.busy)
    }

    /// Ends everything, for a supervisor that ends. To be called until it says that nothing is left.
    pub fn end_all(&mut self, patience: Duration) -> bool {
        let now = Instant::now();
        let proving = std::mem::take(&mut self.proving).into_iter();
        let left = proving.filter_map(|swap| swap.application).chain(self.current.take());
        self.ending
            .extend(left.map(|application| Ending::of(Vec::new(), Some(application), false, 0)));
        self.ending.retain_mut(|ending| {
            ending.application.as_mut().is_some_and(|application| application.end().is_none())
        });
        for ending in &mut self.ending {
            ending.end_by(now, now + patience);
        }
        self.next_look = (!self.ending.is_empty()).then(|| now + LOOK);
        self.ending.is_empty()
    }
}

impl Core {
    /// Starts the configured application; once it answers, it takes its route over.
    pub fn start_application(&mut self, answer: Option<GatewayAnswer>) {
        let Some(generation) = self.gateway_generation() else { return };
        let options = generation.config.gateway.options.app.clone();
        let workers_user = generation.user;
        if answer.is_some() {
            self.gateway.swaps.restarts.asked();
        }
        let owner = match options.user.is_empty() {
            true => Ok(workers_user),
            false => find_user(&options.user, None).map_err(|why| format!("gateway.app.{why}")),
        };
        let number = self.gateway.swaps.last + 1;
        match owner.and_then(|owner| Application::start(&options, owner, number)) {
            Ok((application, target)) => {
                let route = DEFAULT_ROUTE.to_owned();
                self.begin_swap(Swap::of(route, vec![target], Some(application)), answer);
            }
            Err(why) => {
                tracing::error!("{why}");
                self.gateway.swaps.restarts.ended(Instant::now(), options);
                self.gateway.swaps.look_soon();
                if let Some(answer) = answer {
                    let _ = answer.send(Err(why));
                }
            }
        }
    }

    /// Proves new upstreams.
    pub fn begin_swap(&mut self, mut swap: Swap, answer: Option<GatewayAnswer>) {
        let GatewayOptions { health, app, .. } = self.gateway_options();
        let swaps = &mut self.gateway.swaps;
        swaps.last += 1;
        swap.id = swaps.last;
        swap.answer = answer;
        let (id, targets) = (swap.id, swap.targets.clone());
        swaps.proving.push(swap);
        swaps.look_soon();
        self.dirty = true;
        let events = self.gateway.events.clone();
        let until = Instant::now() + Duration::from_millis(app.start_timeout_ms);
        let patience = Duration::from_millis(health.timeout_ms.max(1));
        tokio::task::spawn_local(async move {
            for target in &targets {
                let left = || until.saturating_duration_since(Instant::now());
                while !check(target, &health.path, patience.min(left())).await {
                    if left().is_zero() {
                        let why = format!(
                            "{} has not answered within {} ms; nothing has changed",
                            target.url, app.start_timeout_ms
                        );
                        let _ = events.send(GatewayEvent::Proven { swap: id, result: Err(why) });
                        return;
                    }
                    tokio::time::sleep(PROOF_PAUSE).await;
                }
            }
            let _ = events.send(GatewayEvent::Proven { swap: id, result: Ok(()) });
        });
    }

    pub fn on_proven(&mut self, id: u64, result: Result<(), String>) {
        let proving = &mut self.gateway.swaps.proving;
        let Some(position) = proving.iter().position(|swap| swap.id == id) else { return };
        let swap = proving.remove(position);
        self.dirty = true;
        if let Err(why) = result {
            return self.fail_swap(swap, why);
        }
        fault_point!("application.proven");
        let Swap { route, targets, application, answer, begun, .. } = swap;
        let urls: Vec<String> = targets.iter().map(|target| target.url.clone()).collect();
        let left = self.replace_upstreams(&route, targets);
        let ready_ms = begun.elapsed().as_secs_f64() * 1_000.0;
        tracing::info!(route, upstreams = urls.join(", "), "new upstreams");
        let app = self.gateway_options().app;
        let reconnect = app.websockets == SwapPolicy::Reconnect;
        let swaps = &mut self.gateway.swaps;
        let old = match application {
            Some(application) => {
                swaps.restarts.serving(Instant::now());
                swaps.current.replace(application)
            }
            None => swaps.current.take_if(|old| left.contains(&old.url)),
        };
        swaps.ending.push(Ending::of(left.clone(), old, reconnect, app.stop_timeout_ms));
        swaps.look_soon();
        if reconnect {
            self.depart(left.clone(), true);
        }
        if let Some(answer) = answer {
            let swapped =
                Swapped { swap_successful: true, route, upstreams: urls, replaced: left, ready_ms };
            self.answer_gateway(answer, Ok(GatewayReply::Swapped(swapped)));
        }
    }

    fn fail_swap(&mut self, swap: Swap, why: String) {
        let app = self.gateway_options().app;
        let swaps = &mut self.gateway.swaps;
        if swaps.current.is_none() && swap.application.is_some() {
            let pause = swaps.restarts.ended(Instant::now(), app);
            tracing::error!("{why}; the application is started again in {} s", pause.as_secs());
        } else {
            tracing::error!("{why}");
        }
        swaps.ending.extend(swap.application.map(Ending::unwanted));
        swaps.look_soon();
        if let Some(answer) = swap.answer {
            self.answer_gateway(answer, Err(why));
        }
    }

    /// The WebSockets of upstreams that have been replaced leave them, once that is written down.
    pub(super) fn depart(&mut self, urls: Vec<String>, reconnect: bool) {
        let stop_ms = self.gateway_options().app.stop_timeout_ms;
        let over_ms = if reconnect { (stop_ms / 4).min(1_000) } else { stop_ms / 4 };
        let departures = urls.into_iter().map(|url| Departure { url, reconnect, over_ms });
        self.gateway.departures.extend(departures);
    }

    /// No worker has anything left of an upstream.
    pub fn on_upstream_idle(&mut self, url: &str) {
        let now = Instant::now();
        for ending in &mut self.gateway.swaps.ending {
            if ending.busy.remove(url) && ending.busy.is_empty() {
                ending.term_at = ending.term_at.min(now);
                self.gateway.swaps.next_look = Some(now);
            }
        }
    }

    /// Starts the application where there is none, and ends what has had its time.
    pub fn swaps_on_time(&mut self, now: Instant) {
        let app = self.gateway_options().app;
        let wanted = !app.command.is_empty() && self.stopping.is_none();
        let swaps = &mut self.gateway.swaps;
        let is_due = swaps.restarts.is_due(now, &app);
        if wanted && is_due && swaps.current.is_none() && swaps.proving.is_empty() {
            swaps.restarts.begun();
            self.start_application(None);
        }
        let is_settled = self.reload.is_none() && self.stopping.is_none();
        let swaps = &mut self.gateway.swaps;
        if swaps.next_look.is_some_and(|at| now < at) {
            return;
        }
        // One that ends before it is proven never will be.
        let mut failed = Vec::new();
        for swap in &mut swaps.proving {
            if let Some(how) = swap.application.as_mut().and_then(Application::end) {
                failed.push((swap.id, how));
            }
        }
        if let Some(how) = swaps.current.as_mut().and_then(Application::end) {
            let pause = swaps.restarts.ended(now, app.clone());
            tracing::error!("the application {how}; starting it again in {} s", pause.as_secs());
            swaps.current = None;
            self.dirty = true;
        } else if app.command.is_empty()
            && is_settled
            && let Some(unconfigured) = swaps.current.take()
        {
            tracing::info!(
                pid = unconfigured.pid(),
                "the configuration has no application any more"
            );
            let urls = vec![unconfigured.url.clone()];
            swaps.ending.push(Ending::of(urls, Some(unconfigured), false, app.stop_timeout_ms));
            self.dirty = true;
        }
        let mut leaving = Vec::new();
        let before = swaps.ending.len();
        swaps.ending.retain_mut(|ending| {
            if ending.application.as_mut().is_some_and(|old| old.end().is_some()) {
                return false;
            }
            if ending.leave_at.is_some_and(|at| now >= at) {
                ending.leave_at = None;
                leaving.extend(ending.urls.iter().cloned());
            }
            let Some(application) = &ending.application else { return now < ending.term_at };
            if now >= ending.term_at && !std::mem::replace(&mut ending.termed, true) {
                application.signal(Signal::SIGTERM);
                ending.kill_at = now + Duration::from_millis(app.stop_timeout_ms);
            }
            if now >= ending.kill_at {
                tracing::warn!(pid = application.pid(), "the application did not end; killing it");
                application.signal(Signal::SIGKILL);
            }
            true
        });
        self.dirty |= swaps.ending.len() != before;
        let is_busy = swaps.current.is_some()
            || swaps.restarts.is_waiting()
            || !swaps.proving.is_empty()
            || !swaps.ending.is_empty();
        swaps.next_look = is_busy.then(|| now + LOOK);
        self.depart(leaving, false);
        for (id, how) in failed {
            self.on_proven(id, Err(format!("the new application {how}; nothing has changed")));
        }
    }
}
