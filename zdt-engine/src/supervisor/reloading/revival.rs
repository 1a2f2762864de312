//! A rollback after the commit, while the generation that served before still drains: it serves again,
//! with the connections that it has kept, and new workers stand only in the places that are empty.
//!
//! To the reload machine it is a green generation like any other. Where the two differ is at the
//! beginning (what lives is not started) and where nothing comes of it: before the flip it returns to
//! its drain, and is not killed, since clients depend on it.
//!
//! Must not know: in which order a reload proceeds.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{ActiveReload, DRAIN_GRACE, QueuedReload, Wanted};
use crate::control::{REVIVES_SINCE, ToWorker};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::Reply;
use crate::supervisor::reload::{Event, Outcome};
use crate::supervisor::workers::generations::{Phase, WorkerPhase};

impl Core {
    /// The generation that a reload would have back instead of starting one.
    pub fn to_revive(&self, wanted: &QueuedReload) -> Option<u32> {
        let previous = self.previous.as_ref()?;
        let drained_for_it = !previous.loaded.settings.zero_downtime;
        if !matches!(wanted.wanted, Wanted::Rollback) || wanted.anew || drained_for_it {
            return None;
        }
        let of = self.generations.get(&previous.generation)?;
        let in_time = matches!(of.phase, Phase::Draining { until } if until > Instant::now());
        // One that is about to end would leave its place in the middle of the reload.
        let can = |id: WorkerId| {
            self.workers.get(&id).is_some_and(|worker| {
                let speaks = worker.hello.as_ref().map_or(0, |hello| hello.protocol.newest);
                worker.phase == WorkerPhase::Draining && speaks >= REVIVES_SINCE
            })
        };
        (in_time && of.workers().next().is_some() && of.workers().all(can)).then_some(of.number)
    }

    /// It is green from now on; returns until when it would have drained.
    pub fn revive(&mut self, number: u32) -> Option<Instant> {
        let of = self.generations.get_mut(&number)?;
        let Phase::Draining { until } = std::mem::replace(&mut of.phase, Phase::Green) else {
            return None;
        };
        of.drain_reasons.clear();
        for place in &mut of.places {
            // It has left its sockets, and gets others.
            place.own.clear();
            place.foreign.clear();
            place.given_up = None;
        }
        let workers: Vec<WorkerId> = of.workers().collect();
        tracing::info!(generation = number, workers = workers.len(), "is to serve again");
        for id in workers {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.phase = WorkerPhase::Greeted;
                worker.kill_at = None;
            }
            self.send(id, &ToWorker::Revive);
        }
        Some(until)
    }

    /// The worker of a green place: the one that is there, or a new one.
    pub fn start_or_keep(&mut self, generation: u32, index: u32) -> Result<WorkerId, String> {
        let place = self.generations.get(&generation).and_then(|of| of.places.get(index as usize));
        match place.and_then(|place| place.worker) {
            Some(there) => Ok(there),
            None => self.start_worker(generation, index),
        }
    }

    /// What a worker said that was there before the reload.
    pub fn greeted_already(&self, worker: WorkerId) -> Option<Event> {
        let hello = self.workers.get(&worker)?.hello.clone()?;
        Some(Event::Greeted { worker, hello })
    }

    /// Nothing came of it, and no client has noticed: what it has kept drains as before.
    pub fn return_to_drain(&mut self, number: u32, reload: u64, until: Instant) {
        self.retire_slots(Some(number));
        let Some(of) = self.generations.get_mut(&number) else { return };
        of.phase = Phase::Draining { until };
        let left = until.saturating_duration_since(Instant::now());
        let drain_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        let workers: Vec<WorkerId> = of.workers().collect();
        for id in workers {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            if worker.phase == WorkerPhase::Starting {
                worker.phase = WorkerPhase::Ending;
                worker.process.kill();
                continue;
            }
            worker.phase = WorkerPhase::Draining;
            worker.kill_at = Some(until + DRAIN_GRACE);
            self.send(id, &ToWorker::Commit { reload, drain_ms });
        }
    }

    /// What is to follow a reload that could not have the old workers back, one of which may just have
    /// ended: the same with new ones.
    pub fn begins_anew(
        &self,
        reload: &ActiveReload,
        outcome: &Outcome,
        undo: &[mpsc::Sender<Reply>],
    ) -> Option<QueuedReload> {
        let failed = matches!(outcome, Outcome::FailedBeforeFlip(_));
        let wanted = failed && undo.is_empty() && self.stopping.is_none() && self.queued.is_none();
        (wanted && reload.revived.is_some()).then(|| QueuedReload {
            wanted: Wanted::Rollback,
            predecessor: None,
            anew: true,
            waiters: reload.waiters.clone(),
            requested: reload.requested,
        })
    }
}
