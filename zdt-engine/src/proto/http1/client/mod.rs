//! HTTP/1.1, the client's side of one connection (RFC 9110, RFC 9112), as a sans-IO machine.
//!
//! [`Http1Client`] takes responses from an [`Input`]. What is sent is the caller's business: it tells
//! the machine by [`Http1Client::begin`] which request the next response answers, since that decides
//! where the response ends. One request is in flight at a time.
//!
//! A gateway passes on what it reads here, so whatever two implementations could understand
//! differently is refused, as it is for requests: repeated or malformed Content-Length, Content-Length
//! with Transfer-Encoding, any coding but a single `chunked`, bare LF, folded lines, white space before
//! a colon, bytes behind the response ([`ClientError::Unasked`]).
//!
//! Must not know: I/O, clocks, who reads the response in the end.

pub mod persist;
#[cfg(test)]
mod tests;

use super::body::{ChunkStep, Chunked, Used};
use super::head::parse_field;
use super::request::Headers;
use super::{BodyKind, Error, Limits, Version, syntax};
use crate::proto::Input;

pub use persist::{ClientHead, ClientRestoreError};

/// Interim responses to one request.
const MAX_INTERIM: u8 = 32;

/// Bounds for what a server may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Status line and fields, with all line ends. Trailers have the same again.
    pub max_head_bytes: u32,
    /// Fields of a head. Trailers have the same again.
    pub max_header_count: u16,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self { max_head_bytes: 64 << 10, max_header_count: 200 }
    }
}

/// What has arrived.
#[derive(Debug)]
pub enum ClientEvent<'b> {
    /// An interim response (1xx, not 101): the final one is still to come.
    Interim(Response<'b>),
    /// The final response begins, or a 101 ends HTTP on this connection.
    Response(Response<'b>),
    /// Some bytes of its body, decoded, never empty.
    Body(&'b [u8]),
    /// A trailer field, behind the body.
    Trailer(&'b str, &'b [u8]),
    /// It is complete.
    End,
}

/// A valid response head. Borrows from the input.
#[derive(Debug, Clone, Copy)]
pub struct Response<'b> {
    /// 100 to 599 and beyond, three digits.
    pub status: u16,
    /// Of the status line.
    pub version: Version,
    /// How its body is framed; `None` also where the end of the connection ends it: see
    /// [`Response::until_close`].
    pub body: BodyKind,
    /// The end of the connection ends the body.
    pub until_close: bool,
    /// What Content-Length says, where the body is left out (HEAD, 304).
    pub announced: Option<u64>,
    fields: &'b [u8],
}

impl<'b> Response<'b> {
    /// All fields in order: names as they were sent, values without surrounding white space.
    pub fn headers(&self) -> Headers<'b> {
        Headers { rest: self.fields }
    }

    /// The first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Why a response is refused. Always the server's fault, and the end of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// RFC 9112 §4.
    #[error("malformed status line")]
    StatusLine,
    /// What is wrong with the head, or with the chunks: the same rules as for requests.
    #[error("{0}")]
    Message(Error),
    /// RFC 9110 §15.2.2.
    #[error("a switch of protocols that nobody has asked for")]
    Switched,
    /// More interim responses than anybody needs.
    #[error("too many interim responses")]
    TooManyInterim,
    /// Bytes that answer no request: behind a response, or before any request.
    #[error("bytes that answer no request")]
    Unasked,
    /// The connection ended inside the head.
    #[error("the connection ended before the response was complete")]
    CutOff,
}

impl From<Error> for ClientError {
    fn from(error: Error) -> Self {
        Self::Message(error)
    }
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http1Client {
    stage: Stage,
    used: Used,
    is_head: bool,
    upgrade_offered: bool,
    keep_alive: bool,
    interim: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No request in flight.
    Idle,
    /// In the head; so many bytes of it need not be looked at again for its end.
    Head {
        scanned: u32,
    },
    Sized {
        remaining: u64,
    },
    Chunked(Chunked),
    UntilClose,
    /// All is there, and the caller has not been told.
    End,
    /// Nothing more will be read.
    Closed,
}

impl Default for Http1Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Http1Client {
    /// The machine of a fresh connection.
    pub fn new() -> Self {
        Self {
            stage: Stage::Idle,
            used: Used::default(),
            is_head: false,
            upgrade_offered: false,
            keep_alive: true,
            interim: 0,
        }
    }

    /// A request is sent: the next response answers it.
    ///
    /// # Panics
    /// If another one is in flight.
    pub fn begin(&mut self, is_head: bool, upgrade_offered: bool) {
        assert!(self.stage == Stage::Idle, "one request at a time");
        self.stage = Stage::Head { scanned: 0 };
        self.used = Used::default();
        self.is_head = is_head;
        self.upgrade_offered = upgrade_offered;
        self.interim = 0;
    }

