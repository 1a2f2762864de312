//! A connection's protocol stack as sections of a state record.
//!
//! What travels is what the machines say ([`Http1::save`], [`WebSocket::save_parts`]), the bytes that
//! nobody has consumed, and how long the current deadline has been running; never an instant.
//!
//! Must not know: the envelope, the socket, the session.

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use super::deadline::Waiting;
use super::http2::Http2Stack;
use super::persist_http2::{TAG_HTTP2, TAG_STREAM, TAG_STREAM_TRAILERS, TAG_STREAM_WEBSOCKET};
use super::{Connection, Environment, ReceiveEnd, Stage};
use crate::proto::http1::{self, Http1, Http1Head, Http1State};
use crate::proto::http2;
use crate::proto::tls;
use crate::proto::websocket::{self, WebSocket, WebSocketHead, WebSocketState};
use crate::state::json::{JsonCodec, head_from_json, head_to_json};
use crate::state::{Record, StateError, Writer};

/// The stack as a whole: what is below, and where its deadline is.
pub const TAG_CONNECTION: u16 = 1;
/// Received bytes that nobody has consumed (tail only).
pub const TAG_PENDING: u16 = 2;
/// HTTP/1.1 machine.
pub const TAG_HTTP1: u16 = 3;
/// WebSocket machine.
pub const TAG_WEBSOCKET: u16 = 4;

/// Every section that this module reads.
pub const KNOWN_SECTIONS: [u16; 8] = [
    TAG_CONNECTION,
    TAG_PENDING,
    TAG_HTTP1,
    TAG_WEBSOCKET,
    TAG_HTTP2,
    TAG_STREAM,
    TAG_STREAM_WEBSOCKET,
    TAG_STREAM_TRAILERS,
];

/// How these sections are shown in JSON.
pub const JSON_CODECS: [JsonCodec; 3] = [
    JsonCodec {
        tag: TAG_CONNECTION,
        name: "connection",
        to_json: head_to_json::<ConnectionHead>,
        from_json: head_from_json::<ConnectionHead>,
    },
    JsonCodec {
        tag: TAG_HTTP1,
        name: "http1",
        to_json: |section| {
            let state = Http1State::from_head(&section.head::<Http1Head>()).ok()?;
            serde_json::to_value(state).ok()
        },
        from_json: |value| {
            let state: Http1State = serde_json::from_value(value.clone()).ok()?;
            Some((bytemuck::bytes_of(&state.to_head()).to_vec(), Vec::new()))
        },
    },
    JsonCodec {
        tag: TAG_WEBSOCKET,
        name: "websocket",
        to_json: |section| {
            let state = WebSocketState::decode(&section.head(), section.tail()).ok()?;
            serde_json::to_value(state).ok()
        },
        from_json: |value| {
            let state: WebSocketState = serde_json::from_value(value.clone()).ok()?;
            let (head, tail) = state.parts();
            Some((bytemuck::bytes_of(&head).to_vec(), tail.concat()))
        },
    },
];

const STAGE_HTTP1: u8 = 0;
const STAGE_WEBSOCKET: u8 = 1;
const STAGE_ENDING: u8 = 2;
const STAGE_TUNNEL: u8 = 3;
const STAGE_HTTP2: u8 = 4;

const RECEIVE_OPEN: u8 = 0;
const RECEIVE_FIN: u8 = 1;
const RECEIVE_ERROR: u8 = 2;

/// Most unconsumed bytes of a connection that are taken over.
const MAX_PENDING_BYTES: usize = 32 << 20;

/// Fixed part of [`TAG_CONNECTION`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable, Serialize, Deserialize)]
struct ConnectionHead {
    /// How long the deadline has been running.
    waited_ms: u64,
    receive_errno: i32,
    stage: u8,
    waiting: u8,
    receive_end: u8,
    send_is_shut: u8,
    /// See the `FLAG` constants.
    flags: u64,
}

const _: () = assert!(size_of::<ConnectionHead>() == 24);

/// Nothing has been received: the version of HTTP is open.
const FLAG_FRESH: u64 = 1;
/// A tunnel of which our direction ends. (A build that does not know it has the gateway say so again.)
const FLAG_HALF_CLOSED: u64 = 2;

