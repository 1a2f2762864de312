//! The stages of a reload in which the places of one step hand over: settling, the handoff itself, and the
//! pause before the next step.
//!
//! Must not know: descriptors, sockets, maps, clocks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::ending::Probation;
use super::machine::{Action, Event, Rolling, Shared};
use super::stages::{Stage, Starting, after_flip, fail, is_due};
use crate::control::{FromWorker, ToWorker};
use crate::supervisor::WorkerId;
use crate::supervisor::sockets::plan;

/// Blue goes on accepting for a round trip; meanwhile the channels are opened.
#[derive(Debug)]
pub(super) struct Settling {
    /// Ends that have not reported their channel as ready.
    pub channels: BTreeSet<(WorkerId, u32)>,
    pub settled: Instant,
    pub deadline: Instant,
}

impl Settling {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        shared.act(Action::ShareListeners(shared.batch().clone()));
        if shared.batch_blue().is_empty() {
            return end_step(shared, now);
        }
        let mut channels = BTreeSet::new();
        if shared.options.migrate {
            channels = shared.open_channels(&shared.batch_blue(), &shared.batch_green());
        }
        let settled = now + shared.options.settle;
        let deadline = settled.max(now + shared.options.answer_timeout);
        Stage::Settling(Settling { channels, settled, deadline })
    }

    pub fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
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
    pub deadline: Instant,
}

impl HandingOff {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        let blue = shared.batch_blue();
        if !shared.options.migrate || blue.is_empty() {
            return end_step(shared, now);
        }
        let reload = shared.id;
        for &worker in &blue {
            if let Some(member) = shared.blue.get_mut(&worker) {
                member.hands_off = true;
            }
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

    pub fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
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
            return end_step(shared, now);
        }
        if !is_due(&event, now, self.deadline) {
            return Stage::HandingOff(self);
        }
        if self.not_empty.is_disjoint(&self.heard) {
            // They hang. Going back to them would help nobody; what they hold drains, or dies with
            // them, and green accepts from their listeners.
            shared.facts.silent_blue.extend(self.not_empty);
            return end_step(shared, now);
        }
        let why = format!(
            "the handoff took longer than {} ms; raise reload.handoff_timeout_ms if that is too \
             short for the number of connections",
            shared.options.handoff_timeout.as_millis()
        );
        fail(shared, why, now)
    }
}

/// The places of this step have been replaced.
fn end_step(shared: &mut Shared, now: Instant) -> Stage {
    if shared.at + 1 == shared.batches.len() {
        return Probation::begin(shared, now);
    }
    let pause = shared.options.rolling.map_or(Duration::ZERO, |rolling| rolling.pause);
    if pause.is_zero() {
        return Pausing::end(shared, now);
    }
    Stage::Pausing(Pausing { until: now + pause })
}

/// Between two steps of a rolling reload.
#[derive(Debug)]
pub(super) struct Pausing {
    pub until: Instant,
}

impl Pausing {
    fn end(shared: &mut Shared, now: Instant) -> Stage {
        shared.at += 1;
        Starting::begin(shared, now)
    }

    pub fn handle(self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        if let Some(why) = after_flip(shared, &event) {
            return fail(shared, why, now);
        }
        // Whoever stops the service does not want to wait for pauses.
        if matches!(event, Event::Stop) {
            shared.options.rolling =
                shared.options.rolling.map(|of| Rolling { pause: Duration::ZERO, ..of });
            return Pausing::end(shared, now);
        }
        if is_due(&event, now, self.until) {
            return Pausing::end(shared, now);
        }
        Stage::Pausing(self)
    }
}

impl Shared {
    /// Joins these; returns the ends that are to report.
    pub fn open_channels(
        &mut self,
        blue: &[WorkerId],
        green: &[WorkerId],
    ) -> BTreeSet<(WorkerId, u32)> {
        let first = u32::try_from(self.plan.len()).unwrap_or(u32::MAX);
        let plan = plan::channels_from(first, blue, green);
        self.channels_opened = true;
        self.plan.extend(&plan);
        let ends = plan
            .iter()
            .flat_map(|joined| [(joined.blue, joined.channel), (joined.green, joined.channel)])
            .collect();
        self.act(Action::OpenChannels(plan));
        ends
    }

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
}
