//! The outgoing side of a handoff: freeze, save, offer; take back what was not taken.
//!
//! This is a state machine in the worker's loop, not a pause of it. A connection is frozen only when
//! a channel has room for it, so none waits for all the others; active ones go first.
//!
//! Must not know: what a connection speaks.

use crate::config::Encoding;
use crate::control::{FromWorker, HandoffReport};
use crate::handoff::{Answer, MAX_UPSTREAMS, OfferError, Phase};
use crate::registry::{Mark, Order};
use crate::service::{Busy, StreamId};
use crate::{state, sys};

use super::Worker;
use super::entry::Moving;
use super::record;
use super::tokens::Token;
use super::traffic::receive_operation;

/// A connection on which bytes moved within this time goes first.
const ACTIVE_MS: u64 = 1_000;

/// Least time between two progress messages.
const PROGRESS_MS: u64 = 50;

/// How long a connection in a TLS handshake is waited for, from the last bytes that came or went: who has been
/// silent for longer than that delays nobody.
const HANDSHAKE_PATIENCE_MS: u64 = 1_000;

/// Messages pushed to connections that are just moving.
const MAX_FOLLOWING_PUSHES: usize = 4_096;

/// Turns of the loop that a connection gets beyond its budget: on a starved machine the budget may be
/// over before this process has had a turn at all.
const TURNS_BEYOND_BUDGET: u8 = 16;

/// A connection that is frozen and not on offer.
#[derive(Debug, Clone, Copy)]
struct Freezing {
    key: usize,
    turns_beyond_budget: u8,
}

/// One handoff in progress.
pub struct HandoffJob {
    report: HandoffReport,
    /// Connections that were not looked at yet, in order.
    waiting: Order<usize>,
    /// Connections whose operations are being ended, or which wait for room or for their session.
    freezing: Vec<Freezing>,
    /// Connections in a TLS handshake, which does not move, and until when they are waited for.
    shaking_hands: Vec<(usize, u64)>,
    /// Where the next connection goes.
    next_channel: usize,
    /// Newcomers are not expected any more.
    emptying: bool,
    /// The accept queues were swept after the last accept had ended.
    swept: bool,
    /// Nothing is frozen any more, and what is on offer is taken back.
    cancelled: bool,
    /// The supervisor has been told that it is over.
    reported: bool,
    progress_ms: u64,
    /// Connection, stream and bytes.
    following: Vec<(usize, StreamId, Vec<u8>)>,
}

impl HandoffJob {
    fn new(reload: u64) -> Self {
        Self {
            report: HandoffReport { reload, ..HandoffReport::default() },
            waiting: Order::default(),
            freezing: Vec::new(),
            shaking_hands: Vec::new(),
            next_channel: 0,
            emptying: false,
            swept: false,
            cancelled: false,
            reported: false,
            progress_ms: 0,
            following: Vec::new(),
        }
    }

    /// Operations whose end is awaited before anything else can be done.
    pub fn freezing(&self) -> usize {
        self.freezing.len()
    }

    /// True once the supervisor has been told that nothing is left.
    pub fn is_over(&self) -> bool {
        self.reported
    }

    /// A connection that was accepted while the handoff runs.
    pub fn add_newcomer(&mut self, key: usize) {
        if !self.cancelled {
            self.waiting.push(key, Mark::Idle);
            self.reported = false;
        }
    }
}

/// Why a frozen connection is not on offer yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    /// The kernel has not given its operations back.
    StillInFlight,
    /// Its session cannot be saved just now.
    Session(&'static str),
    /// No channel takes it just now.
    NoRoom,
}

impl Hindrance {
    /// The reason code for staying, where it is one.
    fn reason(self) -> Option<&'static str> {
        match self {
            Hindrance::StillInFlight => Some("freeze-budget"),
            Hindrance::Session(reason) => Some(reason),
            Hindrance::NoRoom => None,
        }
    }
}

impl Worker {
    /// Freeze and hand off everything.
    pub(super) fn begin_handoff(&mut self, reload: u64) {
        self.end_handoff();
        let mut job = HandoffJob::new(reload);
        let active_after = self.now_ms.saturating_sub(ACTIVE_MS);
        for (key, entry) in &mut self.entries {
            if entry.moving == Moving::Stays {
                entry.moving = Moving::No; // it is offered again at every reload
            }
            let is_active = entry.active_ms >= active_after;
            job.waiting.push(key, if is_active { Mark::Active } else { Mark::Idle });
        }
        self.status.draining.clear();
        self.job = Some(job);
    }

