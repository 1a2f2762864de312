//! Where a stream is within its connection.
//!
//! Must not know: what a stream is.

/// Names a stream of one connection for as long as it lives; used again afterwards. Small numbers, so
/// that tables may be indexed by them. The only stream of HTTP/1.1 is [`Slot::ONLY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// The stream of a connection that has one.
    pub const ONLY: Slot = Slot(0);

    /// The slot of that number.
    pub const fn new(index: usize) -> Self {
        Self(index as u32)
    }

    /// For tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The one behind it.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
