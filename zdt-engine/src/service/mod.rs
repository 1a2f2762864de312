//! What an application writes: a [`Service`] that answers requests, and [`Session`]s that live on
//! after the answer has begun.
//!
//! Everything here is synchronous: an event comes in, actions go out through the [`Context`], and the
//! call returns. Nothing blocks and nothing is a future, because a future cannot be saved: between
//! any two events a session must be able to put all it knows into a few bytes ([`Session::save`]),
//! from which [`Service::restore`] rebuilds it in the next generation of workers, in mid-request and
//! in mid-conversation.
//!
//! ```
//! use zdt_engine::service::{
//!     Busy, Context, Message, Outcome, Request, RestoreError, SavedSession, Service, Session,
//! };
//!
//! /// A WebSocket that adds up the numbers it is sent. The sum survives every deploy.
//! struct Adder;
//!
//! struct Sum(i64);
//!
//! impl Service for Adder {
//!     fn on_request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Outcome {
//!         if request.path != "/sum" || !request.is_websocket {
//!             context.respond(404, &[], b"only a WebSocket at /sum is here\n");
//!             return Outcome::Done;
//!         }
//!         context.accept_websocket(None);
//!         Outcome::Session(Box::new(Sum(0)))
//!     }
//!
//!     fn restore(&mut self, saved: &SavedSession<'_>) -> Result<Box<dyn Session>, RestoreError> {
//!         match (saved.kind, saved.version) {
//!             ("sum", 1) => {
//!                 let bytes = saved.bytes.try_into().map_err(|_| RestoreError::Malformed)?;
//!                 Ok(Box::new(Sum(i64::from_le_bytes(bytes))))
//!             }
//!             _ => Err(RestoreError::UnknownKind),
//!         }
//!     }
//! }
//!
//! impl Session for Sum {
//!     fn on_message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
//!         let number = message.as_text().and_then(|text| text.trim().parse::<i64>().ok());
//!         self.0 += number.unwrap_or(0);
//!         context.send_text(&self.0.to_string());
//!     }
//!
//!     fn kind(&self) -> &'static str {
//!         "sum"
//!     }
//!
//!     fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
//!         bytes.extend_from_slice(&self.0.to_le_bytes());
//!         Ok(())
//!     }
//! }
//! # let _ = || // not run: it would serve
//! zdt_engine::run("adder", || Box::new(Adder))
//! # ;
//! ```
//!
//! Must not know: sockets, rings, processes, HTTP versions.

mod context;
pub mod demo;
mod digest;
mod registry;

use std::net::SocketAddr;

pub use context::{Actions, BodyLength, Context, PushError, PushSink, Pusher, WorkerInfo};
pub use registry::Services;

/// Names one connection over all processes that ever serve it.
pub type ConnectionId = u64;

/// Names one stream of a connection: 0 for the only one of HTTP/1.1, else the protocol's own number.
pub type StreamId = u64;

