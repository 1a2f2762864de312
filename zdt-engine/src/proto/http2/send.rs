//! Responses, tunnels, and what the windows let out (RFC 9113 §5.2, §6.9, §8.1, §8.4).
//!
//! Must not know: where the bytes go.

use super::super::hpack::encode;
use super::frame::{self, HEADER_BYTES};
use super::{BodyLength, Environment, ErrorCode, Http2, Outgoing, syntax};

/// The service's mistake, or a stream that is gone. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// No response is due on that stream.
    #[error("no response is due on this stream")]
    NotExpected,
    /// No response has begun, or it is finished.
    #[error("no response is in progress on this stream")]
    NotStarted,
    /// Not from 200 to 599.
    #[error("{0} is no final status")]
    InvalidStatus(u16),
    /// A name or value with characters that must not be there.
    #[error("a header field has characters that must not be there")]
    InvalidHeader,
    /// Framing is the machine's business.
    #[error("a header field that only the machine may write")]
    ReservedHeader,
    /// More than was announced.
    #[error("{excess} bytes of body too many")]
    BodyTooLong {
        /// So many.
        excess: u64,
    },
    /// Less than was announced.
    #[error("{missing} bytes of body are missing")]
    BodyTooShort {
        /// So many.
        missing: u64,
    },
}

/// Fields that mean something to one connection of HTTP/1.1 only: left out (§8.2.2).
fn is_left_out(name: &str) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    match name.len() {
        7 => is("upgrade"),
        10 => is("connection") || is("keep-alive"),
        16 => is("proxy-connection"),
        _ => false,
    }
}

/// RFC 9110 §5.1 and §5.5, and the fields that frame a message.
fn check_fields(headers: &[(&str, &[u8])]) -> Result<(), ResponseError> {
    for &(name, value) in headers {
        if !syntax::is_token(name.as_bytes()) || !syntax::is_sendable_value(value) {
            return Err(ResponseError::InvalidHeader);
        }
        if name.eq_ignore_ascii_case("content-length")
            || name.eq_ignore_ascii_case("transfer-encoding")
        {
            return Err(ResponseError::ReservedHeader);
        }
    }
    Ok(())
}

fn write_fields(out: &mut Vec<u8>, headers: &[(&str, &[u8])]) {
    for &(name, value) in headers.iter().filter(|(name, _)| !is_left_out(name)) {
        encode::field(out, name, value);
    }
}

impl Http2 {
    /// Begins the final response; its body follows through [`Http2::write_body`], and
    /// [`Http2::finish_response`] ends it. For HEAD give the length that GET would have.
    ///
    /// # Errors
    /// See [`ResponseError`].
    pub fn start_response(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        length: BodyLength,
        environment: &Environment<'_>,
    ) -> Result<(), ResponseError> {
        let stream = self.streams.get(slot).filter(|stream| stream.outgoing == Outgoing::Pending);
        let (id, is_head) =
            stream.map(|stream| (stream.id, stream.is_head)).ok_or(ResponseError::NotExpected)?;
        let outgoing = match length {
            // RFC 9110 §6.4.1
            BodyLength::Known(excess @ 1..) if matches!(status, 204 | 205) => {
                return Err(ResponseError::BodyTooLong { excess });
            }
            _ if matches!(status, 204 | 205 | 304) => Outgoing::Omitted { remaining: Some(0) },
            BodyLength::None => Outgoing::Omitted { remaining: Some(0) },
            BodyLength::Known(bytes) if is_head => Outgoing::Omitted { remaining: Some(bytes) },
            BodyLength::Unknown if is_head => Outgoing::Omitted { remaining: None },
            BodyLength::Known(remaining) => Outgoing::Sized { remaining },
            BodyLength::Unknown => Outgoing::Open,
        };
        let announced = match length {
            BodyLength::Known(bytes) if status != 204 => Some(bytes),
            _ => None,
        };
        let ends_here =
            matches!(outgoing, Outgoing::Omitted { .. } | Outgoing::Sized { remaining: 0 });
        self.write_head(id, out, status, headers, announced, ends_here, environment.date)?;
        if let Some(stream) = self.streams.get_mut(slot) {
            stream.outgoing = match outgoing {
                // It has been said that nothing follows.
                Outgoing::Sized { remaining: 0 } => Outgoing::Omitted { remaining: Some(0) },
                other => other,
            };
            stream.since_ms = environment.now_ms;
        }
        Ok(())
    }

