//! The saved form of a [`WebSocket`], at any moment of its life.
//!
//! What a machine holds is small: the place in the current frame and message, and the bytes of a
//! message that are here already. UTF-8 progress and the zlib contexts are not saved but made
//! again: text is validated anew, and a context is a preset dictionary plus the compressed bytes of
//! the message in progress, fed once more. The bytes of an incomplete frame header are not here:
//! they are still in the caller's input.
//!
//! A record may be hostile: everything is checked against the others and against the limits.
//!
//! Must not know: the envelope and section tags around it.

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use super::deflate::{self, Deflate};
use super::{Current, DeflateParams, Error, Limits, MessageKind, WebSocket, utf8::Utf8};

/// The saved form of a [`WebSocket`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebSocketState {
    /// Our close frame has been written.
    pub close_sent: bool,
    /// The client's close frame has arrived.
    pub close_received: bool,
    /// The client broke the protocol; nothing more is read.
    pub failed: bool,
    /// permessage-deflate, if negotiated.
    pub deflate: Option<DeflateState>,
    /// The message in progress.
    pub message: Option<MessageProgress>,
    /// The data frame in progress.
    pub frame: Option<FrameProgress>,
}

/// permessage-deflate between two messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeflateState {
    /// What was negotiated.
    pub params: DeflateParams,
    /// The last window of plaintext from the client; empty without context takeover.
    #[serde(with = "base64_text")]
    pub incoming_history: Vec<u8>,
    /// The last window of plaintext to the client; empty without context takeover.
    #[serde(with = "base64_text")]
    pub outgoing_history: Vec<u8>,
}

/// A message whose first frame has begun and whose last has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageProgress {
    /// Text or binary.
    pub kind: MessageKind,
    /// The message is compressed, and so are `bytes`.
    pub compressed: bool,
    /// What has arrived of it, unmasked.
    #[serde(with = "base64_text")]
    pub bytes: Vec<u8>,
}

/// A data frame whose header has been taken and whose payload has not all arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameProgress {
    /// It is its message's last.
    pub last: bool,
    /// Payload bytes to come; at least 1.
    pub remaining: u64,
    /// The mask, turned so that it begins with the next byte's.
    pub mask: [u8; 4],
}

/// The fixed part of the binary encoding; the tail behind it is the client's history, our history
/// and the bytes of the message, one after the other. May grow at its end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct WebSocketHead {
    /// See [`FrameProgress::remaining`].
    pub remaining: u64,
    /// Length of [`MessageProgress::bytes`].
    pub message_bytes: u64,
    /// Length of [`DeflateState::incoming_history`].
    pub incoming_history_bytes: u32,
    /// Length of [`DeflateState::outgoing_history`].
    pub outgoing_history_bytes: u32,
    /// See [`FrameProgress::mask`].
    pub mask: [u8; 4],
    /// See the `FLAG` constants.
    pub flags: u16,
    /// See [`DeflateParams::server_window_bits`].
    pub server_window_bits: u8,
    /// See [`DeflateParams::client_window_bits`].
    pub client_window_bits: u8,
}

const _: () = assert!(size_of::<WebSocketHead>() == 32);

/// Slices that make up the tail of a record.
pub const TAIL_PARTS: usize = 5;

const FLAG_CLOSE_SENT: u16 = 1 << 0;
const FLAG_CLOSE_RECEIVED: u16 = 1 << 1;
const FLAG_FAILED: u16 = 1 << 2;
const FLAG_DEFLATE: u16 = 1 << 3;
const FLAG_SERVER_NO_CONTEXT_TAKEOVER: u16 = 1 << 4;
const FLAG_CLIENT_NO_CONTEXT_TAKEOVER: u16 = 1 << 5;
const FLAG_MESSAGE: u16 = 1 << 6;
const FLAG_TEXT: u16 = 1 << 7;
const FLAG_COMPRESSED: u16 = 1 << 8;
const FLAG_FRAME: u16 = 1 << 9;
const FLAG_LAST: u16 = 1 << 10;
const KNOWN_FLAGS: u16 = (1 << 11) - 1;

