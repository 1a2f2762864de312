//! A supervisor that has handed over, and waits for its successor to be settled.
//!
//! It does nothing but pass on: clients that nobody has answered, and signals. If the successor dies
//! first, it says so, and the caller takes over from it.
//!
//! Must not know: how anybody takes over.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::replacing::PATIENCE;
use super::{FromSuccessor, ToHeir, ToSuccessor};
use crate::supervisor::requests::control_socket::Passed;
use crate::supervisor::signals::{SignalEvent, Signals};
use crate::supervisor::workers::link::watched;
use crate::supervisor::workers::process::Process;
use crate::sys;

/// See the module.
pub struct Standby {
    process: Process,
    pidfd: AsyncFd<OwnedFd>,
    channel: ToHeir,
    /// Connections that wait for the verdict; if the successor dies it will not come from there.
    pub waiting: Vec<OwnedFd>,
}

impl Standby {
    /// # Errors
    /// When out of descriptors; then the process is ended.
    pub fn new(process: Process, channel: ToHeir) -> std::io::Result<Standby> {
        let pidfd = process.pidfd().try_clone();
        match pidfd.and_then(|pidfd| watched(pidfd, Interest::READABLE)) {
            Ok(pidfd) => Ok(Standby { process, pidfd, channel, waiting: Vec::new() }),
            Err(error) => {
                process.kill();
                Err(error)
            }
        }
    }

    /// The successor's process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until the successor has taken over.
    ///
    /// # Errors
    /// Why it has not; then it is dead.
    pub async fn taken_over(&mut self) -> Result<(), String> {
        let answer = tokio::time::timeout(PATIENCE, self.channel.receive()).await;
        let why = match answer {
            Ok(Ok(Some((FromSuccessor::Done, _)))) => return Ok(()),
            Ok(Ok(Some((FromSuccessor::Failed { message }, _)))) => message,
            Ok(Ok(Some((other, _)))) => format!("its successor said {other:?} out of turn"),
            Ok(Ok(None)) => "its successor died as it took over".to_owned(),
            Ok(Err(error)) => format!("the handoff socket: {error}"),
            Err(_) => format!("its successor did not take over within {PATIENCE:?}"),
        };
        self.end().await;
        Err(why)
    }

    /// Passes on somebody who waits for an answer.
    pub async fn pass_on(&mut self, client: Passed) {
        let Passed { stream, unread, waits } = client;
        let message = ToSuccessor::Client { unread, waits };
        if let Err(error) = self.channel.send(&message, &[stream.as_fd()]).await {
            tracing::warn!(%error, "cannot pass on a client of the control socket");
        }
        if waits {
            self.waiting.push(stream);
        }
    }

    /// All are passed on.
    pub async fn passed_on(&mut self) {
        fault_point!("handover.passed_on");
        // If it is dead, that is noticed next.
        let _ = self.channel.send(&ToSuccessor::NoMoreClients, &[]).await;
    }

    /// Waits until the successor's first reload is over, and passes signals on.
    ///
    /// # Errors
    /// If it died before.
    pub async fn settled(&mut self, signals: &mut Signals) -> Result<(), String> {
        loop {
            tokio::select! {
                biased;
                answer = self.channel.receive() => match answer {
                    Ok(Some((FromSuccessor::Settled, _))) => return Ok(()),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                },
                _ = self.pidfd.readable() => break,
                signal = signals.next() => self.pass_signal_on(signal),
            }
        }
        let pid = self.pid();
        let how = self.end().await;
        // One that was told to stop, and has stopped.
        if how == "exited with code 0" {
            return Ok(());
        }
        Err(format!("its successor (process {pid}) {how} before it was settled"))
    }

    fn pass_signal_on(&self, signal: SignalEvent) {
        let signal = match signal {
            SignalEvent::Reload => Signal::SIGHUP,
            SignalEvent::Stop => Signal::SIGTERM,
            SignalEvent::StopNow => Signal::SIGQUIT,
        };
        tracing::info!(successor = self.pid(), "{signal} is passed on to the successor");
        if let Err(error) = sys::pidfd_send_signal(self.pidfd.get_ref().as_fd(), Some(signal)) {
            tracing::warn!(%error, "cannot pass a signal on");
        }
    }

    /// Ends the successor, if it has not ended, and waits until it is dead: there is never a second
    /// supervisor. Says how it ended.
    async fn end(&mut self) -> String {
        // One that hung up is about to end by itself, and its exit code says more than SIGKILL.
        let grace = std::time::Duration::from_millis(500);
        if tokio::time::timeout(grace, self.pidfd.readable()).await.is_err() {
            self.process.kill();
            let _ = self.pidfd.readable().await;
        }
        self.process.reap()
    }
}
