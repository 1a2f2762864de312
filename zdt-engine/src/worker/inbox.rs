//! Messages that other threads of the process push to sessions.
//!
//! Must not know: the worker's loop, which it wakes through an eventfd.

use std::os::fd::{AsFd, BorrowedFd};

use crossbeam::queue::ArrayQueue;

use crate::service::{ConnectionId, PushError, PushSink, StreamId};
use crate::sys::EventFd;

/// Messages that may wait.
const CAPACITY: usize = 4_096;

/// A bounded queue with a wake-up.
pub struct Inbox {
    queue: ArrayQueue<(ConnectionId, StreamId, Vec<u8>)>,
    wake: EventFd,
}

impl Inbox {
    /// An empty one.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { queue: ArrayQueue::new(CAPACITY), wake: EventFd::new()? })
    }

    /// Becomes readable when something was pushed.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// To be called before the messages are taken.
    pub fn drain_wake(&self) {
        let _ = self.wake.take();
    }

    /// Takes the oldest message.
    pub fn pop(&self) -> Option<(ConnectionId, StreamId, Vec<u8>)> {
        self.queue.pop()
    }
}

impl PushSink for Inbox {
    fn push(
        &self,
        connection: ConnectionId,
        stream: StreamId,
        bytes: Vec<u8>,
    ) -> Result<(), PushError> {
        self.queue.push((connection, stream, bytes)).map_err(|_| PushError::Full)?;
        // Its own descriptor is an eventfd: signalling cannot fail.
        let _ = self.wake.signal();
        Ok(())
    }
}
