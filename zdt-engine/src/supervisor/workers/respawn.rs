//! The guard against crash loops: how often, within a window, a worker may be restarted.
//!
//! Must not know: processes; time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::config::RespawnOptions;

/// Shortest pause before a worker that died again is restarted; doubles with each death.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How a worker ended that was not told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It had served.
    Crash,
    /// It never came so far.
    FailedStart,
}

/// What to do about a worker that died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Start another one after this pause.
    Respawn(Duration),
    /// Too many: give its listeners to a live worker. Says what happened how often.
    GiveUp(String),
}

/// Remembers the ends at each place (a worker's index in its generation).
#[derive(Debug, Default)]
pub struct RespawnGuard {
    endings: BTreeMap<(u32, u32), VecDeque<(Instant, Ending)>>,
}

impl RespawnGuard {
    /// Counts an end of the worker at `index` of `generation`. The first crash in a window is made good at
    /// once, since clients wait; whatever follows is given more and more time, and so is a start that
    /// failed, which the next one will hardly do better.
    pub fn on_end(
        &mut self,
        options: &RespawnOptions,
        generation: u32,
        index: u32,
        ending: Ending,
        now: Instant,
    ) -> Answer {
        let window = Duration::from_millis(options.window_ms);
        let endings = self.endings.entry((generation, index)).or_default();
        while endings.front().is_some_and(|&(at, _)| now.saturating_duration_since(at) >= window) {
            endings.pop_front();
        }
        let earlier = u32::try_from(endings.len()).unwrap_or(u32::MAX);
        // With this one; it stays out of the memory, where one more than the limit has no place.
        let count = |kind| {
            let before = endings.iter().filter(|(_, known)| *known == kind).count();
            before + usize::from(ending == kind)
        };
        if !options.enabled {
            return Answer::GiveUp("ended, and is not to be restarted".to_owned());
        }
        if earlier >= options.limit {
            return Answer::GiveUp(describe(count(Ending::Crash), count(Ending::FailedStart)));
        }
        endings.push_back((now, ending));
        let doublings = match (ending, earlier) {
            (Ending::Crash, 0) => return Answer::Respawn(Duration::ZERO),
            (Ending::Crash, earlier) => earlier - 1,
            (Ending::FailedStart, earlier) => earlier,
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings.min(16));
        Answer::Respawn(pause.min(LONGEST_PAUSE))
    }

    /// What it remembers of a place, the oldest first.
    pub fn endings(
        &self,
        generation: u32,
        index: u32,
    ) -> impl Iterator<Item = (Instant, Ending)> + '_ {
        self.endings.get(&(generation, index)).into_iter().flatten().copied()
    }

    /// Counts what another guard remembered.
    pub fn remember(
        &mut self,
        generation: u32,
        index: u32,
        endings: impl IntoIterator<Item = (Instant, Ending)>,
    ) {
        self.endings.entry((generation, index)).or_default().extend(endings);
    }

    /// Forgets a generation that has ended.
    pub fn forget(&mut self, generation: u32) {
        self.endings.retain(|&(of, _), _| of != generation);
    }
}

