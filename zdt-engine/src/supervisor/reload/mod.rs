//! A reload, decided here and carried out elsewhere.
//!
//! [`Machine`] takes events (a worker greeted, a channel is open, a process died, time passed) and
//! answers with actions (flip, open these channels, send this message, finish). Each stage is a
//! struct that a transition consumes, so that there is no way from, say, `Starting` to the commit
//! but the one through the proof, the flip and the handoff.
//!
//! There is one machine for all strategies. A blue-green reload replaces all places in one step; a
//! rolling one goes through the same stages step by step, and commits once, at the end; a canary
//! stays between a small flip and the whole one until both generations have been compared. So each
//! strategy can be undone at any moment before the commit, by the same way back.
//!
//! Must not know: descriptors, sockets, maps, clocks.

mod canary;
mod ending;
mod machine;
mod moving;
mod rollback;
mod stages;
mod verdict;

#[cfg(test)]
mod tests;

pub use canary::{CanaryOptions, CanaryReport, CanarySide, Figures, Sample};
pub use machine::{Action, Event, Machine, Mark, Options, Places, Resume, Rolling};
pub use verdict::{Blackout, Outcome, Tally, Verdict, lost_connections};
pub(in crate::supervisor) use verdict::{Circumstances, Facts};
