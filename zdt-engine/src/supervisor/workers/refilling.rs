//! What happens to the place of a worker that has died: another worker, now or later, or a neighbour that takes
//! its sockets.
//!
//! Must not know: how a worker died.

use std::time::Instant;

use super::generations::{Phase, Place, WorkerPhase};
use super::respawn::{Answer, Ending};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;

impl Core {
    /// Restarts the worker of a place that has none, now or later, or gives its listeners away.
    pub fn fill_place(&mut self, generation: u32, index: u32) {
        self.fill_place_after(generation, index, Ending::Crash, "it is gone");
    }

    /// The same, after an end of this kind, in these words.
    pub fn fill_place_after(&mut self, generation: u32, index: u32, ending: Ending, how: &str) {
        let now = Instant::now();
        self.dirty = true;
        match self.guard.on_end(&self.settings.respawn, generation, index, ending, now) {
            Answer::Respawn(pause) => {
                if !pause.is_zero() {
                    tracing::warn!(generation, index, "is restarted in {pause:?}");
                }
                self.respawns.push((now + pause, generation, index));
            }
            Answer::GiveUp(what) => {
                self.give_up(generation, index, format!("{what}; at last: {how}"))
            }
        }
    }

    pub fn respawn_on_time(&mut self, now: Instant) {
        let (due, later) =
            std::mem::take(&mut self.respawns).into_iter().partition(|&(at, _, _)| at <= now);
        self.respawns = later;
        let due: Vec<(Instant, u32, u32)> = due;
        for (_, generation, index) in due {
            let wanted = self.generations.get(&generation).is_some_and(|of| {
                of.phase == Phase::Serving && of.places[index as usize].worker.is_none()
            });
            if !wanted || self.stopping.is_some() {
                continue;
            }
            self.totals.respawns += 1;
            if let Err(message) = self.start_worker(generation, index) {
                tracing::error!(generation, index, "{message}");
                self.totals.failed_starts += 1;
                self.fill_place_after(generation, index, Ending::FailedStart, &message);
            }
        }
    }

    /// A place whose worker died too often stays empty until a reload.
    fn give_up(&mut self, generation: u32, index: u32, why: String) {
        let Some(of) = self.generations.get_mut(&generation) else { return };
        let slot = of.bank * self.max_workers + index;
        tracing::error!(
            generation,
            index,
            "degraded: its worker {why}; it is not restarted any more. A reload starts new ones"
        );
        of.places[index as usize].given_up = Some(why);
        self.clear_slot(slot);
        self.bequeath(generation);
    }

    /// The sockets of places that were given up go to a neighbour that serves: what is queued there is
    /// served. Without one they wait for the first that does.
    pub fn bequeath(&mut self, generation: u32) {
        let Some(of) = self.generations.get_mut(&generation) else { return };
        let neighbour = of.workers().find(|id| {
            self.workers.get(id).is_some_and(|worker| worker.phase == WorkerPhase::Serving)
        });
        let Some(neighbour) = neighbour else { return };
        let (mut own, mut foreign) = (Vec::new(), Vec::new());
        for place in of.places.iter_mut().filter(|place| place.given_up.is_some()) {
            own.append(&mut place.own);
            foreign.append(&mut place.foreign);
        }
        if own.is_empty() && foreign.is_empty() {
            return;
        }
        tracing::warn!(generation, worker = neighbour, "takes the sockets of those given up");
        if let Some(place) = self.place_of_mut(neighbour) {
            place.own.extend(&own);
            place.foreign.extend(&foreign);
        }
        self.listen(neighbour, &own, true);
        self.listen(neighbour, &foreign, false);
    }

    fn place_of_mut(&mut self, worker: WorkerId) -> Option<&mut Place> {
        let (generation, index) = self.place_of(worker)?;
        self.generations.get_mut(&generation)?.places.get_mut(index as usize)
    }
}
