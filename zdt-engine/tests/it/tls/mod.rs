//! TLS: moved at any byte, killed at any step, resumed, reloaded, attacked.

mod clients;
mod faults;
mod freeze;
mod handshakes;
mod reloads;
