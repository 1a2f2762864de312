//! Header blocks that come in: requests and trailers (RFC 9113 §6.2, §6.10, §8.1).
//!
//! Must not know: what the fields of a request mean (see `request.rs`).

use super::super::hpack;
use super::frame::{self, Frame};
use super::receive::{Handled, Turn};
use super::request::{self, Parts};
use super::{
    Block, Environment, Error, ErrorCode, Event, Farewell, Http2, Incoming, MAX_CONTINUATIONS,
    MAX_WINDOW, Stream,
};

/// Useless frames that a useful one makes up for.
const EXCUSED_BY_REQUEST: u32 = 4;

/// Header blocks are read up to so many times the limit of a head.
const BLOCKS_OF_HEAD_LIMIT: usize = 4;

impl Http2 {
    pub(super) fn on_headers(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Handled {
        let id = frame.header.stream;
        if id.is_multiple_of(2) {
            return Err(Error::protocol("HEADERS on a stream that no client may open"));
        }
        let mut block = frame.payload;
        if frame.header.has(frame::PADDED) {
            let (padding, rest) =
                block.split_first().ok_or(Error::frame_size("padding in a frame without bytes"))?;
            let length = rest
                .len()
                .checked_sub(usize::from(*padding))
                .ok_or(Error::protocol("more padding than payload"))?;
            block = &rest[..length];
        }
        let mut depends_on_itself = false;
        if frame.header.has(frame::PRIORITY_FIELDS) {
            let (priority, rest) = block
                .split_at_checked(5)
                .ok_or(Error::frame_size("HEADERS too short for its priority"))?;
            depends_on_itself = frame::word(priority) & MAX_WINDOW == id;
            block = rest;
        }
        let end_stream = frame.header.has(frame::END_STREAM);
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
            frame::write_reset(turn.out, id, ErrorCode::Protocol);
            self.guard.count_reset(turn.environment)?;
        }
        if !frame.header.has(frame::END_HEADERS) {
            self.block = Some(Box::new(Block {
                stream: id,
                end_stream,
                continuations: 0,
                bytes: block.to_vec(),
            }));
            return Ok(None);
        }
        self.on_block(id, end_stream, block, turn)
    }

    pub(super) fn on_continuation(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Handled {
        let Some(mut block) = self.block.take() else {
            return Err(Error::protocol("CONTINUATION without a header block"));
        };
        block.continuations += 1;
        // One that is only too large for the service is decoded all the same, and refused by status.
        let most = BLOCKS_OF_HEAD_LIMIT * turn.environment.limits.max_head_bytes as usize;
        let bytes = block.bytes.len() + frame.payload.len();
        if block.continuations > MAX_CONTINUATIONS || bytes > most {
            return Err(Error::too_much("a header block above the limit"));
        }
        if frame.payload.is_empty() {
            self.guard.count_useless(turn.environment)?;
        }
        block.bytes.extend_from_slice(frame.payload);
        if !frame.header.has(frame::END_HEADERS) {
            self.block = Some(block);
            return Ok(None);
        }
        self.on_block(block.stream, block.end_stream, &block.bytes, turn)
    }

    /// A whole header block: it is decoded whatever becomes of it, because the table must stay the
    /// client's (§4.3).
    fn on_block(
        &mut self,
        id: u32,
        end_stream: bool,
        block: &[u8],
        turn: &mut Turn<'_>,
    ) -> Handled {
        let limits = &turn.environment.limits;
        turn.fields.clear();
        let list_limits = hpack::Limits {
            max_list_bytes: limits.max_head_bytes as usize,
            max_count: usize::from(limits.max_header_count).saturating_add(5),
        };
        if self.decoder.decode(block, &list_limits, turn.fields).is_err() {
            let reason = "a header block that cannot be decoded";
            return Err(Error { code: ErrorCode::Compression, reason });
        }
        if id <= self.last_stream {
            return self.on_trailers(id, end_stream, turn);
        }
        self.last_stream = id;
        if self.is_beyond(id) {
            return Ok(None); // §6.8: it will be sent again, to somebody else
        }
        if self.streams.len() >= turn.environment.options.max_streams as usize {
            return self.fail_stream(id, ErrorCode::RefusedStream, turn);
        }
        if turn.fields.is_too_large() {
            self.open(id, end_stream, &Parts::default(), false, turn.environment);
            self.refuse(id, 431, b"431 Request Header Fields Too Large\n", turn);
            return Ok(None);
        }
        let Ok(parts) = request::check(turn.fields, end_stream) else {
            return self.fail_stream(id, ErrorCode::Protocol, turn);
        };
        let request = super::Request::new(turn.fields, parts);
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
        let slot = self.open(id, end_stream, &parts, is_head, turn.environment);
        if let Some((status, body)) = refusal {
            self.refuse(id, status, body, turn);
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

    /// Answers a request that no service will see.
    fn refuse(&mut self, id: u32, status: u16, body: &[u8], turn: &mut Turn<'_>) {
        if let Some(slot) = self.streams.slot_of(id) {
            let headers: [(&str, &[u8]); 1] = [("content-type", b"text/plain")];
            let _ = self.respond(slot, turn.out, status, &headers, body, turn.environment);
        }
    }

    fn on_trailers(&mut self, id: u32, end_stream: bool, turn: &mut Turn<'_>) -> Handled {
        if self.streams.slot_of(id).is_none() {
            return Ok(None); // reset a moment ago
        }
        // §8.1: they end the request.
        let fields = &*turn.fields;
        if !end_stream || fields.is_too_large() || request::check_trailers(fields).is_err() {
            return self.fail_stream(id, ErrorCode::Protocol, turn);
        }
        self.on_end(id, turn)
    }

    /// True for streams that were opened after our last GOAWAY was heard.
    pub(super) fn is_beyond(&self, id: u32) -> bool {
        matches!(self.farewell, Farewell::Said { last_stream } if id > last_stream)
    }
}