    /// A HEADERS frame, followed by CONTINUATION where the client's frames are too small.
    #[expect(clippy::too_many_arguments, reason = "all that a head is made of")]
    fn write_head(
        &mut self,
        id: u32,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        length: Option<u64>,
        end_stream: bool,
        date: &[u8],
    ) -> Result<(), ResponseError> {
        if !(200..600).contains(&status) {
            return Err(ResponseError::InvalidStatus(status));
        }
        check_fields(headers)?;
        let is_date = |(name, _): &(&str, &[u8])| name.eq_ignore_ascii_case("date");
        let has_date = date.is_empty() || headers.iter().any(is_date);
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        self.encoder.begin_block(out);
        encode::status(out, status);
        write_fields(out, headers);
        if !has_date {
            encode::field(out, "date", date);
        }
        if let Some(length) = length {
            encode::content_length(out, length);
        }
        let end_stream = if end_stream { frame::END_STREAM } else { 0 };
        self.frame_block(id, out, start, end_stream);
        Ok(())
    }

    /// Writes the header of the HEADERS frame at `start`, whose block is all that follows.
    fn frame_block(&self, id: u32, out: &mut Vec<u8>, start: usize, end_stream: u8) {
        let length = out.len() - start - HEADER_BYTES;
        let most = self.peer.max_frame_bytes as usize;
        if length <= most {
            let flags = end_stream | frame::END_HEADERS;
            let header = frame::header_bytes(length, frame::HEADERS, flags, id);
            out[start..start + HEADER_BYTES].copy_from_slice(&header);
            return;
        }
        let block = out.split_off(start + HEADER_BYTES);
        out.truncate(start);
        let count = block.len().div_ceil(most);
        for (index, piece) in block.chunks(most).enumerate() {
            let end_headers = if index + 1 == count { frame::END_HEADERS } else { 0 };
            if index == 0 {
                frame::write(out, frame::HEADERS, end_stream | end_headers, id, piece);
            } else {
                frame::write(out, frame::CONTINUATION, end_headers, id, piece);
            }
        }
    }

