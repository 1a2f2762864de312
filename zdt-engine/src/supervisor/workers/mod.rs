//! Workers as the supervisor sees them: started, watched, replaced when they die, and counted.
//!
//! `generations` holds who there is; `process`, `confining` and `link` are one worker's process, what it
//! is born with, and the connection to it; `life` goes from its start to its death; `watch`, `respawn`,
//! `refilling` and `history` deal with those that hang or die; `scoreboard` and `counters` read what they count;
//! `spilling` is the directory where they keep what they have no memory for.
//!
//! Must not know: in which order a reload proceeds.

pub mod confining;
pub mod counters;
pub mod generations;
pub mod history;
pub mod life;
pub mod link;
pub mod process;
mod refilling;
pub mod respawn;
pub mod scoreboard;
pub mod spilling;
pub mod watch;