/// An application: one value in each worker.
pub trait Service {
    /// Asked before the worker reports that it is ready to take over. An error fails the reload.
    fn ready(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// The head of a request has arrived. The answer may be given at once, begun, or left to a
    /// session. A body that nobody wants ([`Outcome::Done`]) is read and dropped.
    fn on_request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Outcome;

    /// Rebuilds a session from what [`Session::save`] wrote, possibly in another build. An error
    /// leaves the connection with the process that has it, which then drains it.
    fn restore(&mut self, saved: &SavedSession<'_>) -> Result<Box<dyn Session>, RestoreError>;
}

/// What is left to do after [`Service::on_request`].
pub enum Outcome {
    /// The response is complete.
    Done,
    /// The exchange, or the WebSocket, goes on in this session.
    Session(Box<dyn Session>),
    /// The WebSocket, which has been accepted, goes on with the session that was parked under this
    /// id (see [`Context::parked`]): [`Service::restore`] rebuilds it, then [`Session::on_resume`] is
    /// called, then comes what the client has sent meanwhile. If it is not there any more, or cannot
    /// be restored, `otherwise` takes its place.
    Resume {
        /// What the client's token names.
        parked: ParkId,
        /// The session of a client that begins anew.
        otherwise: Box<dyn Session>,
    },
}

/// Names a parked session. Whoever has one got it from [`Context::parked`], which checks the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParkId(pub [u8; 16]);

/// One exchange or WebSocket that outlives the call in which it began.
///
/// A session ends when its response is finished and its request body has been read, or when its
/// WebSocket is closed.
pub trait Session {
    /// A piece of the request body.
    fn on_body(&mut self, _bytes: &[u8], _context: &mut Context<'_>) {}

    /// The request body is complete.
    fn on_body_end(&mut self, _context: &mut Context<'_>) {}

    /// Bytes of the protocol that [`Context::tunnel`] has switched to.
    fn on_tunnel(&mut self, _bytes: &[u8], _context: &mut Context<'_>) {}

    /// The client will send nothing more, and may or may not wait for an answer.
    fn on_half_close(&mut self, _context: &mut Context<'_>) {}

    /// A whole WebSocket message.
    fn on_message(&mut self, _message: Message<'_>, _context: &mut Context<'_>) {}

    /// The time set by [`Context::set_timer`] has come.
    fn on_timer(&mut self, _context: &mut Context<'_>) {}

    /// There is room in the send queue again, after [`Context::want_room`].
    fn on_room(&mut self, _context: &mut Context<'_>) {}

    /// Bytes from a [`Pusher`].
    fn on_push(&mut self, _bytes: &[u8], _context: &mut Context<'_>) {}

    /// The connection goes on after it was frozen: in a new worker, or in the same one because
    /// nobody took it. Timer and queued output are there; what cannot be saved, such as a [`Pusher`]
    /// given to another thread, is to be made again.
    fn on_resume(&mut self, _context: &mut Context<'_>) {}

    /// The WebSocket or the connection is gone; nothing can be sent any more.
    fn on_close(&mut self) {}

    /// Names the kind of session for [`Service::restore`]; at most 255 bytes.
    fn kind(&self) -> &'static str;

    /// Version of what [`Session::save`] writes.
    fn version(&self) -> u16 {
        1
    }

    /// Appends everything that [`Service::restore`] needs. The timer and what is queued for sending
    /// are saved by the engine. `Busy` is tried again until the freeze budget is used up; then the
    /// connection stays where it is and drains.
    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy>;
}

/// A session cannot be saved just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy(
    /// Reason code, shown by `zdt status`.
    pub &'static str,
);

/// A session as [`Session::save`] left it.
#[derive(Debug, Clone, Copy)]
pub struct SavedSession<'a> {
    /// [`Session::kind`].
    pub kind: &'a str,
    /// [`Session::version`].
    pub version: u16,
    /// What was written. Treat it as untrusted.
    pub bytes: &'a [u8],
}

/// Why a session cannot be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// No such kind, or a version that this build cannot read.
    #[error("this build knows no session of that kind and version")]
    UnknownKind,
    /// The bytes do not decode.
    #[error("the saved session is malformed")]
    Malformed,
}

/// The head of a request.
pub struct Request<'a> {
    /// Method, upper case as sent.
    pub method: &'a str,
    /// Path of the target, percent-encoded as sent.
    pub path: &'a str,
    /// What follows the `?`.
    pub query: Option<&'a str>,
    /// Header fields.
    pub headers: &'a dyn Headers,
    /// True when the client asks, correctly, for a WebSocket.
    pub is_websocket: bool,
    /// True when a body follows.
    pub has_body: bool,
    /// The client's address.
    pub peer: SocketAddr,
    /// What TLS knows of the client; `None` where it is not spoken.
    pub tls: Option<TlsInfo<'a>>,
}

/// See [`Request::tls`]. It moves with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsInfo<'a> {
    /// `tls1.2` or `tls1.3`.
    pub version: &'static str,
    /// The name that the client asked for.
    pub server_name: Option<&'a str>,
    /// The client's certificate (DER). Its chain was verified against the configured roots, and the client has proven
    /// to have its key.
    pub client_certificate: Option<&'a [u8]>,
}

impl Request<'_> {
    /// Value of a query parameter, as sent; empty where it has no `=`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query?.split('&').find_map(|pair| match pair.split_once('=') {
            Some((key, value)) => (key == name).then_some(value),
            None => (pair == name).then_some(""),
        })
    }

    /// Value of the first header field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.first(name)
    }
}

/// Access to header fields, whatever protocol carried them.
pub trait Headers {
    /// First value of the field, name in any case.
    fn first(&self, name: &str) -> Option<&[u8]>;
    /// Calls back for every field in order.
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8]));
}

/// A WebSocket message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Valid UTF-8.
    Text(&'a str),
    /// Any bytes.
    Binary(&'a [u8]),
}

impl<'a> Message<'a> {
    /// The text, if it is one.
    pub fn as_text(self) -> Option<&'a str> {
        match self {
            Message::Text(text) => Some(text),
            Message::Binary(_) => None,
        }
    }

    /// The bytes of either kind.
    pub fn as_bytes(self) -> &'a [u8] {
        match self {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(bytes) => bytes,
        }
    }
}
