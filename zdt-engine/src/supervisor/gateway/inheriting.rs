//! What one supervisor leaves to the next of the gateway: holds, replaced upstreams, applications.
//!
//! A swap that was going on is undone unless it was decided: nobody has been served by the new application then. One that
//! nothing has served before goes on.
//!
//! Must not know: whether the one before is dead.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Gateway;
use super::application::Application;
use super::swapping::{Ending, Swap};
use crate::config::{DEFAULT_ROUTE, UpstreamTarget};
use crate::supervisor::core::Core;
use crate::supervisor::takeover::store;

impl Gateway {
    /// For the next supervisor.
    pub fn durable(&self) -> store::Gateway {
        let swaps = &self.swaps;
        let proving = swaps.proving.iter().filter_map(|swap| swap.application.as_ref());
        let ending = swaps.ending.iter().map(|ending| store::Leaving {
            urls: ending.urls.clone(),
            application: ending.application.as_ref().map(Application::durable),
            reconnect: ending.reconnect,
        });
        store::Gateway {
            held: self.held.clone(),
            replaced: self.replaced.clone(),
            unhealthy: self.health.unhealthy.clone(),
            last_swap: swaps.last,
            application: swaps.current.as_ref().map(Application::durable),
            starting: proving.map(Application::durable).collect(),
            ending: ending.collect(),
        }
    }
}

impl Core {
    /// Goes on from what another supervisor has left. The generations must be there.
    pub fn take_over_gateway(&mut self, saved: &store::Gateway) {
        let stop_ms = self.gateway_options().app.stop_timeout_ms;
        let gateway = &mut self.gateway;
        gateway.held.clone_from(&saved.held);
        gateway.replaced.clone_from(&saved.replaced);
        gateway.health.unhealthy.clone_from(&saved.unhealthy);
        gateway.swaps.last = saved.last_swap;
        gateway.swaps.current = saved.application.as_ref().and_then(Application::adopt);
        match (&saved.application, &gateway.swaps.current) {
            (_, Some(found)) => {
                tracing::info!(pid = found.pid(), url = found.url, "the application goes on");
            }
            (Some(lost), None) => {
                tracing::error!(
                    pid = lost.pid,
                    "the application has ended meanwhile; starting it again"
                );
            }
            (None, None) => {}
        }
        for saved in &saved.ending {
            let application = saved.application.as_ref().and_then(Application::adopt);
            let ending = Ending::of(saved.urls.clone(), application, saved.reconnect, stop_ms);
            self.gateway.swaps.ending.push(ending);
            if saved.reconnect {
                self.depart(saved.urls.clone(), true);
            }
        }
        for begun in saved.starting.iter().filter_map(Application::adopt) {
            let swaps = &self.gateway.swaps;
            let target = UpstreamTarget::parse(&begun.url);
            let goes_on = swaps.current.is_none() && swaps.proving.is_empty();
            if let (true, Ok(target)) = (goes_on, target) {
                let route = DEFAULT_ROUTE.to_owned();
                self.begin_swap(Swap::of(route, vec![target], Some(begun)), None);
            } else {
                tracing::warn!(pid = begun.pid(), "the swap of the application is undone");
                self.gateway.swaps.ending.push(Ending::unwanted(begun));
            }
        }
        // Not all workers may have been told what was decided last.
        self.gateway_changed();
    }

    /// Ends the applications of a supervisor of which nothing else is left.
    pub fn end_left_over(&mut self, saved: &store::Gateway) {
        for application in all(saved) {
            tracing::warn!(
                pid = application.pid(),
                "ending the application of an earlier supervisor"
            );
            application.signal(Signal::SIGTERM);
            let stop_ms = self.settings.gateway.app.stop_timeout_ms;
            let ending = Ending::of(Vec::new(), Some(application), false, stop_ms);
            self.gateway.swaps.ending.push(ending.already_told());
            self.gateway.swaps.look_soon();
        }
    }
}

/// Those that live.
fn all(saved: &store::Gateway) -> impl Iterator<Item = Application> {
    let ending = saved.ending.iter().filter_map(|ending| ending.application.as_ref());
    let every = saved.application.iter().chain(&saved.starting).chain(ending);
    every.filter_map(Application::adopt)
}

/// Ends the applications of a dead supervisor that has none after it, and waits for that. How many there were.
pub fn end_orphaned_applications(run_dir: &Path, patience: Duration) -> usize {
    let Some(state) = store::load(&run_dir.join("state.json")) else { return 0 };
    let mut left: Vec<Application> = all(&state.gateway).collect();
    let count = left.len();
    left.iter().for_each(|application| application.signal(Signal::SIGTERM));
    let kill_at = Instant::now() + patience;
    while !left.is_empty() {
        left.retain_mut(|application| application.end().is_none());
        if Instant::now() >= kill_at {
            left.iter().for_each(|application| application.signal(Signal::SIGKILL));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    count
}
