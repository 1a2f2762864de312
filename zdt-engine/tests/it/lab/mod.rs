//! A laboratory for workers: real worker processes, with the test in the supervisor's seat.
//!
//! The test decides which control message is sent when, and which fault points are armed in which
//! process, so that every step of the handoff protocol can be interrupted on purpose.

pub mod client;
pub mod http2;
pub mod mixed;
pub mod programs;
pub mod secure;
pub mod system;
pub mod worker;

pub use worker::{Pair, TestWorker};

use std::time::{Duration, Instant};

/// Nothing in a test may take longer; what does is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Fault points of the side that gives its connections away, in their order.
pub const GIVING_POINTS: [&str; 7] = [
    "freeze.begun",
    "freeze.saved",
    "offer.recorded",
    "offer.published",
    "offer.before_descriptors",
    "offer.after_descriptors",
    "release.before",
];

/// Fault points of the side that takes them.
pub const TAKING_POINTS: [&str; 4] =
    ["adopt.received", "adopt.restored", "adopt.adopted", "adopt.started"];

/// Polls `condition` until it holds. The wait between two looks is no synchronisation: only the
/// condition is.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
