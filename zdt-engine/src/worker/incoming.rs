//! The incoming side of a handoff: validate, adopt, start, thaw.
//!
//! Must not know: why the other side gives its connections away.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::conn::{Environment, ReceiveEnd};
use crate::control::{FromWorker, IncomingReport};
use crate::handoff::{Arrival, Received};
use crate::{state, sys};

use super::Worker;
use super::entry::Moving;
use super::outgoing::HandoffJob;
use super::record;
use super::tokens::Token;

/// What came in during the current reload.
pub struct Intake {
    adopted: u64,
    refused: BTreeMap<String, u64>,
    blackout_us: Histogram<u64>,
    /// Freeze instants of connections whose receive is armed by the next enter.
    armed_ns: Vec<u64>,
    /// Connections whose first receive has not come back.
    fresh: Vec<usize>,
    /// Those whose receive the last enter has armed.
    entered: Vec<usize>,
}

impl Intake {
    pub fn new() -> Self {
        Self {
            adopted: 0,
            refused: BTreeMap::new(),
            blackout_us: Histogram::new_with_bounds(1, 3_600_000_000, 2).expect("valid bounds"),
            armed_ns: Vec::new(),
            fresh: Vec::new(),
            entered: Vec::new(),
        }
    }

    /// A connection is received from again.
    pub fn watch(&mut self, key: usize) {
        self.fresh.push(key);
    }

    /// True when receives are queued whose connections are not served before the next enter.
    pub fn is_arming(&self) -> bool {
        !self.armed_ns.is_empty()
    }

    /// The report, after which counting starts anew.
    pub fn take_report(&mut self) -> IncomingReport {
        let report = IncomingReport {
            adopted: self.adopted,
            refused: std::mem::take(&mut self.refused),
            blackout_us: self
                .blackout_us
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_at_value()))
                .collect(),
        };
        // What is on its way to its first receive stays: its deadlines wait for that.
        self.adopted = 0;
        self.blackout_us.reset();
        report
    }
}

impl Worker {
    /// A channel's socket is readable.
    pub(super) fn on_channel_socket(&mut self, index: usize, result: i32, more: bool) {
        let mut arrivals = Vec::new();
        // Deadlines of what arrives are counted back from now, not from when the loop woke up.
        self.now_ms = sys::monotonic_ns() / 1_000_000;
        loop {
            let Some(channel) = self.channels.get_mut(index) else { return };
            match channel.receive(&mut arrivals) {
                Ok(Received::Greeted) => {
                    let (reload, number) = (channel.info.reload, channel.info.channel);
                    self.tell(&FromWorker::ChannelReady { reload, channel: number });
                }
                Ok(Received::Offers) => {
                    let boottime_ns = sys::boottime_ns();
                    for arrival in arrivals.drain(..) {
                        self.on_arrival(index, arrival, boottime_ns);
                    }
                    // Blue learns of it while this batch is being armed.
                    self.channels[index].announce_answers();
                }
                Ok(Received::Push { connection, stream, bytes }) => {
                    self.on_push(connection, stream, &bytes);
                }
                Ok(Received::Nothing) => break,
                Err(error) => return self.on_channel_failure(index, error.to_string()),
            }
        }
        if !more && result != -libc::ECANCELED {
            let channel = &self.channels[index];
            self.ring.poll_multishot(channel.socket(), Token::ChannelSocket(index).pack());
        }
    }

    /// A channel is closed by an error, or by its peer.
    pub(super) fn on_channel_failure(&mut self, index: usize, reason: String) {
        let Some(channel) = self.channels.get(index) else { return };
        let (reload, number) = (channel.info.reload, channel.info.channel);
        // After a commit the end that is told first closes first.
        if channel.open_offers() == 0 && self.job.as_ref().is_none_or(HandoffJob::is_over) {
            return tracing::debug!(reload, channel = number, "channel closed: {reason}");
        }
        tracing::warn!(reload, channel = number, "channel closed: {reason}");
        self.tell(&FromWorker::ChannelFailed { reload, channel: number, reason });
    }

