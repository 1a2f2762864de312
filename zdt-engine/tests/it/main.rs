//! Integration tests: one binary, a module per scenario. Real processes, real sockets.

mod lab;
mod skip;

mod freeze;
mod handoff_basic;
mod handoff_faults;
mod hostile_back_pressure;
mod hostile_descriptors;
mod hostile_half_closed;
mod hostile_port;
mod http1_differential;
mod push;
mod steering;
mod supervisor;
