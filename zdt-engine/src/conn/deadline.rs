//! What a connection waits for, and for how long.
//!
//! There is one deadline at a time: what the peer owes next. It moves when the kind of debt changes
//! or when the peer pays a part of it; a request head must be complete in time however steadily its
//! bytes trickle in.
//!
//! Must not know: the clock, timers; the caller asks for the deadline and reports that it passed.

use serde::{Deserialize, Serialize};

use super::{Connection, Environment, Slot, Stage, is_responding};
use crate::proto::http1::{self, ResponseState};
use crate::proto::http2::ErrorCode;

/// How long an ending connection waits for the peer's FIN before it is closed.
const LINGER_MS: u64 = 2_000;

/// What the peer owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Waiting {
    /// The first request head, from the accept on.
    FirstHead,
    /// A later request head, from its first byte on.
    Head,
    /// The first byte of a next request.
    NextRequest,
    /// Request body bytes, or room in its receive window for what is queued.
    Progress,
    /// Nothing: the service works.
    Service,
    /// Anything at all, on a WebSocket.
    SignOfLife,
    /// The answer to our ping.
    Pong,
    /// The answer to our close frame, or the end after it.
    CloseFrame,
    /// The FIN.
    End,
}

impl Waiting {
    pub(super) const ALL: [Waiting; 9] = [
        Waiting::FirstHead,
        Waiting::Head,
        Waiting::NextRequest,
        Waiting::Progress,
        Waiting::Service,
        Waiting::SignOfLife,
        Waiting::Pong,
        Waiting::CloseFrame,
        Waiting::End,
    ];
}

/// What the caller has to do about a deadline that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// It had not passed after all, or what had to be done is in the output.
    Nothing,
    /// The connection ends in good order: flush the output, tell the service.
    End,
    /// The same, and the request in progress has been answered, with this status.
    Refused(u16),
    /// The peer is dead or hostile: close at once, tell the service.
    Drop,
}

/// What the peer did since the last [`Connection::on_progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing.
    None,
    /// It took bytes, or its kernel did, or ours: no proof that it lives.
    Sent,
    /// It gave some.
    Received,
}

impl Connection {
    /// To be called after every batch of input and after every flush: works out what is waited for.
    pub fn on_progress(
        &mut self,
        environment: &Environment<'_>,
        progress: Progress,
        has_unsent: bool,
    ) {
        let now_ms = environment.now_ms;
        let is_pinging = matches!(self.stage, Stage::WebSocket(_) | Stage::Http2(_));
        if progress == Progress::Received || !is_pinging {
            self.alive_ms = now_ms;
            self.is_pinged = false;
        }
        let mut frame_completed = false;
        let waiting = match &mut self.stage {
            Stage::Ending => Waiting::End,
            Stage::Tunnel { .. } if has_unsent => Waiting::Progress,
            // What it says is all that is waited for, unless the service has no room for it.
            Stage::Tunnel { half_closed: true, end_told: false } if !self.is_input_held => {
                Waiting::Progress
            }
            Stage::Tunnel { .. } => Waiting::Service,
            Stage::WebSocket(machine) if machine.close_sent() => Waiting::CloseFrame,
            Stage::WebSocket(_) if has_unsent => Waiting::Progress,
            Stage::WebSocket(_) => {
                // What is sent to it meanwhile does not count.
                self.waiting = if self.is_pinged { Waiting::Pong } else { Waiting::SignOfLife };
                self.since_ms = self.alive_ms;
                return;
            }
            Stage::Http2(stack) => {
                frame_completed = stack.machine.take_progress();
                stack.arm_check(environment);
                if stack.machine.is_greeting() {
                    Waiting::FirstHead
                } else if has_unsent {
                    Waiting::Progress
                } else if !self.pending.is_empty() || stack.machine.is_inside() {
                    Waiting::Head
                } else if stack.machine.stream_count() == 0 {
                    Waiting::NextRequest
                } else {
                    self.waiting = if self.is_pinged { Waiting::Pong } else { Waiting::SignOfLife };
                    self.since_ms = self.alive_ms;
                    return;
                }
            }
            Stage::Http1(machine) => {
                if has_unsent
                    || (is_responding(machine) && machine.wants_input() && !self.is_input_held)
                {
                    Waiting::Progress
                } else if is_responding(machine) {
                    Waiting::Service
                } else if !self.pending.is_empty() || !machine.is_idle() {
                    match self.waiting {
                        Waiting::FirstHead => Waiting::FirstHead,
                        _ => Waiting::Head,
                    }
                } else {
                    match self.waiting {
                        Waiting::FirstHead => Waiting::FirstHead,
                        _ => Waiting::NextRequest,
                    }
                }
            }
        };
        let restarts = match waiting {
            // For the latter: a whole exchange may have passed since the last call.
            Waiting::Progress | Waiting::NextRequest => progress != Progress::None,
            Waiting::Head => frame_completed,
            _ => false,
        };
        if restarts || waiting != self.waiting {
            self.since_ms = now_ms;
            self.waiting = waiting;
        }
    }

