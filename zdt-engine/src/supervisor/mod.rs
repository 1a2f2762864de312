//! The supervisor.
pub mod plan;
pub mod reload;
pub mod respawn;

/// A worker's number, unique among all workers of a run directory, over all generations.
pub type WorkerId = u32;