    /// Stop accepting, hand off what is queued, report when nothing is left.
    pub(super) fn begin_emptying(&mut self, reload: u64) {
        if self.job.is_none() {
            self.begin_handoff(reload);
        }
        if let Some(job) = &mut self.job {
            job.emptying = true;
            job.swept = false;
            job.reported = false;
        }
        self.stop_accepting();
    }

    /// Freeze nothing more, take back what nobody has adopted.
    pub(super) fn cancel_handoff(&mut self, reload: u64) {
        let job = self.job.get_or_insert_with(|| HandoffJob::new(reload));
        job.cancelled = true;
        job.reported = false;
        job.waiting = Order::default();
        job.shaking_hands.clear();
        for Freezing { key, .. } in std::mem::take(&mut job.freezing) {
            self.stay(key, None);
        }
    }

    /// Forget the handoff: the connections are served here again.
    pub(super) fn end_handoff(&mut self) {
        if let Some(mut job) = self.job.take() {
            for Freezing { key, .. } in std::mem::take(&mut job.freezing) {
                self.stay(key, None);
            }
        }
        for (_, entry) in &mut self.entries {
            if entry.moving == Moving::Stays {
                entry.moving = Moving::No;
            }
        }
        self.status.draining.clear();
    }

    /// When the handoff needs the loop's attention without any completion.
    pub(super) fn handoff_due_ms(&self) -> Option<u64> {
        let mut due_ms = None::<u64>;
        let mut at = |ms: u64| due_ms = Some(due_ms.map_or(ms, |due: u64| due.min(ms)));
        for (_, channel) in &self.channels {
            if let Some(oldest) = channel.oldest_offer_ms() {
                at(oldest + self.configure.config.handoff.offer_timeout_ms + 1);
                // A peer that closed the channel, or was killed between two words, wakes nobody.
                if channel.phase() == Phase::Closed || channel.has_unsent() {
                    at(self.now_ms + 1);
                }
            }
        }
        if let Some(job) = &self.job {
            if !job.freezing.is_empty() {
                at(self.now_ms + 1);
            }
            if let Some(until_ms) = job.shaking_hands.iter().map(|&(_, until_ms)| until_ms).min() {
                at(until_ms.max(self.now_ms + 1));
            }
            if !job.reported {
                // After the sweep nothing wakes the loop, and the end may be a turn away.
                let at_end = job.swept && job.waiting.is_empty() && job.freezing.is_empty();
                at(self.now_ms + if at_end { 1 } else { PROGRESS_MS });
            }
        }
        due_ms
    }

    /// One turn of the handoff.
    pub(super) fn advance_handoff(&mut self) {
        if !self.channels.is_empty() {
            self.collect_answers();
        }
        if self.job.is_some() {
            self.retry_freezing();
            self.freeze_more();
            self.wait_for_handshakes();
            self.report_handoff();
        }
        for index in self.channel_indices() {
            if self.channels[index].has_unsent()
                && let Err(error) = self.channels[index].flush()
            {
                self.on_channel_failure(index, error.to_string());
            }
            self.channels[index].announce_answers();
        }
        self.remove_settled_channels();
    }

    fn channel_indices(&self) -> Vec<usize> {
        self.channels.iter().map(|(index, _)| index).collect()
    }

    fn collect_answers(&mut self) {
        let timeout_ms = self.configure.config.handoff.offer_timeout_ms;
        let cancelled = self.job.as_ref().is_some_and(|job| job.cancelled);
        let overdue_before =
            if cancelled { u64::MAX } else { self.now_ms.saturating_sub(timeout_ms) };
        let mut answers = Vec::new();
        for (_, channel) in &mut self.channels {
            if channel.open_offers() > 0 {
                channel.collect(Some(overdue_before), &mut answers);
            }
        }
        if let (Some(job), false) = (&mut self.job, answers.is_empty()) {
            job.report.ended_ns = sys::boottime_ns();
        }
        for answer in answers {
            match answer {
                Answer::Started { key } => self.on_moved(key as usize),
                Answer::TakenBack { key, socket, upstreams, refused } => {
                    let key = key as usize;
                    self.entries[key].socket = Some(socket);
                    self.give_upstreams_back(key, upstreams);
                    if let Some(job) = &mut self.job {
                        if refused {
                            job.report.refused += 1;
                        } else {
                            job.report.reclaimed += 1;
                        }
                    }
                    let reason = match (cancelled, refused) {
                        (true, _) => None,
                        (false, true) => Some("refused"),
                        (false, false) => Some("offer-timeout"),
                    };
                    self.stay(key, reason);
                }
            }
        }
    }

