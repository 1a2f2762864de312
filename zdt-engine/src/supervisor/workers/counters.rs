//! Counters that go on over reloads, crashes and other supervisors: what the living have counted, and what the
//! dead had.
//!
//! Must not know: what is counted.

use crate::control;
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::Counters;
use crate::supervisor::takeover::store;

impl Core {
    /// Since the service began, over all workers that it ever had.
    pub fn counters(&self) -> Counters {
        let mut sum = self.retired;
        for worker in self.workers.values() {
            sum.add(&self.scoreboard.counters(worker.identity.slot));
        }
        sum
    }

    /// Takes up the counts of an earlier supervisor; workers that died since it wrote them down have left
    /// theirs in the scoreboard. Nobody has counted those, if they were to live; the dead of a reload are its verdict's.
    pub fn take_over_counters(&mut self, state: &store::State, lives: impl Fn(WorkerId) -> bool) {
        self.retired = state.counters;
        self.totals = state.totals;
        for generation in &state.generations {
            for worker in generation.workers.iter().filter(|worker| !lives(worker.id)) {
                let slot = generation.bank * self.max_workers + worker.index;
                self.retired.add(&self.scoreboard.counters(slot));
                if state.reload.is_some() || state.current != Some(generation.number) {
                    continue;
                }
                if worker.hello.is_none() {
                    self.totals.failed_starts += 1;
                    continue;
                }
                self.totals.crashes += 1;
                let lost = self.scoreboard.figures(slot).connections;
                control::add(&mut self.totals.lost_connections, lost);
            }
        }
    }
}
