//! A blue-green reload, decided here and carried out elsewhere.
//!
//! [`Machine`] takes events (a worker greeted, a channel is open, a process died, time passed) and
//! answers with actions (flip, open these channels, send this message, finish). Each stage is a
//! struct that a transition consumes, so that there is no way from, say, `Starting` to the commit
//! but the one through the proof, the flip and the handoff. Other strategies become other machines
//! over the same events and actions.
//!
//! Must not know: descriptors, sockets, maps, clocks.

mod machine;
mod rollback;
mod stages;
mod verdict;

#[cfg(test)]
mod tests;

pub use machine::{Action, Event, Machine, Mark, Options, Resume};
pub use verdict::{Blackout, Outcome, Tally, Verdict, lost_connections};
pub(in crate::supervisor) use verdict::{Circumstances, Facts};