    /// True if a request can be sent: none is in flight, and the connection stays.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// True while nothing of the final response's head has been delivered.
    pub fn awaits_head(&self) -> bool {
        matches!(self.stage, Stage::Head { .. })
    }

    /// Takes the next event from the input; `None` when more input is needed.
    ///
    /// # Errors
    /// The server's fault, and the end of the connection. Later calls return `None`.
    pub fn next_event<'b>(
        &mut self,
        input: &mut Input<'b>,
        limits: &ClientLimits,
    ) -> Result<Option<ClientEvent<'b>>, ClientError> {
        let result = self.advance(input, limits);
        if result.is_err() {
            self.stage = Stage::Closed;
        }
        result
    }

    fn advance<'b>(
        &mut self,
        input: &mut Input<'b>,
        limits: &ClientLimits,
    ) -> Result<Option<ClientEvent<'b>>, ClientError> {
        loop {
            match &mut self.stage {
                Stage::Idle if input.is_empty() => return Ok(None),
                Stage::Idle => return Err(ClientError::Unasked),
                Stage::Closed => return Ok(None),
                Stage::End => {
                    self.stage = if self.keep_alive { Stage::Idle } else { Stage::Closed };
                    return Ok(Some(ClientEvent::End));
                }
                _ if input.is_empty() => return Ok(None),
                Stage::Head { scanned } => {
                    let Some(length) = head_length(input.peek(), scanned, limits)? else {
                        return Ok(None);
                    };
                    let bytes: &'b [u8] = input.take(length);
                    return self.on_head(bytes, limits).map(Some);
                }
                Stage::Sized { remaining } => {
                    let count = (input.len() as u64).min(*remaining);
                    *remaining -= count;
                    if *remaining == 0 {
                        self.stage = Stage::End;
                    }
                    return Ok(Some(ClientEvent::Body(input.take(count as usize))));
                }
                Stage::UntilClose => return Ok(Some(ClientEvent::Body(input.take_all()))),
                Stage::Chunked(chunked) => {
                    let limits = Limits {
                        max_head_bytes: limits.max_head_bytes,
                        max_target_bytes: 0,
                        max_header_count: limits.max_header_count,
                        max_body_bytes: u64::MAX - 1,
                    };
                    let in_trailers = matches!(chunked, Chunked::Trailers(_));
                    match chunked.step(input.peek(), &mut self.used, &limits)? {
                        ChunkStep::Incomplete => return Ok(None),
                        ChunkStep::Skip(count) if in_trailers => {
                            let line: &'b [u8] = input.take(count);
                            let (name, value) = parse_field(&line[..count - 2])?;
                            let name = std::str::from_utf8(name).unwrap_or_default();
                            return Ok(Some(ClientEvent::Trailer(name, value)));
                        }
                        ChunkStep::Skip(count) => {
                            input.take(count);
                        }
                        ChunkStep::Data(count) => {
                            return Ok(Some(ClientEvent::Body(input.take(count))));
                        }
                        ChunkStep::End(count) => {
                            input.take(count);
                            self.stage = Stage::End;
                        }
                    }
                }
            }
        }
    }

    fn on_head<'b>(
        &mut self,
        bytes: &'b [u8],
        limits: &ClientLimits,
    ) -> Result<ClientEvent<'b>, ClientError> {
        let (status, version, line_length) = status_line(bytes)?;
        let fields = &bytes[line_length..bytes.len() - 2];
        let facts = Facts::collect(fields, limits)?;
        let mut response = Response {
            status,
            version,
            body: BodyKind::None,
            until_close: false,
            announced: None,
            fields,
        };
        if (100..200).contains(&status) {
            if status == 101 {
                if !self.upgrade_offered || !facts.upgrade {
                    return Err(ClientError::Switched);
                }
                // What follows is another protocol; the caller takes it from the input itself.
                self.stage = Stage::Closed;
                self.keep_alive = false;
                return Ok(ClientEvent::Response(response));
            }
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(ClientError::TooManyInterim);
            }
            self.stage = Stage::Head { scanned: 0 };
            return Ok(ClientEvent::Interim(response));
        }
        // RFC 9112 §9.3
        self.keep_alive =
            !facts.close && (version == Version::Http11 || facts.keep_alive) && self.keep_alive;
        // RFC 9112 §6.3
        if facts.has_transfer_encoding {
            if facts.content_length.is_some() {
                return Err(Error::ContentLengthWithTransferEncoding.into());
            }
            if version == Version::Http10 {
                return Err(Error::TransferEncodingInHttp10.into());
            }
            if !facts.is_chunked {
                return Err(Error::UnknownTransferCoding.into());
            }
        }
        self.stage = if self.is_head || status == 204 || status == 304 {
            response.announced = facts.content_length;
            Stage::End
        } else if facts.has_transfer_encoding {
            response.body = BodyKind::Chunked;
            Stage::Chunked(Chunked::Size)
        } else {
            match facts.content_length {
                Some(remaining) => {
                    response.body = BodyKind::Known(remaining);
                    if remaining == 0 { Stage::End } else { Stage::Sized { remaining } }
                }
                None => {
                    response.until_close = true;
                    self.keep_alive = false;
                    Stage::UntilClose
                }
            }
        };
        Ok(ClientEvent::Response(response))
    }

    /// The server has closed its direction, or has reset the connection (`is_reset`). True if that ends a body
    /// as it should.
    ///
    /// # Errors
    /// `CutOff` if a response was expected or not complete.
    pub fn on_receive_end(&mut self, is_reset: bool) -> Result<bool, ClientError> {
        let stage = std::mem::replace(&mut self.stage, Stage::Closed);
        self.keep_alive = false;
        match stage {
            Stage::Idle | Stage::Closed => Ok(false),
            Stage::End => Ok(true),
            // Nothing says that it is whole but the order in which it ends (RFC 9112 §8).
            Stage::UntilClose if !is_reset => Ok(true),
            Stage::UntilClose | Stage::Head { .. } | Stage::Sized { .. } | Stage::Chunked(_) => {
                Err(ClientError::CutOff)
            }
        }
    }
}

