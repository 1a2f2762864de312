//! The stages of a blue-green reload and the transitions between them.
//!
//! ```text
//! Starting → Proving → Flipping → Settling → HandingOff → Probation → Deciding → Committing → Finished
//!     └─────────┴→ Finished  └──────┴────────────┴────────────┴──────────┴→ RollingBack → Returning → Undoing ↗
//! ```
//! Must not know: descriptors, sockets, maps, clocks.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Outcome;
use super::machine::{Action, Event, Mark, Member, Shared};
use super::rollback::{Returning, RollingBack, Undoing};
use crate::control::{FromWorker, Hello, ToWorker};
use crate::supervisor::{WorkerId, plan};

/// See the module.
#[derive(Debug)]
pub(super) enum Stage {
    Starting(Starting),
    Proving(Proving),
    Flipping(Flipping),
    Settling(Settling),
    HandingOff(HandingOff),
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
            Stage::Settling(stage) => stage.handle(shared, now, event),
            Stage::HandingOff(stage) => stage.handle(shared, now, event),
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
            Stage::Settling(_) => "settling",
            Stage::HandingOff(_) => "handing_off",
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
    pub deadline: Instant,
}

impl Starting {
    fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match event {
            Event::Spawned { green } => {
                for worker in green {
                    shared.add_green(worker);
                }
                Stage::Starting(self)
            }
            Event::Greeted { worker, hello } => {
                if let Err(why) = agree(shared, &hello) {
                    return abandon(shared, Outcome::FailedBeforeFlip(why));
                }
                shared.greet_green(worker, hello);
                if !shared.all_green_greeted() {
                    return Stage::Starting(self);
                }
                let green = shared.live_green();
                for &worker in &green {
                    shared.act(Action::Listen(worker));
                }
                let unproven = green.into_iter().collect();
                Stage::Proving(Proving { unproven, deadline: self.deadline })
            }
            other => match before_flip(shared, now, self.deadline, &other, "has not greeted") {
                Some(outcome) => abandon(shared, outcome),
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
                shared.act(Action::Persist(Mark::Flipped));
                shared.act(Action::Flip);
                Stage::Flipping(Flipping { deadline: now + shared.options.answer_timeout })
            }
            other => match before_flip(shared, now, self.deadline, &other, "is not ready") {
                Some(outcome) => abandon(shared, outcome),
                None => Stage::Proving(self),
            },
        }
    }
}

/// The flip is being carried out: from here on clients may have reached green.
#[derive(Debug)]
pub(super) struct Flipping {
    deadline: Instant,
}

impl Flipping {
    fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match event {
            Event::Flipped => return Settling::begin(shared, now),
            Event::NotFlipped { message } => {
                return abandon(shared, Outcome::FailedBeforeFlip(message));
            }
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
}

/// Blue goes on accepting for a round trip; meanwhile the channels are opened.
#[derive(Debug)]
pub(super) struct Settling {
    /// Ends that have not reported their channel as ready.
    channels: BTreeSet<(WorkerId, u32)>,
    settled: Instant,
    deadline: Instant,
}

impl Settling {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        shared.act(Action::ShareListeners);
        if shared.live_blue().is_empty() {
            return Probation::begin(shared, now);
        }
        let mut channels = BTreeSet::new();
        if shared.options.migrate {
            shared.plan = plan::channels(&shared.live_blue(), &shared.live_green());
            for channel in &shared.plan {
                channels.insert((channel.blue, channel.channel));
                channels.insert((channel.green, channel.channel));
            }
            shared.channels_opened = true;
            shared.act(Action::OpenChannels(shared.plan.clone()));
        }
        let settled = now + shared.options.settle;
        let deadline = settled.max(now + shared.options.answer_timeout);
        Stage::Settling(Settling { channels, settled, deadline })
    }

    fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match &event {
            Event::Message { worker, message } => match message.as_ref() {
                FromWorker::ChannelReady { reload, channel } if *reload == shared.id => {
                    self.channels.remove(&(*worker, *channel));
                }
                // If its other end has died, that is what matters, and is on its way.
                FromWorker::ChannelFailed { reload, channel, reason }
                    if *reload == shared.id && self.channels.contains(&(*worker, *channel)) =>
                {
                    let why = format!("channel {channel} to worker {worker}: {reason}");
                    return fail(shared, why, now);
                }
                _ => {}
            },
            Event::Exited { worker, .. } if !shared.is_green(*worker) => {
                // Nothing was moved from it yet, so its channels have nothing to carry.
                let dead: BTreeSet<u32> = self.channels_of(*worker);
                self.channels.retain(|(_, channel)| !dead.contains(channel));
            }
            _ => {}
        }
        if let Some(why) = after_flip(shared, &event) {
            return fail(shared, why, now);
        }
        if self.channels.is_empty() && now >= self.settled {
            return HandingOff::begin(shared, now);
        }
        if is_due(&event, now, self.deadline) && !self.channels.is_empty() {
            let why = format!("{} channel ends are not ready in time", self.channels.len());
            return fail(shared, why, now);
        }
        Stage::Settling(self)
    }

    fn channels_of(&self, worker: WorkerId) -> BTreeSet<u32> {
        let own = self.channels.iter().filter(|(of, _)| *of == worker);
        own.map(|&(_, channel)| channel).collect()
    }
}

