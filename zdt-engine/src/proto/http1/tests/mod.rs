//! Tests of the machine: vectors, cuts, responses, saved states.
//!
//! Must not know: anything outside `proto`.

mod requests;
