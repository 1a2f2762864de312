//! Integration tests: one binary, a module per scenario. Real processes, real sockets.

mod lab;

mod freeze;
mod handoff_basic;
mod handoff_faults;
