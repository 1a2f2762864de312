//! The end of a reload: who serves, who drains, and the verdict.
//!
//! Must not know: how it came to this.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::restart;
use super::{ActiveReload, QueuedReload, Wanted};
use crate::config::{FIXED, Strategy};
use crate::control;
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::Reply;
use crate::supervisor::reload::{Circumstances, Facts, Outcome, Verdict};
use crate::supervisor::sockets::listeners::Role;
use crate::supervisor::workers::generations::{Generation, Phase, WorkerPhase};

impl Core {
    /// A verdict for a reload that never began.
    pub fn refuse(&mut self, wanted: &QueuedReload, outcome: &Outcome) {
        let mut verdict = Verdict::new(&Circumstances {
            outcome,
            facts: &Facts::default(),
            tallies: &BTreeMap::new(),
            blue: &BTreeSet::new(),
            migrate: true,
            replayed: 0,
        });
        let strategy = wanted.shown_strategy(self.settings.strategy);
        self.complete(&mut verdict, strategy, wanted.requested, self.current);
        verdict.reload = 0;
        verdict.rollback = matches!(wanted.wanted, Wanted::Rollback);
        self.announce(verdict, &wanted.waiters);
    }

    pub fn finish_reload(&mut self, outcome: &Outcome) {
        let Some(mut reload) = self.reload.take() else { return };
        let undo = std::mem::take(&mut reload.undo);
        let anew = self.begins_anew(&reload, outcome, &undo);
        let too_late = *outcome == Outcome::Committed && !undo.is_empty();
        if !too_late {
            reload.waiters.extend_from_slice(&undo);
        }
        self.machine_events.clear();
        self.pending_actions.clear();
        self.proving.clear();
        self.steer.clear_probe();
        let mut tallies = reload.dead.clone();
        if reload.flipped {
            for id in reload.blue_workers.iter().chain(&reload.green_workers) {
                if let Some(worker) = self.workers.get(id) {
                    tallies.insert(*id, self.tally(worker, false));
                }
            }
        }
        let mut verdict = Verdict::new(&Circumstances {
            outcome,
            facts: reload.machine.facts(),
            tallies: &tallies,
            blue: &reload.blue_workers,
            migrate: reload.migrate,
            replayed: self.counters().replayed_requests.saturating_sub(reload.replayed_before),
        });
        let drain = Duration::from_millis(reload.settings.drain_timeout_ms);
        match outcome {
            Outcome::Committed => self.finish_committed(&reload, drain, &verdict),
            Outcome::RolledBack(_) => {
                self.retire_slots(Some(reload.green));
                self.start_drain(reload.green, drain, &verdict);
            }
            Outcome::FailedBeforeFlip(_) | Outcome::Superseded | Outcome::Stopped => {
                match reload.revived {
                    Some(until) => self.return_to_drain(reload.green, reload.machine.id(), until),
                    None => self.discard_green(reload.green),
                }
            }
        }
        let proofs: Vec<u64> = self
            .listeners
            .iter()
            .filter(|listener| matches!(listener.role, Role::Proof { .. }))
            .map(|listener| listener.id)
            .collect();
        for &id in &proofs {
            self.listeners.remove(id);
        }
        self.forget_listeners(&proofs);
        self.ask_what_is_left();
        self.dirty = true;
        if let Some(anew) = anew {
            tracing::warn!("{}; its build is started anew", verdict.error.unwrap_or_default());
            self.queued = Some(anew);
            self.retire_generations();
            return self.start_queued();
        }
        let first_start = reload.blue.is_none() && self.current.is_none();
        if first_start && !verdict.reload_successful {
            let why = verdict.error.clone().unwrap_or_default();
            self.finished = Some(Err(format!("cannot start: {why}")));
            return;
        }
        self.complete(&mut verdict, reload.strategy, reload.requested, reload.blue);
        verdict.previous_supervisor = reload.predecessor;
        verdict.restart_required.clone_from(&reload.restart_required);
        verdict.rollback = reload.rollback;
        verdict.revived = reload.revived.is_some();
        control::add(&mut self.totals.lost_connections, verdict.lost_connections);
        self.totals.migrated_connections += verdict.migrated_connections;
        if reload.blue.is_some() {
            self.announce(verdict, &reload.waiters);
        } else {
            self.news.ready();
            tracing::info!(
                generation = verdict.generation,
                workers = verdict.workers,
                steering = self.steer.name(),
                "serving on {:?}",
                self.serving().map(|of| of.listen.clone()).unwrap_or_default()
            );
        }
        self.retire_generations();
        self.on_reload_over();
        if too_late {
            // It was committed just before.
            for waiter in undo {
                self.request_reload(Wanted::Rollback, Some(waiter));
            }
        }
        self.start_queued();
    }

