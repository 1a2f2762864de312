//! `zdt-load`: zdt's load generator, demo and system bench.
//!
//! Must not know: the engine's insides; it starts the `zdt` command and talks to its ports.
#![deny(unsafe_code)]

mod check;
mod engine;
mod figures;
mod http;
mod io;
mod load;
mod payload;
mod peers;
mod process;
mod traffic;
mod uring;
mod ws;

fn main() {}
