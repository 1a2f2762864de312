//! What a service can do: [`Context`], over the [`Actions`] that the worker provides.
//!
//! Must not know: how the bytes get out.

use std::sync::Arc;

use super::{ConnectionId, ParkId, StreamId};

/// Length of a response body, known before it begins or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// Exactly this many bytes will be written.
    Known(u64),
    /// Found out on the way (chunked in HTTP/1.1).
    Unknown,
}

/// Where and who the worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Process id.
    pub pid: u32,
    /// Number of the worker.
    pub worker: u32,
    /// Generation that it belongs to.
    pub generation: u32,
}

/// What the worker offers to a session, for one stream of one connection.
///
/// Bytes are queued; nothing here blocks or fails. Calls that make no sense (a second response, a
/// body beyond its announced length, a message where there is no WebSocket) are dropped and end the
/// connection, since the service is at fault: the worker logs it.
pub trait Actions {
    /// A whole response.
    fn respond(&mut self, status: u16, headers: &[(&str, &[u8])], body: &[u8]);
    /// Head of a response whose body follows.
    fn start_response(&mut self, status: u16, headers: &[(&str, &[u8])], length: BodyLength);
    /// A piece of the body.
    fn write_body(&mut self, bytes: &[u8]);
    /// End of the body, with trailer fields if there are any.
    fn finish_response(&mut self, trailers: &[(&str, &[u8])]);
    /// An interim response.
    fn inform(&mut self, status: u16, headers: &[(&str, &[u8])]);
    /// 101 (or 200 in HTTP/2), and the service speaks for itself.
    fn tunnel(&mut self, protocol: &str, headers: &[(&str, &[u8])]);
    /// Bytes of a tunnel.
    fn write_tunnel(&mut self, bytes: &[u8]);
    /// See [`Context::finish_tunnel`].
    fn finish_tunnel(&mut self);
    /// See [`Context::half_close_tunnel`].
    fn half_close_tunnel(&mut self);
    /// The rest will not come.
    fn abort(&mut self);
    /// See [`Context::hold_input`].
    fn hold_input(&mut self, is_held: bool);
    /// 101 (or 200 in HTTP/2).
    fn accept_websocket(&mut self, subprotocol: Option<&str>);
    /// See [`Context::add_header`].
    fn add_header(&mut self, name: &str, value: &[u8]);
    /// See [`Context::park`].
    fn park(&mut self) -> Option<String>;
    /// See [`Context::parked`].
    fn parked(&mut self, token: &[u8]) -> Option<ParkId>;
    /// A WebSocket message.
    fn send_message(&mut self, text: bool, payload: &[u8]);
    /// Starts the close handshake.
    fn close_websocket(&mut self, code: u16, reason: &str);
    /// Sets the session's only timer.
    fn set_timer(&mut self, after_ms: Option<u64>);
    /// Free bytes in the send queue.
    fn room(&self) -> usize;
    /// See [`Context::want_room`].
    fn want_room(&mut self);
    /// See [`Context::pusher`].
    fn push_sink(&mut self) -> Arc<dyn PushSink>;
    /// Where the connection is in its worker: for what lives in the same worker, and no longer.
    fn place(&self) -> usize;
    /// Id of the connection.
    fn connection(&self) -> ConnectionId;
    /// Id of the stream within it.
    fn stream(&self) -> StreamId;
    /// The worker.
    fn worker(&self) -> WorkerInfo;
}

/// A service's hands: valid during one call.
pub struct Context<'a> {
    actions: &'a mut dyn Actions,
}

impl<'a> Context<'a> {
    /// Wraps what the worker provides.
    pub fn new(actions: &'a mut dyn Actions) -> Self {
        Self { actions }
    }

    /// Sends a whole response.
    pub fn respond(&mut self, status: u16, headers: &[(&str, &[u8])], body: &[u8]) {
        self.actions.respond(status, headers, body);
    }

