//! Where requests come in: the control socket and the admin endpoint, opened for a supervisor, and
//! closed when another one opens them.
//!
//! Must not know: how requests are served.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::control_socket::{Clients, Passed};
use crate::admin;
use crate::supervisor::core::Core;
use crate::supervisor::handle::{Command, Handle, Status};
use crate::supervisor::successor::Standby;

/// Nobody who waits for an answer is waited for any longer than this.
const PASSING: Duration = Duration::from_secs(1);

/// The sockets.
#[derive(Debug)]
pub(in crate::supervisor) struct Doors {
    pub control: OwnedFd,
    pub admin: Option<OwnedFd>,
    /// As configured.
    pub admin_address: Option<SocketAddr>,
}

impl Doors {
    /// Duplicates.
    pub fn try_clone(&self) -> io::Result<Doors> {
        Ok(Doors {
            control: self.control.try_clone()?,
            admin: self.admin.as_ref().map(OwnedFd::try_clone).transpose()?,
            admin_address: self.admin_address,
        })
    }
}

/// See the module.
pub(in crate::supervisor) struct Reception {
    handle: Handle,
    pub clients: Clients,
    passed: mpsc::Receiver<Passed>,
}

/// Open doors. Dropping this closes them.
pub(in crate::supervisor) struct Open {
    control: JoinHandle<()>,
    admin: Option<JoinHandle<()>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.control.abort();
        if let Some(admin) = &self.admin {
            admin.abort();
        }
    }
}

impl Open {
    /// Lets nobody new in. Whoever is being served by the admin endpoint gets an answer.
    pub fn close(mut self) {
        // It has been told, and ends when it has answered.
        self.admin = None;
    }
}

impl Reception {
    pub fn new(handle: Handle) -> Reception {
        let (sender, passed) = mpsc::channel(64);
        Reception { clients: Clients::new(handle.clone(), sender), handle, passed }
    }

    /// Opens the doors.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn open(&self, core: &mut Core, doors: Doors) -> io::Result<Open> {
        core.doors = Some(doors.try_clone()?);
        let admin = match doors.admin {
            Some(listener) => {
                let listener = std::net::TcpListener::from(listener);
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let handle = self.handle.clone();
                Some(tokio::task::spawn_local(admin::serve(listener, handle)))
            }
            None => None,
        };
        let control = tokio::task::spawn_local(self.clients.clone().accept_all(doors.control));
        Ok(Open { control, admin })
    }

    /// Passes everybody on who waits for an answer on the control socket.
    pub async fn pass_on(
        &mut self,
        successor: &mut Standby,
        commands: &mut mpsc::Receiver<Command>,
        last_status: &Status,
    ) {
        let all = async {
            loop {
                tokio::select! {
                    biased;
                    Some(client) = self.passed.recv() => successor.pass_on(client).await,
                    Some(command) = commands.recv() => answer(command, last_status),
                    () = self.clients.gone() => break,
                }
            }
        };
        if tokio::time::timeout(PASSING, all).await.is_err() {
            tracing::warn!("clients of the control socket that do not read are left alone");
        }
        successor.passed_on().await;
    }
}

/// For whoever asks a supervisor that has handed over: how it was. Anything else is for its successor.
pub(in crate::supervisor) async fn answer_all(
    commands: &mut mpsc::Receiver<Command>,
    last_status: &Status,
) -> ! {
    loop {
        match commands.recv().await {
            Some(command) => answer(command, last_status),
            None => std::future::pending().await,
        }
    }
}

fn answer(command: Command, last_status: &Status) {
    if let Command::Status { reply } = command {
        let _ = reply.send(Box::new(last_status.clone()));
    }
}