fn describe(crashes: usize, failed_starts: usize) -> String {
    let times = |count: usize| match count {
        1 => "once".to_owned(),
        _ => format!("{count} times"),
    };
    match (crashes, failed_starts) {
        (crashes, 0) => format!("crashed {}", times(crashes)),
        (0, failed) => format!("failed to start {}", times(failed)),
        (crashes, failed) => {
            format!("crashed {} and failed to start {}", times(crashes), times(failed))
        }
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
        let mut crash = |index, ms| {
            guard.on_end(&options, 1, index, Ending::Crash, start + Duration::from_millis(ms))
        };
        assert_eq!(crash(0, 0), Answer::Respawn(Duration::ZERO));
        assert_eq!(crash(0, 10), Answer::Respawn(FIRST_PAUSE));
        assert_eq!(crash(0, 20), Answer::GiveUp("crashed 3 times".to_owned()));
        assert_eq!(crash(1, 20), Answer::Respawn(Duration::ZERO));
        assert_eq!(crash(0, 1_005), Answer::Respawn(FIRST_PAUSE));
    }

    #[test]
    fn a_failed_start_waits_from_the_first_time_on() {
        let (mut guard, now) = (RespawnGuard::default(), Instant::now());
        let options = options(3, 1_000);
        let mut end = |ending| guard.on_end(&options, 1, 0, ending, now);
        assert_eq!(end(Ending::Crash), Answer::Respawn(Duration::ZERO));
        assert_eq!(end(Ending::FailedStart), Answer::Respawn(FIRST_PAUSE * 2));
        assert_eq!(end(Ending::FailedStart), Answer::Respawn(FIRST_PAUSE * 4));
        let why = "crashed once and failed to start 3 times".to_owned();
        assert_eq!(end(Ending::FailedStart), Answer::GiveUp(why));
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let (mut guard, now) = (RespawnGuard::default(), Instant::now());
        let options = options(100, 1_000_000);
        let pauses: Vec<Duration> = (0..40)
            .map(|_| match guard.on_end(&options, 1, 0, Ending::FailedStart, now) {
                Answer::Respawn(pause) => pause,
                Answer::GiveUp(why) => panic!("{why}"),
            })
            .collect();
        assert!(pauses.windows(2).all(|two| two[1] == (two[0] * 2).min(LONGEST_PAUSE)));
        assert_eq!((pauses[0], pauses[39]), (FIRST_PAUSE, LONGEST_PAUSE));
    }

    #[test]
    fn disabled_means_never() {
        let mut guard = RespawnGuard::default();
        let options = RespawnOptions { enabled: false, ..options(5, 1_000) };
        let answer = guard.on_end(&options, 1, 0, Ending::Crash, Instant::now());
        assert!(matches!(answer, Answer::GiveUp(_)));
    }

    #[test]
    fn another_guard_goes_on_where_one_has_ended() {
        let (mut guard, now) = (RespawnGuard::default(), Instant::now());
        let options = options(2, 1_000);
        for _ in 0..2 {
            guard.on_end(&options, 1, 0, Ending::Crash, now);
        }
        let mut next = RespawnGuard::default();
        next.remember(1, 0, guard.endings(1, 0));
        let answer = next.on_end(&options, 1, 0, Ending::Crash, now);
        assert_eq!(answer, Answer::GiveUp("crashed 3 times".to_owned()));
        let later = now + Duration::from_secs(1);
        let answer = next.on_end(&options, 1, 0, Ending::Crash, later);
        assert_eq!(answer, Answer::Respawn(Duration::ZERO));
    }

    #[test]
    fn an_ended_generation_is_forgotten() {
        let (mut guard, now) = (RespawnGuard::default(), Instant::now());
        let options = options(1, 1_000);
        guard.on_end(&options, 1, 0, Ending::Crash, now);
        guard.forget(1);
        let answer = guard.on_end(&options, 1, 0, Ending::Crash, now);
        assert_eq!(answer, Answer::Respawn(Duration::ZERO));
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit_in_any_window(
            limit in 0u32..6,
            gaps in prop::collection::vec((0u64..500, any::<bool>()), 1..80),
        ) {
            let (mut guard, start) = (RespawnGuard::default(), Instant::now());
            let options = options(limit, 1_000);
            let mut at_ms = 0;
            let mut granted: Vec<u64> = Vec::new();
            for (gap, crash) in gaps {
                at_ms += gap;
                let now = start + Duration::from_millis(at_ms);
                let ending = if crash { Ending::Crash } else { Ending::FailedStart };
                if let Answer::Respawn(pause) = guard.on_end(&options, 1, 0, ending, now) {
                    prop_assert!(pause <= LONGEST_PAUSE);
                    granted.push(at_ms);
                }
                let recent = granted.iter().filter(|&&then| at_ms - then < 1_000).count();
                prop_assert!(recent <= limit as usize);
            }
        }
    }
}