    fn on_moved(&mut self, key: usize) {
        fault_point!("release.before");
        let Moving::Offered { channel } = self.entries[key].moving else {
            unreachable!("only offered connections are answered");
        };
        if self.pushable.contains_key(&self.entries[key].id) {
            self.followed.insert(self.entries[key].id, channel);
        }
        let entry = self.forget(key);
        self.status.moved += 1;
        let slot = self.scoreboard_slot();
        slot.moved_out.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if let Some(job) = &mut self.job {
            job.report.moved += 1;
            let mut index = 0;
            while index < job.following.len() {
                if job.following[index].0 == key {
                    let (_, stream, bytes) = job.following.swap_remove(index);
                    if let Some(channel) = self.channels.get_mut(channel) {
                        channel.forward_push(entry.id, stream, &bytes);
                    }
                } else {
                    index += 1;
                }
            }
        }
    }

    /// A connection goes on here. With a reason it is counted as one that could not be moved.
    fn stay(&mut self, key: usize, reason: Option<&str>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.moving = if reason.is_some() { Moving::Stays } else { Moving::No };
        if let Some(reason) = reason {
            *self.status.draining.entry(reason.to_owned()).or_insert(0) += 1;
            if let Some(job) = &mut self.job {
                *job.report.staying.entry(reason.to_owned()).or_insert(0) += 1;
            }
        }
        self.thaw(key);
        if let Some(job) = &mut self.job {
            let (mine, others) =
                std::mem::take(&mut job.following).into_iter().partition(|(of, ..)| *of == key);
            job.following = others;
            let mine: Vec<(usize, StreamId, Vec<u8>)> = mine;
            for (_, stream, bytes) in mine {
                if let Some(entry) = self.entries.get(key).filter(|entry| entry.is_served())
                    && let Some(slot) = entry.connection.slot_of(stream)
                {
                    self.with_session(key, slot, |session, context| {
                        session.on_push(&bytes, context);
                    });
                }
            }
        }
    }

    /// A message for a connection that is just moving: it follows it, or waits for it to stay.
    pub(super) fn push_while_moving(&mut self, key: usize, stream: StreamId, bytes: &[u8]) {
        if let Some(job) = &mut self.job
            && job.following.len() < MAX_FOLLOWING_PUSHES
        {
            job.following.push((key, stream, bytes.to_vec()));
        }
    }

    fn freeze_more(&mut self) {
        let Some(job) = &self.job else { return };
        let (mut places, mut bytes) = (0, 0);
        let reload = job.report.reload;
        // A channel of an earlier reload may still be there, if its peer was killed.
        for (_, channel) in self.channels.iter_mut().filter(|(_, c)| c.info.reload == reload) {
            let room = channel.room();
            places += room.places;
            bytes += room.bytes;
        }
        places = places.saturating_sub(job.freezing.len());
        let reserved: usize =
            job.freezing.iter().map(|one| record::estimate(&self.entries[one.key])).sum();
        bytes = bytes.saturating_sub(reserved);
        while places > 0 {
            let Some(job) = &mut self.job else { return };
            let Some(&key) = job.waiting.front() else { return };
            let Some(entry) =
                self.entries.get(key).filter(|e| e.moving == Moving::No && !e.closing)
            else {
                job.waiting.pop();
                continue;
            };
            if entry.transport.is_shaking_hands() {
                // It moves when that is over.
                job.waiting.pop();
                job.shaking_hands.push((key, entry.active_ms + HANDSHAKE_PATIENCE_MS));
                continue;
            }
            let wanted = record::estimate(entry);
            if wanted > bytes {
                break; // until an answer frees room: nobody is frozen to wait in a queue
            }
            job.waiting.pop();
            bytes -= wanted;
            places -= 1;
            self.freeze(key);
        }
        let Some(job) = &mut self.job else { return };
        // Without any channel that could still take them, those that wait stay.
        let hopeless = !self.channels.is_empty()
            && self.channels.iter().all(|(_, channel)| {
                channel.phase() == Phase::Closed || channel.info.write_format.is_none()
            });
        if hopeless {
            let mut waiting = std::mem::take(&mut job.waiting);
            while let Some(key) = waiting.pop() {
                if self.entries.get(key).is_some_and(|entry| entry.moving == Moving::No) {
                    self.stay(key, Some("channel-closed"));
                }
            }
        }
    }

