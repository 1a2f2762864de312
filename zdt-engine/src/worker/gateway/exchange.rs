//! What the gateway keeps of a request in progress, and of an upstream connection.
//!
//! Must not know: what is done with them.

use std::os::fd::OwnedFd;

use super::frames::Frames;
use super::head::Framing;
use crate::proto::http1::client::Http1Client;
use crate::queue::{Priority, RequestId};
use crate::service::{ConnectionId, StreamId};
use crate::uring::Operation;

/// No exchange.
pub const NONE: u32 = u32::MAX;

/// Something for the worker to do.
#[derive(Debug)]
pub enum Todo {
    /// Make a socket for this link and connect it.
    Open(usize),
    /// Send what its exchange has.
    Send(usize),
    /// Go on with what was received, and receive.
    Receive(usize),
    /// Close it, once nothing names its socket.
    Close(usize),
    /// Answer the client in the upstream's place; where that is too late, end its connection.
    Fail { exchange: usize, serial: u64, status: u16, reason: String },
    /// Stop taking the client's body, or go on.
    Input { exchange: usize, serial: u64, held: bool },
    /// Both directions of a tunnel have ended.
    Over { exchange: usize, serial: u64 },
    /// Its application is to end: see [`Tunnel::leaving`].
    Leave { exchange: usize, serial: u64 },
    /// Go on with this file of a held body.
    Spill(usize),
    /// Tell the supervisor that an upstream is idle.
    Idle { url: String },
}

/// How far an upstream connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkStage {
    /// Its socket is being made.
    Making,
    /// It is being connected.
    Connecting,
    /// It can be used.
    Ready,
}

/// An upstream connection.
#[derive(Debug)]
pub struct Link {
    pub socket: Option<OwnedFd>,
    pub upstream: usize,
    pub stage: LinkStage,
    pub machine: Http1Client,
    pub exchange: Option<usize>,
    /// Received and not consumed.
    pub pending: Vec<u8>,
    pub sending: Option<Operation>,
    /// The socket is being made, or connected.
    pub busy: bool,
    pub receiving: bool,
    /// The client has no room.
    pub paused: bool,
    /// It goes as soon as nothing names its socket.
    pub closing: bool,
    /// Nothing more will come: FIN, or an error.
    pub ended: bool,
    /// It was an error.
    pub reset: bool,
    /// The exchange is being handed off: nothing is processed.
    pub frozen: bool,
    /// The receiving direction's end has been dealt with.
    pub end_seen: bool,
    /// Why it failed, while its send is awaited.
    pub failure: Option<String>,
    /// Our direction is shut.
    pub send_is_shut: bool,
    pub since_ms: u64,
    /// It has answered a request, or may have: whoever made it was another worker.
    pub is_reused: bool,
    /// A `Todo::Send` is on its way.
    pub send_due: bool,
}

impl Link {
    /// True while no operation names its socket.
    pub fn is_quiet(&self) -> bool {
        !self.busy && !self.receiving && self.sending.is_none()
    }
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// In the queue.
    Held(RequestId),
    /// Its link is being made.
    Opening,
    /// On its way, or there; no final answer yet.
    Sent,
    /// The head of the answer has been passed on.
    Responding,
    /// A WebSocket.
    Tunnel,
    /// The WebSocket's upstream is being replaced.
    Reconnecting,
    /// Nothing more is to be done but to tell the client.
    Failed,
}

