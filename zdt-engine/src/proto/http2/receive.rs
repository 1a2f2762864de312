//! Frames that come in (RFC 9113 §4 to §6).
//!
//! Must not know: where the bytes come from, what a service does.

use super::super::Input;
use super::super::hpack::{self, Fields};
use super::frame::{self, HEADER_BYTES, Header, MAX_PAYLOAD_BYTES};
use super::request::{self, Parts};
use super::{
    Block, Environment, Error, ErrorCode, Event, FAREWELL_PING, Farewell, Http2, Incoming,
    MAX_CONTINUATIONS, MAX_REMEMBERED, MAX_WINDOW, Outgoing, PREFACE, Stream,
};

/// Useless frames that a useful one makes up for.
const EXCUSED_BY_REQUEST: u32 = 4;

/// Header blocks are read up to so many times the limit of a head.
const BLOCKS_OF_HEAD_LIMIT: usize = 4;

/// Window updates below this bring nothing but work.
const TINY_INCREMENT: u32 = 512;

impl Http2 {
    /// Takes the next event from the input, and answers what needs no service. `None` when more input
    /// is needed; what is left has to be offered again with more behind it.
    ///
    /// `fields` is overwritten by the next request's.
    ///
    /// # Errors
    /// The end of the connection. Later calls take nothing.
    pub fn next_event(
        &mut self,
        input: &mut Input<'_>,
        out: &mut Vec<u8>,
        fields: &mut Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        let result = self.advance(input, out, fields, environment);
        if let Err(error) = result {
            self.end(out, error.code, error.reason);
        }
        result
    }