/// Why a record is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The record contradicts itself.
    #[error("WebSocket state: {0}")]
    Malformed(&'static str),
    /// The message in progress is over this process's limits.
    #[error("WebSocket state: the message in progress is over the limit")]
    TooBig,
    /// The message in progress could never have been accepted.
    #[error("WebSocket state: the message in progress: {0}")]
    Message(Error),
}

impl WebSocket {
    /// The complete state, copied.
    pub fn save(&self) -> WebSocketState {
        let (head, [incoming, incoming_end, outgoing, outgoing_end, message]) = self.save_parts();
        let flag = |flag: u16| head.flags & flag != 0;
        WebSocketState {
            close_sent: self.close_sent,
            close_received: self.close_received,
            failed: self.failed,
            deflate: self.params.map(|params| DeflateState {
                params,
                incoming_history: [incoming, incoming_end].concat(),
                outgoing_history: [outgoing, outgoing_end].concat(),
            }),
            message: self.current.map(|current| MessageProgress {
                kind: current.kind,
                compressed: current.compressed,
                bytes: message.to_vec(),
            }),
            frame: flag(FLAG_FRAME).then_some(FrameProgress {
                last: self.last,
                remaining: self.remaining,
                mask: self.mask,
            }),
        }
    }

    /// The complete state in its binary encoding, without a copy: the head, and the slices that
    /// make up the tail.
    pub fn save_parts(&self) -> (WebSocketHead, [&[u8]; TAIL_PARTS]) {
        let flag = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let mut head = WebSocketHead {
            flags: flag(self.close_sent, FLAG_CLOSE_SENT)
                | flag(self.close_received, FLAG_CLOSE_RECEIVED)
                | flag(self.failed, FLAG_FAILED),
            ..WebSocketHead::default()
        };
        let mut tail: [&[u8]; TAIL_PARTS] = [&[]; TAIL_PARTS];
        if let Some(params) = &self.params {
            head.set_params(params);
        }
        if let Some(deflate) = &self.deflate {
            (tail[0], tail[1]) = deflate.incoming().as_slices();
            (tail[2], tail[3]) = deflate.outgoing().as_slices();
            head.incoming_history_bytes = (tail[0].len() + tail[1].len()) as u32;
            head.outgoing_history_bytes = (tail[2].len() + tail[3].len()) as u32;
        }
        if let Some(current) = self.current {
            tail[4] = match &self.deflate {
                Some(deflate) if current.compressed => deflate.compressed(),
                _ => &self.assembly,
            };
            head.set_message(current.kind, current.compressed, tail[4].len());
        }
        if self.remaining > 0 {
            head.set_frame(&FrameProgress {
                last: self.last,
                remaining: self.remaining,
                mask: self.mask,
            });
        }
        (head, tail)
    }

    /// Bytes of the tail that [`Self::save_parts`] would yield.
    pub fn saved_bytes(&self) -> usize {
        if self.deflate.is_none() {
            return if self.current.is_some() { self.assembly.len() } else { 0 };
        }
        self.save_parts().1.iter().map(|part| part.len()).sum()
    }

    /// A machine that goes on where the saved one stopped. Whatever `state` holds, this is safe: it
    /// is refused unless the state could be that of a machine with these limits.
    pub fn restore(state: WebSocketState, limits: &Limits) -> Result<Self, RestoreError> {
        let ended = state.close_received || state.failed;
        if ended && (state.message.is_some() || state.frame.is_some()) {
            return Err(RestoreError::Malformed("a message after the end"));
        }
        let mut machine = WebSocket::new(None);
        machine.close_sent = state.close_sent;
        machine.close_received = state.close_received;
        machine.failed = state.failed;
        if let Some(saved) = state.deflate {
            machine.restore_deflate(saved)?;
        }
        let mut held = 0;
        let mut most = 0;
        if let Some(message) = state.message {
            held = message.bytes.len() as u64;
            most = match message.compressed {
                true => deflate::max_compressed_bytes(limits),
                false => limits.max_message_bytes,
            };
            if held > most {
                return Err(RestoreError::TooBig);
            }
            machine.restore_message(message, limits)?;
        }
        if let Some(frame) = state.frame {
            if machine.current.is_none() || frame.remaining == 0 {
                return Err(RestoreError::Malformed("a frame of no message"));
            }
            if frame.remaining > most - held {
                return Err(RestoreError::TooBig);
            }
            machine.remaining = frame.remaining;
            machine.mask = frame.mask;
            machine.last = frame.last;
        }
        Ok(machine)
    }

