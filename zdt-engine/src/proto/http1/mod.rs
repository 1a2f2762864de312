//! HTTP/1.1, the server's side of one connection (RFC 9110, RFC 9112), as a sans-IO machine.
//!
//! [`Http1::next_event`] takes requests and body bytes from an [`Input`]; the response functions
//! append to a `Vec<u8>`. One request is handled at a time: while its answer is not finished,
//! pipelined requests stay in the input. Nothing is kept on the heap.
//!
//! ```
//! use zdt_engine::proto::Input;
//! use zdt_engine::proto::http1::{Event, Http1, Limits};
//!
//! let mut http = Http1::new();
//! let mut received = b"GET /hello?x=1 HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec();
//! let mut input = Input::new(&mut received);
//! let mut output = Vec::new();
//! while let Some(event) = http.next_event(&mut input, &Limits::default()).unwrap() {
//!     if let Event::Request(request) = event {
//!         assert_eq!((request.path, request.query), ("/hello", Some("x=1")));
//!         let headers: [(&str, &[u8]); 1] = [("Content-Type", b"text/plain")];
//!         http.respond(&mut output, 200, &headers, b"hello", b"").unwrap();
//!     }
//! }
//! assert!(output.ends_with(b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"));
//! assert!(http.is_idle());
//! ```
//!
//! The order of things, for the caller:
//! - Call `next_event` until it returns `None`, then wait for more input (if
//!   [`wants_input`](Http1::wants_input)) or for the service to finish its answer. After a response
//!   has been finished, call it again: pipelined requests may be waiting.
//! - Events of a request end with its response: if the answer is finished before the body has
//!   arrived, the rest is discarded silently, up to [`DISCARD_LIMIT_BYTES`].
//! - On an [`Error`], write [`Http1::error_response`], send it, and close: nothing more is read.
//! - Close when [`must_close`](Http1::must_close) and all output has been sent.
//!
//! Strictness: whatever two implementations could understand differently is refused. Beyond the
//! letter of RFC 9112 these are refused, too: repeated Content-Length even with equal values, bare
//! LF as a line end, any Transfer-Encoding but a single `chunked`, a Host that differs from an
//! absolute-form target, a second empty line before a request, commas in Host, a fragment or one of
//! `"<>` in the target, a backslash in the path.
//!
//! Must not know: I/O, clocks, randomness, what a service does, WebSocket.

mod body;
pub mod client;
mod error;
mod head;
pub mod persist;
mod request;
mod response;
mod syntax;
#[cfg(test)]
mod tests;

use super::Input;
use body::{ChunkStep, Chunked, Used};
use head::{Progress, Step};

pub use super::BodyLength;
pub use error::{Error, ResponseError};
pub use persist::{Http1Head, Http1State, RestoreError};
pub use request::{BodyKind, Headers, Request, Version};
pub use response::reason_phrase;

/// Body bytes that are taken and dropped to save a connection whose request was answered early;
/// if more are to come, closing it is cheaper.
pub const DISCARD_LIMIT_BYTES: u32 = 256 << 10;

/// Bounds for what a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Request line and fields, with all line ends (431). Trailers have the same again.
    pub max_head_bytes: u32,
    /// Request target (414).
    pub max_target_bytes: u32,
    /// Fields of a head (431). Trailers have the same again.
    pub max_header_count: u16,
    /// Request body after decoding (413).
    pub max_body_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_head_bytes: 16 << 10,
            max_target_bytes: 8 << 10,
            max_header_count: 100,
            max_body_bytes: 1 << 30,
        }
    }
}

/// What has arrived.
#[derive(Debug)]
pub enum Event<'b> {
    /// A request begins.
    Request(Request<'b>),
    /// Some bytes of its body, decoded, never empty.
    Body(&'b [u8]),
    /// Its body is complete; follows the request at once if it has none.
    End,
}

/// Where the current response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseState {
    /// No request waits for one.
    Idle,
    /// A request has been delivered, or refused; not a byte of its final response has been written.
    Pending,
    /// The head has been written, the body has not been finished.
    Streaming,
    /// Finished, while the rest of the request's body is being discarded.
    Finished,
}

/// See the [module](self). 56 bytes, without anything on the heap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1 {
    incoming: Incoming,
    outgoing: Outgoing,
    used: Used,
    flags: Flags,
}

const _: () = assert!(size_of::<Http1>() <= 64);

