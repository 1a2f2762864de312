//! A WebSocket on a stream of HTTP/2 (RFC 8441): its frames lie in DATA frames as they happen to be cut.
//!
//! Where a WebSocket's frame header, or a control frame, is cut by the end of a DATA frame, what has
//! arrived of it is kept here, and only as much is added as makes it whole.
//!
//! Must not know: frames of HTTP/2, windows.

use crate::proto::websocket::{DeflateParams, Event, Limits, MessageKind, WebSocket};
use crate::proto::{Input, Payload};

/// See the module.
pub(super) struct Tunnel {
    pub(super) socket: WebSocket,
    /// Received, and not yet consumed.
    pub(super) kept: Vec<u8>,
}

/// What came of it.
pub(super) enum Fed<'b> {
    /// More bytes are needed, or what came is nobody's business.
    Nothing,
    /// A whole message.
    Message { kind: MessageKind, payload: Payload<'b> },
    /// To be answered by a pong.
    Ping(Payload<'b>),
    /// The end: a close frame, or an error. The answer's code and reason.
    Over { code: Option<u16>, reason: &'static str },
}

impl Tunnel {
    pub(super) fn new(deflate: Option<DeflateParams>) -> Self {
        Self { socket: WebSocket::new(deflate), kept: Vec::new() }
    }

    /// Consumes some of the next `bytes` of the input, at least one; returns how many.
    pub(super) fn feed<'b>(
        &mut self,
        input: &mut Input<'b>,
        bytes: usize,
        max_message_bytes: u64,
    ) -> (usize, Fed<'b>) {
        let limits = Limits { max_message_bytes };
        if !self.kept.is_empty() {
            let taken = self.socket.wanted(&self.kept).clamp(1, bytes);
            self.kept.extend_from_slice(input.take(taken));
            let mut whole = std::mem::take(&mut self.kept);
            let mut part = Input::new(&mut whole);
            let mut fed = self.take_event(&mut part, &limits).into_owned();
            // A short frame, which nobody would ask for again.
            while matches!(fed, Fed::Nothing) && self.socket.is_sliced(&part) {
                fed = self.take_event(&mut part, &limits).into_owned();
            }
            let left = part.len();
            let consumed = whole.len() - left;
            self.kept = whole.split_off(consumed);
            return (taken, fed);
        }
        let hidden = input.hide_behind(bytes);
        let before = input.len();
        let fed = self.take_event(input, &limits);
        if matches!(fed, Fed::Nothing) && input.len() == before {
            self.kept.extend_from_slice(input.take_all());
        }
        let taken = before - input.len();
        input.show(hidden);
        (taken, fed)
    }

    fn take_event<'b>(&mut self, input: &mut Input<'b>, limits: &Limits) -> Fed<'b> {
        match self.socket.next_event(input, limits) {
            Ok(None | Some(Event::Pong(_))) => Fed::Nothing,
            // RFC 6455 §1.4: after our close nobody waits for data.
            Ok(Some(Event::Message { .. })) if self.socket.close_sent() => Fed::Nothing,
            Ok(Some(Event::Message { kind, payload })) => Fed::Message { kind, payload },
            Ok(Some(Event::Ping(payload))) => Fed::Ping(payload),
            Ok(Some(Event::Close { code, .. })) => Fed::Over { code, reason: "" },
            Err(error) => Fed::Over { code: Some(error.close_code), reason: error.reason },
        }
    }
}

impl Fed<'_> {
    /// The same, without what it borrows: it was put together from two pieces.
    fn into_owned<'any>(self) -> Fed<'any> {
        let own = |payload: Payload<'_>| match payload {
            Payload::Borrowed(bytes) => Payload::Owned(bytes.to_vec()),
            Payload::Owned(bytes) => Payload::Owned(bytes),
        };
        match self {
            Fed::Nothing => Fed::Nothing,
            Fed::Message { kind, payload } => Fed::Message { kind, payload: own(payload) },
            Fed::Ping(payload) => Fed::Ping(own(payload)),
            Fed::Over { code, reason } => Fed::Over { code, reason },
        }
    }
}