    /// When the peer must have paid.
    pub fn deadline_ms(&self, environment: &Environment<'_>) -> Option<u64> {
        let limits = environment.limits;
        let options = environment.websocket;
        let streams = match &self.stage {
            Stage::Http2(stack) => Some(stack.due_ms(environment)),
            _ => None,
        }
        .filter(|due_ms| *due_ms != u64::MAX);
        let after_ms = match self.waiting {
            Waiting::FirstHead | Waiting::Head => limits.header_timeout_ms,
            Waiting::NextRequest => limits.keep_alive_timeout_ms,
            Waiting::Progress => limits.stall_timeout_ms,
            Waiting::Service => return streams,
            Waiting::SignOfLife if options.ping_interval_ms == 0 => return streams,
            Waiting::SignOfLife => options.ping_interval_ms,
            Waiting::Pong | Waiting::CloseFrame => options.pong_timeout_ms,
            Waiting::End => LINGER_MS,
        };
        let due = self.since_ms.saturating_add(after_ms);
        Some(streams.map_or(due, |streams| streams.min(due)))
    }

    /// The deadline while nothing is received from the peer, by our choice: what it has sent meanwhile, a
    /// pong or the rest of a request, nobody has looked at. So only what it has to take counts.
    pub fn deadline_unread_ms(
        &self,
        environment: &Environment<'_>,
        has_unsent: bool,
    ) -> Option<u64> {
        let after_ms = match self.waiting {
            Waiting::Progress if has_unsent => environment.limits.stall_timeout_ms,
            Waiting::End => LINGER_MS,
            _ => return None,
        };
        Some(self.since_ms.saturating_add(after_ms))
    }

    /// The peer is received from again: what it owes, it owes from now on.
    pub fn on_read_again(&mut self, now_ms: u64) {
        self.alive_ms = now_ms;
        if !matches!(self.waiting, Waiting::Progress | Waiting::Service | Waiting::End) {
            self.since_ms = now_ms;
        }
    }

    /// A stream whose client has kept it waiting for too long: it has been reset, or answered with that status, and
    /// its session must be told. To be called until there is none, before [`Connection::on_deadline`].
    pub fn overdue_stream(
        &mut self,
        environment: &Environment<'_>,
        out: &mut Vec<u8>,
    ) -> Option<(Slot, Option<u16>)> {
        match &mut self.stage {
            Stage::Http2(stack) => stack.overdue_stream(environment, out),
            _ => None,
        }
    }

    /// The deadline has passed.
    pub fn on_deadline(&mut self, environment: &Environment<'_>, out: &mut Vec<u8>) -> Overdue {
        let due = self.deadline_ms(environment);
        if due.is_none_or(|due| due > environment.now_ms) {
            return Overdue::Nothing;
        }
        if let Stage::Http2(stack) = &mut self.stage
            && stack.end_for_settings(environment, out)
        {
            self.end_overdue(environment.now_ms);
            return Overdue::End;
        }
        match (self.waiting, &mut self.stage) {
            (Waiting::SignOfLife, Stage::WebSocket(machine)) => {
                // Silence so far: the compression contexts are made again when they are needed.
                machine.release_contexts();
                machine.write_ping(out, b"");
                self.waiting = Waiting::Pong;
                self.since_ms = environment.now_ms;
                self.alive_ms = environment.now_ms;
                self.is_pinged = true;
                Overdue::Nothing
            }
            (Waiting::SignOfLife, Stage::Http2(stack)) => {
                stack.release_memory();
                stack.machine.write_ping(out);
                self.waiting = Waiting::Pong;
                self.since_ms = environment.now_ms;
                self.alive_ms = environment.now_ms;
                self.is_pinged = true;
                Overdue::Nothing
            }
            (Waiting::FirstHead | Waiting::Head | Waiting::NextRequest, Stage::Http2(stack)) => {
                stack.machine.end(out, ErrorCode::NoError, "");
                self.end_overdue(environment.now_ms);
                Overdue::End
            }
            (Waiting::FirstHead | Waiting::Head, Stage::Http1(machine)) => {
                if !self.pending.is_empty() {
                    // RFC 9110 §15.5.9.
                    machine.error_response(out, &http1::Error::RequestTimeout, environment.date);
                }
                self.end_overdue(environment.now_ms);
                Overdue::End
            }
            (Waiting::NextRequest, _) => {
                self.end_overdue(environment.now_ms);
                Overdue::End
            }
            // The rest of its body has not come, and nothing has been answered.
            (Waiting::Progress, Stage::Http1(machine))
                if machine.response_state() == ResponseState::Pending && machine.wants_input() =>
            {
                let error = http1::Error::RequestTimeout;
                machine.error_response(out, &error, environment.date);
                self.end_overdue(environment.now_ms);
                Overdue::Refused(error.status())
            }
            _ => {
                self.end();
                Overdue::Drop
            }
        }
    }

    /// The old deadline must not strike again before the output has left.
    fn end_overdue(&mut self, now_ms: u64) {
        self.end();
        self.waiting = Waiting::End;
        self.since_ms = now_ms;
    }
}