/// Stages of the receiving side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Incoming {
    /// Before or in a request head.
    Head(Progress),
    /// In a body with a Content-Length.
    Sized { remaining: u64 },
    /// In a chunked body.
    Chunked(Chunked),
    /// All is there, and the caller has not been told.
    End,
    /// Waits for the response to be finished.
    Complete,
    /// Nothing more will be read from this connection.
    Closed,
}

/// Stages of the sending side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outgoing {
    /// No request to answer.
    Idle,
    /// A request, perhaps a refused one, without its answer.
    Pending,
    /// In a body of which so many bytes are owed. Also for responses without one.
    Sized { remaining: u64 },
    /// In a chunked body.
    Chunked,
    /// In a body that the end of the connection ends.
    UntilClose,
    /// In the body of an answer to HEAD: counted, never sent. `None` was announced as chunked.
    Omitted { remaining: Option<u64> },
    /// Done; the request's body is still arriving.
    Finished { discard_left: u32 },
}

/// What has to be remembered of the request, and of what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Flags {
    /// An empty line before the request has been dropped.
    empty_line_skipped: bool,
    is_http10: bool,
    is_head: bool,
    /// The client still waits for 100 (Continue).
    continue_awaited: bool,
    /// An upgrade was offered.
    upgrade: bool,
    /// The connection outlives this exchange, as far as is known.
    keep_alive: bool,
    /// The next response is the last, whatever the client wants.
    close_requested: bool,
}

impl Default for Http1 {
    fn default() -> Self {
        Self::new()
    }
}

impl Http1 {
    /// The machine of a fresh connection.
    pub fn new() -> Self {
        Self {
            incoming: Incoming::Head(Progress::START),
            outgoing: Outgoing::Idle,
            used: Used::default(),
            flags: Flags::default(),
        }
    }

    /// Takes the next event from the input.
    ///
    /// `None` when more input is needed, or when nothing can be taken before the current response
    /// is finished. Bytes that are left in the input have to be offered again, unchanged, with more
    /// behind them.
    ///
    /// # Errors
    /// The client's fault, and the end of the connection: see [`Http1::error_response`]. Later
    /// calls return `None`.
    pub fn next_event<'b>(
        &mut self,
        input: &mut Input<'b>,
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Error> {
        let result = self.advance(input, limits);
        if result.is_err() {
            match self.outgoing {
                Outgoing::Idle => {
                    // Refused before it was a request: an answer is owed all the same.
                    self.outgoing = Outgoing::Pending;
                    self.flags =
                        Flags { close_requested: self.flags.close_requested, ..Flags::default() };
                }
                Outgoing::Finished { .. } => self.outgoing = Outgoing::Idle,
                _ => {}
            }
            self.incoming = Incoming::Closed;
            self.flags.keep_alive = false;
        }
        result
    }

