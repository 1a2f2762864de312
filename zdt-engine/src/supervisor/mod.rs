//! The supervisor: owns listeners, steering maps and workers, and replaces generations.
//!
//! One thread, one loop (`core`): messages from workers, ends of processes, commands, signals and
//! time come in one at a time. What a reload does next is decided by the pure machine in
//! [`reload`]; this module carries its actions out.
//!
//! Must not know: client bytes, protocols, services, the insides of a worker.

mod core;
mod credentials;
mod gateway;
pub mod handle;
mod news;
mod parking;
mod privileges;
pub mod reload;
mod reloading;
mod repeats;
mod requests;
mod rundir;
mod signals;
mod sockets;
mod start;
mod stopping;
mod successor;
mod takeover;
mod workers;

pub use gateway::end_orphaned_applications;
pub use handle::{AdminToken, Handle};
#[doc(hidden)]
pub use parking::{parked_file, try_parked_file};
pub use rundir::{
    RunDirError, check as check_run_dir, connect_to_worker, control_socket,
    default_path as default_run_dir, workers_in,
};
pub use start::{StartError, run};
pub use successor::decline;
pub use workers::process::{check_executable, find_user, own_path};

/// A worker's number, unique among all workers of a run directory, over all generations.
pub type WorkerId = u32;
