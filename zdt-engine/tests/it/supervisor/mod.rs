//! The supervisor, as a user has it: the real command, real workers, real clients.

mod crashes;
mod engine;
mod reloads;
mod stops;
mod succession;