    fn advance<'b>(
        &mut self,
        input: &mut Input<'b>,
        limits: &Limits,
    ) -> Result<Option<Event<'b>>, Error> {
        loop {
            let body = match &mut self.incoming {
                Incoming::Head(progress) => match head::parse(input.peek(), *progress, limits)? {
                    Step::Incomplete(further) => {
                        *progress = further;
                        return Ok(None);
                    }
                    // RFC 9112 §2.2: one is ignored, after bodies of sloppy old clients.
                    Step::EmptyLine if self.flags.empty_line_skipped => {
                        return Err(Error::EmptyLines);
                    }
                    Step::EmptyLine => {
                        input.take(2);
                        self.flags.empty_line_skipped = true;
                        *progress = Progress::START;
                        continue;
                    }
                    Step::Complete(head) => {
                        let bytes: &'b [u8] = input.take(head.length);
                        let request = Request::new(bytes, &head);
                        self.begin(&request);
                        return Ok(Some(Event::Request(request)));
                    }
                },
                Incoming::End => {
                    self.incoming = Incoming::Complete;
                    return Ok(Some(Event::End));
                }
                Incoming::Complete | Incoming::Closed => return Ok(None),
                Incoming::Sized { .. } | Incoming::Chunked(_) if input.is_empty() => {
                    return Ok(None);
                }
                Incoming::Sized { remaining } => {
                    let count = (input.len() as u64).min(*remaining);
                    *remaining -= count;
                    if *remaining == 0 {
                        self.incoming = Incoming::End;
                    }
                    input.take(count as usize)
                }
                Incoming::Chunked(chunked) => {
                    match chunked.step(input.peek(), &mut self.used, limits)? {
                        ChunkStep::Incomplete => return Ok(None),
                        ChunkStep::Skip(count) => {
                            input.take(count);
                            continue;
                        }
                        ChunkStep::Data(count) => input.take(count),
                        ChunkStep::End(count) => {
                            self.incoming = Incoming::End;
                            input.take(count);
                            &mut []
                        }
                    }
                }
            };
            // What is client traffic is now no longer awaited (RFC 9110 §10.1.1).
            self.flags.continue_awaited = false;
            if let Outgoing::Finished { discard_left } = &mut self.outgoing {
                *discard_left = u32::try_from(body.len())
                    .ok()
                    .and_then(|count| discard_left.checked_sub(count))
                    .ok_or(Error::BodyNotWanted)?;
                if self.incoming == Incoming::End {
                    self.next_request();
                }
            } else if !body.is_empty() {
                return Ok(Some(Event::Body(body)));
            }
        }
    }

    fn begin(&mut self, request: &Request<'_>) {
        self.incoming = match request.body {
            BodyKind::None | BodyKind::Known(0) => Incoming::End,
            BodyKind::Known(remaining) => Incoming::Sized { remaining },
            BodyKind::Chunked => Incoming::Chunked(Chunked::Size),
        };
        self.outgoing = Outgoing::Pending;
        self.flags = Flags {
            empty_line_skipped: false,
            is_http10: request.version == Version::Http10,
            is_head: request.method == "HEAD",
            continue_awaited: request.expects_continue,
            upgrade: request.upgrade,
            keep_alive: request.keep_alive && !self.flags.close_requested,
            close_requested: self.flags.close_requested,
        };
    }

    fn next_request(&mut self) {
        self.incoming = Incoming::Head(Progress::START);
        self.outgoing = Outgoing::Idle;
        self.used = Used::default();
    }

    /// The answer is complete: what becomes of the connection?
    fn response_finished(&mut self) {
        self.outgoing = Outgoing::Idle;
        match self.incoming {
            _ if !self.flags.keep_alive => self.incoming = Incoming::Closed,
            Incoming::End | Incoming::Complete => self.next_request(),
            Incoming::Sized { remaining } if remaining > u64::from(DISCARD_LIMIT_BYTES) => {
                self.incoming = Incoming::Closed;
                self.flags.keep_alive = false;
            }
            Incoming::Sized { .. } | Incoming::Chunked(_) => {
                self.outgoing = Outgoing::Finished { discard_left: DISCARD_LIMIT_BYTES };
            }
            Incoming::Head(_) | Incoming::Closed => {}
        }
    }

    /// Between requests, and nothing of a next one has been seen.
    pub fn is_idle(&self) -> bool {
        self.incoming == Incoming::Head(Progress::START)
    }

    /// False while more input would be left where it is: a request waits for its response to be
    /// finished, or the connection is at its end. Ask after `next_event` has returned `None`.
    pub fn wants_input(&self) -> bool {
        !matches!(self.incoming, Incoming::End | Incoming::Complete | Incoming::Closed)
    }

    /// True if the next event is the end of the request, which takes no further input.
    pub fn is_end_due(&self) -> bool {
        self.incoming == Incoming::End
    }

    /// The connection stays open after the current (or the last) response, as far as is known now;
    /// decided once the response has begun. True on a connection without any request yet.
    pub fn keep_alive(&self) -> bool {
        match self.outgoing {
            Outgoing::Idle => self.incoming != Incoming::Closed && !self.flags.close_requested,
            _ => self.flags.keep_alive,
        }
    }

    /// Nothing more will be read, and no response can be begun: close once all output is sent. If a
    /// response is [`Streaming`](ResponseState::Streaming), it is lost.
    pub fn must_close(&self) -> bool {
        self.incoming == Incoming::Closed && self.outgoing != Outgoing::Pending
    }

    /// Where the current response is.
    pub fn response_state(&self) -> ResponseState {
        match self.outgoing {
            Outgoing::Idle => ResponseState::Idle,
            Outgoing::Pending => ResponseState::Pending,
            Outgoing::Sized { .. }
            | Outgoing::Chunked
            | Outgoing::UntilClose
            | Outgoing::Omitted { .. } => ResponseState::Streaming,
            Outgoing::Finished { .. } => ResponseState::Finished,
        }
    }

    /// The whole request has been delivered or discarded, its [`Event::End`] included.
    pub fn request_complete(&self) -> bool {
        matches!(self.incoming, Incoming::Complete)
    }

    /// Makes the current response, or else the next one, the last of this connection: for a
    /// graceful stop. No effect on a response whose head has been written.
    pub fn close_after_response(&mut self) {
        self.flags.close_requested = true;
        if self.outgoing == Outgoing::Pending {
            self.flags.keep_alive = false;
        }
    }
}
