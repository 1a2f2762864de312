//! The server's side of one WebSocket (RFC 6455) with permessage-deflate (RFC 7692).
//!
//! [`handshake`] decides about the upgrade request; afterwards a [`WebSocket`] turns input into
//! [`Event`]s and messages into output. A whole uncompressed frame is unmasked where it lies and
//! lent to the event; nothing is allocated for it. A message that arrives in pieces, or compressed,
//! is put together in a vector that grows with what has arrived, and given away with the event.
//!
//! The machine answers nothing by itself: the caller echoes a ping's payload with
//! [`WebSocket::write_pong`] and a close with [`WebSocket::write_close`], and after an [`Error`]
//! sends a close with its code. All of its state can be saved at any moment (see `persist.rs`).
//!
//! Must not know: HTTP parsing, I/O, clocks, what the messages mean.

mod deflate;
mod frame;
pub mod handshake;
mod mask;
mod negotiation;
mod persist;
#[cfg(test)]
mod tests;
mod utf8;
mod write;

use serde::{Deserialize, Serialize};

use self::deflate::Deflate;
use self::frame::Header;
use self::utf8::Utf8;
use super::{Input, Payload};

pub use self::negotiation::{DeflateOptions, DeflateParams};
pub use self::persist::{
    DeflateState, FrameProgress, MessageProgress, RestoreError, TAIL_PARTS, WebSocketHead,
    WebSocketState,
};

/// What a client may make the machine hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// One message after reassembly and inflation, in bytes; a longer one is an error with close
    /// code 1009.
    pub max_message_bytes: u64,
}

/// So many bytes, and what one further piece of input gives (at most half a mebibyte), one call inflates.
pub const SLICE_BYTES: usize = 512 << 10;

/// Compressed bytes that are inflated at once: deflate makes a byte into 1,032 at most.
const INFLATED_AT_ONCE: usize = 512;

/// Whether a message is text (valid UTF-8) or binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageKind {
    /// Valid UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// What has arrived.
#[derive(Debug)]
pub enum Event<'b> {
    /// A whole message.
    Message {
        /// Text payloads have been validated.
        kind: MessageKind,
        /// The message.
        payload: Payload<'b>,
    },
    /// A ping, at most 125 bytes; to be answered with a pong of the same payload.
    Ping(Payload<'b>),
    /// A pong, asked for or not.
    Pong(Payload<'b>),
    /// The client's close frame. The machine ignores all further input.
    Close {
        /// The code, valid on the wire; absent if the frame was empty.
        code: Option<u16>,
        /// Valid UTF-8, at most 123 bytes.
        reason: Payload<'b>,
    },
}

/// The client broke the protocol, or a limit. The machine ignores all further input; the caller
/// sends a close frame with this code and ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (close code {close_code})")]
pub struct Error {
    /// The close code to send: 1002, 1007 or 1009.
    pub close_code: u16,
    /// For the close frame and for people.
    pub reason: &'static str,
}

impl Error {
    pub(self) const fn protocol(reason: &'static str) -> Self {
        Self { close_code: 1002, reason }
    }

    pub(self) const fn invalid_data(reason: &'static str) -> Self {
        Self { close_code: 1007, reason }
    }

    pub(self) const TOO_BIG: Self = Self { close_code: 1009, reason: "message too big" };
    pub(self) const NOT_UTF8: Self = Self::invalid_data("text is not valid UTF-8");
}

/// The message whose first frame has begun and whose last has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Current {
    kind: MessageKind,
    compressed: bool,
}

/// The server's side of one WebSocket after the handshake.
///
/// 64 bytes; more only while a message is half here, or once a compressed one has passed.
pub struct WebSocket {
    /// What has arrived of the current message, unmasked and inflated.
    assembly: Vec<u8>,
    /// Made by the first compressed message in either direction.
    deflate: Option<Box<Deflate>>,
    /// Bytes of the current data frame that have not arrived; 0 between frames.
    remaining: u64,
    /// Mask of the current data frame, turned so that it begins with the next byte's.
    mask: [u8; 4],
    /// Where `assembly` ends, if the current message is text.
    utf8: Utf8,
    params: Option<DeflateParams>,
    current: Option<Current>,
    /// The current data frame is its message's last.
    last: bool,
    close_sent: bool,
    close_received: bool,
    failed: bool,
}

