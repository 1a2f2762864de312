//! When an application that has ended is started again: soon, and the later the more often it has ended in a row.
//!
//! Must not know: how it is started, why it ended.

use std::time::{Duration, Instant};

use crate::config::AppOptions;

/// From the first end in a row to the next start; then twice as long each time.
const SHORTEST: Duration = Duration::from_secs(1);

/// Never longer than this: requests are held meanwhile, and not for ever.
const LONGEST: Duration = Duration::from_secs(8);

/// One that has served for so long, and ends, begins a new row.
const LONG_ENOUGH: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// When the next one is due, and as what the last one was started.
    due: Option<(Instant, AppOptions)>,
    in_a_row: u32,
    serving_since: Option<Instant>,
}

impl Restarts {
    /// It has ended, or could not be started. Returns for how long the next one waits.
    pub fn ended(&mut self, now: Instant, started_as: AppOptions) -> Duration {
        if self.serving_since.take().is_some_and(|since| now - since >= LONG_ENOUGH) {
            self.in_a_row = 0;
        }
        let pause = SHORTEST.saturating_mul(1 << self.in_a_row.min(16)).min(LONGEST);
        self.in_a_row += 1;
        self.due = Some((now + pause, started_as));
        pause
    }

    /// It answers.
    pub fn serving(&mut self, now: Instant) {
        self.due = None;
        self.serving_since = Some(now);
    }

    /// Somebody has asked for one: what was before does not count.
    pub fn asked(&mut self) {
        *self = Self::default();
    }

    /// True if nothing is to be waited for: neither has one ended just now, nor as what is wanted by now.
    pub fn is_due(&self, now: Instant, wanted: &AppOptions) -> bool {
        self.due.as_ref().is_none_or(|(at, tried)| now >= *at || tried != wanted)
    }

    /// True while the next one waits.
    pub fn is_waiting(&self) -> bool {
        self.due.is_some()
    }

    /// The next one is started now.
    pub fn begun(&mut self) {
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_often_it_ends_the_longer_the_pause() {
        let (mut restarts, mut now) = (Restarts::default(), Instant::now());
        let app = AppOptions::default();
        assert!(restarts.is_due(now, &app));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let pause = restarts.ended(now, app.clone());
            assert!(restarts.is_waiting());
            assert!(!restarts.is_due(now + pause - Duration::from_millis(1), &app));
            now += pause;
            assert!(restarts.is_due(now, &app));
            restarts.begun();
            assert!(!restarts.is_waiting());
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 8, 8]);
    }

    #[test]
    fn one_that_served_for_long_begins_anew_and_one_that_did_not_does_not() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let app = AppOptions::default();
        restarts.ended(now, app.clone());
        restarts.ended(now, app.clone());
        restarts.serving(now);
        assert!(!restarts.is_waiting());
        assert_eq!(restarts.ended(now + LONG_ENOUGH / 2, app.clone()).as_secs(), 4);
        restarts.serving(now);
        assert_eq!(restarts.ended(now + LONG_ENOUGH, app.clone()).as_secs(), 1);
        assert_eq!(restarts.ended(now + LONG_ENOUGH, app).as_secs(), 2);
    }

    #[test]
    fn nothing_is_waited_for_once_something_else_is_wanted() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let app = AppOptions::default();
        restarts.ended(now, app.clone());
        let mended = AppOptions { command: "mended".to_owned(), ..app.clone() };
        assert!(!restarts.is_due(now, &app) && restarts.is_due(now, &mended));
        restarts.asked();
        assert!(restarts.is_due(now, &app));
        assert_eq!(restarts.ended(now, app).as_secs(), 1);
    }
}