/// Connections travel; blue empties its accept queues.
#[derive(Debug)]
pub(super) struct HandingOff {
    not_empty: BTreeSet<WorkerId>,
    /// Blue workers that have said something since the handoff began.
    heard: BTreeSet<WorkerId>,
    deadline: Instant,
}

impl HandingOff {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        let blue = shared.live_blue();
        if !shared.options.migrate || blue.is_empty() {
            return Probation::begin(shared, now);
        }
        shared.handoff_begun = true;
        let reload = shared.id;
        for &worker in &blue {
            shared.send(worker, ToWorker::Handoff { reload });
        }
        shared.act(Action::HandoffBegun);
        for &worker in &blue {
            shared.send(worker, ToWorker::StopAccepting { reload });
        }
        Stage::HandingOff(HandingOff {
            not_empty: blue.into_iter().collect(),
            heard: BTreeSet::new(),
            deadline: now + shared.options.handoff_timeout,
        })
    }

    fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        match &event {
            Event::Message { worker, message } => {
                self.heard.insert(*worker);
                if let FromWorker::Empty(report) = message.as_ref()
                    && report.reload == shared.id
                {
                    self.not_empty.remove(worker);
                }
                if let FromWorker::ChannelFailed { reload, channel, reason } = message.as_ref()
                    && *reload == shared.id
                    && shared.both_ends_live(*channel)
                {
                    let why = format!("channel {channel} at worker {worker}: {reason}");
                    return fail(shared, why, now);
                }
            }
            Event::Exited { worker, .. } => {
                self.not_empty.remove(worker);
            }
            _ => {}
        }
        if let Some(why) = after_flip(shared, &event) {
            return fail(shared, why, now);
        }
        if self.not_empty.is_empty() {
            return Probation::begin(shared, now);
        }
        if !is_due(&event, now, self.deadline) {
            return Stage::HandingOff(self);
        }
        if self.not_empty.is_disjoint(&self.heard) {
            // They hang. Going back to them would help nobody; what they hold drains, or dies with
            // them, and green accepts from their listeners.
            shared.facts.silent_blue = self.not_empty;
            return Probation::begin(shared, now);
        }
        let why = format!(
            "the handoff took longer than {} ms; raise reload.handoff_timeout_ms if that is too \
             short for the number of connections",
            shared.options.handoff_timeout.as_millis()
        );
        fail(shared, why, now)
    }
}

/// Green has everything; blue stands by.
#[derive(Debug)]
pub(super) struct Probation {
    until: Instant,
}

impl Probation {
    fn begin(shared: &mut Shared, now: Instant) -> Stage {
        if shared.options.probation.is_zero() || shared.live_blue().is_empty() {
            return Deciding::begin(shared, now);
        }
        Stage::Probation(Probation { until: now + shared.options.probation })
    }

    fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
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
    deadline: Instant,
}

impl Deciding {
    fn begin(shared: &mut Shared, now: Instant) -> Stage {
        shared.act(Action::Persist(Mark::Committed));
        Stage::Deciding(Deciding { deadline: now + shared.options.answer_timeout })
    }

    fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
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
    deadline: Instant,
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

    fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
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

impl Shared {
    /// Whether a failed channel is news: with one end dead its failure is a consequence, and the
    /// death has its own event.
    fn both_ends_live(&self, channel: u32) -> bool {
        let Some(ends) = self.plan.iter().find(|planned| planned.channel == channel) else {
            return false;
        };
        let alive = |worker: &WorkerId| {
            [&self.blue, &self.green]
                .iter()
                .any(|side| side.get(worker).is_some_and(|member| member.alive))
        };
        alive(&ends.blue) && alive(&ends.green)
    }

    fn add_green(&mut self, worker: WorkerId) {
        self.green.insert(worker, Member { hello: None, alive: true });
    }

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
            shared.blue.remove(worker);
            None
        }
        Event::BlueJoined { worker, hello } => {
            let member = Member { hello: Some(hello.clone()), alive: true };
            shared.blue.insert(*worker, member);
            None
        }
        Event::Failed { message } => Some(Outcome::FailedBeforeFlip(message.clone())),
        Event::Supersede => Some(Outcome::Superseded),
        Event::Stop => Some(Outcome::Stopped),
        _ if is_due(event, now, deadline) => Some(Outcome::FailedBeforeFlip(format!(
            "a new worker {late} after {} ms (reload.ready_timeout_ms)",
            shared.options.ready_timeout.as_millis()
        ))),
        _ => None,
    }
}

/// What undoes a reload after the flip.
fn after_flip(shared: &Shared, event: &Event) -> Option<String> {
    match event {
        Event::Exited { worker, how } if shared.is_green(*worker) => {
            Some(format!("new worker {worker} {how}"))
        }
        Event::Failed { message } => Some(message.clone()),
        _ => None,
    }
}

/// After the flip: back to blue, if there is anybody to go back to.
fn fail(shared: &mut Shared, why: String, now: Instant) -> Stage {
    if shared.live_blue().is_empty() && !shared.live_green().is_empty() {
        // Every connection that is left lives in green, and blue is gone.
        shared.facts.warnings.push(why);
        return Deciding::begin(shared, now);
    }
    RollingBack::begin(shared, why, now)
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
