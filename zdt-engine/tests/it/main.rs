//! Integration tests: one binary, a module per scenario. Real processes, real sockets.

mod lab;
mod skip;

mod freeze;
mod handoff_basic;
mod handoff_faults;
mod http1_differential;
mod layers;
mod push;
mod steering;
mod supervisor;