    fn on_arrival(&mut self, index: usize, arrival: Arrival, boottime_ns: u64) {
        let Arrival { sequence, socket, upstreams, record: mut bytes } = arrival;
        let environment = Environment::new(&self.configure.config, self.now_ms, &[]);
        let restored = if fault_point!("adopt.refuse") {
            Err("fault-point")
        } else {
            let Self { channels, unpacker, service, .. } = self;
            let unwrapped = channels[index]
                .unseal(sequence, &mut bytes)
                .and_then(|integrity| unpacker.unpack(&mut bytes, integrity))
                .and_then(|integrity| {
                    state::json::from_json(&mut bytes, integrity, &record::JSON_CODECS)
                });
            let restored = unwrapped.map_err(record::RestoreError::from).and_then(|integrity| {
                record::restore(&bytes, integrity, &environment, service.as_mut(), boottime_ns)
            });
            restored.map_err(|error| {
                tracing::warn!(sequence, "an offered connection is refused: {error}");
                error.code()
            })
        };
        if restored.as_ref().is_ok_and(record::Restored::is_secret) {
            record::wipe(&mut bytes);
        }
        let restored = restored.and_then(|entry| {
            // An entry that is dropped takes what was restored of its upstreams along.
            if !self.expects_upstreams(&upstreams) {
                Err("upstreams")
            } else if entry.awaits_handshake() && self.tls.is_none() {
                Err("tls-off") // nobody here could answer
            } else {
                Ok(entry)
            }
        });
        let channel = &mut self.channels[index];
        channel.recycle(bytes);
        let restored = match restored {
            Ok(restored) => restored,
            Err(reason) => {
                drop((socket, upstreams)); // before it says so
                channel.refuse(sequence);
                *self.intake.refused.entry(reason.to_owned()).or_insert(0) += 1;
                return;
            }
        };
        fault_point!("adopt.restored");
        if !channel.adopt(sequence) || !channel.start(sequence) {
            return; // taken back: the descriptor is closed, nothing else is done
        }
        let entry = restored.adopt(socket);
        let frozen_ns = entry.frozen_ns;
        let key = self.insert(entry);
        self.attach_upstreams(key, upstreams);
        self.intake.adopted += 1;
        self.intake.armed_ns.push(frozen_ns);
        self.intake.fresh.push(key);
        self.status.adopted += 1;
        let slot = self.scoreboard_slot();
        slot.adopted_in.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.thaw(key);
        if let Some(job) = &mut self.job {
            job.add_newcomer(key); // a rollback may already be under way
        }
    }

    /// Starts I/O on a connection that was frozen, here or elsewhere.
    pub(super) fn thaw(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if matches!(entry.moving, Moving::Freezing | Moving::Offered { .. }) {
            entry.moving = Moving::No;
        }
        entry.paused = false;
        entry.scheduled_ms = u64::MAX;
        let end = entry.connection.receive_end;
        let has_pending = entry.connection.has_events_due();
        if let Some(mut behind) = self.take_preface(key, &[], true) {
            self.take_in(key, &mut behind);
        }
        if !self.entries.contains(key) {
            return;
        }
        self.send_unsent(key);
        if self.entries[key].connection.is_multiplexed() {
            self.with_connection(key, |connection, environment, out| {
                connection.on_resume(environment, out);
            });
        }
        self.with_every_session(key, |session, context| session.on_resume(context));
        if self.entries.get(key).is_some_and(|entry| entry.connection.is_multiplexed()) {
            // Whoever wants a stream held has said so by now.
            self.with_connection(key, |connection, environment, out| {
                connection.open_windows(environment, out);
            });
        }
        if has_pending && self.entries.contains(key) {
            self.process_pending(key, true);
        }
        if self.entries.get(key).is_some_and(|entry| entry.transport.has_work()) {
            self.take_in_sealed(key, &mut []);
        }
        if !self.entries.contains(key) {
            return;
        }
        if end != ReceiveEnd::Open {
            self.on_receive_end(key, end);
        } else {
            self.arm_receive(key);
        }
        // Also behind a FIN: the session may have waited for a send that ended during the freeze.
        self.give_room(key);
    }

    /// The enter that armed the receives has returned: their blackout is over.
    pub(super) fn after_enter(&mut self) {
        if self.intake.fresh.is_empty() {
            return;
        }
        let now_ns = sys::boottime_ns();
        for frozen_ns in self.intake.armed_ns.drain(..) {
            self.intake.blackout_us.saturating_record(now_ns.saturating_sub(frozen_ns) / 1_000);
        }
        self.intake.entered.append(&mut self.intake.fresh);
    }

    /// The completions behind that enter have been handled: what was there to be received has been,
    /// and deadlines count again.
    pub(super) fn first_receives_were_seen(&mut self) {
        for key in std::mem::take(&mut self.intake.entered) {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.fresh = false;
            }
        }
    }

    /// Ends the channels of a reload; what is still on offer is settled first.
    pub(super) fn close_channels(&mut self, reload: u64) {
        self.followed.clear();
        for (_, channel) in &mut self.channels {
            if channel.info.reload == reload {
                channel.retire();
            }
        }
        self.advance_handoff();
    }

    /// Unmaps retired channels without open offers. One whose peer sits between ADOPTED and STARTED
    /// stays until the peer goes on or dies.
    pub(super) fn remove_settled_channels(&mut self) {
        let settled: Vec<usize> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.is_retired() && channel.open_offers() == 0)
            .map(|(index, _)| index)
            .collect();
        for index in settled {
            let channel = self.channels.remove(index);
            for token in
                [Token::ChannelSocket(index), Token::ChannelWake(index), Token::ChannelPeer(index)]
            {
                self.ring.cancel(crate::uring::Operation::poll(token.pack()));
            }
            for descriptor in channel.into_descriptors() {
                self.ring.close(descriptor);
            }
        }
    }
}
