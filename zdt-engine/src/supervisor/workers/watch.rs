//! The watch over workers that do not come round: who hangs is killed, and replaced like one that crashed.
//!
//! A worker's loop writes the time into the scoreboard each time it comes round, at least once a second. One
//! whose time has not changed for `supervision.heartbeat_timeout_ms` is looked at more closely, because time
//! alone proves nothing on a machine that is short of CPU:
//!
//! - It counts only what the supervisor saw itself: [`LOOKS`] looks at equal distances, each in a turn of its own
//!   loop. If everything stood still (a suspended machine, a frozen group), the first look afterwards finds an old
//!   time, and the next ones a new one.
//! - A worker that is ready to run has to have used a share of the CPU meanwhile ([`BUSY_SHARE`]): then it is in an
//!   endless loop. One that is not given the CPU is left alone.
//! - One that waits for a disk cannot be killed, and one that is traced by a debugger is not.
//!
//! A freeze of connections in a handoff goes on in the worker's loop, and so does its heartbeat.
//!
//! Must not know: what a worker does, why it hangs.

use std::time::{Duration, Instant};

use super::generations::{Phase, WorkerPhase};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;

/// Looks during one time-out.
pub const LOOKS: u32 = 4;
/// A worker that has used this part of the time-out as CPU time, without coming round, is in an endless loop.
pub const BUSY_SHARE: u32 = 4;

/// What the kernel says of a worker's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Its state, as proc_pid_stat(5) has it.
    pub state: char,
    /// CPU time that it has used.
    pub cpu: Duration,
}

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It comes round, or has not had the time to.
    Alive,
    /// It is overdue, and for this reason left alone.
    Excused(&'static str),
    /// It hangs, in this way.
    Hangs(&'static str),
}

/// The watch over one worker.
#[derive(Debug, Clone)]
pub struct Pulse {
    beat: u64,
    /// Looks since `beat` was last seen to change, and the CPU time then.
    looks: u32,
    cpu: Duration,
    since: Instant,
    /// When to look next.
    pub next_look: Instant,
    /// The worker was excused, and that was logged.
    pub excused: bool,
}

impl Pulse {
    /// A worker that has just been started, or adopted.
    pub fn new(now: Instant) -> Pulse {
        Pulse { beat: 0, looks: 0, cpu: Duration::ZERO, since: now, next_look: now, excused: false }
    }

    /// Looks. `sample` is asked for only where it matters; `None` from it means that there is no such
    /// process.
    pub fn look(
        &mut self,
        now: Instant,
        timeout: Duration,
        beat: u64,
        sample: impl FnOnce() -> Option<Sample>,
    ) -> Finding {
        self.next_look = now + timeout / LOOKS;
        if beat != self.beat {
            *self = Pulse { beat, looks: 0, since: now, excused: false, ..*self };
            return Finding::Alive;
        }
        self.looks += 1;
        let overdue = self.looks >= LOOKS && now.saturating_duration_since(self.since) >= timeout;
        if self.looks > 1 && !overdue {
            return Finding::Alive;
        }
        let Some(sample) = sample() else { return Finding::Alive };
        if self.looks == 1 {
            self.cpu = sample.cpu;
            return Finding::Alive;
        }
        match sample.state {
            'T' => Finding::Hangs("stopped by a signal"),
            't' => Finding::Excused("traced by a debugger"),
            'D' => Finding::Excused("waiting for a disk or for memory"),
            'R' if sample.cpu.saturating_sub(self.cpu) >= timeout / BUSY_SHARE => {
                Finding::Hangs("in an endless loop")
            }
            'R' => Finding::Excused("not given the CPU"),
            _ => Finding::Hangs("waiting for something that does not come"),
        }
    }
}

impl Core {
    /// The next look at any worker.
    pub fn watch_deadline(&self) -> Option<Instant> {
        let looks = self.heartbeat_timeout().and_then(|_| {
            let watched = self.workers.values().filter(|worker| is_watched(worker.phase));
            watched.map(|worker| worker.pulse.next_look).min()
        });
        let starts = self.workers.values().filter_map(|worker| worker.ready_by).min();
        looks.into_iter().chain(starts).min()
    }

    fn heartbeat_timeout(&self) -> Option<Duration> {
        let timeout = self.settings.supervision.heartbeat_timeout_ms;
        (timeout > 0).then(|| Duration::from_millis(timeout))
    }

    /// Looks at those whose turn it is.
    pub fn watch_on_time(&mut self, now: Instant) {
        self.end_slow_starts(now);
        let Some(timeout) = self.heartbeat_timeout() else { return };
        let mut hanging = Vec::new();
        for (&id, worker) in &mut self.workers {
            if !is_watched(worker.phase) || now < worker.pulse.next_look {
                continue;
            }
            let beat = self.scoreboard.figures(worker.identity.slot).heartbeat_ms;
            if beat == 0 {
                // Its loop has not begun; `ready_by`, or the reload, bounds that.
                worker.pulse.next_look = now + timeout / LOOKS;
                continue;
            }
            match worker.pulse.look(now, timeout, beat, || worker.process.sample()) {
                Finding::Alive => {}
                Finding::Excused(why) => {
                    if !std::mem::replace(&mut worker.pulse.excused, true) {
                        tracing::warn!(worker = id, "has not come round in {timeout:?}: {why}");
                    }
                }
                Finding::Hangs(how) => hanging.push((id, how)),
            }
        }
        for (id, how) in hanging {
            tracing::error!(worker = id, "hangs: {how} for at least {timeout:?}; killing it");
            self.totals.hung += 1;
            self.end_for(id, format!("hung ({how}) and was killed"));
        }
    }

    /// A restarted worker that is not ready in time is one that could not be started. Those of a reload
    /// are the reload's to judge.
    fn end_slow_starts(&mut self, now: Instant) {
        let slow: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.ready_by.is_some_and(|by| now >= by))
            .map(|(&id, _)| id)
            .collect();
        for id in slow {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            worker.ready_by = None;
            let (generation, index) = (worker.identity.generation, worker.identity.index);
            let held = self.place_is_held(generation, index);
            let green =
                self.generations.get(&generation).is_some_and(|of| of.phase == Phase::Green);
            let Some(worker) = self.workers.get(&id) else { continue };
            let late = matches!(
                worker.phase,
                WorkerPhase::Starting | WorkerPhase::Greeted | WorkerPhase::Arming
            );
            if late && !held && !green {
                tracing::error!(worker = id, "is not ready in time; killing it");
                self.end_for(id, "was not ready in time and was killed".to_owned());
            }
        }
    }

    /// Kills a worker; the reason is what is said of its end.
    pub fn end_for(&mut self, id: WorkerId, reason: String) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.why = Some(reason);
            worker.process.kill();
        }
    }
}

