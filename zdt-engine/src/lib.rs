//! zdt: zero-downtime replacement of live network services on Linux.
//!
//! The engine swaps the processes behind a busy port while every client stays connected. Modules
//! are layers; dependencies point down only (see `ARCHITECTURE.md`, enforced by a test):
//!
//! `cli` → `client` → `admin` → `supervisor` → `worker` → `registry` → `service`, `handoff`, `conn` → `proto`, `queue`,
//! `state` → `uring`, `shm`, `fdpass`, `sys`.
#![deny(unsafe_code)]

#[macro_use]
pub mod fault;

pub mod config;
pub mod conn;
pub mod control;
pub mod credentials;
pub mod fdpass;
pub mod handoff;
pub mod proto;
pub mod queue;
pub mod service;
pub mod shm;
pub mod state;
pub mod steering;
pub mod supervisor;
pub mod sys;
pub mod uring;
pub mod worker;

pub mod admin;
pub mod cli;
pub mod client;
pub mod registry;

pub use client::{ClientError, Health, ZeroDowntime};
pub use registry::ConnectionRegistry;

pub use queue::RequestQueue;

/// The whole of an application's `main`: the `zdt` command line with the application's own service,
/// which becomes the default of `serve --service`.
///
/// The supervisor starts its workers by executing this very program again, so that the same call
/// is the entry point of every process. See `examples/adder.rs`.
pub fn run(name: &str, constructor: fn() -> Box<dyn service::Service>) -> std::process::ExitCode {
    cli::run_with(service::Services::builtin().with(name, constructor))
}