    fn restore_deflate(&mut self, saved: DeflateState) -> Result<(), RestoreError> {
        let params = saved.params;
        if !params.is_valid() {
            return Err(RestoreError::Malformed("window bits"));
        }
        let fits = |history: &[u8], no_context_takeover: bool, window_bytes: usize| {
            history.len() <= if no_context_takeover { 0 } else { window_bytes }
        };
        if !fits(
            &saved.incoming_history,
            params.client_no_context_takeover,
            params.client_window_bytes(),
        ) || !fits(
            &saved.outgoing_history,
            params.server_no_context_takeover,
            params.server_window_bytes(),
        ) {
            return Err(RestoreError::Malformed("history larger than its window"));
        }
        self.params = Some(params);
        if !saved.incoming_history.is_empty() || !saved.outgoing_history.is_empty() {
            let deflate = Deflate::from_saved(saved.incoming_history, saved.outgoing_history);
            self.deflate = Some(Box::new(deflate));
        }
        Ok(())
    }

    fn restore_message(
        &mut self,
        message: MessageProgress,
        limits: &Limits,
    ) -> Result<(), RestoreError> {
        if message.compressed {
            let Some(params) = self.params else {
                return Err(RestoreError::Malformed("compressed message without compression"));
            };
            let deflate = self.deflate.get_or_insert_default();
            deflate
                .receive(params, &message.bytes, &mut self.assembly, limits)
                .map_err(RestoreError::Message)?;
            deflate.set_compressed(message.bytes);
        } else {
            self.assembly = message.bytes;
        }
        self.utf8 = Utf8::default();
        if message.kind == MessageKind::Text && self.utf8.feed(&self.assembly).is_err() {
            return Err(RestoreError::Message(Error::NOT_UTF8));
        }
        self.current = Some(Current { kind: message.kind, compressed: message.compressed });
        Ok(())
    }
}

impl WebSocketHead {
    fn set_params(&mut self, params: &DeflateParams) {
        self.flags |= FLAG_DEFLATE;
        if params.server_no_context_takeover {
            self.flags |= FLAG_SERVER_NO_CONTEXT_TAKEOVER;
        }
        if params.client_no_context_takeover {
            self.flags |= FLAG_CLIENT_NO_CONTEXT_TAKEOVER;
        }
        self.server_window_bits = params.server_window_bits;
        self.client_window_bits = params.client_window_bits;
    }

    fn set_message(&mut self, kind: MessageKind, compressed: bool, bytes: usize) {
        self.flags |= FLAG_MESSAGE;
        if kind == MessageKind::Text {
            self.flags |= FLAG_TEXT;
        }
        if compressed {
            self.flags |= FLAG_COMPRESSED;
        }
        self.message_bytes = bytes as u64;
    }

    fn set_frame(&mut self, frame: &FrameProgress) {
        self.flags |= FLAG_FRAME;
        if frame.last {
            self.flags |= FLAG_LAST;
        }
        self.remaining = frame.remaining;
        self.mask = frame.mask;
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn params(&self) -> DeflateParams {
        DeflateParams {
            server_no_context_takeover: self.has(FLAG_SERVER_NO_CONTEXT_TAKEOVER),
            client_no_context_takeover: self.has(FLAG_CLIENT_NO_CONTEXT_TAKEOVER),
            server_window_bits: self.server_window_bits,
            client_window_bits: self.client_window_bits,
        }
    }
}

impl WebSocketState {
    /// The binary encoding of this state: the head, and the slices that make up the tail.
    pub fn parts(&self) -> (WebSocketHead, [&[u8]; 3]) {
        let flag = |condition: bool, flag: u16| if condition { flag } else { 0 };
        let mut head = WebSocketHead {
            flags: flag(self.close_sent, FLAG_CLOSE_SENT)
                | flag(self.close_received, FLAG_CLOSE_RECEIVED)
                | flag(self.failed, FLAG_FAILED),
            ..WebSocketHead::default()
        };
        let mut tail: [&[u8]; 3] = [&[]; 3];
        if let Some(deflate) = &self.deflate {
            head.set_params(&deflate.params);
            tail[0] = &deflate.incoming_history;
            tail[1] = &deflate.outgoing_history;
            head.incoming_history_bytes = tail[0].len() as u32;
            head.outgoing_history_bytes = tail[1].len() as u32;
        }
        if let Some(message) = &self.message {
            tail[2] = &message.bytes;
            head.set_message(message.kind, message.compressed, tail[2].len());
        }
        if let Some(frame) = &self.frame {
            head.set_frame(frame);
        }
        (head, tail)
    }

