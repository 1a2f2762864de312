//! The end of the supervisor, and of the service with it.
//!
//! Must not know: what workers do while they drain.

use std::time::{Duration, Instant};

use super::WorkerId;
use super::core::{Core, EXIT_GRACE};
use super::reload::{Event, Outcome};
use super::workers::generations::WorkerPhase;
use crate::control::ToWorker;

/// A worker ends by itself at its deadline; one that has not so long after is killed.
const GRACE: Duration = Duration::from_secs(2);

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopping {
    /// Readiness fails, so that whoever balances load goes elsewhere; nothing else has changed.
    Announced {
        /// When the draining begins.
        until: Instant,
    },
    /// A reload is past its flip, and ends first.
    AfterReload,
    /// Workers were told to drain, or to exit; then applications are.
    Ending {
        /// How long those have for it.
        application: Duration,
    },
}

impl Stopping {
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Stopping::Announced { until } => Some(*until),
            Stopping::AfterReload | Stopping::Ending { .. } => None,
        }
    }
}

impl Core {
    pub fn begin_stop(&mut self, now: bool) {
        self.refuse_queued();
        self.abandon_replacement(&Outcome::Stopped);
        self.news.stopping();
        if now {
            self.stop_now();
            return;
        }
        if self.stopping.is_some() {
            return;
        }
        let delay = Duration::from_millis(self.settings.drain_delay_ms);
        self.stopping = Some(Stopping::Announced { until: Instant::now() + delay });
        self.respawns.clear();
        if self.reload.is_some() {
            self.machine_events.push_back(Event::Stop);
        }
    }

    pub fn stop_on_time(&mut self, now: Instant) {
        match self.stopping {
            Some(Stopping::Announced { until }) if now >= until => {
                if self.reload.is_some() && self.machine_events.is_empty() {
                    self.stopping = Some(Stopping::AfterReload);
                } else if self.reload.is_none() {
                    self.begin_drain();
                }
            }
            Some(Stopping::AfterReload) if self.reload.is_none() => self.begin_drain(),
            _ => self.end_if_nothing_is_left(),
        }
    }

    /// No worker is left: the applications behind them follow, and then the supervisor.
    fn end_if_nothing_is_left(&mut self) {
        let Some(Stopping::Ending { application }) = self.stopping else { return };
        if !self.workers.is_empty() || self.finished.is_some() {
            return;
        }
        // Whoever finds them when this process is killed ends them.
        self.dirty |= self.gateway.swaps.current.is_some();
        if self.gateway.swaps.end_all(application) {
            tracing::info!("stopped");
            self.finished = Some(Ok(()));
        }
    }

    pub fn on_reload_over(&mut self) {
        if self.stopping == Some(Stopping::AfterReload) {
            self.begin_drain();
        }
    }

    fn begin_drain(&mut self) {
        let stop_ms =
            self.gateway_config().map_or(0, |gateway| gateway.options.app.stop_timeout_ms);
        self.stopping = Some(Stopping::Ending { application: Duration::from_millis(stop_ms) });
        // The duplicates here would keep the sockets open, and clients in queues that nobody reads.
        self.listeners.clear();
        let timeout_ms = self.settings.drain_timeout_ms;
        let kill_at = Instant::now() + Duration::from_millis(timeout_ms) + GRACE;
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in workers {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            if matches!(worker.phase, WorkerPhase::Starting | WorkerPhase::Ending) {
                worker.process.kill();
                continue;
            }
            worker.phase = WorkerPhase::Draining;
            worker.kill_at = Some(kill_at);
            self.send(id, &ToWorker::Drain { timeout_ms });
        }
        self.on_worker_gone();
    }

    fn stop_now(&mut self) {
        self.stopping = Some(Stopping::Ending { application: EXIT_GRACE });
        self.respawns.clear();
        if let Some(reload) = self.reload.take() {
            tracing::warn!(reload = reload.machine.id(), "the reload is cut short by the stop");
        }
        self.machine_events.clear();
        self.pending_actions.clear();
        self.listeners.clear();
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in workers {
            self.tell_exit(id);
        }
        self.on_worker_gone();
    }

    /// Removes everything that would outlive this process, which has no workers any more.
    pub fn leave_nothing(&mut self) {
        self.steer.remove();
        self.run_dir.clear();
    }

    /// After each end of a worker: perhaps that was what something waited for.
    pub fn on_worker_gone(&mut self) {
        self.end_if_nothing_is_left();
        if self.stopping.is_none() {
            self.start_queued();
        }
        self.let_idle_upstreams_go();
    }
}
