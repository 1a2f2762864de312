//! A line of the log that a worker can cause as often as it likes is written once in a while.
//!
//! Must not know: what the line says.

use std::time::{Duration, Instant};

/// From one to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// One such line.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    next: Option<Instant>,
    unsaid: u64,
}

impl Repeats {
    /// Whether it is written now, and then how many were not since the last one.
    pub fn may_say(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.unsaid += 1;
            return None;
        }
        self.next = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_is_counted() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert_eq!(repeats.may_say(start), Some(0));
        for _ in 0..5 {
            assert_eq!(repeats.may_say(start + INTERVAL / 2), None);
        }
        assert_eq!(repeats.may_say(start + INTERVAL), Some(5));
        assert_eq!(repeats.may_say(start + INTERVAL), None);
    }
}
