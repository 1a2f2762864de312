//! The supervisor, as a user has it: the real command, real workers, real clients.

mod canaries;
mod configuration;
mod crashes;
pub mod engine;
mod limits;
mod parking;
mod privileges;
mod reloads;
mod replacement;
mod revivals;
mod rings;
mod rollbacks;
mod rolling;
mod stops;
mod succession;
mod succession_strategies;
mod supervision;
mod troubles;
