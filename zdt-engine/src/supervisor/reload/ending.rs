//! The stages of a reload from the last handoff to the commit.
//!
//! Must not know: descriptors, sockets, maps, clocks.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Outcome;
use super::machine::{Action, Event, Mark, Shared};
use super::stages::{Stage, after_flip, fail, finish, is_due, remove_committed};
use crate::control::ToWorker;
use crate::supervisor::WorkerId;

/// Green has everything; blue stands by.
#[derive(Debug)]
pub(super) struct Probation {
    pub until: Instant,
}

impl Probation {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        if shared.options.probation.is_zero() || shared.live_blue().is_empty() {
            return Deciding::begin(shared, now);
        }
        Stage::Probation(Probation { until: now + shared.options.probation })
    }

    pub fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        if let Some(why) = after_flip(shared, &event) {
            return fail(shared, why, now);
        }
        if shared.live_blue().is_empty() || is_due(&event, now, self.until) {
            return Deciding::begin(shared, now);
        }
        Stage::Probation(self)
    }
}

/// The decision is being written down.
#[derive(Debug)]
pub(super) struct Deciding {
    pub deadline: Instant,
}

impl Deciding {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        shared.act(Action::Persist(Mark::Committed));
        Stage::Deciding(Deciding { deadline: now + shared.options.answer_timeout })
    }

    pub fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        if let Event::Persisted(Mark::Committed) = event {
            return Committing::begin(shared, now);
        }
        match after_flip(shared, &event) {
            Some(why) => fail(shared, why, now),
            None if is_due(&event, now, self.deadline) => {
                fail(shared, "the commit cannot be written down in time".to_owned(), now)
            }
            None => Stage::Deciding(self),
        }
    }
}

/// Blue no longer takes anything back.
#[derive(Debug)]
pub(super) struct Committing {
    waiting: BTreeSet<WorkerId>,
    pub deadline: Instant,
}

impl Committing {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        let (reload, drain_ms) = (shared.id, Some(shared.options.drain_ms()));
        let (blue, green) = (shared.live_blue(), shared.live_green());
        if shared.blue.is_empty() {
            return finish(shared, Outcome::Committed);
        }
        for &worker in &blue {
            shared.send(worker, ToWorker::Commit { reload, drain_ms });
        }
        for &worker in &green {
            shared.send(worker, ToWorker::Commit { reload, drain_ms: None });
        }
        let mut waiting: BTreeSet<_> = blue.into_iter().chain(green).collect();
        waiting.retain(|worker| !shared.facts.silent_blue.contains(worker));
        let deadline = now + shared.options.answer_timeout;
        Committing { waiting, deadline }.settle(shared, now, &Event::Flipped)
    }

    pub fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        remove_committed(&mut self.waiting, shared.id, &event);
        self.settle(shared, now, &event)
    }

    fn settle(self, shared: &mut Shared, now: Instant, event: &Event) -> Stage {
        if self.waiting.is_empty() || is_due(event, now, self.deadline) {
            return finish(shared, Outcome::Committed);
        }
        Stage::Committing(self)
    }
}
