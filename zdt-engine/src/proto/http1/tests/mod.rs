//! Tests of the machine: vectors, cuts, responses, saved states, garbage.
//!
//! Must not know: anything outside `proto`.

mod driver;
mod properties;
mod refusals;
mod requests;
mod responses;
mod saved_states;