    /// Starts a response whose body follows by [`Context::write_body`].
    pub fn start_response(&mut self, status: u16, headers: &[(&str, &[u8])], length: BodyLength) {
        self.actions.start_response(status, headers, length);
    }

    /// Sends a piece of the body. Look at [`Context::room`] first: the queue takes it all, but a
    /// service that never looks makes slow clients hold memory.
    pub fn write_body(&mut self, bytes: &[u8]) {
        self.actions.write_body(bytes);
    }

    /// Ends the body.
    pub fn finish_response(&mut self) {
        self.actions.finish_response(&[]);
    }

    /// Sends an interim response (1xx, not 101) before the final one.
    pub fn inform(&mut self, status: u16, headers: &[(&str, &[u8])]) {
        self.actions.inform(status, headers);
    }

    /// Ends the body with trailer fields, which get lost where the response is not chunked.
    pub fn finish_response_with(&mut self, trailers: &[(&str, &[u8])]) {
        self.actions.finish_response(trailers);
    }

    /// Switches to a protocol of the service's own, which the request must have asked for: its bytes come
    /// by [`super::Session::on_tunnel`] and go by [`Context::write_tunnel`]. In HTTP/1.1 the answer is
    /// 101; in HTTP/2, where an extended CONNECT asks for it (RFC 8441), it is 200.
    pub fn tunnel(&mut self, protocol: &str, headers: &[(&str, &[u8])]) {
        self.actions.tunnel(protocol, headers);
    }

    /// Sends bytes of the protocol that [`Context::tunnel`] has switched to.
    pub fn write_tunnel(&mut self, bytes: &[u8]) {
        self.actions.write_tunnel(bytes);
    }

    /// Ends the tunnel: what was written is sent, then the end of the connection, or of the stream.
    pub fn finish_tunnel(&mut self) {
        self.actions.finish_tunnel();
    }

    /// Nothing more is sent into the tunnel: behind what was written the client gets its end. What the client
    /// sends goes on coming, until the session calls [`Context::finish_tunnel`], as it should once the client has
    /// ended, too ([`super::Session::on_half_close`]). A client that gives nothing for `limits.stall_timeout_ms` is
    /// given up.
    pub fn half_close_tunnel(&mut self) {
        self.actions.half_close_tunnel();
    }

    /// Gives the exchange up: what was sent is flushed, and the client sees that the rest is missing.
    pub fn abort(&mut self) {
        self.actions.abort();
    }

    /// While held, no further body or tunnel bytes are delivered; the engine stops receiving once
    /// some have piled up. Not saved: a session that needs it says so again in
    /// [`super::Session::on_resume`].
    pub fn hold_input(&mut self, is_held: bool) {
        self.actions.hold_input(is_held);
    }

    /// Accepts the WebSocket that the request asks for, with one of the subprotocols it offered.
    /// permessage-deflate is negotiated by the engine.
    pub fn accept_websocket(&mut self, subprotocol: Option<&str>) {
        self.actions.accept_websocket(subprotocol);
    }

    /// Adds a header field to the answer that accepts the WebSocket; to be called before
    /// [`Context::accept_websocket`].
    pub fn add_header(&mut self, name: &str, value: &[u8]) {
        self.actions.add_header(name, value);
    }

    /// From now on this WebSocket's session is kept when its connection breaks, or when the service
    /// stops: what [`super::Session::save`] writes, and its timer, for the configured time. The
    /// client gets it back, once, by showing the token that this returns when it connects again (see
    /// [`Context::parked`]). Calling it again replaces the token. `None` where parking is switched
    /// off.
    ///
    /// ```
    /// use zdt_engine::service::{Context, Outcome, Request, Session};
    ///
    /// /// Accepts a WebSocket whose session goes on after a broken connection, or a restart.
    /// fn accept(request: &Request<'_>, context: &mut Context<'_>, new: Box<dyn Session>) -> Outcome {
    ///     let parked = request.header("x-resume").and_then(|token| context.parked(token));
    ///     if let Some(token) = context.park() {
    ///         context.add_header("X-Resume", token.as_bytes());
    ///     }
    ///     context.accept_websocket(None);
    ///     match parked {
    ///         Some(parked) => Outcome::Resume { parked, otherwise: new },
    ///         None => Outcome::Session(new),
    ///     }
    /// }
    /// ```
    pub fn park(&mut self) -> Option<String> {
        self.actions.park()
    }

