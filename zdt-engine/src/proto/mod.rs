//! Protocol machines: bytes in, events and bytes out.
//!
//! Every machine here is sans-IO. The caller lends it an [`Input`]; the machine takes whole units
//! from its front and returns events that borrow from the input only, never from the machine, so
//! that the caller may write an answer through the same machine while it still looks at the event.
//! What a machine cannot use yet it leaves in the input; the caller keeps it and offers it again,
//! with more bytes behind it. Output is appended to a `Vec<u8>` that the caller owns.
//!
//! Must not know: I/O, clocks, randomness, the other machines' insides.

pub mod hpack;
pub mod http1;
pub mod http2;
mod input;
pub mod proxy_protocol;
pub mod tls;
pub mod websocket;

pub use input::{Input, Payload};

/// How long a response body will be, for every version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// Exactly so many bytes.
    Known(u64),
    /// Found out on the way: chunked in HTTP/1.1, until the end of the connection for a client of HTTP/1.0.
    Unknown,
}
