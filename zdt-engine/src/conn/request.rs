//! The opening handshake of a WebSocket inside an HTTP/1.1 request (RFC 6455 §4.2).
//!
//! Must not know: what the service does with it.

use crate::config::WebSocketOptions;
use crate::proto::http1::{Http1, Request};
use crate::proto::websocket::handshake::{self, Refusal};
use crate::proto::websocket::{DeflateOptions, DeflateParams};

/// A correct wish for a WebSocket, and what the engine will answer to it.
#[derive(Debug)]
pub struct Upgrade {
    accept_key: [u8; 28],
    deflate: Option<(DeflateParams, String)>,
}
