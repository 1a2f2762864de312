//! Tests of the machine: exchanges, limits, floods, saved states, random traffic moved at every step.
//!
//! Must not know: anything outside `proto`.

mod cases;
mod driver;
mod moved;