/// Why a connection cannot be rebuilt from a record.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The record itself.
    #[error(transparent)]
    State(#[from] StateError),
    /// A field that no build writes.
    #[error("connection state: {0} is out of range")]
    OutOfRange(&'static str),
    /// More than this process would have accepted.
    #[error("connection state: {bytes} unconsumed bytes; {MAX_PENDING_BYTES} is the most")]
    TooMuchPending {
        /// How many.
        bytes: usize,
    },
    /// The HTTP machine.
    #[error(transparent)]
    Http1(#[from] http1::RestoreError),
    /// The WebSocket machine.
    #[error(transparent)]
    WebSocket(#[from] websocket::RestoreError),
    /// The HTTP/2 machine.
    #[error(transparent)]
    Http2(#[from] http2::RestoreError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] tls::RestoreError),
}

impl Connection {
    /// Variable bytes of the sections that [`Connection::save`] would write now.
    pub fn saved_bytes(&self) -> usize {
        let machine: usize = match &self.stage {
            Stage::WebSocket(machine) => machine.saved_bytes(),
            Stage::Http2(stack) => stack.saved_bytes(),
            Stage::Http1(_) | Stage::Tunnel { .. } | Stage::Ending => 0,
        };
        self.pending.len() + machine
    }

    /// Adds the connection's sections to a record.
    pub fn save(&self, now_ms: u64, writer: &mut Writer<'_>) {
        let (receive_end, receive_errno) = match self.receive_end {
            ReceiveEnd::Open => (RECEIVE_OPEN, 0),
            ReceiveEnd::Fin => (RECEIVE_FIN, 0),
            ReceiveEnd::Error(errno) => (RECEIVE_ERROR, errno),
        };
        let head = ConnectionHead {
            waited_ms: now_ms.saturating_sub(self.since_ms),
            receive_errno,
            stage: match &self.stage {
                Stage::Http1(_) => STAGE_HTTP1,
                Stage::WebSocket(_) => STAGE_WEBSOCKET,
                Stage::Ending => STAGE_ENDING,
                Stage::Tunnel { .. } => STAGE_TUNNEL,
                Stage::Http2(_) => STAGE_HTTP2,
            },
            waiting: Waiting::ALL.iter().position(|one| *one == self.waiting).unwrap_or(0) as u8,
            receive_end,
            send_is_shut: u8::from(self.send_is_shut),
            flags: match &self.stage {
                Stage::Tunnel { half_closed: true, .. } => FLAG_HALF_CLOSED,
                _ if self.is_fresh => FLAG_FRESH,
                _ => 0,
            },
        };
        writer.section(TAG_CONNECTION, 1, false, &head, &[]);
        if !self.pending.is_empty() {
            writer.section(TAG_PENDING, 1, false, &[0u8; 0], &[&self.pending]);
        }
        match &self.stage {
            Stage::Http1(machine) => {
                writer.section(TAG_HTTP1, 1, false, &machine.save().to_head(), &[]);
            }
            Stage::WebSocket(machine) => {
                let (head, tail) = machine.save_parts();
                writer.section(TAG_WEBSOCKET, 1, false, &head, &tail);
            }
            Stage::Http2(stack) => stack.save(now_ms, writer),
            Stage::Tunnel { .. } | Stage::Ending => {}
        }
    }

    /// Rebuilds a connection. `transit_ms` is the time since it was saved.
    pub fn restore(
        record: &Record<'_>,
        environment: &Environment<'_>,
        transit_ms: u64,
    ) -> Result<Self, RestoreError> {
        let head: ConnectionHead = record.required(TAG_CONNECTION)?.head();
        let stage = match head.stage {
            STAGE_HTTP1 => {
                let head: Http1Head = record.required(TAG_HTTP1)?.head();
                Stage::Http1(Http1::restore(&Http1State::from_head(&head)?)?)
            }
            STAGE_WEBSOCKET => {
                let section = record.required(TAG_WEBSOCKET)?;
                let head: WebSocketHead = section.head();
                let state = WebSocketState::decode(&head, section.tail())?;
                let limits =
                    websocket::Limits { max_message_bytes: environment.limits.max_message_bytes };
                Stage::WebSocket(WebSocket::restore(state, &limits)?)
            }
            STAGE_ENDING => Stage::Ending,
            STAGE_TUNNEL => {
                // To be told the end twice does no harm.
                let half_closed = head.flags & FLAG_HALF_CLOSED != 0;
                Stage::Tunnel { half_closed, end_told: false }
            }
            STAGE_HTTP2 => {
                Stage::Http2(Box::new(Http2Stack::restore(record, environment, transit_ms)?))
            }
            _ => return Err(RestoreError::OutOfRange("the stage")),
        };
        let pending = record.section(TAG_PENDING).map_or(&[][..], |section| section.tail());
        if pending.len() > MAX_PENDING_BYTES {
            return Err(RestoreError::TooMuchPending { bytes: pending.len() });
        }
        let waiting = Waiting::ALL
            .get(usize::from(head.waiting))
            .copied()
            .ok_or(RestoreError::OutOfRange("the deadline's kind"))?;
        let receive_end = match head.receive_end {
            RECEIVE_OPEN => ReceiveEnd::Open,
            RECEIVE_FIN => ReceiveEnd::Fin,
            RECEIVE_ERROR if head.receive_errno > 0 => ReceiveEnd::Error(head.receive_errno),
            _ => return Err(RestoreError::OutOfRange("the end of the receiving direction")),
        };
        let since_ms = environment.now_ms.saturating_sub(head.waited_ms).saturating_sub(transit_ms);
        Ok(Self {
            stage,
            pending: pending.to_vec(),
            waiting,
            since_ms,
            // In the middle of a send this is when that made progress: a ping comes late at worst.
            alive_ms: since_ms,
            is_pinged: waiting == Waiting::Pong,
            // Whoever held it says so again when it goes on.
            is_input_held: false,
            is_sliced: false,
            is_fresh: head.flags & FLAG_FRESH != 0,
            receive_end,
            is_end_reached: false,
            send_is_shut: head.send_is_shut != 0,
        })
    }
}
