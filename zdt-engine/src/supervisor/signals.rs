//! The signals that the supervisor obeys.
//!
//! Must not know: what they lead to.

use std::io;

use nix::sys::signal::SigSet;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalEvent {
    /// SIGHUP.
    Reload,
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGQUIT.
    StopNow,
}

/// Their handlers.
#[derive(Debug)]
pub struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    /// Installs them.
    ///
    /// # Errors
    /// What sigaction(2) says.
    pub fn install() -> io::Result<Signals> {
        let signals = Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        };
        // A predecessor has it blocked until here, and one that came meanwhile is delivered now.
        let mut hangup = SigSet::empty();
        hangup.add(nix::sys::signal::Signal::SIGHUP);
        hangup.thread_unblock()?;
        Ok(signals)
    }

    /// The next one.
    pub async fn next(&mut self) -> SignalEvent {
        tokio::select! {
            _ = self.hangup.recv() => SignalEvent::Reload,
            _ = self.terminate.recv() => SignalEvent::Stop,
            _ = self.interrupt.recv() => SignalEvent::Stop,
            _ = self.quit.recv() => SignalEvent::StopNow,
        }
    }
}
