//! Command line.
use std::os::fd::{FromRawFd, OwnedFd};
/// Entry point.
#[allow(unsafe_code)]
pub fn main() -> std::process::ExitCode {
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .try_init();
    let fd: i32 = std::env::args().nth(3).unwrap().parse().unwrap();
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    crate::worker::main(fd, &crate::service::Services::builtin())
}
