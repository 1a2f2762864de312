//! Listeners that somebody has shut down listen again.
//!
//! shutdown(2) reaches the socket, whoever else holds it: a worker in which somebody else executes code could make a
//! place refuse everybody for good. The socket stays the same, so that whoever has it goes on accepting: workers
//! try again after an accept that has failed.
//!
//! Must not know: what else such a worker does.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::listeners::{Listener, ListenerId, Role};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::sys;

/// How often sockets are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long what could not be mended is left alone.
const PAUSE: Duration = Duration::from_secs(10);

/// When to look again.
#[derive(Debug)]
pub(in crate::supervisor) struct Mending {
    next: Instant,
}

impl Default for Mending {
    fn default() -> Self {
        Self { next: Instant::now() + INTERVAL }
    }
}

impl Core {
    /// The next look; none while there is nothing to look at.
    pub fn mend_deadline(&self) -> Option<Instant> {
        self.listeners.iter().next().map(|_| self.mending.next)
    }

    /// Looks at every listener, if it is time to.
    pub fn mend_on_time(&mut self, now: Instant) {
        if now < self.mending.next {
            return;
        }
        self.mending.next = now + INTERVAL;
        let is_shut = |listener: &&Listener| {
            listener.out_since.is_none()
                && matches!(sys::socket::is_listening(listener.as_fd()), Ok(false))
        };
        let shut: Vec<ListenerId> =
            self.listeners.iter().filter(is_shut).map(|listener| listener.id).collect();
        for id in shut {
            let had_by = self.holders(id);
            let Some(listener) = self.listeners.find(id) else { continue };
            let address = listener.address;
            match self.mend(id) {
                Ok(()) => tracing::error!(
                    %address,
                    ?had_by,
                    "one of these workers has shut down a listening socket; it listens again"
                ),
                Err(error) => {
                    tracing::error!(
                        %address,
                        ?had_by,
                        "a listening socket was shut down, and does not listen again: {error}"
                    );
                    self.mending.next = now + PAUSE;
                }
            }
        }
    }

    fn mend(&mut self, id: ListenerId) -> Result<(), String> {
        let Some(listener) = self.listeners.find(id) else { return Ok(()) };
        sys::socket::listen_again(listener.as_fd(), listener.address, self.settings.backlog)
            .map_err(|error| error.to_string())?;
        let Role::Own { generation, index } = listener.role else { return Ok(()) };
        let Some(of) = self.generations.get(&generation) else { return Ok(()) };
        // The kernel has taken it out of the map, and of the group with the program.
        let slot = of.bank * self.max_workers + index;
        self.steer.place_again(listener, slot).map_err(|error| format!("steering: {error}"))
    }

    /// The workers that accept from it.
    fn holders(&self, id: ListenerId) -> Vec<WorkerId> {
        let places = self.generations.values().flat_map(|generation| &generation.places);
        places
            .filter(|place| place.own.contains(&id) || place.foreign.contains(&id))
            .filter_map(|place| place.worker)
            .collect()
    }
}