/// Length of a complete head at the start of `bytes`.
fn head_length(
    bytes: &[u8],
    scanned: &mut u32,
    limits: &ClientLimits,
) -> Result<Option<usize>, ClientError> {
    if !b"HTTP/1.".starts_with(&bytes[..bytes.len().min(7)]) {
        return Err(ClientError::StatusLine);
    }
    let window = &bytes[..bytes.len().min(limits.max_head_bytes as usize)];
    // `scanned` is where a line begins.
    let mut at = *scanned as usize;
    while let Some(length) = window.get(at..).and_then(|rest| memchr::memchr(b'\n', rest)) {
        let end = at + length;
        if end == 0 || window[end - 1] != b'\r' {
            return Err(Error::BareLineFeed.into());
        }
        if end == at + 1 {
            return Ok(Some(end + 1));
        }
        at = end + 1;
    }
    if window.len() < bytes.len() || bytes.len() == limits.max_head_bytes as usize {
        return Err(Error::HeadTooLarge.into());
    }
    *scanned = at as u32;
    Ok(None)
}

/// `HTTP-version SP status-code SP [ reason-phrase ]` (RFC 9112 §4); the second space may be missing
/// with the phrase, as many leave it out. Status, version, length with CRLF.
fn status_line(bytes: &[u8]) -> Result<(u16, Version, usize), ClientError> {
    let end = syntax::find_control(bytes, 0);
    if bytes.get(end..end + 2) != Some(b"\r\n") {
        return Err(ClientError::StatusLine);
    }
    let line = &bytes[..end];
    let version = match line.get(..9) {
        Some(b"HTTP/1.1 ") => Version::Http11,
        Some(b"HTTP/1.0 ") => Version::Http10,
        _ => return Err(ClientError::StatusLine),
    };
    let digits = line.get(9..12).filter(|digits| syntax::all_digits(digits));
    let status = digits.and_then(syntax::decimal).ok_or(ClientError::StatusLine)? as u16;
    if status < 100 || line.get(12).is_some_and(|&byte| byte != b' ') {
        return Err(ClientError::StatusLine);
    }
    Ok((status, version, end + 2))
}

/// What the fields say about framing and the connection.
#[derive(Default)]
struct Facts {
    content_length: Option<u64>,
    has_transfer_encoding: bool,
    is_chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Facts {
    fn collect(fields: &[u8], limits: &ClientLimits) -> Result<Self, ClientError> {
        let mut facts = Self::default();
        let mut at = 0;
        let mut count = 0u16;
        while at < fields.len() {
            let end = syntax::find_control(fields, at);
            match fields.get(end..end + 2) {
                Some(b"\r\n") => {}
                Some([b'\r', _]) => return Err(Error::BareCarriageReturn.into()),
                _ => return Err(Error::ControlCharacter.into()),
            }
            let (name, value) = parse_field(&fields[at..end])?;
            count += 1;
            if count > limits.max_header_count {
                return Err(Error::TooManyFields.into());
            }
            facts.field(name, value)?;
            at = end + 2;
        }
        Ok(facts)
    }

    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Error> {
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in syntax::list(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.content_length.is_some() || value.contains(&b',') {
                    return Err(Error::RepeatedContentLength);
                }
                let length = syntax::decimal(value).filter(|&length| length != u64::MAX);
                self.content_length = Some(length.ok_or(Error::MalformedContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.has_transfer_encoding {
                    return Err(Error::MalformedTransferEncoding);
                }
                self.has_transfer_encoding = true;
                self.is_chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            _ => {}
        }
        Ok(())
    }
}
