//! The stages of a reload and the transitions between them; here those up to the flip.
//!
//! ```text
//!   ┌──────────────── next step ──────────────── Pausing ←┐
//!   ↓                                                     │
//! Starting → Proving → Flipping → Settling → HandingOff ──┴→ Probation → Deciding → Committing → Finished
//!    └─────────┴→ Finished ↑↓  └──────┴────────────┴───────────┴──────────┴→ RollingBack → Returning → Undoing ↗
//!                       Watching
//! ```
//! Before the first flip a failure ends in `Finished`, after it in `RollingBack`. `Watching` is for
//! a canary, `Pausing` for a rolling reload.
//!
//! Must not know: descriptors, sockets, maps, clocks.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Outcome;
use super::canary::Watching;
use super::ending::{Committing, Deciding, Probation};
use super::machine::{Action, Event, Mark, Member, Shared};
use super::moving::{HandingOff, Pausing, Settling};
use super::rollback::{Returning, RollingBack, Undoing};
use crate::control::{FromWorker, Hello};
use crate::supervisor::WorkerId;

/// See the module.
#[derive(Debug)]
pub(super) enum Stage {
    Starting(Starting),
    Proving(Proving),
    Flipping(Flipping),
    Watching(Watching),
    Settling(Settling),
    HandingOff(HandingOff),
    Pausing(Pausing),
    Probation(Probation),
    Deciding(Deciding),
    Committing(Committing),
    RollingBack(RollingBack),
    Returning(Returning),
    Undoing(Undoing),
    Finished,
}

impl Stage {
    pub fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match self {
            Stage::Starting(stage) => stage.handle(shared, now, event),
            Stage::Proving(stage) => stage.handle(shared, now, event),
            Stage::Flipping(stage) => stage.handle(shared, now, event),
            Stage::Watching(stage) => stage.handle(shared, now, event),
            Stage::Settling(stage) => stage.handle(shared, now, event),
            Stage::HandingOff(stage) => stage.handle(shared, now, event),
            Stage::Pausing(stage) => stage.handle(shared, now, event),
            Stage::Probation(stage) => stage.handle(shared, now, event),
            Stage::Deciding(stage) => stage.handle(shared, now, event),
            Stage::Committing(stage) => stage.handle(shared, now, event),
            Stage::RollingBack(stage) => stage.handle(shared, now, event),
            Stage::Returning(stage) => stage.handle(shared, now, event),
            Stage::Undoing(stage) => stage.handle(shared, now, event),
            Stage::Finished => Stage::Finished,
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Stage::Starting(stage) => Some(stage.deadline),
            Stage::Proving(stage) => Some(stage.deadline),
            Stage::Flipping(stage) => Some(stage.deadline),
            Stage::Watching(stage) => Some(stage.next),
            Stage::Pausing(stage) => Some(stage.until),
            Stage::Settling(stage) => {
                let waiting = !stage.channels.is_empty();
                Some(if waiting { stage.deadline } else { stage.settled })
            }
            Stage::HandingOff(stage) => Some(stage.deadline),
            Stage::Probation(stage) => Some(stage.until),
            Stage::Deciding(stage) => Some(stage.deadline),
            Stage::Committing(stage) => Some(stage.deadline),
            Stage::RollingBack(stage) => Some(stage.deadline),
            Stage::Returning(stage) => Some(stage.deadline),
            Stage::Undoing(stage) => Some(stage.deadline),
            Stage::Finished => None,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Stage::Starting(_) => "starting",
            Stage::Proving(_) => "proving",
            Stage::Flipping(_) => "flipping",
            Stage::Watching(_) => "watching",
            Stage::Settling(_) => "settling",
            Stage::HandingOff(_) => "handing_off",
            Stage::Pausing(_) => "pausing",
            Stage::Probation(_) => "probation",
            Stage::Deciding(_) => "deciding",
            Stage::Committing(_) => "committing",
            Stage::RollingBack(_) => "rolling_back",
            Stage::Returning(_) => "returning",
            Stage::Undoing(_) => "undoing",
            Stage::Finished => "finished",
        }
    }
}

/// Green's processes run up; blue does not know of them.
#[derive(Debug)]
pub(super) struct Starting {
    deadline: Instant,
}

