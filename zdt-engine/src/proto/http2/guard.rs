//! What a peer may make us do for nothing: leaky buckets, which move with the connection.
//!
//! Every frame that costs work and brings nothing (a reset request, a ping, an empty frame) fills a
//! bucket; time empties it, and so does useful traffic in the case of control frames, because honest
//! peers send some with it. A bucket that runs over ends the connection with ENHANCE_YOUR_CALM.
//!
//! Must not know: streams, windows.

use serde::{Deserialize, Serialize};

use super::{Environment, Error};

/// A leaky bucket, in thousandths of a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    level: u64,
    at_ms: u64,
}

/// The saved form of both buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardState {
    /// Level of the resets' bucket, in thousandths.
    pub resets: u64,
    /// Level of the control frames' bucket, in thousandths.
    pub control: u64,
}

impl Bucket {
    /// One more. False: it runs over. `burst` go in at once, and `per_second` leak out.
    fn fill(&mut self, now_ms: u64, burst: u32, per_second: u32) -> bool {
        let leaked = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(per_second));
        self.at_ms = now_ms;
        self.level = self.level.saturating_sub(leaked).saturating_add(1_000);
        self.level <= u64::from(burst) * 1_000
    }

    /// Useful traffic makes up for so many.
    pub(super) fn excuse(&mut self, frames: u32) {
        self.level = self.level.saturating_sub(u64::from(frames) * 1_000);
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Guard {
    /// Streams that ended without use: reset by the peer, refused, malformed.
    pub resets: Bucket,
    /// Frames that carry nothing.
    pub control: Bucket,
}

impl Guard {
    /// A frame that may be of no use.
    pub(super) fn count_useless(&mut self, environment: &Environment<'_>) -> Result<(), Error> {
        let options = &environment.options;
        let (burst, per_second) = (options.control_burst, options.control_per_second);
        let fits = self.control.fill(environment.now_ms, burst, per_second);
        fits.then_some(()).ok_or(Error::too_much("too many frames without use"))
    }

    /// A stream that came to nothing by the client's doing.
    pub(super) fn count_reset(&mut self, environment: &Environment<'_>) -> Result<(), Error> {
        let options = &environment.options;
        let (burst, per_second) = (options.reset_burst, options.resets_per_second);
        let fits = self.resets.fill(environment.now_ms, burst, per_second);
        fits.then_some(()).ok_or(Error::too_much("too many streams were reset"))
    }

    pub(super) fn save(&self) -> GuardState {
        GuardState { resets: self.resets.level, control: self.control.level }
    }

    /// Leaking goes on from now: what the transit would have let out stays in, for a moment.
    pub(super) fn restore(state: GuardState, now_ms: u64) -> Self {
        Self {
            resets: Bucket { level: state.resets, at_ms: now_ms },
            control: Bucket { level: state.control, at_ms: now_ms },
        }
    }
}
