//! Bytes in, bytes out, back-pressure, and the end of a connection.
//!
//! Order on one connection: at most one send is in flight; what is produced meanwhile queues behind
//! it. A first attempt to send never waits and uses a pooled buffer; what the socket does not take
//! moves to a vector of its own, so that slow clients hold no more than they owe.
//!
//! Any step may end the connection, so a step that follows another one looks whether it is still
//! there. An index is not used again before the completion that is being handled is done with.
//!
//! Must not know: listeners, control messages.

use std::net::Shutdown;
use std::os::fd::AsFd;

use crate::conn::{Environment, Overdue, Progress, ReceiveEnd, Slot};
use crate::proto::Input;
use crate::sys;
use crate::uring::{RecvBuffer, SendBuffer};

use super::Worker;
use super::entry::{Entry, Moving, Sending};
use super::tokens::Token;

/// Pipelined bytes behind an unfinished response after which the worker stops receiving.
const MAX_PENDING_BYTES: usize = 64 << 10;

/// So many bytes at most are waited for by one send: its end tells that the peer takes them.
const SEND_LIMIT: usize = 64 << 10;

impl Worker {
    /// A receive has completed.
    pub(super) fn on_received(
        &mut self,
        key: usize,
        result: i32,
        more: bool,
        buffer: Option<RecvBuffer>,
    ) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if !more {
            entry.receiving = false;
        }
        if entry.closing {
            drop(buffer);
            return self.reap(key);
        }
        entry.active_ms = self.now_ms;
        let moving = entry.moving;
        match (result, buffer) {
            (1.., Some(mut bytes)) => {
                self.status.bytes_received += bytes.len() as u64;
                self.take_in(key, &mut bytes);
            }
            (0, _) => self.on_receive_end(key, ReceiveEnd::Fin),
            (result, _) if result == -libc::ENOBUFS => self.wait_for_turn(key),
            (result, _) if result == -libc::ECANCELED => {}
            (result, _) if result == -libc::EINTR || result == -libc::EAGAIN => {}
            (result, _) => self.on_receive_end(key, ReceiveEnd::Error(-result)),
        }
        if moving == Moving::Freezing {
            self.try_offer(key);
        } else if !more {
            self.arm_receive(key);
        }
    }

    /// All that is received for a connection enters it here.
    pub(super) fn take_in(&mut self, key: usize, bytes: &mut [u8]) {
        let mut behind = None;
        if self.entries[key].preface.is_some() {
            let parse = self.entries[key].moving != Moving::Freezing;
            behind = self.take_preface(key, bytes, parse);
            if behind.as_ref().is_none_or(Vec::is_empty) {
                return self.schedule(key);
            }
        }
        let bytes = behind.as_deref_mut().unwrap_or(bytes);
        let entry = &mut self.entries[key];
        if !entry.transport.is_plain() {
            self.take_in_sealed(key, bytes);
        } else if entry.moving == Moving::Freezing || entry.paused {
            entry.connection.keep(bytes);
            self.count_held(key);
        } else {
            self.on_bytes(key, bytes);
        }
    }

    pub(super) fn on_receive_end(&mut self, key: usize, end: ReceiveEnd) {
        let entry = &mut self.entries[key];
        if entry.moving == Moving::Freezing {
            // This completion is the only witness: it travels with the state.
            entry.connection.receive_end = end;
            return;
        }
        if matches!(end, ReceiveEnd::Error(_)) {
            entry.connection.receive_end = end;
            return self.drop_connection(key);
        }
        if entry.is_put_off || entry.paused && entry.has_unread() {
            // What came before it is looked at first.
            entry.connection.receive_end = end;
            entry.end_waits = true;
            return self.settle(key);
        }
        entry.end_waits = false;
        if entry.connection.on_receive_end(end) {
            self.end_sessions(key);
        } else if entry.connection.is_tunnel(Slot::ONLY) {
            // An event behind what its session has not taken yet.
            return self.process_pending(key, false);
        } else {
            self.end_if_cut_off(key);
            self.with_every_session(key, |session, context| session.on_half_close(context));
        }
        self.settle(key);
    }

    /// Ends an exchange whose request can never be complete: its client would otherwise hold it, and
    /// its session, until the stall time-out.
    pub(super) fn end_if_cut_off(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if entry.connection.is_cut_off() {
            entry.connection.end();
            self.end_sessions(key);
        }
    }

    /// Bytes that arrived in one piece: they are parsed where they are.
    pub(super) fn on_bytes(&mut self, key: usize, bytes: &mut [u8]) {
        let entry = &mut self.entries[key];
        if !entry.connection.pending().is_empty() {
            entry.connection.keep(bytes);
            return self.process_pending(key, true);
        }
        let mut out = self.buffers.take();
        let mut input = Input::new(bytes);
        let is_done = self.run_events(key, &mut input, &mut out);
        let entry = &mut self.entries[key];
        if !input.is_empty() {
            entry.connection.keep(input.peek());
        }
        if !is_done && entry.connection.has_events_due() {
            self.put_off(key);
        }
        let entry = &mut self.entries[key];
        let has_unsent = !out.is_empty() || entry.queued() > 0;
        let environment = Environment::new(&self.configure.config, self.now_ms, b"");
        entry.connection.on_progress(&environment, Progress::Received, has_unsent);
        self.send_output(key, out);
    }

    /// Parses what was kept. `progress`: bytes have arrived since the last time.
    pub(super) fn process_pending(&mut self, key: usize, progress: bool) {
        let mut out = self.buffers.take();
        let entry = &mut self.entries[key];
        let mut bytes = entry.connection.take_pending();
        let total = bytes.len();
        let mut input = Input::new(&mut bytes);
        let is_done = self.run_events(key, &mut input, &mut out);
        let left = input.len();
        let entry = &mut self.entries[key];
        entry.connection.put_back(bytes, total - left);
        let bound = self.configure.config.limits.send_queue_bytes as usize;
        if !is_done && entry.connection.has_events_due() {
            self.put_off(key);
        } else if out.len() + entry.queued() <= bound {
            self.end_if_cut_off(key);
        }
        let entry = &mut self.entries[key];
        let has_unsent = !out.is_empty() || entry.queued() > 0;
        let progress = if progress { Progress::Received } else { Progress::None };
        let environment = Environment::new(&self.configure.config, self.now_ms, b"");
        entry.connection.on_progress(&environment, progress, has_unsent);
        self.send_output(key, out);
    }

    /// Queues output and starts a send if none is in flight. All that a connection produces leaves it
    /// here.
    pub(super) fn queue_output(&mut self, key: usize, mut out: Vec<u8>) {
        if !self.entries[key].transport.is_plain() {
            self.seal_output(key, &mut out);
        }
        self.queue_wire(key, out);
    }

    /// Queues bytes as they go over the wire.
    pub(super) fn queue_wire(&mut self, key: usize, out: Vec<u8>) {
        let entry = &mut self.entries[key];
        if out.is_empty() || entry.connection.send_is_shut {
            self.buffers.give(out);
        } else if entry.sending.is_some() || !entry.unsent.is_empty() {
            entry.unsent.extend_from_slice(&out);
            self.buffers.give(out);
        } else {
            self.submit_send(key, out, 0, true);
        }
    }

    /// Queues output and does what becomes due by it.
    pub(super) fn send_output(&mut self, key: usize, out: Vec<u8>) {
        self.queue_output(key, out);
        let entry = &mut self.entries[key];
        if entry.sending.is_none() && entry.places.wanting_room(Slot::ONLY).is_some() {
            // Nothing is in flight whose completion would give the session its turn.
            return self.give_room(key);
        }
        self.settle(key);
    }

    /// Sends what is in a buffer behind the bytes that are gone.
    fn submit_send(&mut self, key: usize, bytes: Vec<u8>, gone: usize, dont_wait: bool) {
        let entry = &mut self.entries[key];
        let Some(socket) = &entry.socket else { return };
        let len = (bytes.len() - gone) as u32;
        let operation = self.ring.send_part(
            socket.as_fd(),
            Token::Send(key).pack(),
            SendBuffer::Owned(bytes),
            gone,
            if dont_wait { usize::MAX } else { SEND_LIMIT },
            dont_wait,
        );
        entry.sending = Some(Sending { operation, gone: gone as u32, len });
    }

    /// Sends what was queued, if nothing is in flight.
    pub(super) fn send_unsent(&mut self, key: usize) {
        let entry = &mut self.entries[key];
        if entry.sending.is_none() && !entry.unsent.is_empty() {
            let bytes = std::mem::take(&mut entry.unsent);
            self.submit_send(key, bytes, 0, false);
        }
    }

    /// A send has completed.
    pub(super) fn on_sent(&mut self, key: usize, result: i32, buffer: SendBuffer) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some(sending) = entry.sending.take() else { return };
        let sent = result.max(0) as usize;
        self.status.bytes_sent += sent as u64;
        let SendBuffer::Owned(bytes) = buffer else { return };
        let failed = result < 0
            && ![libc::EAGAIN, libc::ECANCELED, libc::EINTR, libc::ENOBUFS].contains(&-result);
        let gone = sending.gone as usize + sent;
        if gone < bytes.len() && !entry.closing {
            // More than half of it is to go: it goes on from where it is.
            let goes_on = sent >= SEND_LIMIT && gone <= bytes.len() / 2;
            if goes_on && !failed && entry.moving != Moving::Freezing {
                self.submit_send(key, bytes, gone, false);
                return self.after_sent(key, sent);
            }
            // Keep the tail in a vector of its own, in front of what queued up behind it.
            let rest = &bytes[gone..];
            let mut tail = Vec::with_capacity(rest.len() + entry.unsent.len());
            tail.extend_from_slice(rest);
            tail.extend_from_slice(&entry.unsent);
            entry.unsent = tail;
        }
        self.buffers.give(bytes);
        if entry.closing {
            return self.reap(key);
        }
        if entry.moving == Moving::Freezing {
            if failed {
                entry.connection.receive_end = ReceiveEnd::Error(-result);
            }
            return self.try_offer(key);
        }
        if failed {
            return self.drop_connection(key);
        }
        self.send_unsent(key);
        self.after_sent(key, sent);
    }

    /// Bytes have left a connection, and its next send is under way.
    fn after_sent(&mut self, key: usize, sent: usize) {
        let entry = &mut self.entries[key];
        if sent > 0 {
            entry.active_ms = self.now_ms;
        }
        let progress = if sent > 0 { Progress::Sent } else { Progress::None };
        let environment = Environment::new(&self.configure.config, self.now_ms, b"");
        entry.connection.on_progress(&environment, progress, entry.queued() > 0);
        self.flush_streams(key);
        self.give_room(key);
    }

    /// Output has left: what waits behind it on HTTP/2's streams follows.
    fn flush_streams(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let bound = self.configure.config.limits.send_queue_bytes as usize;
        let queued = entry.queued();
        if queued > bound / 2 || !entry.is_served() || !entry.connection.has_buffered() {
            return;
        }
        let mut out = self.buffers.take();
        let environment = Environment::new(&self.configure.config, self.now_ms, b"");
        entry.connection.flush(&environment, &mut out, bound - queued);
        entry.connection.after_input();
        self.queue_output(key, out);
    }

    /// Output has left: the sessions that wait for room get their turn, or what is due is done.
    pub(super) fn give_room(&mut self, key: usize) {
        let bound = self.configure.config.limits.send_queue_bytes as usize;
        let mut from = Slot::ONLY;
        while let Some(entry) = self.entries.get_mut(key)
            && entry.is_served()
            && entry.queued() <= bound / 2
            && !entry.connection.is_ending()
            && let Some(slot) = entry.places.wanting_room(from)
        {
            from = slot.next();
            let environment = Environment::new(&self.configure.config, self.now_ms, b"");
            if !entry.connection.has_room(slot, &environment) {
                continue;
            }
            entry.places.at(slot).wants_room = false;
            self.with_session(key, slot, |session, context| session.on_room(context));
        }
        self.settle(key);
    }

    /// Does what has become due after any change: an ending connection shuts down, the receive stops
    /// or starts again, deadlines move.
    pub(super) fn settle(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if !entry.is_served() {
            return;
        }
        let bound = self.configure.config.limits.send_queue_bytes as usize;
        let queued = entry.queued();
        self.count_held(key);
        let entry = &mut self.entries[key];
        if entry.connection.is_send_ending() && queued == 0 {
            if !entry.connection.send_is_shut {
                if self.say_goodbye(key) {
                    return self.schedule(key); // it shuts down once that is sent
                }
                let entry = &mut self.entries[key];
                entry.connection.send_is_shut = true;
                if let Some(socket) = &entry.socket {
                    let _ = sys::socket::shutdown(socket.as_fd(), Shutdown::Write);
                }
            }
            let connection = &self.entries[key].connection;
            if connection.is_ending() && connection.receive_end != ReceiveEnd::Open {
                return self.drop_connection(key);
            }
        }
        let entry = &mut self.entries[key];
        let pending = entry.connection.pending().len();
        let is_too_much = self.budget.is_too_much(entry.held) && !entry.connection.is_ending();
        let must_pause = is_too_much
            || entry.is_put_off
            || queued > bound
            || (pending > MAX_PENDING_BYTES && !entry.connection.wants_input());
        if entry.paused {
            let may_go_on = !is_too_much && !entry.is_put_off;
            if may_go_on && queued <= bound / 2 && entry.connection.can_go_on() {
                entry.paused = false;
                if entry.connection.receive_end == ReceiveEnd::Open && !entry.fresh {
                    // No deadline strikes before what has come meanwhile was received.
                    entry.fresh = true;
                    entry.connection.on_read_again(self.now_ms);
                    self.intake.watch(key);
                }
                if entry.connection.has_events_due() {
                    // It ends here again. Until these bytes are worked off no receive is armed: the
                    // kernel would fill buffers with more of them before it came to the next cancel.
                    return self.process_pending(key, false);
                }
                if entry.transport.has_work() && !entry.connection.is_ending() {
                    return self.take_in_sealed(key, &mut []);
                }
                if entry.end_waits {
                    let end = entry.connection.receive_end;
                    return self.on_receive_end(key, end);
                }
                self.arm_receive(key);
            }
        } else if must_pause {
            entry.paused = true;
            if entry.receiving {
                self.ring.cancel(receive_operation(key));
            }
            if is_too_much {
                self.status.squeezed += 1;
            }
        } else if entry.transport.has_work() && !entry.connection.is_ending() {
            return self.take_in_sealed(key, &mut []);
        } else if entry.end_waits {
            let end = entry.connection.receive_end;
            return self.on_receive_end(key, end);
        } else {
            self.arm_receive(key);
        }
        self.schedule(key);
    }

    /// Makes sure that the timers ask for this connection in time.
    pub(super) fn schedule(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let environment = Environment::new(&self.configure.config, self.now_ms, &[]);
        let due = if entry.is_unread() {
            entry.connection.deadline_unread_ms(&environment, entry.queued() > 0)
        } else {
            entry.connection.deadline_ms(&environment)
        };
        let due = due.unwrap_or(u64::MAX).min(entry.places.timer_due_ms());
        let due = due.min(entry.preface.as_ref().map_or(u64::MAX, |preface| preface.deadline_ms));
        if due < entry.scheduled_ms {
            entry.scheduled_ms = due;
            let tag = entry.tag();
            self.timers.schedule(due, key, tag);
        }
    }

    /// The timers ask for this connection.
    pub(super) fn on_timer(&mut self, key: usize, tag: u32) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.tag() != tag || entry.scheduled_ms > self.now_ms {
            return;
        }
        entry.scheduled_ms = u64::MAX;
        if !entry.is_served() {
            return;
        }
        if entry.fresh {
            return self.schedule_in(key, 1);
        }
        if entry.preface.as_ref().is_some_and(|preface| preface.deadline_ms <= self.now_ms) {
            self.status.rejected += 1;
            return self.drop_connection(key);
        }
        while let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.is_served())
            && let Some(slot) = entry.places.due(self.now_ms)
        {
            entry.places.at(slot).timer_due_ms = u64::MAX;
            self.with_session(key, slot, |session, context| session.on_timer(context));
        }
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.is_served()) else {
            return;
        };
        if entry.is_unread() {
            let environment = Environment::new(&self.configure.config, self.now_ms, &[]);
            let due = entry.connection.deadline_unread_ms(&environment, entry.queued() > 0);
            if due.is_some_and(|due| due <= self.now_ms) {
                return self.drop_connection(key);
            }
            return self.schedule(key);
        }
        let mut out = self.buffers.take();
        let environment = Environment::new(&self.configure.config, self.now_ms, self.date.value());
        while let Some((slot, status)) = entry.connection.overdue_stream(&environment, &mut out) {
            if let (Some(log), Some(mut logged)) =
                (&mut self.access_log, entry.places.at(slot).log.take())
            {
                logged.note(status, 0);
                log.add(&logged, entry.peer, entry.id, self.now_ms);
            }
            if let Some(mut session) = entry.places.at(slot).clear() {
                session.on_close();
            }
        }
        match entry.connection.on_deadline(&environment, &mut out) {
            Overdue::Drop => {
                self.buffers.give(out);
                return self.drop_connection(key);
            }
            Overdue::End => self.end_sessions(key),
            Overdue::Refused(status) => {
                if let Some(logged) = &mut entry.places.at(Slot::ONLY).log {
                    logged.note(Some(status), 0);
                }
                self.end_sessions(key);
            }
            Overdue::Nothing => {}
        }
        self.send_output(key, out);
        if self.entries.contains(key) {
            self.schedule(key);
        }
    }

    fn schedule_in(&mut self, key: usize, after_ms: u64) {
        let due = self.now_ms + after_ms;
        let entry = &mut self.entries[key];
        entry.scheduled_ms = due;
        let tag = entry.tag();
        self.timers.schedule(due, key, tag);
    }

    pub(super) fn end_sessions(&mut self, key: usize) {
        self.log_all(key);
        self.park_sessions(key);
        let entry = &mut self.entries[key];
        for mut session in entry.places.clear_all() {
            session.on_close();
        }
    }

    /// Gives a connection up: nothing is flushed any more.
    pub(super) fn drop_connection(&mut self, key: usize) {
        self.end_sessions(key);
        let entry = &mut self.entries[key];
        entry.closing = true;
        entry.connection.end();
        if let Some(socket) = &entry.socket {
            // A duplicate in another process, or in a message that nobody read, must not keep the
            // peer waiting for its FIN. This also ends the operations in flight.
            let _ = sys::socket::shutdown(socket.as_fd(), Shutdown::Both);
        }
        if entry.receiving {
            self.ring.cancel(receive_operation(key));
        }
        if let Some(sending) = entry.sending {
            self.ring.cancel(sending.operation);
        }
        self.reap(key);
    }

    /// Removes a connection that is given up, once no operation names its socket.
    fn reap(&mut self, key: usize) {
        let entry = &self.entries[key];
        if entry.closing && entry.is_quiet() {
            let entry = self.forget(key);
            if let Some(socket) = entry.socket {
                self.ring.close(socket);
            }
        }
    }

    /// Takes a connection out of every table.
    pub(super) fn forget(&mut self, key: usize) -> Entry {
        let entry = self.entries.remove(key);
        self.count_gone(&entry);
        self.pushable.remove(&entry.id);
        if entry.preface.is_none() {
            self.leave_address(entry.peer.ip());
        }
        self.publish_load();
        entry
    }
}

/// Names the receive of a connection.
pub(super) fn receive_operation(key: usize) -> crate::uring::Operation {
    crate::uring::Operation::receive(Token::Receive(key).pack())
}
