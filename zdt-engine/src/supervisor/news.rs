//! What the service manager is told, and when: systemd's `Type=notify` and `Type=notify-reload`.
//!
//! Must not know: how it is told.

use std::cell::Cell;

use crate::sys;
use crate::sys::notify::Notifier;

/// News for the service manager.
#[derive(Debug, Default)]
pub(super) struct News {
    notifier: Notifier,
    /// Whether the manager has been told that the service is up.
    is_ready: Cell<bool>,
    /// The end has been announced; nothing comes after that.
    is_stopping: Cell<bool>,
    /// Another process is the one that the manager listens to.
    is_muted: Cell<bool>,
}

impl News {
    /// To whomever the environment names.
    pub fn from_environment() -> News {
        let notifier = Notifier::from_environment().unwrap_or_else(|error| {
            tracing::warn!(%error, "the service manager will not be told anything");
            Notifier::default()
        });
        News { notifier, ..News::default() }
    }

    /// Holds everything back, or no longer.
    pub fn mute(&self, muted: bool) {
        self.is_muted.set(muted);
    }

    /// The service is up, or a reload is over.
    pub fn ready(&self) {
        self.is_ready.set(true);
        if !self.is_stopping.get() {
            self.send(&["READY=1"]);
        }
    }

    /// A reload begins. One of a service that is not up yet is its start.
    pub fn reloading(&self) {
        if self.is_ready.get() {
            let now = format!("MONOTONIC_USEC={}", sys::monotonic_ns() / 1_000);
            self.send(&["RELOADING=1", &now]);
        }
    }

    /// The service stops.
    pub fn stopping(&self) {
        if !self.is_stopping.replace(true) {
            self.send(&["STOPPING=1"]);
        }
    }

    /// Another process is the supervisor, and the reload that made it so is over.
    pub fn replaced(&self, pid: u32) {
        self.send(&[&format!("MAINPID={pid}"), "READY=1"]);
    }

    fn send(&self, lines: &[&str]) {
        if !self.is_muted.get()
            && let Err(error) = self.notifier.send(lines)
        {
            tracing::warn!(%error, "cannot tell the service manager: {}", lines.join(" "));
        }
    }
}
