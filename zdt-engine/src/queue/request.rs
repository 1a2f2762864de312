//! A held request as its owner sees it: what it is, where it is, what becomes of it.
//!
//! Must not know: where its bytes are.

use serde::{Deserialize, Serialize};

use super::Priority;

/// A request to be held.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its bytes: these, one behind the other.
    pub parts: [&'a [u8]; 2],
    /// The upstream that it is for; `None` if any will do.
    pub upstream: Option<u64>,
    /// See [`Priority`].
    pub priority: Priority,
    /// Anything by which the caller knows it.
    pub tag: u64,
    /// The application may have seen it already.
    pub may_have_been_sent: bool,
}

impl<'a> Request<'a> {
    /// These bytes, without priority, for any upstream.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            parts: [bytes, &[]],
            upstream: None,
            priority: Priority::LOWEST,
            tag: 0,
            may_have_been_sent: false,
        }
    }
}

/// Names a held request, for [`RequestQueue::cancel`](super::RequestQueue::cancel). Never names a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    pub(super) index: u32,
    pub(super) sequence: u64,
}

/// What is known of a held request besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub id: RequestId,
    /// The caller's.
    pub tag: u64,
    /// See [`Request::upstream`].
    pub upstream: Option<u64>,
    /// See [`Priority`].
    pub priority: Priority,
    /// How long it has been held.
    pub age_ms: u64,
    /// See [`Request::may_have_been_sent`].
    pub may_have_been_sent: bool,
    /// Length of its bytes.
    pub bytes: usize,
}

/// Which buffers are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every one.
    All,
    /// The one for requests without an upstream.
    Global,
    /// The one of that upstream.
    Upstream(u64),
}

/// Why a request is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// Neither the global buffer nor that of its upstream takes requests.
    #[error("buffering is not switched on for this request")]
    NotBuffering,
    /// The bounds are reached, and the overflow rule does not make room.
    #[error("the request queue is full")]
    Full,
    /// It alone is larger than the bound.
    #[error("the request has {bytes} bytes, more than the whole queue may hold")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
}

/// What [`RequestQueue::replay`](super::RequestQueue::replay) did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Requests given out.
    pub replayed_requests: u64,
    /// Requests still held in that scope.
    pub remaining_requests: u64,
}
