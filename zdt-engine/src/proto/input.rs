//! What every machine is lent: received bytes, and the bytes of an event.
//!
//! Must not know: any protocol.

/// Received bytes, consumed from the front.
#[derive(Debug)]
pub struct Input<'b> {
    bytes: &'b mut [u8],
    /// How many of them may be seen.
    visible: usize,
}

impl<'b> Input<'b> {
    /// Wraps received bytes.
    pub fn new(bytes: &'b mut [u8]) -> Self {
        let visible = bytes.len();
        Self { bytes, visible }
    }

    /// The bytes that are left.
    pub fn peek(&self) -> &[u8] {
        &self.bytes[..self.visible]
    }

    /// The next `count` bytes, to be changed in place. Panics if there are fewer.
    pub fn front_mut(&mut self, count: usize) -> &mut [u8] {
        assert!(count <= self.visible, "a machine looks before it takes");
        &mut self.bytes[..count]
    }

    /// How many bytes are left.
    pub fn len(&self) -> usize {
        self.visible
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.visible == 0
    }

    /// Consumes the first `count` bytes. Panics if there are fewer: a machine looks before it takes.
    pub fn take(&mut self, count: usize) -> &'b mut [u8] {
        assert!(count <= self.visible, "a machine looks before it takes");
        let (taken, rest) = std::mem::take(&mut self.bytes).split_at_mut(count);
        self.bytes = rest;
        self.visible -= count;
        taken
    }

    /// Consumes all that is left.
    pub fn take_all(&mut self) -> &'b mut [u8] {
        self.take(self.visible)
    }

    /// Hides all but the next `count` bytes, for a machine that is lent only a part; [`Input::show`]
    /// undoes it with what this returns.
    pub fn hide_behind(&mut self, count: usize) -> usize {
        let hidden = self.visible.saturating_sub(count);
        self.visible -= hidden;
        hidden
    }

    /// See [`Input::hide_behind`].
    pub fn show(&mut self, hidden: usize) {
        self.visible += hidden;
        debug_assert!(self.visible <= self.bytes.len());
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
