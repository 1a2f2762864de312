//! The loop: wait, dispatch what completed, run timers, push the handoff forward.
//!
//! Must not know: what any single completion leads to.

use std::time::Duration;

use crate::sys;
use crate::uring::CompletionPayload;

use super::Worker;
use super::outgoing::HandoffJob;
use super::tokens::Token;

/// The loop wakes at least this often, to show that it is alive.
const HEARTBEAT_MS: u64 = 1_000;

impl Worker {
    /// Runs until the worker has nothing left to do.
    pub(super) fn run(&mut self) -> std::io::Result<()> {
        while !self.exit {
            fault_point!("worker.turn");
            if let Some(pace) = &mut self.pace
                && let Some(pause) = pace.pause(sys::monotonic_ns(), sys::clock::process_cpu_ns())
            {
                std::thread::sleep(pause);
            }
            self.give_turns();
            let timeout = self.next_timeout();
            // Since 6.13 an enter runs no more than 20 pieces of deferred work, or as many as are
            // wanted: ask for the ends of all cancelled operations at once.
            let freezing = self.job.as_ref().map_or(0, HandoffJob::freezing);
            // What has just been adopted is armed without waiting for anything else.
            let hurry = timeout.is_zero() || self.intake.is_arming();
            let want = if hurry { 0 } else { freezing.max(1) as u32 };
            self.ring.enter(want, Some(timeout))?;
            self.now_ms = sys::monotonic_ns() / 1_000_000;
            self.after_enter();
            let waiting = self.begin_work();
            self.dispatch();
            self.resume_work(waiting);
            self.first_receives_were_seen();
            self.date.refresh();
            while let Some((key, tag)) = self.timers.pop_due(self.now_ms) {
                self.on_timer(key, tag);
            }
            self.advance_budget();
            self.advance_gateway();
            self.sweep_overlooked();
            self.advance_handoff();
            self.advance_drain();
            self.advance_rehearsal();
            self.flush_log();
            self.advance_parking();
            self.flush_control();
            self.publish_totals();
            let slot = self.scoreboard_slot();
            slot.heartbeat_ms.store(self.now_ms, std::sync::atomic::Ordering::Relaxed);
        }
        self.finish_log();
        self.flush_parking();
        Ok(())
    }

    fn next_timeout(&mut self) -> Duration {
        let mut due_ms = self.now_ms + HEARTBEAT_MS;
        for other in [
            self.timers.next_due_ms(),
            self.turn_due_ms(),
            self.work_due_ms(),
            self.budget_due_ms(),
            self.retry_accepts(),
            self.handoff_due_ms(),
            self.gateway_due_ms(),
            self.drain_due_ms(),
            self.rehearsal_due_ms(),
            self.log_due_ms(),
            self.parking.due_ms(),
        ] {
            due_ms = due_ms.min(other.unwrap_or(u64::MAX));
        }
        Duration::from_millis(due_ms.saturating_sub(self.now_ms))
    }

