//! A reload without zero downtime (`zero_downtime = false`): the workers that serve drain and end, and
//! only then new ones are started. New connections wait in the accept queues meanwhile.
//!
//! Must not know: how new workers are started.

use std::time::{Duration, Instant};

use super::QueuedReload;
use crate::config::Settings;
use crate::control::ToWorker;
use crate::supervisor::WorkerId;
use crate::supervisor::core::{Core, EXIT_GRACE};
use crate::supervisor::handle::{Progress, Reply};
use crate::supervisor::workers::generations::WorkerPhase;

/// The strategy's name in verdicts.
pub(in crate::supervisor) const NAME: &str = "restart";

impl Core {
    /// True while the reload has to wait for the end of the workers that serve, which are told to drain.
    pub fn drains_before(&mut self, settings: &Settings, wanted: &QueuedReload) -> bool {
        if settings.zero_downtime {
            return false;
        }
        let workers: Vec<WorkerId> =
            self.serving().map(|of| of.workers().collect()).unwrap_or_default();
        if workers.is_empty() {
            return false;
        }
        if !std::mem::replace(&mut self.drained_for_restart, true) {
            tracing::info!("zero_downtime is off: the workers drain before new ones are started");
            self.respawns.clear();
        }
        let timeout_ms = settings.drain_timeout_ms;
        let kill_at = Instant::now() + Duration::from_millis(timeout_ms) + EXIT_GRACE;
        for id in &workers {
            let Some(worker) = self.workers.get_mut(id) else { continue };
            if matches!(worker.phase, WorkerPhase::Draining | WorkerPhase::Ending) {
                continue;
            }
            worker.phase = WorkerPhase::Draining;
            worker.kill_at = Some(kill_at);
            let slot = worker.identity.slot;
            self.set_ready(slot, false);
            self.send(*id, &ToWorker::Drain { timeout_ms });
        }
        let remaining = workers.len() as u64;
        let progress = Progress { stage: "draining".to_owned(), remaining, ..Progress::default() };
        for waiter in &wanted.waiters {
            let _ = waiter.try_send(Reply::Progress(progress.clone()));
        }
        true
    }

    /// The reload that the workers have drained for is over. If it failed, the old build serves again:
    /// that is better than nobody.
    pub fn end_restart(&mut self, succeeded: bool) {
        if !std::mem::take(&mut self.drained_for_restart) || succeeded || self.stopping.is_some() {
            return;
        }
        let Some(current) = self.current else { return };
        tracing::error!(generation = current, "the new workers did not start; the old build again");
        for index in self.vacant_places(current) {
            self.respawns.push((Instant::now(), current, index));
        }
    }
}
