//! DATA frames that come in, and what the client may send (RFC 9113 §6.1, §5.2).
//!
//! Must not know: what a service does with a body.

use super::frame::{self, Header};
use super::receive::{Handled, Turn};
use super::{Environment, Error, ErrorCode, Event, Http2, Incoming};

impl Http2 {
    pub(super) fn on_data(
        &mut self,
        header: &Header,
        padding: Option<u8>,
        turn: &mut Turn<'_>,
    ) -> Handled {
        if header.stream == 0 {
            return Err(Error::protocol("DATA without a stream"));
        }
        let overhead = padding.map_or(0, |padding| usize::from(padding) + 1);
        if overhead > header.length {
            return Err(Error::protocol("more padding than payload"));
        }
        let length = header.length as u32;
        let left = (header.length - overhead) as u32;
        let end_stream = header.has(frame::END_STREAM);
        if left == 0 && !end_stream {
            self.guard.count_useless(turn.environment)?;
        }
        self.receive_window =
            self.receive_window.checked_sub(length as i32).filter(|window| *window >= 0).ok_or(
                Error { code: ErrorCode::FlowControl, reason: "more DATA than the window" },
            )?;
        let mut incoming =
            Incoming::Data { stream: 0, left, padding: padding.unwrap_or(0), end_stream };
        let mut event = None;
        match self.streams.slot_of(header.stream) {
            Some(slot) => {
                let Some(stream) = self.streams.get_mut(slot) else { return Ok(None) };
                stream.receive_window = stream.receive_window.saturating_sub(length as i32);
                stream.received = stream.received.saturating_add(u64::from(left));
                let code = if !stream.is_receiving {
                    Some(ErrorCode::StreamClosed)
                } else if stream.receive_window < 0 {
                    Some(ErrorCode::FlowControl)
                } else if stream.announced.is_some_and(|announced| stream.received > announced) {
                    Some(ErrorCode::Protocol) // §8.1.1
                } else {
                    None
                };
                let is_too_long = !stream.is_tunnel
                    && stream.received > turn.environment.limits.max_body_bytes
                    && !stream.is_over();
                if let Some(code) = code {
                    event = self.fail_stream(header.stream, code, turn)?;
                } else if is_too_long {
                    event = self.refuse_body(slot, turn);
                } else if let Incoming::Data { stream, .. } = &mut incoming {
                    *stream = header.stream;
                }
            }
            None if header.stream > self.last_stream || header.stream.is_multiple_of(2) => {
                return Err(Error::protocol("DATA on an idle stream"));
            }
            None if self.remembered.contains(&header.stream) || self.is_beyond(header.stream) => {}
            None => {
                event = self.fail_stream(header.stream, ErrorCode::StreamClosed, turn)?;
            }
        }
        self.incoming = incoming;
        if padding.is_some() {
            let of = if let Incoming::Data { stream, .. } = incoming { stream } else { 0 };
            self.credit(of, 1, turn.out, turn.environment);
        }
        Ok(event)
    }

    /// A body above the limit: 413 where that is still possible.
    fn refuse_body(&mut self, slot: usize, turn: &mut Turn<'_>) -> Option<Event> {
        if self.is_response_due(slot) {
            let body = b"413 Content Too Large\n";
            let _ = self.respond(slot, turn.out, 413, &[], body, turn.environment);
        } else {
            self.reset_stream(slot, ErrorCode::Cancel, turn.out);
        }
        Some(Event::Reset { slot })
    }

    /// The client's direction has ended.
    pub(super) fn on_end(&mut self, id: u32, turn: &mut Turn<'_>) -> Handled {
        let Some(slot) = self.streams.slot_of(id) else { return Ok(None) };
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(None) };
        if stream.announced.is_some_and(|announced| announced != stream.received) {
            return self.fail_stream(id, ErrorCode::Protocol, turn); // §8.1.1
        }
        stream.is_receiving = false;
        stream.since_ms = turn.environment.now_ms;
        if stream.is_over() {
            self.close_if_done(slot);
            return Ok(None);
        }
        Ok(Some(Event::End { slot }))
    }

    /// Bytes of [`Event::Data`] have been taken from the input.
    pub fn took(&mut self, bytes: usize, out: &mut Vec<u8>, environment: &Environment<'_>) {
        let Incoming::Data { stream, left, .. } = &mut self.incoming else {
            debug_assert!(false, "no data was offered");
            return;
        };
        *left = left.saturating_sub(bytes as u32);
        let stream = *stream;
        self.credit(stream, bytes as u32, out, environment);
    }

    /// Takes note of payload that has been used up, and lets the client send as much again, unless the
    /// stream's own output is stuck.
    pub(super) fn credit(
        &mut self,
        stream: u32,
        bytes: u32,
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) {
        self.receive_credit += bytes;
        let half = environment.options.connection_window_bytes.max(65_535) / 2;
        if self.receive_credit >= half {
            frame::write_window_update(out, 0, self.receive_credit);
            self.receive_window = self.receive_window.saturating_add(self.receive_credit as i32);
            self.receive_credit = 0;
        }
        if let Some(slot) = self.streams.slot_of(stream)
            && let Some(stream) = self.streams.get_mut(slot)
        {
            stream.receive_credit += bytes;
            if !stream.is_lingering {
                stream.since_ms = environment.now_ms;
                self.grant(slot, out, environment);
            } else if stream.receive_credit >= (self.local.initial_window / 2).max(1) {
                // Here an update would be due: it is told that nobody reads this (§8.1).
                self.reset_stream(slot, ErrorCode::NoError, out);
            }
        }
    }

    /// Sends a stream's window update if one is worth it and its output is not stuck.
    pub(super) fn grant(&mut self, slot: usize, out: &mut Vec<u8>, environment: &Environment<'_>) {
        let half = (self.local.initial_window / 2).max(1);
        let most_buffered = environment.options.stream_buffer_bytes as usize;
        let Some(stream) = self.streams.get_mut(slot) else { return };
        if stream.is_receiving
            && !stream.is_held
            && stream.receive_credit >= half
            && stream.buffered() <= most_buffered
            && !stream.is_over()
        {
            frame::write_window_update(out, stream.id, stream.receive_credit);
            stream.receive_window =
                stream.receive_window.saturating_add(stream.receive_credit as i32);
            stream.receive_credit = 0;
        }
    }

    /// The same for all streams.
    pub fn open_windows(&mut self, out: &mut Vec<u8>, environment: &Environment<'_>) {
        for slot in 0..self.streams.slot_count() {
            self.grant(slot, out, environment);
        }
    }

    /// The service has no room for more of a body, or has it again.
    pub fn hold(
        &mut self,
        slot: usize,
        is_held: bool,
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) {
        if let Some(stream) = self.streams.get_mut(slot) {
            if std::mem::replace(&mut stream.is_held, is_held) && !is_held {
                stream.since_ms = environment.now_ms; // from now on it is waited for
            }
            self.grant(slot, out, environment);
        }
    }

    /// False once nobody reads the request's body any more.
    pub(super) fn wants_data(&self, slot: usize) -> bool {
        self.streams.get(slot).is_some_and(|stream| stream.is_receiving && !stream.is_over())
    }
}
