//! How often workers have ended, written down and read again: a supervisor that takes over must not
//! give a crash loop another full window, nor start anew what was given up.
//!
//! Must not know: what the guard makes of it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::respawn::Ending;
use crate::supervisor::core::Core;
use crate::supervisor::takeover::store;
use crate::sys::monotonic_ns;

/// What has happened at one place. Times are milliseconds of CLOCK_MONOTONIC, of the same boot as the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crashes {
    /// The place's generation.
    pub generation: u32,
    /// Its index.
    pub index: u32,
    /// When its workers ended, and how.
    #[serde(default)]
    pub endings: Vec<(u64, Ending)>,
    /// When another one is to be started.
    #[serde(default)]
    pub restart_ms: Option<u64>,
    /// Why none is.
    #[serde(default)]
    pub given_up: Option<String>,
}

/// Between instants and what they are in the file.
#[derive(Debug, Clone, Copy)]
struct Clock {
    now: Instant,
    now_ms: u64,
}

impl Clock {
    fn read() -> Self {
        Self { now: Instant::now(), now_ms: monotonic_ns() / 1_000_000 }
    }

    fn to_ms(self, at: Instant) -> u64 {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match at.checked_duration_since(self.now) {
            Some(ahead) => self.now_ms.saturating_add(ms(ahead)),
            None => self.now_ms.saturating_sub(ms(self.now.saturating_duration_since(at))),
        }
    }

    /// Of a past that this clock cannot show: now.
    fn past(self, at_ms: u64) -> Instant {
        let ago = Duration::from_millis(self.now_ms.saturating_sub(at_ms));
        self.now.checked_sub(ago).unwrap_or(self.now)
    }

    /// Not further ahead than anything is put off.
    fn ahead(self, at_ms: u64) -> Instant {
        let ahead = Duration::from_millis(at_ms.saturating_sub(self.now_ms));
        self.now + ahead.min(super::respawn::LONGEST_PAUSE)
    }
}

impl Core {
    /// What the next supervisor must know.
    pub fn crash_history(&self) -> Vec<Crashes> {
        let clock = Clock::read();
        let mut history: Vec<Crashes> = Vec::new();
        for of in self.generations.values() {
            for (index, place) in (0u32..).zip(&of.places) {
                let (generation, given_up) = (of.number, place.given_up.clone());
                let endings: Vec<_> = self
                    .guard
                    .endings(generation, index)
                    .map(|(at, ending)| (clock.to_ms(at), ending))
                    .collect();
                let restart = self
                    .respawns
                    .iter()
                    .find(|&&(_, number, place)| (number, place) == (generation, index));
                let restart_ms = restart.map(|&(at, _, _)| clock.to_ms(at));
                if !endings.is_empty() || restart_ms.is_some() || given_up.is_some() {
                    history.push(Crashes { generation, index, endings, restart_ms, given_up });
                }
            }
        }
        history
    }

    /// Goes on from there. The workers that live are at their places by now.
    pub fn inherit_crash_history(&mut self, state: &store::State) {
        let clock = Clock::read();
        for crashes in &state.crashes {
            let Crashes { generation, index, .. } = *crashes;
            let place = self
                .generations
                .get_mut(&generation)
                .and_then(|of| of.places.get_mut(index as usize));
            let Some(place) = place else { continue };
            let endings = crashes.endings.iter().map(|&(at_ms, how)| (clock.past(at_ms), how));
            self.guard.remember(generation, index, endings);
            if place.worker.is_some() {
                continue; // it was started in the meantime
            }
            place.given_up.clone_from(&crashes.given_up);
            if let Some(at_ms) = crashes.restart_ms.filter(|_| place.given_up.is_none()) {
                self.respawns.push((clock.ahead(at_ms), generation, index));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_file_and_nonsense_is_harmless() {
        let clock = Clock { now: Instant::now(), now_ms: 1_000_000 };
        let second = Duration::from_secs(1);
        assert_eq!(clock.to_ms(clock.now - second), 999_000);
        assert_eq!(clock.past(999_000), clock.now - second);
        assert_eq!(clock.to_ms(clock.now + second), 1_001_000);
        assert_eq!(clock.ahead(1_001_000), clock.now + second);
        assert_eq!(clock.ahead(999_000), clock.now, "it is due");
        assert_eq!(clock.past(u64::MAX), clock.now);
        assert!(clock.past(0) <= clock.now);
        assert_eq!(clock.ahead(u64::MAX), clock.now + super::super::respawn::LONGEST_PAUSE);
    }
}