    /// Gives those up that do not come to an end of their handshake: they stay here, and drain.
    fn wait_for_handshakes(&mut self) {
        let (Some(job), now_ms) = (&mut self.job, self.now_ms) else { return };
        if job.shaking_hands.is_empty() {
            return;
        }
        let entries = &self.entries;
        job.shaking_hands.retain(|&(key, _)| {
            entries
                .get(key)
                .is_some_and(|entry| entry.is_served() && entry.transport.is_shaking_hands())
        });
        let overdue: Vec<usize> = job
            .shaking_hands
            .extract_if(.., |&mut (_, until_ms)| until_ms <= now_ms)
            .map(|(key, _)| key)
            .collect();
        for key in overdue {
            self.stay(key, Some("tls-handshake"));
        }
    }

    fn freeze(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        entry.moving = Moving::Freezing;
        entry.frozen_ns = sys::boottime_ns();
        if let Some(job) = &mut self.job
            && job.report.began_ns == 0
        {
            job.report.began_ns = entry.frozen_ns;
        }
        if entry.receiving {
            self.ring.cancel(receive_operation(key));
        }
        if let Some(sending) = entry.sending {
            self.ring.cancel(sending.operation);
        }
        if let Some(job) = &mut self.job {
            job.freezing.push(Freezing { key, turns_beyond_budget: 0 });
        }
        self.freeze_upstreams(key);
        fault_point!("freeze.begun");
        self.try_offer(key);
    }

    /// Offers a frozen connection as soon as nothing names its socket any more.
    pub(super) fn try_offer(&mut self, key: usize) {
        let Some(entry) = self.entries.get(key) else { return };
        if entry.moving == Moving::Freezing && entry.is_quiet() && self.upstreams_are_quiet(key) {
            let _ = self.offer(key);
        }
    }

    fn offer(&mut self, key: usize) -> Result<(), Hindrance> {
        let Some(format) = self.channels.iter().find_map(|(_, channel)| channel.info.write_format)
        else {
            return Err(Hindrance::NoRoom);
        };
        if self.count_upstreams(key) > MAX_UPSTREAMS {
            return Err(Hindrance::Session("too-many-upstreams"));
        }
        let mut bytes = self.buffers.take();
        let saved = record::save(&self.entries[key], format, self.now_ms, &mut bytes);
        // Half of what is large about a TLS connection is ciphertext; and its secrets are not copied around.
        let is_secret = self.entries[key].transport.is_secret();
        if saved.is_ok() && !is_secret && self.configure.config.state.encoding == Encoding::Json {
            // What cannot be shown goes as it is.
            state::json::to_json(&mut bytes, &record::JSON_CODECS);
        }
        if saved.is_ok() && !is_secret && self.configure.config.state.compression {
            let above_bytes = self.configure.config.state.compress_above_bytes as usize;
            self.packer.pack(&mut bytes, above_bytes);
        }
        if let Err(Busy(reason)) = saved {
            self.buffers.give(bytes);
            return Err(Hindrance::Session(reason));
        }
        fault_point!("freeze.saved");
        let indices = self.channel_indices();
        let start = self.job.as_ref().map_or(0, |job| job.next_channel);
        let reload = self.job.as_ref().map(|job| job.report.reload);
        let mut outcome = Err(Hindrance::NoRoom);
        for turn in 0..indices.len() {
            let index = indices[(start + turn) % indices.len()];
            let channel = &mut self.channels[index];
            if channel.phase() != Phase::Open
                || Some(channel.info.reload) != reload
                || channel.info.write_format != Some(format)
            {
                continue;
            }
            if is_secret && !channel.is_sealing() {
                outcome = Err(Hindrance::Session("ring-not-encrypted"));
                continue;
            }
            let Some(socket) = self.entries[key].socket.take() else { break };
            let upstreams = self.take_upstreams(key);
            let channel = &mut self.channels[index];
            match channel.offer(key as u64, &mut bytes, socket, upstreams, self.now_ms) {
                Ok(()) => {
                    self.entries[key].moving = Moving::Offered { channel: index };
                    if let Some(job) = &mut self.job {
                        job.next_channel = start + turn + 1;
                        job.freezing.retain(|one| one.key != key);
                    }
                    outcome = Ok(());
                    break;
                }
                Err(
                    OfferError::Full(socket, upstreams) | OfferError::Closed(socket, upstreams),
                ) => {
                    self.entries[key].socket = Some(socket);
                    self.give_upstreams_back(key, upstreams);
                    if state::is_sealed(&bytes) {
                        break; // for another channel it would have to be saved anew
                    }
                }
            }
        }
        if is_secret && !state::is_sealed(&bytes) {
            record::wipe(&mut bytes);
        }
        self.buffers.give(bytes);
        outcome
    }