    fn dispatch(&mut self) {
        while let Some(completion) = self.ring.next_completion() {
            let (result, more) = (completion.result, completion.more);
            match (Token::unpack(completion.token), completion.payload) {
                (Token::Receive(key), CompletionPayload::Received(buffer)) => {
                    self.on_received(key, result, more, buffer);
                }
                (Token::Send(key), CompletionPayload::Sent(buffer)) => {
                    self.on_sent(key, result, buffer);
                }
                (Token::Accept(index), CompletionPayload::Accepted(socket)) => {
                    self.on_accepted(index, result, more, Some(socket));
                }
                (Token::Accept(index), _) => self.on_accepted(index, result, more, None),
                (Token::Control(number), _) => self.on_control(number, more),
                (Token::Reattach, _) => self.on_reattach(more),
                (Token::ChannelSocket(index), _) => self.on_channel_socket(index, result, more),
                (Token::ChannelWake(index), _) => self.on_channel_wake(index, result, more),
                (Token::ChannelPeer(index), _) => self.on_channel_peer(index, result),
                (Token::Inbox, _) => self.on_inbox(more),
                (Token::LinkReceive(index), CompletionPayload::Received(buffer)) => {
                    self.on_link_received(index, result, more, buffer);
                }
                (Token::LinkSend(index), CompletionPayload::Sent(buffer)) => {
                    self.on_link_sent(index, result, buffer);
                }
                (Token::LinkSocket(index), CompletionPayload::Made(socket)) => {
                    self.on_link_socket(index, result, Some(socket));
                }
                (Token::LinkSocket(index), _) => self.on_link_socket(index, result, None),
                (Token::LinkConnect(index), _) => self.on_link_connected(index, result),
                (Token::Spill(index), CompletionPayload::Sent(buffer)) => {
                    self.on_spill_done(index, result, buffer);
                }
                (Token::AccessLog, CompletionPayload::Sent(batch)) => {
                    self.on_log_written(result, batch);
                }
                (token, payload) => {
                    unreachable!("{token:?} completed with {payload:?}")
                }
            }
            self.run_gateway();
            self.keep_budget();
        }
    }

    fn on_inbox(&mut self, more: bool) {
        let inbox = std::sync::Arc::clone(&self.inbox);
        inbox.drain_wake();
        while let Some((connection, stream, bytes)) = inbox.pop() {
            self.on_push(connection, stream, &bytes);
        }
        if !more {
            self.ring.poll_multishot(inbox.wake(), Token::Inbox.pack());
        }
    }

    /// Bytes from another thread, or that followed a connection from another worker.
    pub(super) fn on_push(&mut self, connection: u64, stream: u64, bytes: &[u8]) {
        let Some(&key) = self.pushable.get(&connection) else {
            // It has just moved: the message follows it.
            if let Some(channel) =
                self.followed.get(&connection).and_then(|index| self.channels.get_mut(*index))
                && !channel.forward_push(connection, stream, bytes)
            {
                tracing::warn!(connection, "a pushed message could not follow its connection");
            }
            return;
        };
        let entry = &self.entries[key];
        if !entry.is_served() {
            self.push_while_moving(key, stream, bytes);
        } else if let Some(slot) = entry.connection.slot_of(stream) {
            self.with_session(key, slot, |session, context| session.on_push(bytes, context));
        }
    }
}

/// The Date header's value (RFC 9110 §5.6.7), made once a second.
#[derive(Debug, Default)]
pub struct DateCache {
    second: u64,
    value: String,
}

impl DateCache {
    /// The value as of the last refresh.
    pub fn value(&self) -> &[u8] {
        self.value.as_bytes()
    }

    /// Makes the value new if the second has changed.
    pub fn refresh(&mut self) {
        let second = sys::clock::wall_clock_s();
        if second != self.second || self.value.is_empty() {
            self.second = second;
            self.value = imf_fixdate(second);
        }
    }
}

/// Formats seconds since the epoch as an IMF-fixdate.
fn imf_fixdate(second: u64) -> String {
    let (year, month, day) = civil_date(second / 86_400);
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let day_number = second / 86_400;
    let of_day = second % 86_400;
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(day_number % 7) as usize],
        MONTHS[(month - 1) as usize],
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60,
    )
}

/// Year, month and day of a day since the epoch.
pub(super) fn civil_date(day_number: u64) -> (u64, u64, u64) {
    // Civil date from the day number: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let shifted = day_number + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::imf_fixdate;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(imf_fixdate(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(imf_fixdate(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT"); // RFC 9110 §5.6.7
        assert_eq!(imf_fixdate(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(imf_fixdate(4_107_542_399), "Sun, 28 Feb 2100 23:59:59 GMT");
        assert_eq!(imf_fixdate(4_107_542_400), "Mon, 01 Mar 2100 00:00:00 GMT");
    }
}