impl Starting {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        shared.act(Action::Spawn(shared.batch().clone()));
        Stage::Starting(Starting { deadline: now + shared.options.ready_timeout })
    }

    fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match event {
            Event::Spawned { green } => {
                for (index, worker) in (shared.batch().green.start..).zip(green) {
                    shared.green.insert(worker, Member::new(index, None));
                }
                Stage::Starting(self)
            }
            Event::Greeted { worker, hello } => {
                if let Err(why) = agree(shared, &hello) {
                    return give_up(shared, Outcome::FailedBeforeFlip(why), now);
                }
                shared.greet_green(worker, hello);
                if !shared.all_green_greeted() {
                    return Stage::Starting(self);
                }
                let green = shared.batch_green();
                for &worker in &green {
                    shared.act(Action::Listen(worker));
                }
                let unproven = green.into_iter().collect();
                Stage::Proving(Proving { unproven, deadline: self.deadline })
            }
            other => match before_flip(shared, now, self.deadline, &other, "has not greeted") {
                Some(outcome) => give_up(shared, outcome, now),
                None => Stage::Starting(self),
            },
        }
    }
}

/// Green accepts on its own listeners, and the supervisor connects to each to see it.
#[derive(Debug)]
pub(super) struct Proving {
    unproven: BTreeSet<WorkerId>,
    deadline: Instant,
}

impl Proving {
    fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match event {
            Event::Armed { worker } if self.unproven.contains(&worker) => {
                shared.act(Action::Prove(worker));
                Stage::Proving(self)
            }
            Event::Proven { worker } => {
                self.unproven.remove(&worker);
                if !self.unproven.is_empty() {
                    return Stage::Proving(self);
                }
                Flipping::begin(shared, now)
            }
            other => match before_flip(shared, now, self.deadline, &other, "is not ready") {
                Some(outcome) => give_up(shared, outcome, now),
                None => Stage::Proving(self),
            },
        }
    }
}

/// The flip is being carried out: from here on clients may have reached green.
#[derive(Debug)]
pub(super) struct Flipping {
    /// Only for a share of the new connections, which is watched before anything else happens.
    canary: bool,
    deadline: Instant,
}

impl Flipping {
    fn begin(shared: &mut Shared, now: Instant) -> Stage {
        shared.flipped = shared.at + 1;
        match shared.options.canary.filter(|_| !shared.live_blue().is_empty()) {
            Some(canary) => Self::act(shared, now, canary.permille, true),
            None => Self::wholly(shared, now),
        }
    }

    /// All that this step can give to green.
    pub fn wholly(shared: &mut Shared, now: Instant) -> Stage {
        let permille = share_of_green(shared);
        shared.closed = shared.at + 1;
        Self::act(shared, now, permille, false)
    }

    fn act(shared: &mut Shared, now: Instant, permille: u16, canary: bool) -> Stage {
        shared.act(Action::Persist(Mark::Flipped));
        shared.act(Action::Flip { batch: shared.batch().clone(), permille });
        let deadline = now + shared.options.answer_timeout;
        Stage::Flipping(Flipping { canary, deadline })
    }

    fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match event {
            Event::Flipped if self.canary => return Watching::begin(shared, now),
            Event::Flipped => return Settling::begin(shared, now),
            // Of a later step, or after a canary, green serves already.
            Event::NotFlipped { message } if shared.at == 0 && self.is_first(shared) => {
                return abandon(shared, Outcome::FailedBeforeFlip(message));
            }
            Event::NotFlipped { message } => return fail(shared, message, now),
            _ => {}
        }
        match after_flip(shared, &event) {
            Some(why) => fail(shared, why, now),
            None if is_due(&event, now, self.deadline) => {
                fail(shared, "green does not take the shared listeners".to_owned(), now)
            }
            None => Stage::Flipping(self),
        }
    }

    fn is_first(&self, shared: &Shared) -> bool {
        self.canary || shared.options.canary.is_none()
    }
}

/// Of 1,000 new connections, in proportion to the workers that have been replaced.
fn share_of_green(shared: &Shared) -> u16 {
    let batch = shared.batch();
    if batch.is_last {
        return 1_000;
    }
    let replaced = u64::from(batch.green.end);
    let places = &shared.blue;
    let left =
        places.values().filter(|member| member.alive && member.index >= batch.blue.end).count()
            as u64;
    u16::try_from(1_000 * replaced / (replaced + left).max(1)).unwrap_or(1_000)
}

impl Shared {
    fn greet_green(&mut self, worker: WorkerId, hello: Hello) {
        if let Some(member) = self.green.get_mut(&worker) {
            member.hello = Some(hello);
        }
    }

    fn all_green_greeted(&self) -> bool {
        !self.green.is_empty() && self.green.values().all(|member| member.hello.is_some())
    }
}