    /// Appends head and tail to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (head, tail) = self.parts();
        out.extend_from_slice(bytemuck::bytes_of(&head));
        tail.iter().for_each(|part| out.extend_from_slice(part));
    }

    /// Reads what [`Self::encode`] or [`WebSocket::save_parts`] wrote. Only the encoding is checked
    /// here; [`WebSocket::restore`] checks what it says.
    pub fn decode(head: &WebSocketHead, tail: &[u8]) -> Result<Self, RestoreError> {
        const MALFORMED: fn(&'static str) -> RestoreError = RestoreError::Malformed;
        if head.flags & !KNOWN_FLAGS != 0 {
            return Err(MALFORMED("unknown flag"));
        }
        let mut rest = tail;
        let mut part = |bytes: u64| -> Result<&[u8], RestoreError> {
            let bytes = usize::try_from(bytes).map_err(|_| MALFORMED("length"))?;
            let (part, behind) = rest.split_at_checked(bytes).ok_or(MALFORMED("length"))?;
            rest = behind;
            Ok(part)
        };
        let incoming = part(head.incoming_history_bytes.into())?;
        let outgoing = part(head.outgoing_history_bytes.into())?;
        let message = part(head.message_bytes)?;
        if !rest.is_empty() {
            return Err(MALFORMED("length"));
        }
        // What a flag does not announce must not be there: one state has one encoding.
        let no_deflate = WebSocketHead {
            flags: head.flags
                & !(FLAG_SERVER_NO_CONTEXT_TAKEOVER | FLAG_CLIENT_NO_CONTEXT_TAKEOVER),
            server_window_bits: 0,
            client_window_bits: 0,
            incoming_history_bytes: 0,
            outgoing_history_bytes: 0,
            ..*head
        };
        let no_message = WebSocketHead {
            flags: head.flags & !(FLAG_TEXT | FLAG_COMPRESSED),
            message_bytes: 0,
            ..*head
        };
        let no_frame =
            WebSocketHead { flags: head.flags & !FLAG_LAST, remaining: 0, mask: [0; 4], ..*head };
        for (flag, without) in
            [(FLAG_DEFLATE, no_deflate), (FLAG_MESSAGE, no_message), (FLAG_FRAME, no_frame)]
        {
            if !head.has(flag) && *head != without {
                return Err(MALFORMED("unannounced part"));
            }
        }
        Ok(Self {
            close_sent: head.has(FLAG_CLOSE_SENT),
            close_received: head.has(FLAG_CLOSE_RECEIVED),
            failed: head.has(FLAG_FAILED),
            deflate: head.has(FLAG_DEFLATE).then(|| DeflateState {
                params: head.params(),
                incoming_history: incoming.to_vec(),
                outgoing_history: outgoing.to_vec(),
            }),
            message: head.has(FLAG_MESSAGE).then(|| MessageProgress {
                kind: if head.has(FLAG_TEXT) { MessageKind::Text } else { MessageKind::Binary },
                compressed: head.has(FLAG_COMPRESSED),
                bytes: message.to_vec(),
            }),
            frame: head.has(FLAG_FRAME).then_some(FrameProgress {
                last: head.has(FLAG_LAST),
                remaining: head.remaining,
                mask: head.mask,
            }),
        })
    }
}

/// Bytes as base64 text in the JSON encoding.
mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}
