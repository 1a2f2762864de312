//! The supervisor: owns listeners, steering maps and workers, and replaces generations.
//!
//! One thread, one loop (`core`): messages from workers, ends of processes, commands, signals and
//! time come in one at a time. What a reload does next is decided by the pure machine in
//! [`reload`]; this module carries its actions out.
//!
//! Must not know: client bytes, protocols, services, the insides of a worker.

mod adopt;
mod application;
mod confining;
mod control_socket;
mod core;
mod counters;
mod credentials;
mod finishing;
mod flipping;
mod gateway;
mod generations;
pub mod handle;
mod link;
mod listeners;
mod news;
mod parkfile;
mod parking;
mod plan;
mod preview;
mod previous;
mod privileges;
mod process;
mod proving;
mod reception;
mod refilling;
mod rehearsals;
pub mod reload;
mod reloading;
mod respawn;
mod restart;
mod rundir;
mod scoreboard;
mod signals;
mod start;
mod statuses;
mod steer;
mod stopping;
mod store;
mod succession;
mod successor;
mod takeover;
mod watch;
mod workers;

pub use handle::{AdminToken, Handle};
pub use process::{check_executable, find_user, own_path};
pub use rundir::{
    RunDirError, check as check_run_dir, connect_to_worker, control_socket,
    default_path as default_run_dir, workers_in,
};
pub use start::{StartError, run};
pub use successor::decline;

/// A worker's number, unique among all workers of a run directory, over all generations.
pub type WorkerId = u32;
