//! Integration tests: one binary, a module per scenario.

mod skip;
mod steering;