    fn retry_freezing(&mut self) {
        let Some(job) = &self.job else { return };
        let budget_ns = self.configure.config.handoff.freeze_budget_ms * 1_000_000;
        let now_ns = sys::boottime_ns();
        for index in (0..job.freezing.len()).rev() {
            let Some(job) = &mut self.job else { return };
            let Some(one) = job.freezing.get_mut(index) else { continue };
            let key = one.key;
            let entry = &self.entries[key];
            if now_ns.saturating_sub(entry.frozen_ns) > budget_ns {
                one.turns_beyond_budget += 1;
            }
            let overdue = one.turns_beyond_budget > TURNS_BEYOND_BUDGET;
            let outcome = if entry.is_quiet() && self.upstreams_are_quiet(key) {
                self.offer(key)
            } else {
                Err(Hindrance::StillInFlight)
            };
            let Err(hindrance) = outcome else { continue };
            if !overdue {
                continue;
            }
            if let Some(job) = &mut self.job {
                job.freezing.retain(|one| one.key != key);
                if hindrance == Hindrance::NoRoom {
                    // Not its fault: it is served until there is room, then frozen again.
                    job.waiting.push(key, Mark::Idle);
                }
            }
            self.stay(key, hindrance.reason());
        }
    }

    fn report_handoff(&mut self) {
        let Some(job) = &mut self.job else { return };
        if job.reported {
            return;
        }
        let offered: usize = self.channels.iter().map(|(_, channel)| channel.open_offers()).sum();
        let remaining = job.waiting.len() + job.freezing.len() + job.shaking_hands.len() + offered;
        job.report.remaining = remaining as u64;
        let over = if job.cancelled {
            offered == 0
        } else if job.emptying && remaining == 0 && self.accepts_are_over() {
            if std::mem::replace(&mut self.job.as_mut().expect("just seen").swept, true) {
                true
            } else {
                self.sweep_all();
                return; // what the sweep found is handed off first
            }
        } else {
            false
        };
        let Some(job) = &mut self.job else { return };
        if over {
            job.reported = true;
            let report = job.report.clone();
            tracing::debug!(?report, "handoff over");
            self.tell(&FromWorker::Empty(report));
        } else if self.now_ms >= job.progress_ms + PROGRESS_MS {
            job.progress_ms = self.now_ms;
            let report = job.report.clone();
            self.tell(&FromWorker::Progress(report));
        }
    }

    /// A channel's eventfd fired.
    pub(super) fn on_channel_wake(&mut self, index: usize, result: i32, more: bool) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        channel.on_wake();
        if !more && result != -libc::ECANCELED {
            self.ring.poll_multishot(channel.wake(), Token::ChannelWake(index).pack());
        }
    }

    /// A channel's peer has died.
    pub(super) fn on_channel_peer(&mut self, index: usize, result: i32) {
        if result > 0
            && let Some(channel) = self.channels.get_mut(index)
        {
            channel.on_peer_death();
        }
    }
}
