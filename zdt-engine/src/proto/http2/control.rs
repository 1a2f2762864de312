//! Frames that come in and carry nothing of a message: RST_STREAM, SETTINGS, WINDOW_UPDATE and the like
//! (RFC 9113 §6.3 to §6.9).
//!
//! Must not know: requests, bodies.

use super::frame::{self, Frame, Header};
use super::receive::{Handled, Turn};
use super::{Error, ErrorCode, Event, FAREWELL_PING, Farewell, Http2, MAX_WINDOW};

/// Window updates below this bring nothing but work.
const TINY_INCREMENT: u32 = 512;

impl Http2 {
    /// Priorities are checked, and ignored (RFC 7540 §5.3.1, RFC 9113 §5.3.2).
    pub(super) fn on_priority(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Handled {
        if frame.header.stream == 0 {
            return Err(Error::protocol("PRIORITY without a stream"));
        }
        self.guard.count_useless(turn.environment)?;
        if frame.header.length != 5 {
            return self.fail_stream(frame.header.stream, ErrorCode::FrameSize, turn);
        }
        if frame::word(frame.payload) & MAX_WINDOW == frame.header.stream {
            return self.fail_stream(frame.header.stream, ErrorCode::Protocol, turn);
        }
        Ok(None)
    }

    pub(super) fn on_ping(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Result<(), Error> {
        if frame.header.stream != 0 {
            return Err(Error::protocol("PING on a stream"));
        }
        if frame.header.length != 8 {
            return Err(Error::frame_size("PING without 8 bytes"));
        }
        self.guard.count_useless(turn.environment)?;
        if !frame.header.has(frame::ACK) {
            frame::write(turn.out, frame::PING, frame::ACK, 0, frame.payload);
        } else if frame.payload == FAREWELL_PING && self.farewell == Farewell::Announced {
            // The client has seen the first GOAWAY: what it has begun by now is the last.
            frame::write_goaway(turn.out, self.last_stream, ErrorCode::NoError, "");
            self.farewell = Farewell::Said { last_stream: self.last_stream };
        }
        Ok(())
    }

    /// The client opens no more streams, or says that it does not; it closes when it likes.
    pub(super) fn on_goaway(&mut self, header: &Header, turn: &Turn<'_>) -> Result<(), Error> {
        if header.stream != 0 {
            return Err(Error::protocol("GOAWAY on a stream"));
        }
        if header.length < 8 {
            return Err(Error::frame_size("GOAWAY of less than 8 bytes"));
        }
        self.guard.count_useless(turn.environment)
    }

    pub(super) fn on_reset(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Handled {
        if frame.header.stream == 0 {
            return Err(Error::protocol("RST_STREAM without a stream"));
        }
        if frame.payload.len() != 4 {
            return Err(Error::frame_size("RST_STREAM without 4 bytes"));
        }
        if frame.header.stream > self.last_stream || frame.header.stream.is_multiple_of(2) {
            return Err(Error::protocol("RST_STREAM on an idle stream"));
        }
        let Some(slot) = self.streams.slot_of(frame.header.stream) else {
            // Whatever was on its way to a stream that we have reset is here now.
            self.remembered.retain(|id| *id != frame.header.stream);
            self.guard.count_useless(turn.environment)?;
            return Ok(None);
        };
        let was_over = self.is_exchange_over(slot);
        if was_over && self.buffered(slot) == 0 {
            self.guard.count_useless(turn.environment)?; // only the rest of its request is called off
        } else {
            self.guard.count_reset(turn.environment)?;
        }
        self.streams.remove(slot);
        Ok((!was_over).then_some(Event::Reset { slot }))
    }

    pub(super) fn on_window_update(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Handled {
        if frame.payload.len() != 4 {
            return Err(Error::frame_size("WINDOW_UPDATE without 4 bytes"));
        }
        let increment = frame::word(frame.payload) & MAX_WINDOW;
        if increment < TINY_INCREMENT {
            self.guard.count_useless(turn.environment)?;
        }
        if frame.header.stream == 0 {
            if increment == 0 {
                return Err(Error::protocol("WINDOW_UPDATE by 0"));
            }
            self.send_window = self.send_window.checked_add(increment as i32).ok_or(Error {
                code: ErrorCode::FlowControl,
                reason: "the connection's window is above 2^31-1",
            })?;
            return Ok(None);
        }
        if frame.header.stream > self.last_stream || frame.header.stream.is_multiple_of(2) {
            return Err(Error::protocol("WINDOW_UPDATE on an idle stream"));
        }
        let Some(slot) = self.streams.slot_of(frame.header.stream) else { return Ok(None) };
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(None) };
        if increment == 0 {
            return self.fail_stream(frame.header.stream, ErrorCode::Protocol, turn);
        }
        match stream.send_window.checked_add(increment as i32) {
            Some(window) => stream.send_window = window,
            None => {
                return self.fail_stream(frame.header.stream, ErrorCode::FlowControl, turn);
            }
        }
        Ok(None)
    }

    pub(super) fn on_settings(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Handled {
        if frame.header.stream != 0 {
            return Err(Error::protocol("SETTINGS on a stream"));
        }
        self.guard.count_useless(turn.environment)?;
        if frame.header.has(frame::ACK) {
            if !frame.payload.is_empty() {
                return Err(Error::frame_size("an acknowledgement of SETTINGS with a payload"));
            }
            if let Some(acknowledged) = self.pending_settings.pop_front() {
                let delta =
                    i64::from(acknowledged.initial_window) - i64::from(self.local.initial_window);
                self.local = acknowledged;
                self.settings_since_ms = turn.environment.now_ms;
                for stream in self.streams.iter_mut() {
                    let window = i64::from(stream.receive_window) + delta;
                    stream.receive_window =
                        window.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
                }
            }
            return Ok(None);
        }
        if !frame.payload.len().is_multiple_of(6) {
            return Err(Error::frame_size("SETTINGS of a length that is no multiple of 6"));
        }
        let changes = self.peer.apply(frame.payload)?;
        if let Some(bytes) = changes.header_table_bytes {
            self.encoder.set_peer_limit(bytes);
        }
        if changes.window_delta != 0 {
            for stream in self.streams.iter_mut() {
                // §6.9.2: may become negative, must not become too large.
                let window = i64::from(stream.send_window) + changes.window_delta;
                stream.send_window = i32::try_from(window).map_err(|_| Error {
                    code: ErrorCode::FlowControl,
                    reason: "SETTINGS_INITIAL_WINDOW_SIZE makes a window too large",
                })?;
            }
        }
        frame::write(turn.out, frame::SETTINGS, frame::ACK, 0, &[]);
        Ok(None)
    }
}