fn is_watched(phase: WorkerPhase) -> bool {
    phase != WorkerPhase::Ending
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(4);

    /// Looks once a second, as the watch does with that time-out, at a worker with these states.
    fn looks(samples: &[(u64, char, u64)]) -> Vec<Finding> {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let mut now = start;
        samples
            .iter()
            .map(|&(beat, state, cpu_ms)| {
                now += TIMEOUT / LOOKS;
                let sample = Sample { state, cpu: Duration::from_millis(cpu_ms) };
                pulse.look(now, TIMEOUT, beat, || Some(sample))
            })
            .collect()
    }

    fn last(beat: u64, state: char, cpu_ms_a_look: u64) -> Finding {
        let samples: Vec<_> = (0..6).map(|n| (beat, state, n * cpu_ms_a_look)).collect();
        let findings = looks(&samples);
        assert!(findings[..4].iter().all(|finding| *finding == Finding::Alive), "{findings:?}");
        findings[5]
    }

    #[test]
    fn who_comes_round_is_alive() {
        let samples: Vec<_> = (1..50).map(|n| (n, 'R', n * 1_000)).collect();
        assert!(looks(&samples).iter().all(|finding| *finding == Finding::Alive));
    }

    #[test]
    fn hanging_is_told_from_starving() {
        assert!(matches!(last(7, 'T', 0), Finding::Hangs(_)));
        assert!(matches!(last(7, 'S', 0), Finding::Hangs(_)));
        assert!(matches!(last(7, 'R', 1_000), Finding::Hangs(_)));
        assert!(matches!(last(7, 'R', 10), Finding::Excused(_)));
        assert!(matches!(last(7, 'D', 0), Finding::Excused(_)));
        assert!(matches!(last(7, 't', 0), Finding::Excused(_)));
    }

    #[test]
    fn an_endless_loop_on_a_starved_machine_is_found_late() {
        let samples: Vec<_> = (0..30).map(|n| (7, 'R', n * 100)).collect();
        let findings = looks(&samples);
        let hangs = findings.iter().position(|finding| matches!(finding, Finding::Hangs(_)));
        assert_eq!(hangs, Some(11), "a second of CPU time after the first look at it");
    }

    #[test]
    fn a_machine_that_stood_still_kills_nobody() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let stopped = || Some(Sample { state: 'T', cpu: Duration::ZERO });
        assert_eq!(pulse.look(start, TIMEOUT, 1, stopped), Finding::Alive);
        // The supervisor had no turn for an hour, nor had the worker.
        let later = start + Duration::from_secs(3_600);
        for look in 1..LOOKS {
            let now = later + Duration::from_millis(u64::from(look));
            assert_eq!(pulse.look(now, TIMEOUT, 1, stopped), Finding::Alive);
        }
        assert_eq!(pulse.look(later + TIMEOUT, TIMEOUT, 2, stopped), Finding::Alive);
    }
}
