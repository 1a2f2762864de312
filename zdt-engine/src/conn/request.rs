//! A request as the service sees it, whatever protocol carried it, and the opening handshake of a
//! WebSocket inside it (RFC 6455 §4.2).
//!
//! Must not know: what the service does with it.

use crate::config::WebSocketOptions;
use crate::proto::http1::{self, BodyKind, Http1, ResponseError, Version};
use crate::proto::http2;
use crate::proto::websocket::handshake::{self, Accept, ExtensionValue, Refusal};
use crate::proto::websocket::{DeflateOptions, DeflateParams};

/// The head of a request. Borrows the bytes that it arrived in.
#[derive(Debug)]
pub enum Head<'e> {
    /// HTTP/1.1 and 1.0.
    Http1(http1::Request<'e>),
    /// HTTP/2.
    Http2(http2::Request<'e>),
}

impl Head<'_> {
    /// As it was sent.
    pub fn method(&self) -> &str {
        match self {
            Head::Http1(request) => request.method,
            Head::Http2(request) => request.method(),
        }
    }

    /// The target's path, not decoded.
    pub fn path(&self) -> &str {
        match self {
            Head::Http1(request) => request.path,
            Head::Http2(request) => request.path(),
        }
    }

    /// What follows the first `?`, not decoded.
    pub fn query(&self) -> Option<&str> {
        match self {
            Head::Http1(request) => request.query,
            Head::Http2(request) => request.query(),
        }
    }

    /// True if a body follows, perhaps an empty one.
    pub fn has_body(&self) -> bool {
        match self {
            Head::Http1(request) => request.body != BodyKind::None,
            Head::Http2(request) => request.has_body(),
        }
    }

    /// The client waits for 100 (Continue), or a final answer, before it sends the body.
    pub fn expects_continue(&self) -> bool {
        match self {
            Head::Http1(request) => request.expects_continue,
            Head::Http2(request) => request.expects_continue(),
        }
    }

    /// Value of the first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        match self {
            Head::Http1(request) => request.header(name),
            Head::Http2(request) => request.header(name),
        }
    }

    /// Calls back for every field in order.
    pub fn each_header(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        match self {
            Head::Http1(request) => request.headers().for_each(|(name, value)| visit(name, value)),
            Head::Http2(request) => request.headers().for_each(|(name, value)| visit(name, value)),
        }
    }
}

/// A correct wish for a WebSocket, and what the engine will answer to it.
#[derive(Debug)]
pub struct Upgrade {
    accept: [u8; 28],
    deflate: Option<(DeflateParams, ExtensionValue)>,
    /// What the service adds to the answer.
    extra: Vec<(String, Vec<u8>)>,
}

/// What the request wants: no WebSocket, one that can be had, or one that it asks for wrongly.
pub(super) fn wanted_upgrade(
    request: &http1::Request<'_>,
    options: &WebSocketOptions,
) -> Result<Option<Box<Upgrade>>, Refusal> {
    let wants_websocket =
        request.upgrade_tokens().any(|token| token.eq_ignore_ascii_case(b"websocket"));
    if !wants_websocket {
        return Ok(None);
    }
    let is_http11 = request.version == Version::Http11;
    let accepted = handshake::check(request.method, is_http11, request.headers())?;
    Ok(Some(Upgrade::new(accepted, options)))
}

/// The same for HTTP/2, where the wish is an extended CONNECT (RFC 8441 §5).
pub(super) fn wanted_tunnel(
    request: &http2::Request<'_>,
    options: &WebSocketOptions,
) -> Result<Option<Box<Upgrade>>, Refusal> {
    if request.protocol() != Some("websocket") {
        return Ok(None);
    }
    let accepted = handshake::check_extended_connect(request.headers())?;
    Ok(Some(Upgrade::new(accepted, options)))
}

impl Upgrade {
    fn new(accepted: Accept<'_>, options: &WebSocketOptions) -> Box<Self> {
        let deflate = if options.deflate {
            handshake::negotiate_deflate(accepted.extensions, &DeflateOptions::default())
        } else {
            None
        };
        Box::new(Self { accept: accepted.accept, deflate, extra: Vec::new() })
    }

    /// The compression that was agreed.
    pub(super) fn deflate(&self) -> Option<DeflateParams> {
        self.deflate.as_ref().map(|(params, _)| *params)
    }

    /// What the answer says in any version of HTTP.
    pub(super) fn headers<'a>(&'a self, subprotocol: Option<&'a str>) -> Vec<(&'a str, &'a [u8])> {
        let mut headers: Vec<(&str, &[u8])> = Vec::with_capacity(3 + self.extra.len());
        if let Some(subprotocol) = subprotocol {
            headers.push(("Sec-WebSocket-Protocol", subprotocol.as_bytes()));
        }
        if let Some((_, value)) = &self.deflate {
            headers.push(("Sec-WebSocket-Extensions", value.as_bytes()));
        }
        headers.extend(self.extra.iter().map(|(name, value)| (name.as_str(), &value[..])));
        headers
    }

    /// Adds a header field to the answer.
    pub fn add_header(&mut self, name: &str, value: &[u8]) {
        self.extra.push((name.to_owned(), value.to_vec()));
    }

    /// Writes the 101.
    pub(super) fn write_response(
        &self,
        machine: &mut Http1,
        out: &mut Vec<u8>,
        subprotocol: Option<&str>,
    ) -> Result<(), ResponseError> {
        let mut headers = self.headers(subprotocol);
        headers.insert(0, ("Sec-WebSocket-Accept", &self.accept));
        machine.upgrade(out, "websocket", &headers)
    }
}