const _: () = assert!(size_of::<WebSocket>() <= 64);

impl WebSocket {
    /// A machine at the first byte after the handshake, with the compression that was negotiated.
    pub fn new(deflate: Option<DeflateParams>) -> Self {
        Self {
            assembly: Vec::new(),
            deflate: None,
            remaining: 0,
            mask: [0; 4],
            utf8: Utf8::default(),
            params: deflate,
            current: None,
            last: false,
            close_sent: false,
            close_received: false,
            failed: false,
        }
    }

    /// Takes the next event from the front of `input`; `None` when more bytes are needed, or when one
    /// call has inflated enough: see [`WebSocket::is_sliced`].
    ///
    /// What is left in the input then is an incomplete frame header, or an incomplete control
    /// frame; see [`WebSocket::wanted`]. After a close frame or an error all input is discarded.
    #[inline]
    pub fn next_event<'b>(
        &mut self,
        input: &mut Input<'b>,
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Error> {
        if self.close_received || self.failed {
            input.take_all();
            return Ok(None);
        }
        let event = self.advance(input, limits);
        if event.is_err() {
            self.failed = true;
            self.forget_message();
            input.take_all();
        }
        event
    }

    /// How many more bytes would be worth having behind `leftover`, what [`Self::next_event`] left
    /// in the input: they complete its header, or all of the frame if that is short. With this a
    /// caller tops a leftover up from the next receive instead of moving all of that receive.
    pub fn wanted(&self, leftover: &[u8]) -> usize {
        const SHORT_FRAME_BYTES: u64 = 4096;
        if self.remaining > 0 || self.close_received || self.failed {
            return 0;
        }
        let whole = match frame::parse(leftover) {
            Ok(Some(header)) if header.payload_bytes <= SHORT_FRAME_BYTES => {
                header.header_bytes + header.payload_bytes as usize
            }
            _ => frame::header_bytes(leftover),
        };
        whole.saturating_sub(leftover.len())
    }

    /// True if the last call has stopped in the middle of a frame, part of which is still in the input:
    /// it had inflated [`SLICE_BYTES`]. The next call goes on. What is left is as if it had not arrived.
    pub fn is_sliced(&self, input: &Input<'_>) -> bool {
        self.is_inside() && !input.is_empty()
    }

    /// True if the payload of a data frame goes on.
    pub fn is_inside(&self) -> bool {
        self.remaining > 0 && !self.close_received && !self.failed
    }

    /// True when no message and no frame is in progress.
    pub fn is_idle(&self) -> bool {
        self.current.is_none() && self.remaining == 0
    }

    /// True once the client's close frame has arrived.
    pub fn close_received(&self) -> bool {
        self.close_received
    }

    /// True once [`Self::write_close`] has been called: nothing more is written.
    pub fn close_sent(&self) -> bool {
        self.close_sent
    }

    /// True after [`Self::next_event`] returned an error.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// The compression that was negotiated.
    pub fn deflate_params(&self) -> Option<DeflateParams> {
        self.params
    }

    /// Heap bytes held, zlib's contexts included.
    pub fn heap_bytes(&self) -> usize {
        let deflate_bytes = match (&self.deflate, self.params) {
            (Some(deflate), Some(params)) => deflate.heap_bytes(params),
            _ => 0,
        };
        self.assembly.capacity() + deflate_bytes
    }

    /// Bytes held of a message in progress, as they came and inflated.
    #[inline]
    pub fn held_bytes(&self) -> usize {
        let compressed = self.deflate.as_ref().map_or(0, |deflate| deflate.compressed().len());
        self.assembly.len() + compressed
    }

    /// Frees the zlib contexts (340 KB with full windows) of a connection that has been quiet for a while. The
    /// windows' contents stay (at most 32 KiB a direction), and new contexts are made from them
    /// when they are needed: the client notices nothing.
    pub fn release_contexts(&mut self) {
        let receiving = self.current.is_some_and(|current| current.compressed);
        if let Some(deflate) = &mut self.deflate {
            deflate.release_contexts(receiving);
            if deflate.is_empty() && !receiving {
                self.deflate = None;
            }
        }
    }

