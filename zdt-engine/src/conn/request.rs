//! A request as the service sees it, whatever protocol carried it, and the opening handshake of a
//! WebSocket inside it (RFC 6455 §4.2).
//!
//! Must not know: what the service does with it.

use crate::config::WebSocketOptions;
use crate::proto::http1::{self, BodyKind, Http1, ResponseError, Version};
use crate::proto::websocket::handshake::{self, ExtensionValue, Refusal};
use crate::proto::websocket::{DeflateOptions, DeflateParams};

/// The head of a request. Borrows the bytes that it arrived in.
#[derive(Debug)]
pub enum Head<'e> {
    /// HTTP/1.1 and 1.0.
    Http1(http1::Request<'e>),
}

impl Head<'_> {
    /// As it was sent.
    pub fn method(&self) -> &str {
        match self {
            Head::Http1(request) => request.method,
        }
    }

    /// The target's path, not decoded.
    pub fn path(&self) -> &str {
        match self {
            Head::Http1(request) => request.path,
        }
    }

    /// What follows the first `?`, not decoded.
    pub fn query(&self) -> Option<&str> {
        match self {
            Head::Http1(request) => request.query,
        }
    }

    /// True if a body follows, perhaps an empty one.
    pub fn has_body(&self) -> bool {
        match self {
            Head::Http1(request) => request.body != BodyKind::None,
        }
    }

    /// The client waits for 100 (Continue), or a final answer, before it sends the body.
    pub fn expects_continue(&self) -> bool {
        match self {
            Head::Http1(request) => request.expects_continue,
        }
    }

    /// Value of the first field of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        match self {
            Head::Http1(request) => request.header(name),
        }
    }

    /// Calls back for every field in order.
    pub fn each_header(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        match self {
            Head::Http1(request) => {
                for (name, value) in request.headers() {
                    visit(name, value);
                }
            }
        }
    }
}

/// A correct wish for a WebSocket, and what the engine will answer to it.
#[derive(Debug)]
pub struct Upgrade {
    accept: [u8; 28],
    deflate: Option<(DeflateParams, ExtensionValue)>,
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
    let deflate = if options.deflate {
        handshake::negotiate_deflate(accepted.extensions, &DeflateOptions::default())
    } else {
        None
    };
    Ok(Some(Box::new(Upgrade { accept: accepted.accept, deflate })))
}

impl Upgrade {
    /// The compression that was agreed.
    pub(super) fn deflate(&self) -> Option<DeflateParams> {
        self.deflate.as_ref().map(|(params, _)| *params)
    }

    /// Writes the 101.
    pub(super) fn write_response(
        &self,
        machine: &mut Http1,
        out: &mut Vec<u8>,
        subprotocol: Option<&str>,
    ) -> Result<(), ResponseError> {
        let mut headers: arrayvec::ArrayVec<(&str, &[u8]), 3> = arrayvec::ArrayVec::new();
        headers.push(("Sec-WebSocket-Accept", &self.accept));
        if let Some(subprotocol) = subprotocol {
            headers.push(("Sec-WebSocket-Protocol", subprotocol.as_bytes()));
        }
        if let Some((_, value)) = &self.deflate {
            headers.push(("Sec-WebSocket-Extensions", value.as_bytes()));
        }
        machine.upgrade(out, "websocket", &headers)
    }
}