    fn advance(
        &mut self,
        input: &mut Input<'_>,
        out: &mut Vec<u8>,
        fields: &mut Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        loop {
            match self.incoming {
                Incoming::Frame => {
                    let Some(header) = Header::parse(input.peek()) else { return Ok(None) };
                    if header.length > MAX_PAYLOAD_BYTES {
                        return Err(Error::frame_size("a frame of more than 16384 bytes"));
                    }
                    self.check_order(&header)?;
                    if header.kind == frame::DATA {
                        let padding_bytes = usize::from(header.has(frame::PADDED));
                        if input.len() < HEADER_BYTES + padding_bytes.min(header.length) {
                            return Ok(None);
                        }
                        input.take(HEADER_BYTES);
                        let padding = match padding_bytes {
                            1 if header.length > 0 => Some(input.take(1)[0]),
                            1 => return Err(Error::frame_size("padding in a frame without bytes")),
                            _ => None,
                        };
                        self.has_progress = true;
                        if let Some(event) = self.on_data(&header, padding, out, environment)? {
                            return Ok(Some(event));
                        }
                        continue;
                    }
                    if input.len() < HEADER_BYTES + header.length {
                        return Ok(None);
                    }
                    let payload = &input.take(HEADER_BYTES + header.length)[HEADER_BYTES..];
                    self.has_progress = true;
                    if let Some(event) =
                        self.on_frame(&header, payload, out, fields, environment)?
                    {
                        return Ok(Some(event));
                    }
                }
                Incoming::Data { stream, left, padding, end_stream } => {
                    if left == 0 {
                        self.incoming = match (padding, end_stream && stream != 0) {
                            (0, true) => Incoming::End { stream },
                            (0, false) => Incoming::Frame,
                            // Behind the padding the end would be too late to be remembered here.
                            (_, is_end) => {
                                if input.len() < usize::from(padding) {
                                    return Ok(None);
                                }
                                input.take(usize::from(padding));
                                self.credit(stream, u32::from(padding), out, environment);
                                if is_end { Incoming::End { stream } } else { Incoming::Frame }
                            }
                        };
                        continue;
                    }
                    let bytes = input.len().min(left as usize);
                    if bytes == 0 {
                        return Ok(None);
                    }
                    match self.streams.slot_of(stream).filter(|_| stream != 0) {
                        Some(slot) if self.wants_data(slot) => {
                            return Ok(Some(Event::Data { slot, bytes }));
                        }
                        _ => {
                            input.take(bytes);
                            self.took(bytes, out, environment);
                        }
                    }
                }
                Incoming::End { stream } => {
                    self.incoming = Incoming::Frame;
                    if let Some(event) = self.on_end(stream, out, environment)? {
                        return Ok(Some(event));
                    }
                }
                Incoming::Preface(seen) => {
                    let wanted = &PREFACE[usize::from(seen)..];
                    let bytes = input.len().min(wanted.len());
                    if input.peek()[..bytes] != wanted[..bytes] {
                        return Err(Error::protocol("the connection preface is wrong"));
                    }
                    input.take(bytes);
                    if bytes < wanted.len() {
                        self.incoming = Incoming::Preface(seen + bytes as u8);
                        return Ok(None);
                    }
                    self.incoming = Incoming::Frame;
                }
                Incoming::Failed => {
                    input.take_all();
                    return Ok(None);
                }
            }
        }
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
    fn credit(
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
            self.receive_window += self.receive_credit as i32;
            self.receive_credit = 0;
        }
        if let Some(slot) = self.streams.slot_of(stream)
            && let Some(stream) = self.streams.get_mut(slot)
        {
            stream.receive_credit += bytes;
            stream.since_ms = environment.now_ms;
            self.grant(slot, out, environment);
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
            && stream.outgoing != Outgoing::Finished
        {
            frame::write_window_update(out, stream.id, stream.receive_credit);
            stream.receive_window += stream.receive_credit as i32;
            stream.receive_credit = 0;
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
            stream.is_held = is_held;
            self.grant(slot, out, environment);
        }
    }

    /// False once nobody reads the request's body any more.
    fn wants_data(&self, slot: usize) -> bool {
        self.streams
            .get(slot)
            .is_some_and(|stream| stream.is_receiving && stream.outgoing != Outgoing::Finished)
    }

    /// What may come when, whatever it is.
    fn check_order(&mut self, header: &Header) -> Result<(), Error> {
        if !self.has_settings {
            if header.kind != frame::SETTINGS || header.has(frame::ACK) {
                return Err(Error::protocol("the first frame is not SETTINGS"));
            }
            self.has_settings = true;
        }
        if let Some(block) = &self.block
            && (header.kind != frame::CONTINUATION || header.stream != block.stream)
        {
            return Err(Error::protocol("another frame within a header block"));
        }
        Ok(())
    }

    /// A frame that may be of no use.
    fn count_useless(&mut self, environment: &Environment<'_>) -> Result<(), Error> {
        let options = &environment.options;
        let bucket = &mut self.guard.control;
        if bucket.fill(environment.now_ms, options.control_burst, options.control_per_second) {
            Ok(())
        } else {
            Err(Error::too_much("too many frames without use"))
        }
    }

    /// A stream that came to nothing by the client's doing.
    fn count_reset(&mut self, environment: &Environment<'_>) -> Result<(), Error> {
        let options = &environment.options;
        let bucket = &mut self.guard.resets;
        if bucket.fill(environment.now_ms, options.reset_burst, options.resets_per_second) {
            Ok(())
        } else {
            Err(Error::too_much("too many streams were reset"))
        }
    }

    fn on_frame(
        &mut self,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
        fields: &mut Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        match header.kind {
            frame::HEADERS => return self.on_headers(header, payload, out, fields, environment),
            frame::CONTINUATION => {
                return self.on_continuation(header, payload, out, fields, environment);
            }
            frame::RST_STREAM => return self.on_reset(header, payload, environment),
            frame::WINDOW_UPDATE => {
                return self.on_window_update(header, payload, out, environment);
            }
            frame::SETTINGS => return self.on_settings(header, payload, out, environment),
            frame::PRIORITY => {
                if header.stream == 0 {
                    return Err(Error::protocol("PRIORITY without a stream"));
                }
                self.count_useless(environment)?;
                if header.length != 5 {
                    return self.fail_stream(header.stream, ErrorCode::FrameSize, out, environment);
                }
                if frame::word(payload) & MAX_WINDOW == header.stream {
                    return self.fail_stream(header.stream, ErrorCode::Protocol, out, environment);
                }
            }
            frame::PING => {
                if header.stream != 0 {
                    return Err(Error::protocol("PING on a stream"));
                }
                if header.length != 8 {
                    return Err(Error::frame_size("PING without 8 bytes"));
                }
                self.count_useless(environment)?;
                if !header.has(frame::ACK) {
                    frame::write(out, frame::PING, frame::ACK, 0, payload);
                } else if payload == FAREWELL_PING && self.farewell == Farewell::Announced {
                    // The client has seen the first GOAWAY: what it has begun by now is the last.
                    frame::write_goaway(out, self.last_stream, ErrorCode::NoError, "");
                    self.farewell = Farewell::Said { last_stream: self.last_stream };
                }
            }
            frame::GOAWAY => {
                if header.stream != 0 {
                    return Err(Error::protocol("GOAWAY on a stream"));
                }
                if header.length < 8 {
                    return Err(Error::frame_size("GOAWAY of less than 8 bytes"));
                }
                self.count_useless(environment)?;
            }
            frame::PUSH_PROMISE => return Err(Error::protocol("PUSH_PROMISE from a client")),
            // §5.5: unknown ones are ignored; PRIORITY_UPDATE (RFC 9218) is among them.
            _ => self.count_useless(environment)?,
        }
        Ok(None)
    }

    // ---- DATA (§6.1)

    fn on_data(
        &mut self,
        header: &Header,
        padding: Option<u8>,
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
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
            self.count_useless(environment)?;
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
                stream.receive_window -= length as i32;
                stream.received += u64::from(left);
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
                    && stream.received > environment.limits.max_body_bytes
                    && stream.outgoing != Outgoing::Finished;
                if let Some(code) = code {
                    event = self.fail_stream(header.stream, code, out, environment)?;
                } else if is_too_long {
                    event = self.refuse_body(slot, out, environment);
                } else if let Incoming::Data { stream, .. } = &mut incoming {
                    *stream = header.stream;
                }
            }
            None if header.stream > self.last_stream || header.stream.is_multiple_of(2) => {
                return Err(Error::protocol("DATA on an idle stream"));
            }
            None if self.remembered.contains(&header.stream) || self.is_beyond(header.stream) => {}
            None => {
                event =
                    self.fail_stream(header.stream, ErrorCode::StreamClosed, out, environment)?;
            }
        }
        self.incoming = incoming;
        if padding.is_some() {
            let of = if let Incoming::Data { stream, .. } = incoming { stream } else { 0 };
            self.credit(of, 1, out, environment);
        }
        Ok(event)
    }

    /// A body above the limit: 413 where that is still possible.
    fn refuse_body(
        &mut self,
        slot: usize,
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) -> Option<Event> {
        if self.is_response_due(slot) {
            let body = b"413 Content Too Large\n";
            let _ = self.respond(slot, out, 413, &[], body, environment);
        } else {
            self.reset_stream(slot, ErrorCode::Cancel, out);
        }
        Some(Event::Reset { slot })
    }

    /// The client's direction has ended.
    fn on_end(
        &mut self,
        id: u32,
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        let Some(slot) = self.streams.slot_of(id) else { return Ok(None) };
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(None) };
        if stream.announced.is_some_and(|announced| announced != stream.received) {
            return self.fail_stream(id, ErrorCode::Protocol, out, environment); // §8.1.1
        }
        stream.is_receiving = false;
        stream.since_ms = environment.now_ms;
        if stream.outgoing == Outgoing::Finished {
            self.close_if_done(slot, out);
            return Ok(None);
        }
        Ok(Some(Event::End { slot }))
    }

    // ---- HEADERS, CONTINUATION (§6.2, §6.10)

    fn on_headers(
        &mut self,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
        fields: &mut Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        let id = header.stream;
        if id.is_multiple_of(2) {
            return Err(Error::protocol("HEADERS on a stream that no client may open"));
        }
        let mut block = payload;
        if header.has(frame::PADDED) {
            let (padding, rest) =
                block.split_first().ok_or(Error::frame_size("padding in a frame without bytes"))?;
            let length = rest
                .len()
                .checked_sub(usize::from(*padding))
                .ok_or(Error::protocol("more padding than payload"))?;
            block = &rest[..length];
        }
        let mut depends_on_itself = false;
        if header.has(frame::PRIORITY_FIELDS) {
            let (fields, rest) = block
                .split_at_checked(5)
                .ok_or(Error::frame_size("HEADERS too short for its priority"))?;
            depends_on_itself = frame::word(fields) & MAX_WINDOW == id;
            block = rest;
        }
        let end_stream = header.has(frame::END_STREAM);
        if id <= self.last_stream {
            let is_receiving = self
                .streams
                .slot_of(id)
                .and_then(|slot| self.streams.get(slot))
                .map(|stream| stream.is_receiving);
            let is_known = is_receiving == Some(true) || self.remembered.contains(&id);
            if !is_known && !self.is_beyond(id) {
                let is_closed = is_receiving.is_some() || id == self.last_stream;
                return Err(Error {
                    code: if is_closed { ErrorCode::StreamClosed } else { ErrorCode::Protocol },
                    reason: "HEADERS on a closed stream",
                });
            }
        }
        if depends_on_itself && id > self.last_stream {
            // RFC 7540 §5.3.1; the block is decoded all the same below, on the way to the error.
            self.last_stream = id;
            self.remember(id);
            frame::write_reset(out, id, ErrorCode::Protocol);
            self.count_reset(environment)?;
        }
        if !header.has(frame::END_HEADERS) {
            self.block = Some(Box::new(Block {
                stream: id,
                end_stream,
                continuations: 0,
                bytes: block.to_vec(),
            }));
            return Ok(None);
        }
        self.on_block(id, end_stream, block, out, fields, environment)
    }

    fn on_continuation(
        &mut self,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
        fields: &mut Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        let Some(mut block) = self.block.take() else {
            return Err(Error::protocol("CONTINUATION without a header block"));
        };
        block.continuations += 1;
        // One that is only too large for the service is decoded all the same, and refused by status.
        let most = BLOCKS_OF_HEAD_LIMIT * environment.limits.max_head_bytes as usize;
        if block.continuations > MAX_CONTINUATIONS || block.bytes.len() + payload.len() > most {
            return Err(Error::too_much("a header block above the limit"));
        }
        if payload.is_empty() {
            self.count_useless(environment)?;
        }
        block.bytes.extend_from_slice(payload);
        if !header.has(frame::END_HEADERS) {
            self.block = Some(block);
            return Ok(None);
        }
        self.on_block(block.stream, block.end_stream, &block.bytes, out, fields, environment)
    }

    /// A whole header block: it is decoded whatever becomes of it, because the table must stay the
    /// client's (§4.3).
    fn on_block(
        &mut self,
        id: u32,
        end_stream: bool,
        block: &[u8],
        out: &mut Vec<u8>,
        fields: &mut Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        let limits = &environment.limits;
        fields.clear();
        let list_limits = hpack::Limits {
            max_list_bytes: limits.max_head_bytes as usize,
            max_count: usize::from(limits.max_header_count).saturating_add(5),
        };
        if self.decoder.decode(block, &list_limits, fields).is_err() {
            let reason = "a header block that cannot be decoded";
            return Err(Error { code: ErrorCode::Compression, reason });
        }
        if id <= self.last_stream {
            return self.on_trailers(id, end_stream, out, fields, environment);
        }
        self.last_stream = id;
        if self.is_beyond(id) {
            return Ok(None); // §6.8: it will be sent again, to somebody else
        }
        if self.streams.len() >= environment.options.max_streams as usize {
            return self.fail_stream(id, ErrorCode::RefusedStream, out, environment);
        }
        if fields.is_too_large() {
            self.open(id, end_stream, &Parts::default(), false, environment);
            self.refuse(id, 431, b"431 Request Header Fields Too Large\n", out, environment);
            return Ok(None);
        }
        let Ok(parts) = request::check(fields, end_stream) else {
            return self.fail_stream(id, ErrorCode::Protocol, out, environment);
        };
        let request = super::Request::new(fields, parts);
        let is_head = request.method() == "HEAD";
        let refusal: Option<(u16, &[u8])> =
            if request.target().len() > limits.max_target_bytes as usize {
                Some((414, b"414 URI Too Long\n"))
            } else if parts.announced.is_some_and(|length| length > limits.max_body_bytes) {
                Some((413, b"413 Content Too Large\n"))
            } else if request.method() == "CONNECT" && request.protocol() != Some("websocket") {
                Some((501, b"501 Not Implemented: only WebSockets are tunnelled\n"))
            } else {
                None
            };
        let slot = self.open(id, end_stream, &parts, is_head, environment);
        if let Some((status, body)) = refusal {
            self.refuse(id, status, body, out, environment);
            return Ok(None);
        }
        self.guard.control.excuse(EXCUSED_BY_REQUEST);
        if end_stream {
            self.incoming = Incoming::End { stream: id };
        }
        Ok(Some(Event::Request { slot, parts }))
    }

    fn open(
        &mut self,
        id: u32,
        end_stream: bool,
        parts: &Parts,
        is_head: bool,
        environment: &Environment<'_>,
    ) -> usize {
        self.streams.insert(Stream {
            id,
            is_receiving: !end_stream,
            is_head,
            send_window: self.peer.initial_window as i32,
            receive_window: self.local.initial_window as i32,
            announced: parts.announced,
            since_ms: environment.now_ms,
            ..Stream::VACANT
        })
    }

    /// Answers a request that no service will see. It counts as useless.
    fn refuse(
        &mut self,
        id: u32,
        status: u16,
        body: &[u8],
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) {
        if let Some(slot) = self.streams.slot_of(id) {
            let headers: [(&str, &[u8]); 1] = [("content-type", b"text/plain")];
            let _ = self.respond(slot, out, status, &headers, body, environment);
        }
    }

    fn on_trailers(
        &mut self,
        id: u32,
        end_stream: bool,
        out: &mut Vec<u8>,
        fields: &Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        if self.streams.slot_of(id).is_none() {
            return Ok(None); // reset a moment ago
        }
        // §8.1: they end the request.
        if !end_stream || fields.is_too_large() || request::check_trailers(fields).is_err() {
            return self.fail_stream(id, ErrorCode::Protocol, out, environment);
        }
        self.on_end(id, out, environment)
    }

    /// True for streams that were opened after our last GOAWAY was heard.
    fn is_beyond(&self, id: u32) -> bool {
        matches!(self.farewell, Farewell::Said { last_stream } if id > last_stream)
    }

    // ---- RST_STREAM (§6.4), WINDOW_UPDATE (§6.9), SETTINGS (§6.5)

    fn on_reset(
        &mut self,
        header: &Header,
        payload: &[u8],
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        if header.stream == 0 {
            return Err(Error::protocol("RST_STREAM without a stream"));
        }
        if payload.len() != 4 {
            return Err(Error::frame_size("RST_STREAM without 4 bytes"));
        }
        if header.stream > self.last_stream || header.stream.is_multiple_of(2) {
            return Err(Error::protocol("RST_STREAM on an idle stream"));
        }
        let Some(slot) = self.streams.slot_of(header.stream) else {
            self.count_useless(environment)?;
            return Ok(None);
        };
        self.count_reset(environment)?;
        let was_over = self.is_exchange_over(slot);
        self.streams.remove(slot);
        Ok((!was_over).then_some(Event::Reset { slot }))
    }

    fn on_window_update(
        &mut self,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        if payload.len() != 4 {
            return Err(Error::frame_size("WINDOW_UPDATE without 4 bytes"));
        }
        let increment = frame::word(payload) & MAX_WINDOW;
        if increment < TINY_INCREMENT {
            self.count_useless(environment)?;
        }
        if header.stream == 0 {
            if increment == 0 {
                return Err(Error::protocol("WINDOW_UPDATE by 0"));
            }
            self.send_window = self.send_window.checked_add(increment as i32).ok_or(Error {
                code: ErrorCode::FlowControl,
                reason: "the connection's window is above 2^31-1",
            })?;
            return Ok(None);
        }
        if header.stream > self.last_stream || header.stream.is_multiple_of(2) {
            return Err(Error::protocol("WINDOW_UPDATE on an idle stream"));
        }
        let Some(slot) = self.streams.slot_of(header.stream) else { return Ok(None) };
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(None) };
        if increment == 0 {
            return self.fail_stream(header.stream, ErrorCode::Protocol, out, environment);
        }
        match stream.send_window.checked_add(increment as i32) {
            Some(window) => stream.send_window = window,
            None => {
                return self.fail_stream(header.stream, ErrorCode::FlowControl, out, environment);
            }
        }
        Ok(None)
    }

    fn on_settings(
        &mut self,
        header: &Header,
        payload: &[u8],
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        if header.stream != 0 {
            return Err(Error::protocol("SETTINGS on a stream"));
        }
        self.count_useless(environment)?;
        if header.has(frame::ACK) {
            if !payload.is_empty() {
                return Err(Error::frame_size("an acknowledgement of SETTINGS with a payload"));
            }
            if let Some(acknowledged) = self.pending_settings.pop_front() {
                let delta =
                    i64::from(acknowledged.initial_window) - i64::from(self.local.initial_window);
                self.local = acknowledged;
                for stream in self.streams.iter_mut() {
                    let window = i64::from(stream.receive_window) + delta;
                    stream.receive_window =
                        window.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
                }
            }
            return Ok(None);
        }
        if !payload.len().is_multiple_of(6) {
            return Err(Error::frame_size("SETTINGS of a length that is no multiple of 6"));
        }
        let changes = self.peer.apply(payload)?;
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
        frame::write(out, frame::SETTINGS, frame::ACK, 0, &[]);
        Ok(None)
    }

    // ---- Streams that end early

    /// A stream error (§5.4.2): the client's fault.
    fn fail_stream(
        &mut self,
        id: u32,
        code: ErrorCode,
        out: &mut Vec<u8>,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        self.count_reset(environment)?;
        frame::write_reset(out, id, code);
        self.remember(id);
        let Some(slot) = self.streams.slot_of(id) else { return Ok(None) };
        let was_over = self.is_exchange_over(slot);
        self.streams.remove(slot);
        Ok((!was_over).then_some(Event::Reset { slot }))
    }

    /// Frames of that stream may be on their way.
    pub(super) fn remember(&mut self, id: u32) {
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(id);
    }
}
