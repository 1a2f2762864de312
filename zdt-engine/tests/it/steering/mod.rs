//! Steering against the real kernel, each test in a network namespace of its own.
//!
//! The namespace has `tcp_migrate_req` at 0, so that nothing here passes without the eBPF program.
//!
//! Must not know: workers, reloads.

mod choice;
mod harness;
mod migration;
mod object;
mod pins;
mod storm;
