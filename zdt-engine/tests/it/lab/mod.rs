//! A laboratory for workers: real worker processes, with the test in the supervisor's seat.
//!
//! The test decides which control message is sent when, and which fault points are armed in which
//! process, so that every step of the handoff protocol can be interrupted on purpose.

pub mod client;
pub mod cuts;
pub mod http2;
pub mod mixed;
pub mod programs;
pub mod secure;
pub mod system;
pub mod worker;

pub use worker::{Pair, TestWorker};

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::socket as raw;

/// Nothing in a test may take longer; what does is a failure. It tells what hangs, not what is slow: on a machine
/// with many other things to do everything takes many times as long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Fault points of the side that gives its connections away, in their order.
pub const GIVING_POINTS: [&str; 7] = [
    "freeze.begun",
    "freeze.saved",
    "offer.recorded",
    "offer.published",
    "offer.before_descriptors",
    "offer.after_descriptors",
    "release.before",
];

/// Fault points of the side that takes them.
pub const TAKING_POINTS: [&str; 4] =
    ["adopt.received", "adopt.restored", "adopt.adopted", "adopt.started"];

/// Polls `condition` until it holds. The wait between two looks is no synchronisation: only the
/// condition is.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "did not happen in {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An address of this machine for a program that cannot be asked which one it got. It is kept until this process
/// ends: bound and not listened on, so that nobody is given it by chance, and whoever shares addresses, as servers do
/// (SO_REUSEADDR, SO_REUSEPORT), can bind it by name.
#[track_caller]
pub fn kept_address() -> SocketAddr {
    static KEPT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
    let flags = raw::SockFlag::SOCK_CLOEXEC;
    let family = raw::AddressFamily::Inet;
    let socket = raw::socket(family, raw::SockType::Stream, flags, None).expect("socket");
    raw::setsockopt(&socket, raw::sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    raw::setsockopt(&socket, raw::sockopt::ReusePort, &true).expect("SO_REUSEPORT");
    let any = raw::SockaddrIn::new(127, 0, 0, 1, 0);
    raw::bind(socket.as_raw_fd(), &any).expect("bind");
    let address: raw::SockaddrIn = raw::getsockname(socket.as_raw_fd()).expect("address");
    KEPT.lock().expect("nobody panics here").push(socket);
    SocketAddr::from((address.ip(), address.port()))
}