/// One request.
#[derive(Debug)]
pub struct Exchange {
    pub serial: u64,
    /// Index of the client's connection in this worker.
    pub key: usize,
    pub connection: ConnectionId,
    pub stream: StreamId,
    pub route: usize,
    pub upstream: Option<usize>,
    pub link: Option<usize>,
    pub stage: Stage,
    /// Bytes for the upstream that are not in the ring.
    pub out: Vec<u8>,
    /// What this attempt has sent, in case of another.
    pub sent: Vec<u8>,
    /// `sent` is all of it.
    pub is_kept: bool,
    pub framing: Framing,
    pub body_done: bool,
    pub is_head: bool,
    /// It may be sent again although it may have reached an application.
    pub is_repeatable: bool,
    pub may_have_been_sent: bool,
    pub wants_websocket: bool,
    pub input_held: bool,
    /// It came out of the queue, and those behind it may have to wait for its answer.
    pub is_replay: bool,
    pub attempts: u8,
    /// It has met the end of a kept connection: it goes over a new one.
    pub met_stale: bool,
    /// The upstream that failed it last: another one is asked if there is one.
    pub failed_at: Option<usize>,
    pub priority: Priority,
    /// Last time that its upstream, or its body, moved.
    pub active_ms: u64,
    /// For how long it had been held elsewhere.
    pub held_ms: u64,
    /// It was accepted by another worker: it is not dropped for want of room.
    pub is_adopted: bool,
    /// What of its body is on the disk, behind `out`.
    pub spill: Option<usize>,
    pub trailers: Vec<(String, Vec<u8>)>,
    /// The client sends nothing more.
    pub half_closed: bool,
    pub frozen: bool,
    /// The head of the answer has been passed on.
    pub is_answered: bool,
    /// What the client is to be told.
    pub failure: Option<(u16, String)>,
    /// The next exchange of the same client.
    pub next_of_client: u32,
    /// For WebSockets.
    pub tunnel: Option<Box<Tunnel>>,
}

impl Exchange {
    /// A stream of HTTP/2 asks for a WebSocket and has not got it. What its client sends meanwhile must not
    /// reach the upstream, which might take it for another request. (HTTP/1.1 does not even parse it.)
    pub fn awaits_tunnel(&self) -> bool {
        self.stream != 0
            && self.tunnel.is_some()
            && !matches!(self.stage, Stage::Tunnel | Stage::Reconnecting)
    }

    /// True if it may be sent to an upstream again (RFC 9110 §9.2.2): no byte of an answer has come, and it
    /// cannot have arrived, or does no harm twice.
    pub fn may_be_repeated(&self) -> bool {
        !self.may_have_been_sent || (self.is_repeatable && self.is_kept)
    }

    /// A byte of the answer has come.
    pub fn never_repeat(&mut self) {
        self.sent = Vec::new();
        self.is_kept = false;
        self.may_have_been_sent = true;
    }

    /// The upstream has agreed: it gets what the client has sent too early.
    pub fn send_early(&mut self) {
        if let Some(tunnel) = &mut self.tunnel {
            let early = std::mem::take(&mut tunnel.early);
            tunnel.unanswered |= tunnel.up.feed(&early);
            self.out.extend_from_slice(&early);
        }
    }

    /// What was in the queue comes before what the client has sent meanwhile: HTTP/2's may send as much
    /// as its stream's window lets in.
    pub fn put_before(&mut self, mut held: Vec<u8>) {
        held.append(&mut self.out);
        self.out = held;
    }

    /// Where it goes on when it comes out of the queue.
    pub fn stage_to_be_sent(&self) -> Stage {
        // Its client has had an answer: a WebSocket that waits for another upstream.
        if self.is_answered { Stage::Reconnecting } else { Stage::Opening }
    }
}

/// What a tunnel has beyond other exchanges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// The opening request, for another upstream.
    pub head: Vec<u8>,
    /// From the client.
    pub up: Frames,
    /// To the client.
    pub down: Frames,
    /// It is to be closed with 1012, or to reconnect, at the next frame boundary.
    pub leaving: Leaving,
    /// What a stream of HTTP/2 has brought before the upstream agreed: no more than its window.
    pub early: Vec<u8>,
    /// The client spoke last.
    pub unanswered: bool,
}

/// See [`Tunnel::leaving`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Leaving {
    #[default]
    No,
    Close,
    /// As soon as the application has answered.
    Reconnect,
    /// Whether it has answered or not.
    ReconnectNow,
}

/// Why a request is not taken on.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub reason: String,
}
