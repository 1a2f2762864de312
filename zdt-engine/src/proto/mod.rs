//! Protocol machines: bytes in, events and bytes out.
//!
//! Every machine here is sans-IO. The caller lends it an [`Input`]; the machine takes whole units
//! from its front and returns events that borrow from the input only, never from the machine, so
//! that the caller may write an answer through the same machine while it still looks at the event.
//! What a machine cannot use yet it leaves in the input; the caller keeps it and offers it again,
//! with more bytes behind it. Output is appended to a `Vec<u8>` that the caller owns.
//!
//! Must not know: I/O, clocks, randomness, the other machines' insides.

pub mod http1;
pub mod proxy_protocol;
pub mod tls;
pub mod websocket;

/// Received bytes, consumed from the front.
#[derive(Debug)]
pub struct Input<'b> {
    bytes: &'b mut [u8],
}

impl<'b> Input<'b> {
    /// Wraps received bytes.
    pub fn new(bytes: &'b mut [u8]) -> Self {
        Self { bytes }
    }

    /// The bytes that are left.
    pub fn peek(&self) -> &[u8] {
        self.bytes
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Consumes the first `count` bytes. Panics if there are fewer: a machine looks before it takes.
    pub fn take(&mut self, count: usize) -> &'b mut [u8] {
        let (taken, rest) = std::mem::take(&mut self.bytes).split_at_mut(count);
        self.bytes = rest;
        taken
    }

    /// Consumes all that is left.
    pub fn take_all(&mut self) -> &'b mut [u8] {
        std::mem::take(&mut self.bytes)
    }
}

/// The bytes of an event: lent by the input where they arrived in one piece, else owned.
#[derive(Debug)]
pub enum Payload<'b> {
    /// A piece of the input, in place.
    Borrowed(&'b mut [u8]),
    /// Put together from several pieces (or inflated). The caller may recycle the vector.
    Owned(Vec<u8>),
}

impl std::ops::Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => bytes,
        }
    }
}