    fn finish_committed(&mut self, reload: &ActiveReload, drain: Duration, verdict: &Verdict) {
        self.retire_slots(reload.blue);
        if let Some(blue) = reload.blue {
            self.start_drain(blue, drain, verdict);
        }
        self.keep_previous(reload.blue);
        self.current = Some(reload.green);
        if let Some(green) = self.generations.get_mut(&reload.green) {
            green.phase = Phase::Serving;
        }
        // Of a step that was cut short because nothing was left of blue: others come in their places.
        let unflipped: Vec<WorkerId> = self
            .serving()
            .into_iter()
            .flat_map(Generation::workers)
            .filter(|id| reload.flipped && !reload.green_workers.contains(id))
            .collect();
        for id in unflipped {
            self.end_now(id);
        }
        // What cannot change while a supervisor lives stays as it was.
        self.settings = self.settings.keep_fixed(&reload.settings);
        self.parking.bound(&self.settings.parking);
        self.admin_token.send_replace(self.settings.admin_token.clone());
        let was = std::mem::replace(&mut self.shown, reload.shown.clone());
        for shown in self.shown.iter_mut().filter(|one| FIXED.contains(&one.setting.as_str())) {
            if let Some(was) = was.iter().find(|was| was.setting == shown.setting) {
                shown.clone_from(was);
            }
        }
        for index in self.vacant_places(reload.green) {
            self.fill_place(reload.green, index);
        }
        // Shared sockets of addresses that are served no longer.
        let listen = self.serving().map(|of| of.listen.clone()).unwrap_or_default();
        let gone: Vec<u64> = self
            .listeners
            .iter()
            .filter(|one| one.role == Role::Shared && !listen.contains(&one.address))
            .map(|listener| listener.id)
            .collect();
        for id in gone {
            self.listeners.remove(id);
        }
    }

    /// The generation has been told to drain; workers that hold nothing end at once.
    fn start_drain(&mut self, number: u32, drain: Duration, verdict: &Verdict) {
        let now = Instant::now();
        let Some(generation) = self.generations.get_mut(&number) else { return };
        generation.phase = Phase::Draining { until: now + drain };
        generation.drain_reasons.clone_from(&verdict.drain_reasons);
        let workers: Vec<WorkerId> = generation.workers().collect();
        for id in workers {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            if !matches!(worker.phase, WorkerPhase::Draining | WorkerPhase::Ending) {
                // It never took part, and holds nothing.
                worker.phase = WorkerPhase::Ending;
                worker.process.kill();
            }
        }
    }

    /// Green had nothing; it is as if it had never been.
    pub fn discard_green(&mut self, number: u32) {
        for slot in self.slots_of(number, &(0..u32::MAX)) {
            self.clear_slot(slot);
        }
        let Some(generation) = self.generations.get_mut(&number) else { return };
        generation.phase = Phase::Draining { until: Instant::now() };
        let workers: Vec<WorkerId> = generation.workers().collect();
        for id in workers {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.phase = WorkerPhase::Ending;
                worker.process.kill();
            }
        }
        let own: Vec<u64> = self
            .listeners
            .iter()
            .filter(|one| matches!(one.role, Role::Own { generation, .. } if generation == number))
            .map(|listener| listener.id)
            .collect();
        for id in own {
            self.listeners.remove(id);
        }
    }

    fn complete(
        &self,
        verdict: &mut Verdict,
        strategy: Strategy,
        requested: Instant,
        previous: Option<u32>,
    ) {
        let strategy = if self.drained_for_restart { restart::NAME } else { strategy.name() };
        verdict.strategy = strategy.to_owned();
        verdict.supervisor = std::process::id();
        verdict.duration_ms = requested.elapsed().as_secs_f64() * 1_000.0;
        verdict.steering = self.steer.name().to_owned();
        verdict.reload = self.next_reload.saturating_sub(1);
        verdict.generation = self.current.unwrap_or_default();
        verdict.previous_generation = previous.unwrap_or_default();
        verdict.workers =
            self.serving().map_or(0, |of| u32::try_from(of.places.len()).unwrap_or(u32::MAX));
    }

    /// The verdict is logged, kept, and told to whoever waits for it.
    fn announce(&mut self, verdict: Verdict, waiters: &[mpsc::Sender<Reply>]) {
        self.end_restart(verdict.reload_successful);
        let text = serde_json::to_string(&verdict).unwrap_or_default();
        if verdict.reload_successful {
            self.totals.reloads += 1;
            tracing::info!(verdict = text, "reload succeeded");
        } else {
            self.totals.failed_reloads += 1;
            let why = verdict.error.clone().unwrap_or_default();
            tracing::error!(verdict = text, "reload failed: {why}");
        }
        let waiters = waiters.to_vec();
        let told = Box::new(verdict.clone());
        let (predecessor, news) = (self.predecessor.take(), Rc::clone(&self.news));
        tokio::task::spawn_local(async move {
            if let Some(predecessor) = predecessor {
                // Whoever has the verdict finds one supervisor.
                predecessor.dismiss().await;
                news.mute(false);
            }
            news.ready();
            for waiter in waiters {
                let told = told.clone();
                // Unlike progress it must arrive; whoever waits reads, or is gone.
                tokio::task::spawn_local(async move {
                    let _ = waiter.send(Reply::Verdict(told)).await;
                });
            }
        });
        self.last_verdict = Some(verdict);
    }

    /// The reloads that wait will not run.
    pub fn refuse_queued(&mut self) {
        if let Some(wanted) = self.queued.take() {
            self.refuse(&wanted, &Outcome::Stopped);
        }
    }
}
