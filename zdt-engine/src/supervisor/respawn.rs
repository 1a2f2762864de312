//! The guard against crash loops: how often, within a window, a worker may be restarted.
//!
//! Must not know: processes; time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::config::RespawnOptions;

/// Shortest pause before a worker that died again is restarted; doubles with each crash.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What to do about a worker that died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Start another one after this pause; the first crash in a window gets none.
    Respawn(Duration),
    /// Too many: give its listeners to a live worker.
    GiveUp,
}

/// Remembers the crashes of each place (a worker's index in its generation).
#[derive(Debug, Default)]
pub struct RespawnGuard {
    crashes: BTreeMap<(u32, u32), VecDeque<Instant>>,
}

impl RespawnGuard {
    /// Counts a crash of the worker at `index` of `generation`.
    pub fn on_crash(
        &mut self,
        options: &RespawnOptions,
        generation: u32,
        index: u32,
        now: Instant,
    ) -> Answer {
        let window = Duration::from_millis(options.window_ms);
        let crashes = self.crashes.entry((generation, index)).or_default();
        while crashes.front().is_some_and(|&then| now.saturating_duration_since(then) >= window) {
            crashes.pop_front();
        }
        if !options.enabled || crashes.len() >= options.limit as usize {
            return Answer::GiveUp;
        }
        let earlier = u32::try_from(crashes.len()).unwrap_or(u32::MAX);
        crashes.push_back(now);
        let pause = match earlier {
            0 => Duration::ZERO,
            _ => FIRST_PAUSE.saturating_mul(1 << (earlier - 1).min(16)).min(LONGEST_PAUSE),
        };
        Answer::Respawn(pause)
    }

    /// Forgets a generation that has ended.
    pub fn forget(&mut self, generation: u32) {
        self.crashes.retain(|&(of, _), _| of != generation);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(limit: u32, window_ms: u64) -> RespawnOptions {
        RespawnOptions { enabled: true, limit, window_ms }
    }

    #[test]
    fn the_limit_counts_within_the_window_only() {
        let (mut guard, start) = (RespawnGuard::default(), Instant::now());
        let options = options(2, 1_000);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(guard.on_crash(&options, 1, 0, at(0)), Answer::Respawn(Duration::ZERO));
        assert_eq!(guard.on_crash(&options, 1, 0, at(10)), Answer::Respawn(FIRST_PAUSE));
        assert_eq!(guard.on_crash(&options, 1, 0, at(20)), Answer::GiveUp);
        assert_eq!(guard.on_crash(&options, 1, 1, at(20)), Answer::Respawn(Duration::ZERO));
        assert_eq!(guard.on_crash(&options, 1, 0, at(1_005)), Answer::Respawn(FIRST_PAUSE));
    }

    #[test]
    fn disabled_means_never() {
        let mut guard = RespawnGuard::default();
        let options = RespawnOptions { enabled: false, ..options(5, 1_000) };
        assert_eq!(guard.on_crash(&options, 1, 0, Instant::now()), Answer::GiveUp);
    }

    #[test]
    fn an_ended_generation_is_forgotten() {
        let (mut guard, now) = (RespawnGuard::default(), Instant::now());
        let options = options(1, 1_000);
        guard.on_crash(&options, 1, 0, now);
        guard.forget(1);
        assert_eq!(guard.on_crash(&options, 1, 0, now), Answer::Respawn(Duration::ZERO));
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_in_any_window(
            limit in 0u32..6,
            gaps in prop::collection::vec(0u64..500, 1..80),
        ) {
            let (mut guard, start) = (RespawnGuard::default(), Instant::now());
            let options = options(limit, 1_000);
            let mut at_ms = 0;
            let mut granted: Vec<u64> = Vec::new();
            for gap in gaps {
                at_ms += gap;
                let now = start + Duration::from_millis(at_ms);
                if let Answer::Respawn(pause) = guard.on_crash(&options, 1, 0, now) {
                    prop_assert!(pause <= LONGEST_PAUSE);
                    granted.push(at_ms);
                }
                let recent = granted.iter().filter(|&&then| at_ms - then < 1_000).count();
                prop_assert!(recent <= limit as usize);
            }
        }
    }
}