    #[inline]
    fn advance<'b>(
        &mut self,
        input: &mut Input<'b>,
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Error> {
        if self.remaining > 0
            && let Some(event) = self.continue_frame(input, limits)?
        {
            return Ok(Some(event));
        }
        // A frame that has begun needs more bytes, or has had its slice.
        while self.remaining == 0 {
            let Some(header) = frame::parse(input.peek())? else { return Ok(None) };
            if self.is_plain_message(&header, input.len()) {
                if header.payload_bytes > limits.max_message_bytes {
                    return Err(Error::TOO_BIG);
                }
                return Self::plain_message(input, &header).map(Some);
            }
            let event = if header.is_control() {
                if input.len() < header.header_bytes + header.payload_bytes as usize {
                    return Ok(None);
                }
                Some(self.control_frame(input, &header)?)
            } else {
                self.begin_frame(input, &header, limits)?
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// True if the frame is a whole uncompressed message, and all of it is here.
    #[inline]
    fn is_plain_message(&self, header: &Header, input_bytes: usize) -> bool {
        header.fin
            && !header.rsv1
            && matches!(header.opcode, frame::TEXT | frame::BINARY)
            && self.current.is_none()
            && header.payload_bytes <= (input_bytes - header.header_bytes) as u64
    }

    #[inline]
    fn plain_message<'b>(input: &mut Input<'b>, header: &Header) -> Result<Event<'b>, Error> {
        let frame = input.take(header.header_bytes + header.payload_bytes as usize);
        let payload = &mut frame[header.header_bytes..];
        mask::apply(header.mask, payload);
        let kind = if header.opcode == frame::TEXT {
            if !utf8::is_valid(payload) {
                return Err(Error::NOT_UTF8);
            }
            MessageKind::Text
        } else {
            MessageKind::Binary
        };
        Ok(Event::Message { kind, payload: Payload::Borrowed(payload) })
    }

    /// RFC 6455 §5.5; `input` holds the whole frame.
    fn control_frame<'b>(
        &mut self,
        input: &mut Input<'b>,
        header: &Header,
    ) -> Result<Event<'b>, Error> {
        let frame = input.take(header.header_bytes + header.payload_bytes as usize);
        let payload = &mut frame[header.header_bytes..];
        mask::apply(header.mask, payload);
        match header.opcode {
            frame::PING => Ok(Event::Ping(Payload::Borrowed(payload))),
            frame::PONG => Ok(Event::Pong(Payload::Borrowed(payload))),
            _ => {
                let (code, reason) = match *payload {
                    [] => (None, payload),
                    [_] => return Err(Error::protocol("close frame with one byte")),
                    [high, low, ..] => (Some(u16::from_be_bytes([high, low])), &mut payload[2..]),
                };
                if code.is_some_and(|code| !frame::is_close_code(code)) {
                    return Err(Error::protocol("invalid close code"));
                }
                if !utf8::is_valid(reason) {
                    return Err(Error::invalid_data("close reason is not valid UTF-8"));
                }
                self.close_received = true;
                self.forget_message();
                Ok(Event::Close { code, reason: Payload::Borrowed(reason) })
            }
        }
    }

    /// A data frame that is not a plain message: checks its header, takes it, and what has arrived
    /// of the payload.
    fn begin_frame<'b>(
        &mut self,
        input: &mut Input<'b>,
        header: &Header,
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Error> {
        let current = match (header.opcode, self.current) {
            (frame::CONTINUATION, None) => {
                return Err(Error::protocol("continuation without a message"));
            }
            (frame::CONTINUATION, Some(_)) if header.rsv1 => {
                return Err(Error::protocol("compression bit on a continuation"));
            }
            (frame::CONTINUATION, Some(current)) => current,
            (_, Some(_)) => return Err(Error::protocol("new message inside a fragmented one")),
            (_, None) if header.rsv1 && self.params.is_none() => {
                return Err(Error::protocol("compression was not negotiated"));
            }
            (opcode, None) => Current {
                kind: if opcode == frame::TEXT { MessageKind::Text } else { MessageKind::Binary },
                compressed: header.rsv1,
            },
        };
        let (held, most) = if current.compressed {
            let held = self.deflate.as_ref().map_or(0, |deflate| deflate.compressed().len());
            (held as u64, deflate::max_compressed_bytes(limits))
        } else {
            (self.assembly.len() as u64, limits.max_message_bytes)
        };
        if header.payload_bytes > most.saturating_sub(held) {
            return Err(Error::TOO_BIG);
        }
        input.take(header.header_bytes);
        self.current = Some(current);
        self.last = header.fin;
        self.remaining = header.payload_bytes;
        self.mask = header.mask;
        self.continue_frame(input, limits)
    }

    /// Takes what has arrived of the current data frame; the message, if that was its end.
    fn continue_frame<'b>(
        &mut self,
        input: &mut Input<'b>,
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Error> {
        let Some(current) = self.current else { return Ok(None) };
        let validated = self.assembly.len();
        let arrived = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len());
        let taken = if current.compressed {
            self.inflate(input.front_mut(arrived), limits)?
        } else {
            let bytes = input.front_mut(arrived);
            mask::apply(self.mask, bytes);
            self.reserve(arrived);
            self.assembly.extend_from_slice(bytes);
            arrived
        };
        self.mask = mask::advance(self.mask, taken);
        self.remaining -= taken as u64;
        let bytes = input.take(taken);
        let is_end = self.remaining == 0 && self.last;
        if let (true, Some(params), Some(deflate)) =
            (current.compressed, self.params, &mut self.deflate)
        {
            if is_end {
                deflate.end_message(params, &self.assembly)?;
            } else {
                deflate.keep_compressed(bytes);
            }
        }
        if current.kind == MessageKind::Text {
            self.utf8.feed(&self.assembly[validated..]).map_err(|_| Error::NOT_UTF8)?;
            if is_end && !self.utf8.is_complete() {
                return Err(Error::NOT_UTF8);
            }
        }
        if !is_end {
            return Ok(None);
        }
        self.current = None;
        self.utf8 = Utf8::default();
        let payload = Payload::Owned(std::mem::take(&mut self.assembly));
        Ok(Some(Event::Message { kind: current.kind, payload }))
    }

    /// Inflates the masked `bytes`, or as many of them as make a slice; returns how many, which are unmasked
    /// then. Little input may make much output (RFC 7692 §8), so it is worked off in small pieces.
    fn inflate(&mut self, bytes: &mut [u8], limits: &Limits) -> Result<usize, Error> {
        let params = self.params.ok_or(Error::protocol("compression was not negotiated"))?;
        mask::apply(self.mask, bytes);
        let deflate = self.deflate.get_or_insert_default();
        let enough = self.assembly.len() + SLICE_BYTES;
        let mut taken = 0;
        for piece in bytes.chunks(INFLATED_AT_ONCE) {
            if self.assembly.len() >= enough {
                break;
            }
            deflate.receive(params, piece, &mut self.assembly, limits)?;
            taken += piece.len();
        }
        mask::apply(mask::advance(self.mask, taken), &mut bytes[taken..]);
        Ok(taken)
    }

    /// Makes room for `count` bytes: never more than twice of what has arrived, whatever the frame
    /// announces, and no more than the message will need if that is known.
    fn reserve(&mut self, count: usize) {
        let needed = self.assembly.len() + count;
        if needed <= self.assembly.capacity() {
            return;
        }
        let mut room = needed.saturating_mul(2);
        if self.last {
            let rest = usize::try_from(self.remaining).unwrap_or(usize::MAX);
            room = room.min(needed.saturating_add(rest));
        }
        self.assembly.reserve_exact(room - self.assembly.len());
    }

    /// Frees all that is held for a message whose end nobody will see.
    fn forget_message(&mut self) {
        self.assembly = Vec::new();
        self.deflate = None;
        self.remaining = 0;
        self.mask = [0; 4];
        self.utf8 = Utf8::default();
        self.current = None;
        self.last = false;
    }
}