    /// What a client's token names, if this service signed it and its time is not over; whether the
    /// session is still there shows when it is asked for ([`super::Outcome::Resume`]).
    pub fn parked(&mut self, token: &[u8]) -> Option<ParkId> {
        self.actions.parked(token)
    }

    /// Sends a text message.
    pub fn send_text(&mut self, text: &str) {
        self.actions.send_message(true, text.as_bytes());
    }

    /// Sends a binary message.
    pub fn send_binary(&mut self, bytes: &[u8]) {
        self.actions.send_message(false, bytes);
    }

    /// Starts the close handshake (RFC 6455 §7.1.2) with a code of §7.4 and at most 123 bytes.
    pub fn close_websocket(&mut self, code: u16, reason: &str) {
        self.actions.close_websocket(code, reason);
    }

    /// Calls [`super::Session::on_timer`] once after that many milliseconds, also in another
    /// generation. A session has one timer; setting it again replaces it.
    pub fn set_timer(&mut self, after_ms: u64) {
        self.actions.set_timer(Some(after_ms));
    }

    /// Forgets the timer.
    pub fn clear_timer(&mut self) {
        self.actions.set_timer(None);
    }

    /// Bytes that the send queue still takes before it is over its bound.
    pub fn room(&self) -> usize {
        self.actions.room()
    }

    /// Asks for [`super::Session::on_room`] as soon as at least half of the send queue is free,
    /// once. Survives a handoff.
    pub fn want_room(&mut self) {
        self.actions.want_room();
    }

    /// A handle with which other threads of this process reach this session.
    pub fn pusher(&mut self) -> Pusher {
        Pusher {
            connection: self.actions.connection(),
            stream: self.actions.stream(),
            sink: self.actions.push_sink(),
        }
    }

    /// A small number that no other connection of this worker has now.
    pub(crate) fn place(&self) -> usize {
        self.actions.place()
    }

    /// Id of the connection: the same in every generation.
    pub fn connection(&self) -> ConnectionId {
        self.actions.connection()
    }

    /// Id of the stream on that connection: 0 in HTTP/1.1, the protocol's own number in HTTP/2.
    pub fn stream(&self) -> StreamId {
        self.actions.stream()
    }

    /// The worker that runs this call.
    pub fn worker(&self) -> WorkerInfo {
        self.actions.worker()
    }
}

/// Takes bytes from other threads; the worker's side of a [`Pusher`].
pub trait PushSink: Send + Sync {
    /// Queues bytes for the session of one stream of a connection.
    fn push(
        &self,
        connection: ConnectionId,
        stream: StreamId,
        bytes: Vec<u8>,
    ) -> Result<(), PushError>;
}

/// Sends bytes to a session from any thread of the process.
#[derive(Clone)]
pub struct Pusher {
    connection: ConnectionId,
    stream: StreamId,
    sink: Arc<dyn PushSink>,
}

impl Pusher {
    /// Queues bytes for [`super::Session::on_push`]. What is pushed while the connection is handed
    /// off, or in the rest of that reload, follows it; later pushes go nowhere, so drop the `Pusher`
    /// with its session.
    pub fn push(&self, bytes: Vec<u8>) -> Result<(), PushError> {
        self.sink.push(self.connection, self.stream, bytes)
    }
}

/// Why bytes were not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The worker's inbox is full; try again later.
    #[error("the worker's inbox is full")]
    Full,
}
