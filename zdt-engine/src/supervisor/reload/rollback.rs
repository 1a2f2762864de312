//! The stages of the way back: between the flip and the commit, something went wrong.
//!
//! Must not know: descriptors, sockets, maps, clocks.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Outcome;
use super::machine::{Action, Event, Mark, Shared};
use super::stages::{Stage, finish, is_due, remove_committed, remove_empty};
use crate::control::{FromWorker, ToWorker};
use crate::supervisor::WorkerId;

/// How long blue may take to cancel its offers before it accepts again anyway.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);

/// Blue takes back what nobody has adopted, and then accepts again. Where the two generations are not
/// joined, they are now: clients of a canary have a way back, too.
#[derive(Debug)]
pub(super) struct RollingBack {
    why: String,
    waiting: BTreeSet<WorkerId>,
    /// Ends that have not reported their channel as ready.
    channels: BTreeSet<(WorkerId, u32)>,
    pub deadline: Instant,
}

impl RollingBack {
    pub fn begin(shared: &mut Shared, why: String, now: Instant) -> Stage {
        shared.act(Action::Persist(Mark::RollingBack));
        shared.act(Action::FlipBack);
        let reload = shared.id;
        let mut waiting = BTreeSet::new();
        for worker in shared.live_handing_off() {
            shared.send(worker, ToWorker::CancelHandoff { reload });
            waiting.insert(worker);
        }
        let (blue, green) = (shared.live_blue(), shared.live_flipped());
        for worker in shared.live_green().into_iter().filter(|worker| !green.contains(worker)) {
            // Of a step that had not flipped: it has nothing.
            shared.act(Action::Kill(worker));
        }
        // Nothing that they have accepted could go back: a canary, or places that replaced nobody.
        let unjoined: Vec<WorkerId> = green
            .into_iter()
            .filter(|worker| shared.plan.iter().all(|channel| channel.green != *worker))
            .collect();
        let mut channels = BTreeSet::new();
        if shared.options.migrate && !unjoined.is_empty() {
            channels = shared.open_channels(&blue, &unjoined);
        }
        // Blue does not accept meanwhile: an answer that a hanging green holds up is not waited for.
        let deadline = now + shared.options.answer_timeout.min(CANCEL_PATIENCE);
        RollingBack { why, waiting, channels, deadline }.settle(shared, now, &Event::Flipped)
    }

    pub fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        remove_empty(&mut self.waiting, shared.id, &event);
        remove_channels(&mut self.channels, shared, &event);
        self.settle(shared, now, &event)
    }

    fn settle(self, shared: &mut Shared, now: Instant, event: &Event) -> Stage {
        let over = self.waiting.is_empty() && self.channels.is_empty();
        if over || is_due(event, now, self.deadline) {
            return Returning::begin(shared, self.why, now);
        }
        Stage::RollingBack(self)
    }
}

/// Drops the ends of channels that are ready, or never will be.
fn remove_channels(waiting: &mut BTreeSet<(WorkerId, u32)>, shared: &Shared, event: &Event) {
    let mut over: BTreeSet<u32> = BTreeSet::new();
    match event {
        Event::Message { worker, message } => match message.as_ref() {
            FromWorker::ChannelReady { reload, channel } if *reload == shared.id => {
                waiting.remove(&(*worker, *channel));
            }
            FromWorker::ChannelFailed { reload, channel, .. } if *reload == shared.id => {
                over.insert(*channel);
            }
            _ => {}
        },
        Event::Exited { worker, .. } => {
            over.extend(waiting.iter().filter(|(of, _)| of == worker).map(|&(_, channel)| channel));
        }
        _ => {}
    }
    waiting.retain(|(_, channel)| !over.contains(channel));
}

/// Green hands back what it has.
#[derive(Debug)]
pub(super) struct Returning {
    why: String,
    waiting: BTreeSet<WorkerId>,
    pub deadline: Instant,
}

impl Returning {
    fn begin(shared: &mut Shared, why: String, now: Instant) -> Stage {
        let reload = shared.id;
        let mut waiting = BTreeSet::new();
        for worker in shared.live_handing_off() {
            shared.send(worker, ToWorker::ResumeAccepting);
        }
        if shared.channels_opened {
            let green = shared.live_flipped();
            for &worker in &green {
                shared.send(worker, ToWorker::Handoff { reload });
            }
            for &worker in &green {
                shared.send(worker, ToWorker::StopAccepting { reload });
            }
            waiting.extend(green);
        }
        let deadline = now + shared.options.handoff_timeout;
        Returning { why, waiting, deadline }.settle(shared, now, &Event::Flipped)
    }

    pub fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        remove_empty(&mut self.waiting, shared.id, &event);
        self.settle(shared, now, &event)
    }

    fn settle(self, shared: &mut Shared, now: Instant, event: &Event) -> Stage {
        if self.waiting.is_empty() || is_due(event, now, self.deadline) {
            return Undoing::begin(shared, self.why, now);
        }
        Stage::Returning(self)
    }
}

/// Green is let go, blue is told that the reload is over.
#[derive(Debug)]
pub(super) struct Undoing {
    why: String,
    waiting: BTreeSet<WorkerId>,
    pub deadline: Instant,
}

impl Undoing {
    fn begin(shared: &mut Shared, why: String, now: Instant) -> Stage {
        let (reload, drain_ms) = (shared.id, Some(shared.options.drain_ms()));
        let (blue, green) = (shared.live_blue(), shared.live_flipped());
        for &worker in &green {
            shared.send(worker, ToWorker::Commit { reload, drain_ms });
        }
        for &worker in &blue {
            shared.send(worker, ToWorker::Commit { reload, drain_ms: None });
        }
        let waiting = blue.into_iter().chain(green).collect();
        let deadline = now + shared.options.answer_timeout;
        Undoing { why, waiting, deadline }.settle(shared, now, &Event::Flipped)
    }

    pub fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        remove_committed(&mut self.waiting, shared.id, &event);
        self.settle(shared, now, &event)
    }

    fn settle(self, shared: &mut Shared, now: Instant, event: &Event) -> Stage {
        if self.waiting.is_empty() || is_due(event, now, self.deadline) {
            return finish(shared, Outcome::RolledBack(self.why));
        }
        Stage::Undoing(self)
    }
}