/// Checks that connections can travel from every blue worker to this green one, and back.
fn agree(shared: &mut Shared, green: &Hello) -> Result<(), String> {
    if !shared.options.migrate {
        return Ok(());
    }
    for blue in shared.blue.values().filter_map(|member| member.hello.as_ref()) {
        let range =
            |range: crate::control::VersionRange| format!("{} to {}", range.oldest, range.newest);
        if blue.state_writes.newest_common(green.state_reads).is_none() {
            return Err(format!(
                "the new build ({}) reads state formats {}, the running one ({}) writes {}: \
                 connections cannot be handed off; deploy a build between the two first, or set \
                 migrate_connections = false to let them drain",
                green.build,
                range(green.state_reads),
                blue.build,
                range(blue.state_writes),
            ));
        }
        if green.state_writes.newest_common(blue.state_reads).is_none() {
            shared.facts.rollback_impossible = true;
            if !shared.options.allow_no_rollback {
                return Err(format!(
                    "rollback impossible: the new build ({}) writes state formats {}, the running \
                     one ({}) reads {}; use `zdt reload --no-rollback` to go on without one",
                    green.build,
                    range(green.state_writes),
                    blue.build,
                    range(blue.state_reads),
                ));
            }
        }
    }
    Ok(())
}

/// What ends a reload before the flip.
fn before_flip(
    shared: &mut Shared,
    now: Instant,
    deadline: Instant,
    event: &Event,
    late: &str,
) -> Option<Outcome> {
    match event {
        Event::Exited { worker, how } if shared.is_green(*worker) => {
            Some(Outcome::FailedBeforeFlip(format!("new worker {worker} {how}")))
        }
        Event::Exited { worker, .. } => {
            // What it had is lost either way; another one may come in its place.
            let index = shared.blue.get(worker).map(|member| member.index);
            if index.is_some_and(|index| shared.may_join(index)) {
                shared.blue.remove(worker);
            }
            None
        }
        Event::Failed { message } => Some(Outcome::FailedBeforeFlip(message.clone())),
        Event::RollBack => Some(Outcome::FailedBeforeFlip(ROLLBACK_WANTED.to_owned())),
        Event::Supersede if shared.flipped == 0 => Some(Outcome::Superseded),
        Event::Stop if shared.flipped == 0 => Some(Outcome::Stopped),
        _ if is_due(event, now, deadline) => Some(Outcome::FailedBeforeFlip(format!(
            "a new worker {late} after {} ms (reload.ready_timeout_ms)",
            shared.options.ready_timeout.as_millis()
        ))),
        _ => None,
    }
}

/// What undoes a reload after the flip.
pub(super) fn after_flip(shared: &Shared, event: &Event) -> Option<String> {
    match event {
        Event::Exited { worker, how } if shared.is_green(*worker) => {
            Some(format!("new worker {worker} {how}"))
        }
        Event::Failed { message } => Some(message.clone()),
        Event::RollBack => Some(ROLLBACK_WANTED.to_owned()),
        _ => None,
    }
}

/// Why a reload is undone that nothing was wrong with.
const ROLLBACK_WANTED: &str = "a rollback was asked for";

/// After the flip: back to blue, if there is anybody to go back to.
pub(super) fn fail(shared: &mut Shared, why: String, now: Instant) -> Stage {
    if shared.live_blue().is_empty() && !shared.live_green().is_empty() {
        // Every connection that is left lives in green, and blue is gone.
        shared.facts.warnings.push(why);
        return Deciding::begin(shared, now);
    }
    RollingBack::begin(shared, why, now)
}

/// Before the flip of a step: nothing has happened, unless an earlier step has flipped.
fn give_up(shared: &mut Shared, outcome: Outcome, now: Instant) -> Stage {
    match outcome {
        Outcome::FailedBeforeFlip(why) if shared.flipped > 0 => fail(shared, why, now),
        outcome => abandon(shared, outcome),
    }
}

fn abandon(shared: &mut Shared, outcome: Outcome) -> Stage {
    for worker in shared.live_green() {
        shared.act(Action::Kill(worker));
    }
    finish(shared, outcome)
}

pub(super) fn finish(shared: &mut Shared, outcome: Outcome) -> Stage {
    shared.act(Action::Finish(outcome));
    Stage::Finished
}

pub(super) fn is_due(event: &Event, now: Instant, deadline: Instant) -> bool {
    matches!(event, Event::Tick) && now >= deadline
}

pub(super) fn remove_empty(waiting: &mut BTreeSet<WorkerId>, reload: u64, event: &Event) {
    match event {
        Event::Message { worker, message } => {
            if let FromWorker::Empty(report) = message.as_ref()
                && report.reload == reload
            {
                waiting.remove(worker);
            }
        }
        Event::Exited { worker, .. } => {
            waiting.remove(worker);
        }
        _ => {}
    }
}

pub(super) fn remove_committed(waiting: &mut BTreeSet<WorkerId>, reload: u64, event: &Event) {
    match event {
        Event::Message { worker, message } => {
            if let FromWorker::Committed { reload: of, .. } = message.as_ref()
                && *of == reload
            {
                waiting.remove(worker);
            }
        }
        Event::Exited { worker, .. } => {
            waiting.remove(worker);
        }
        _ => {}
    }
}
