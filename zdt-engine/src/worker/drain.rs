//! Ending in good order: what cannot move finishes here, until a deadline.
//!
//! Must not know: why the worker ends.

use crate::conn::Slot;
use crate::control::FromWorker;

use super::Worker;
use super::entry::Moving;

/// Part of the time over which WebSockets are closed, in per cent; the rest is for their answers.
const CLOSING_PERCENT: u64 = 80;

/// A drain in progress.
pub struct Drain {
    deadline_ms: u64,
    /// WebSockets to close, the last one first, the first at `next_close_ms`, then one every `interval_us`.
    to_close: Vec<(usize, Slot)>,
    next_close_us: u64,
    interval_us: u64,
    code: u16,
    told: bool,
}

impl Worker {
    /// Serve what is left until the deadline, then exit. `close_websockets`: at once, spread over the
    /// time (a graceful stop); otherwise only when the deadline is near.
    pub(super) fn begin_drain(&mut self, timeout_ms: u64, close_websockets: bool) {
        self.stop_accepting();
        self.close_idle_upstreams();
        let ids: Vec<u64> = self.listeners.iter().map(|(_, l)| l.info.id).collect();
        self.retire_listeners(&ids);
        let mut to_close = Vec::new();
        let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
        for key in keys {
            let entry = &mut self.entries[key];
            let mut websockets = entry.connection.websockets();
            websockets.extend(entry.connection.tunnels());
            if entry.connection.is_idle_http() && entry.moving == Moving::No {
                self.with_connection(key, |connection, _, _| connection.end());
            } else if !websockets.is_empty() {
                // An HTTP/2 client is told of the end with the first of them: some give their
                // WebSockets up as soon as they hear of it.
                to_close.extend(websockets.into_iter().map(|slot| (key, slot)));
            } else {
                self.with_connection(key, |connection, _, out| {
                    connection.close_after_response(out)
                });
            }
        }
        let start_ms = if close_websockets { 0 } else { timeout_ms * CLOSING_PERCENT / 100 };
        let spread_us =
            (timeout_ms * CLOSING_PERCENT / 100).saturating_sub(start_ms).max(timeout_ms / 10)
                * 1_000;
        let interval_us = spread_us / (to_close.len() as u64).max(1);
        self.drain = Some(Drain {
            deadline_ms: self.now_ms + timeout_ms,
            to_close,
            next_close_us: (self.now_ms + start_ms) * 1_000,
            interval_us,
            code: 1001,
            told: false,
        });
    }

    /// This worker is to serve again. What the drain has ended stays ended; what it would have ended goes on.
    pub(super) fn end_drain(&mut self) {
        self.drain = None;
        self.status.draining.clear();
        self.resume_accepting();
    }

    /// When the drain has something to do.
    pub(super) fn drain_due_ms(&self) -> Option<u64> {
        let drain = self.drain.as_ref()?;
        let next_close_ms = (drain.next_close_us / 1_000).max(self.now_ms + 1);
        Some(if drain.to_close.is_empty() {
            drain.deadline_ms
        } else {
            next_close_ms.min(drain.deadline_ms)
        })
    }

    /// One turn of the drain.
    pub(super) fn advance_drain(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        let now_us = self.now_ms * 1_000;
        let mut due = Vec::new();
        while drain.next_close_us <= now_us
            && let Some(one) = drain.to_close.pop()
        {
            due.push(one);
            drain.next_close_us += drain.interval_us;
        }
        let code = drain.code;
        let is_over = self.now_ms >= drain.deadline_ms;
        for (key, slot) in due {
            self.close_websocket(key, slot, code);
        }
        let on_offer = self.entries.iter().any(|(_, e)| matches!(e.moving, Moving::Offered { .. }));
        if (self.entries.is_empty() && self.accepts_are_over()) || (is_over && !on_offer) {
            let keys: Vec<usize> = self.entries.iter().map(|(key, _)| key).collect();
            for key in keys {
                self.drop_connection(key);
            }
            // Their operations may not have ended yet: they were closed, and not lost with this process.
            self.scoreboard_slot().connections.store(0, std::sync::atomic::Ordering::Relaxed);
            if let Some(drain) = &mut self.drain
                && !std::mem::replace(&mut drain.told, true)
            {
                self.tell(&FromWorker::Drained);
            }
            self.exit = true;
        }
    }

    fn close_websocket(&mut self, key: usize, slot: Slot, code: u16) {
        let Some(entry) = self.entries.get(key).filter(|entry| entry.is_served()) else { return };
        if entry.connection.is_tunnel(slot) {
            let stream = entry.connection.stream_id(slot);
            self.with_connection(key, |connection, _, out| connection.close_after_response(out));
            return self.close_tunnel(key, stream);
        }
        self.park(key, slot);
        self.with_connection(key, |connection, environment, out| {
            connection.answers(slot, environment, out).close_websocket(code, "going away");
            connection.close_after_response(out);
        });
    }

    /// The reload is over; this worker goes on without channels, or drains.
    pub(super) fn commit(&mut self, reload: u64, drain_ms: Option<u64>) {
        self.close_channels(reload);
        let incoming = self.intake.take_report();
        if drain_ms.is_none() {
            self.job = None;
        }
        // What large records needed is not kept.
        (self.packer, self.unpacker) = Default::default();
        self.tell(&FromWorker::Committed { reload, incoming });
        if let Some(drain_ms) = drain_ms {
            self.job = None;
            self.leave_listeners();
            self.begin_drain(drain_ms, false);
        }
        self.timers.shrink();
    }
}