    /// A whole response in one call.
    ///
    /// # Errors
    /// See [`ResponseError`].
    #[inline]
    pub fn respond(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        body: &[u8],
        environment: &Environment<'_>,
    ) -> Result<(), ResponseError> {
        out.reserve(body.len() + 256);
        let length = BodyLength::Known(body.len() as u64);
        let length = if status == 304 && body.is_empty() { BodyLength::Unknown } else { length };
        self.start_response(slot, out, status, headers, length, environment)?;
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(()) };
        if let Outgoing::Sized { .. } = stream.outgoing {
            stream.outgoing = Outgoing::Finished;
            self.write_data(slot, out, body, environment.now_ms);
        } else {
            stream.outgoing = Outgoing::Finished;
        }
        self.close_if_done(slot);
        Ok(())
    }

    /// Tells a client that waits for it to go on and send the body (RFC 9110 §10.1.1).
    pub fn send_continue(&mut self, slot: usize, out: &mut Vec<u8>) {
        if let Some(stream) =
            self.streams.get(slot).filter(|stream| stream.outgoing == Outgoing::Pending)
        {
            let id = stream.id;
            let start = out.len();
            out.extend_from_slice(&[0; HEADER_BYTES]);
            self.encoder.begin_block(out);
            encode::status(out, 100);
            self.frame_block(id, out, start, 0);
        }
    }

    /// An interim response (RFC 9110 §15.2).
    ///
    /// # Errors
    /// `NotExpected`, `InvalidStatus`, `InvalidHeader`.
    pub fn inform(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
    ) -> Result<(), ResponseError> {
        let stream = self.streams.get(slot).filter(|stream| stream.outgoing == Outgoing::Pending);
        let id = stream.map(|stream| stream.id).ok_or(ResponseError::NotExpected)?;
        // There is no 101 in HTTP/2 (§8.6).
        if !(100..200).contains(&status) || status == 101 {
            return Err(ResponseError::InvalidStatus(status));
        }
        check_fields(headers)?;
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        self.encoder.begin_block(out);
        encode::status(out, status);
        write_fields(out, headers);
        self.frame_block(id, out, start, 0);
        Ok(())
    }

    /// Ends the response with trailers, behind whatever of the body waits for the windows. They are left
    /// out where none may be.
    ///
    /// # Errors
    /// `NotStarted`, `BodyTooShort`, `InvalidHeader`.
    pub fn finish_response_with(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        trailers: &[(&str, &[u8])],
    ) -> Result<(), ResponseError> {
        check_fields(trailers)?;
        let stream = self.streams.get_mut(slot).ok_or(ResponseError::NotStarted)?;
        let has_body = matches!(stream.outgoing, Outgoing::Open | Outgoing::Sized { remaining: 0 });
        let mut block = Vec::new();
        write_fields(&mut block, trailers);
        if block.is_empty() || !has_body {
            return self.finish_response(slot, out);
        }
        stream.outgoing = Outgoing::Finished;
        stream.trailers = Some(block.into_boxed_slice());
        if stream.buffered() == 0 {
            self.write_trailers(slot, out);
            self.close_if_done(slot);
        }
        Ok(())
    }

    /// Frames a stream's trailers, if it has any: nothing of its body waits any more.
    fn write_trailers(&mut self, slot: usize, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        let Some(block) = stream.trailers.take() else { return };
        let id = stream.id;
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        self.encoder.begin_block(out);
        out.extend_from_slice(&block);
        self.frame_block(id, out, start, frame::END_STREAM);
    }

    /// Appends bytes of the response body.
    ///
    /// # Errors
    /// `NotStarted`, `BodyTooLong`.
    pub fn write_body(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        bytes: &[u8],
        now_ms: u64,
    ) -> Result<(), ResponseError> {
        let stream = self.streams.get_mut(slot).ok_or(ResponseError::NotStarted)?;
        match &mut stream.outgoing {
            Outgoing::Sized { remaining } | Outgoing::Omitted { remaining: Some(remaining) } => {
                let count = bytes.len() as u64;
                if count > *remaining {
                    return Err(ResponseError::BodyTooLong { excess: count - *remaining });
                }
                *remaining -= count;
            }
            Outgoing::Open | Outgoing::Omitted { remaining: None } => {}
            Outgoing::Pending | Outgoing::Finished => return Err(ResponseError::NotStarted),
        }
        if matches!(stream.outgoing, Outgoing::Sized { .. } | Outgoing::Open) && !bytes.is_empty() {
            self.write_data(slot, out, bytes, now_ms);
        }
        Ok(())
    }

    /// Ends the response, or our direction of a tunnel.
    ///
    /// # Errors
    /// `NotStarted`, `BodyTooShort`.
    pub fn finish_response(&mut self, slot: usize, out: &mut Vec<u8>) -> Result<(), ResponseError> {
        let stream = self.streams.get_mut(slot).ok_or(ResponseError::NotStarted)?;
        match stream.outgoing {
            Outgoing::Sized { remaining: missing @ 1.. } => {
                return Err(ResponseError::BodyTooShort { missing });
            }
            Outgoing::Omitted { .. } => stream.outgoing = Outgoing::Finished,
            Outgoing::Sized { .. } | Outgoing::Open => {
                stream.outgoing = Outgoing::Finished;
                if stream.buffered() == 0 {
                    frame::write(out, frame::DATA, frame::END_STREAM, stream.id, &[]);
                }
            }
            Outgoing::Pending | Outgoing::Finished => return Err(ResponseError::NotStarted),
        }
        self.close_if_done(slot);
        Ok(())
    }

    /// Accepts an extended CONNECT (RFC 8441 §5): from now on both directions are a tunnel.
    ///
    /// # Errors
    /// See [`ResponseError`].
    pub fn accept_tunnel(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        headers: &[(&str, &[u8])],
        environment: &Environment<'_>,
    ) -> Result<(), ResponseError> {
        self.start_response(slot, out, 200, headers, BodyLength::Unknown, environment)?;
        if let Some(stream) = self.streams.get_mut(slot) {
            stream.is_tunnel = true;
        }
        Ok(())
    }

    /// Ends a tunnel; the stream then waits for the client's end.
    pub fn end_tunnel(&mut self, slot: usize, out: &mut Vec<u8>, now_ms: u64) {
        if let Some(stream) = self.streams.get_mut(slot) {
            stream.since_ms = now_ms;
            if std::mem::take(&mut stream.is_half_closed) {
                return self.close_if_done(slot);
            }
            let _ = self.finish_response(slot, out);
        }
    }

    /// Ends our direction of a tunnel; the client's goes on until [`Http2::end_tunnel`].
    pub fn half_close_tunnel(&mut self, slot: usize, out: &mut Vec<u8>, now_ms: u64) {
        if let Some(stream) = self.streams.get_mut(slot)
            && stream.is_tunnel
            && stream.outgoing == Outgoing::Open
        {
            (stream.since_ms, stream.is_half_closed) = (now_ms, true);
            let _ = self.finish_response(slot, out);
        }
    }

    /// Makes room for a DATA frame whose payload the caller then appends to `out`; what that was is to
    /// be told by [`Http2::end_data`] before anything else.
    #[inline]
    pub fn begin_data(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        start
    }

    /// What was appended since [`Http2::begin_data`] becomes one frame in place, if the windows let it
    /// out as it is.
    #[inline]
    pub fn end_data(&mut self, slot: usize, out: &mut Vec<u8>, start: usize, now_ms: u64) {
        let length = out.len() - start - HEADER_BYTES;
        let most = self.peer.max_frame_bytes as usize;
        let window = self.send_window;
        match self.streams.get_mut(slot) {
            Some(stream)
                if matches!(stream.outgoing, Outgoing::Open | Outgoing::Sized { .. })
                    && length > 0 =>
            {
                if stream.buffered() == 0
                    && length <= most
                    && length as i64 <= i64::from(window.min(stream.send_window))
                {
                    let header = frame::header_bytes(length, frame::DATA, 0, stream.id);
                    out[start..start + HEADER_BYTES].copy_from_slice(&header);
                    stream.send_window -= length as i32;
                    self.send_window -= length as i32;
                    self.guard.control.excuse(2);
                } else {
                    let bytes = out.split_off(start + HEADER_BYTES);
                    out.truncate(start);
                    self.write_data(slot, out, &bytes, now_ms);
                }
            }
            _ => out.truncate(start),
        }
    }

    /// Frames what the windows let out now, and keeps the rest.
    fn write_data(&mut self, slot: usize, out: &mut Vec<u8>, bytes: &[u8], now_ms: u64) {
        let most = self.peer.max_frame_bytes as usize;
        let Some(stream) = self.streams.get_mut(slot) else { return };
        if stream.buffered() > 0 {
            stream.buffer.extend_from_slice(bytes);
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let window = self.send_window.min(stream.send_window).max(0) as usize;
            let (now, later) = rest.split_at(rest.len().min(window).min(most));
            if now.is_empty() {
                break;
            }
            rest = later;
            stream.send_window -= now.len() as i32;
            self.send_window -= now.len() as i32;
            let is_end = rest.is_empty() && stream.outgoing == Outgoing::Finished;
            let flags = if is_end { frame::END_STREAM } else { 0 };
            frame::write(out, frame::DATA, flags, stream.id, now);
        }
        if rest.is_empty() {
            self.guard.control.excuse(2);
        } else {
            stream.buffer.extend_from_slice(rest);
            stream.since_ms = now_ms;
        }
    }

    /// Frames what waits for the windows, as long as `out` has less than `room` more bytes; one frame of
    /// each stream in turn.
    pub fn flush(&mut self, out: &mut Vec<u8>, room: usize, environment: &Environment<'_>) {
        let start = out.len();
        let most = self.peer.max_frame_bytes.min(16_384) as usize;
        let waiting: Vec<usize> = {
            let is_waiting = |slot: &usize| self.buffered(*slot) > 0;
            let from = self.next_flush;
            let (before, behind): (Vec<_>, Vec<_>) = self
                .streams
                .iter()
                .filter(|(slot, _)| is_waiting(slot))
                .partition(|(_, stream)| stream.id < from);
            behind.into_iter().chain(before).map(|(slot, _)| slot).collect()
        };
        let mut has_moved = true;
        while std::mem::take(&mut has_moved) {
            for &slot in &waiting {
                if self.send_window <= 0 || out.len() - start >= room {
                    // Whoever comes next is the first one next time.
                    self.next_flush = self.stream_id(slot);
                    return;
                }
                let Some(stream) = self.streams.get_mut(slot) else { continue };
                let window = self.send_window.min(stream.send_window).max(0) as usize;
                let bytes = stream.buffered().min(window).min(most);
                if bytes == 0 {
                    continue;
                }
                has_moved = true;
                let is_end = bytes == stream.buffered()
                    && stream.outgoing == Outgoing::Finished
                    && stream.trailers.is_none();
                let flags = if is_end { frame::END_STREAM } else { 0 };
                frame::write(out, frame::DATA, flags, stream.id, &stream.unsent()[..bytes]);
                stream.send_window -= bytes as i32;
                self.send_window -= bytes as i32;
                stream.consume(bytes);
                let is_drained = stream.buffered() == 0;
                // A window of a few bytes at a time is no progress.
                if is_drained || bytes >= LEAST_PROGRESS_BYTES {
                    stream.since_ms = environment.now_ms;
                }
                if is_drained {
                    self.guard.control.excuse(2);
                    self.write_trailers(slot, out);
                    self.close_if_done(slot);
                }
                self.grant(slot, out, environment);
            }
        }
    }

    /// Removes a stream of which nothing is left to be sent, once its client has ended it, too. Until then
    /// it lingers: what still comes is judged by the rules and dropped, and RST_STREAM follows only if the
    /// client goes on for too long. An answer that overtakes the end of its request costs no reset.
    pub(super) fn close_if_done(&mut self, slot: usize) {
        let Some(stream) = self.streams.get_mut(slot) else { return };
        if !stream.is_over() || stream.buffered() > 0 {
            return;
        }
        if stream.is_receiving {
            self.has_lingerer |= !stream.is_lingering;
            stream.is_lingering = true;
        } else {
            self.streams.remove(slot);
        }
    }

    /// Ends a stream at once; its slot is vacant afterwards.
    pub fn reset_stream(&mut self, slot: usize, code: ErrorCode, out: &mut Vec<u8>) {
        let id = self.stream_id(slot);
        if id != 0 {
            frame::write_reset(out, id, code);
            self.remember(id);
            self.streams.remove(slot);
        }
    }
}

/// Less than this, while more is waiting, does not put a stall off.
const LEAST_PROGRESS_BYTES: usize = 1_024;
