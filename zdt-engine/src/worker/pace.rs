//! A worker that holds itself back: its share of a CPU where no control group enforces it.
//!
//! CPU time that was used is paid back by sleeping; a burst of [`BURST`] is free. The sleep is bounded, so
//! that the loop still comes round in time to show that it is alive.
//!
//! Must not know: clocks (both times are arguments), what the CPU is used for.

use std::time::Duration;

/// As much may be used at once after a time of rest.
const BURST: Duration = Duration::from_millis(20);
/// Longest sleep at a time; the rest of the debt remains.
const LONGEST: Duration = Duration::from_millis(200);

/// What is left of the share.
#[derive(Debug)]
pub struct Pace {
    percent: u64,
    /// Nanoseconds of CPU time in hand; negative is debt.
    balance: i64,
    last_ns: u64,
    last_cpu_ns: u64,
}

impl Pace {
    /// This share of one CPU, in percent.
    pub fn new(percent: u32, now_ns: u64, cpu_ns: u64) -> Pace {
        let balance = BURST.as_nanos() as i64;
        Pace { percent: u64::from(percent.max(1)), balance, last_ns: now_ns, last_cpu_ns: cpu_ns }
    }

    /// How long to sleep now, if at all. Times are nanoseconds of the clock and of CPU time used.
    pub fn pause(&mut self, now_ns: u64, cpu_ns: u64) -> Option<Duration> {
        let earned = now_ns.saturating_sub(self.last_ns).saturating_mul(self.percent) / 100;
        let used = cpu_ns.saturating_sub(self.last_cpu_ns);
        (self.last_ns, self.last_cpu_ns) = (now_ns, cpu_ns);
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let balance = self.balance.saturating_add(signed(earned)).saturating_sub(signed(used));
        self.balance = balance.min(BURST.as_nanos() as i64);
        let debt = u64::try_from(-self.balance).ok().filter(|debt| *debt > 0)?;
        let needed = Duration::from_nanos(debt.saturating_mul(100) / self.percent);
        Some(needed.min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works as hard as it is let for ten seconds; the share that it gets.
    fn share(percent: u32, turn: Duration) -> f64 {
        let (mut now, mut cpu) = (0u64, 0u64);
        let mut pace = Pace::new(percent, now, cpu);
        while now < 10_000_000_000 {
            now += turn.as_nanos() as u64;
            cpu += turn.as_nanos() as u64;
            if let Some(pause) = pace.pause(now, cpu) {
                assert!(pause <= LONGEST);
                now += pause.as_nanos() as u64;
            }
        }
        100.0 * cpu as f64 / now as f64
    }

    #[test]
    fn a_busy_worker_gets_its_share() {
        for percent in [5, 20, 50, 80] {
            for turn in [Duration::from_micros(50), Duration::from_millis(5)] {
                let share = share(percent, turn);
                assert!((share - f64::from(percent)).abs() < 1.0, "{share} of {percent}");
            }
        }
        assert!(share(100, Duration::from_micros(50)) > 99.0);
    }

    #[test]
    fn an_idle_worker_is_not_held_back() {
        let mut pace = Pace::new(10, 0, 0);
        for turn in 1..1_000u64 {
            assert_eq!(pace.pause(turn * 1_000_000, turn * 50_000), None);
        }
    }
}
