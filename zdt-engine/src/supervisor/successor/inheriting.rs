//! The successor's side: from its start until it is the supervisor.
//!
//! Must not know: how workers are taken over.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::message::Hello;
use super::{Channel, Estate, FromSuccessor, ToSuccessor};
use crate::config::Settings;
use crate::control::{PROTOCOL_VERSIONS, VersionRange};
use crate::fdpass;
use crate::supervisor::requests::control_socket::Passed;
use crate::supervisor::requests::reception::Doors;
use crate::supervisor::rundir::RunDir;
use crate::supervisor::sockets::steer::Steer;
use crate::supervisor::start::listen_for_admin;
use crate::supervisor::takeover::adopt::{self, Greeted};
use crate::supervisor::workers::link::watched;
use crate::supervisor::workers::scoreboard::Board;
use crate::sys;

/// In the environment of a process that was started to succeed a supervisor: its process id, a colon,
/// and the path of the handoff socket.
pub const PREDECESSOR: &str = "ZDT_PREDECESSOR";

/// A predecessor that says nothing for so long hangs, and is no predecessor then: it carries on when
/// it does not hang any more.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end of a predecessor that has closed its socket may take.
const END: Duration = Duration::from_secs(5);

type ToPredecessor = Channel<FromSuccessor, ToSuccessor>;

/// A successor that has greeted, and been greeted.
pub struct Claim {
    channel: ToPredecessor,
    predecessor: AsyncFd<OwnedFd>,
    pid: u32,
}

/// One that has everything, and was told to take over, or can since its predecessor is dead.
pub struct Heir {
    pub estate: Estate,
    pub run_dir: RunDir,
    pub doors: Doors,
    pub greeted: Vec<Greeted>,
    pub predecessor: Predecessor,
}

/// The predecessor, which stands by until its successor is settled.
pub struct Predecessor {
    channel: ToPredecessor,
    process: AsyncFd<OwnedFd>,
    pub pid: u32,
}

impl Claim {
    /// Connects to the predecessor that the environment names. `None` if there is none, or it is dead:
    /// then this is a start like any other.
    ///
    /// # Errors
    /// If it is there and cannot be succeeded.
    pub async fn from_environment() -> Result<Option<Claim>, String> {
        let Some(marker) = std::env::var_os(PREDECESSOR) else { return Ok(None) };
        let Some((pid, path)) = parse(marker.as_bytes()) else { return Ok(None) };
        // Whoever started this process is no predecessor unless it is there still; a variable that
        // was handed down further than that means nobody.
        if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(pid) {
            return Ok(None);
        }
        Claim::open(pid, &path).await
    }

    async fn open(pid: u32, path: &Path) -> Result<Option<Claim>, String> {
        fault_point!("succession.started");
        let broken = |error: io::Error| format!("the handoff socket {}: {error}", path.display());
        let Ok(pidfd) = sys::pidfd_open(pid) else { return Ok(None) };
        if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(pid) {
            return Ok(None);
        }
        let process = watched(pidfd, Interest::READABLE).map_err(broken)?;
        let socket = match connect(path) {
            Ok(socket) => socket,
            Err(error) => return died(&process).await.then_some(None).ok_or_else(|| broken(error)),
        };
        let peer = sys::socket::peer_credentials(socket.as_fd()).map_err(broken)?;
        if u32::try_from(peer.pid) != Ok(pid) || peer.uid != nix::unistd::geteuid().as_raw() {
            return Err(broken(io::Error::other(format!(
                "process {} of user {} listens there, not the supervisor {pid}",
                peer.pid, peer.uid
            ))));
        }
        let channel = ToPredecessor::new(socket).map_err(broken)?;
        let claim = Claim { channel, predecessor: process, pid };
        let mut own = Hello::own();
        if fault_point!("succession.version") {
            own.versions = VersionRange { oldest: 98, newest: 99 };
        }
        match claim.ask(&FromSuccessor::Hello(own)).await? {
            Some((ToSuccessor::Hello(theirs), _)) => {
                if let Err(why) = theirs.check() {
                    return Err(claim.refuse(why).await);
                }
            }
            Some((other, _)) => return Err(format!("a greeting was expected, not {other:?}")),
            None => return Ok(None),
        }
        fault_point!("succession.greeted");
        Ok(Some(claim))
    }

    /// Sends a message and waits for the answer; `None` if the predecessor is dead.
    async fn ask(
        &self,
        message: &FromSuccessor,
    ) -> Result<Option<(ToSuccessor, Vec<OwnedFd>)>, String> {
        // If it is gone, its answer is missing, too.
        let _ = self.channel.send(message, &[]).await;
        let answer = tokio::time::timeout(PATIENCE, self.channel.receive())
            .await
            .map_err(|_| format!("the supervisor {} says nothing", self.pid))?
            .map_err(|error| format!("the handoff socket: {error}"))?;
        match answer {
            Some(answer) => Ok(Some(answer)),
            None if died(&self.predecessor).await => Ok(None),
            None => Err(format!("the supervisor {} has broken off", self.pid)),
        }
    }

    /// Tells the predecessor why there is nothing to be had from this build. Returns the reason.
    pub async fn refuse(self, message: String) -> String {
        let _ = self.channel.send(&FromSuccessor::Failed { message: message.clone() }, &[]).await;
        message
    }

    /// Inherits. `None` if the predecessor died before all was here: then this is a start like any
    /// other, after a supervisor that was killed.
    ///
    /// # Errors
    /// If anything is not as it should be; the predecessor carries on.
    pub async fn inherit(
        self,
        settings: &Settings,
        run_dir: &Path,
    ) -> Result<Option<Heir>, String> {
        let _ = self.channel.send(&FromSuccessor::Prepared, &[]).await;
        fault_point!("succession.prepared");
        let estate = tokio::time::timeout(PATIENCE, Estate::receive(&self.channel))
            .await
            .map_err(|_| format!("the supervisor {} says nothing", self.pid))?;
        let estate = match estate {
            Ok(Some(estate)) => estate,
            // What has come of it is closed by now, the lock included.
            Ok(None) if died(&self.predecessor).await => return Ok(None),
            Ok(None) => return Err(format!("the supervisor {} has broken off", self.pid)),
            Err(why) => return Err(self.refuse(why).await),
        };
        fault_point!("succession.estate_received");
        let proven = prove(&estate, settings, run_dir).await;
        let (run_dir, doors, greeted) = match proven {
            Ok(proven) => proven,
            Err(why) => return Err(self.refuse(why).await),
        };
        match self.ask(&FromSuccessor::Proven).await? {
            Some((ToSuccessor::TakeOver, _)) => {}
            Some((other, _)) => return Err(format!("{other:?} instead of the word to take over")),
            None => tracing::warn!("the supervisor {} is dead: taking over", self.pid),
        }
        fault_point!("succession.told");
        let Claim { channel, predecessor, pid } = self;
        let predecessor = Predecessor { channel, process: predecessor, pid };
        Ok(Some(Heir { estate, run_dir, doors, greeted, predecessor }))
    }
}

/// Whether all that is to be inherited works: files, sockets, memory, maps, workers.
async fn prove(
    estate: &Estate,
    settings: &Settings,
    run_dir: &Path,
) -> Result<(RunDir, Doors, Vec<Greeted>), String> {
    let will = &estate.will;
    let wanted = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    if wanted != will.run_dir {
        return Err(format!(
            "run_dir: the configuration says {}, the service runs on {}; that takes a stop and a \
             start",
            wanted.display(),
            will.run_dir.display()
        ));
    }
    let lock = estate.lock.try_clone().map_err(|error| error.to_string())?;
    let run_dir = RunDir::inherit(&wanted, lock).map_err(|error| error.to_string())?;
    for (info, socket) in will.state.listeners.iter().zip(&estate.listeners) {
        let address = sys::socket::local_address(socket.as_fd())
            .map_err(|error| format!("listener {} on {}: {error}", info.id, info.address))?;
        if address != info.address {
            return Err(format!("listener {} is on {address}, not {}", info.id, info.address));
        }
    }
    let board = estate.board.try_clone().map_err(|error| error.to_string())?;
    drop(Board::adopt(board, will.board_has_totals)?);
    if will.state.steering == "ebpf" {
        let steer = Steer::reopen(settings.policy, run_dir.path());
        steer.map_err(|error| format!("the steering maps cannot be taken over: {error}"))?;
    }
    let doors = inherit_doors(estate, settings)?;
    let greeted = adopt::greet_all(&run_dir).await;
    let serving = will.state.generations.iter().find(|one| will.state.current == Some(one.number));
    for worker in serving.into_iter().flat_map(|generation| &generation.workers) {
        let Some(found) = greeted.iter().find(|greeted| greeted.id == worker.id) else {
            // It has died, or has not got its socket: it is started anew.
            continue;
        };
        match &found.hello {
            None => return Err(format!("worker {} does not answer", worker.id)),
            Some(hello) if PROTOCOL_VERSIONS.newest_common(hello.protocol).is_none() => {
                return Err(format!(
                    "worker {} speaks control protocols {:?}, this build {PROTOCOL_VERSIONS:?}",
                    worker.id, hello.protocol
                ));
            }
            Some(_) => {}
        }
    }
    fault_point!("succession.proven");
    Ok((run_dir, doors, greeted))
}

/// The control socket, and the admin endpoint's listener, which may be on another address from now on.
fn inherit_doors(estate: &Estate, settings: &Settings) -> Result<Doors, String> {
    let admin_address = settings.admin.0;
    let duplicate = |fd: &OwnedFd| fd.try_clone().map_err(|error| error.to_string());
    let admin = match (admin_address, &estate.admin) {
        (None, _) => None,
        (Some(_), Some(listener)) if admin_address == estate.will.admin => {
            Some(duplicate(listener)?)
        }
        (Some(address), _) => Some(listen_for_admin(address)?),
    };
    Ok(Doors { control: duplicate(&estate.control)?, admin, admin_address })
}

impl Predecessor {
    /// Says that its successor is the supervisor, and takes whoever it had not answered.
    pub async fn take_clients(&self) -> Vec<Passed> {
        let mut clients = Vec::new();
        let _ = self.channel.send(&FromSuccessor::Done, &[]).await;
        fault_point!("succession.done");
        let all = async {
            while let Ok(Some((message, mut fds))) = self.channel.receive().await {
                match (message, fds.pop()) {
                    (ToSuccessor::Client { unread, waits }, Some(stream)) => {
                        clients.push(Passed { stream, unread, waits });
                    }
                    (ToSuccessor::NoMoreClients, _) => break,
                    _ => {}
                }
            }
        };
        // One that hangs now has nothing more to say.
        let _ = tokio::time::timeout(END, all).await;
        clients
    }

    /// Why there will be no successor.
    pub async fn refuse(&self, message: &str) {
        let message = FromSuccessor::Failed { message: message.to_owned() };
        let _ = self.channel.send(&message, &[]).await;
    }

    /// Tells the predecessor to go, and waits until it has gone.
    pub async fn dismiss(self) {
        fault_point!("succession.settled");
        let _ = self.channel.send(&FromSuccessor::Settled, &[]).await;
        if tokio::time::timeout(END, self.process.readable()).await.is_err() {
            tracing::warn!(predecessor = self.pid, "was told to go, and is still there");
        }
    }
}

/// True once the process is dead, which it is about to be if it has closed its socket.
async fn died(process: &AsyncFd<OwnedFd>) -> bool {
    tokio::time::timeout(END, process.readable()).await.is_ok_and(|ready| ready.is_ok())
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Tells a predecessor, if there is one, why this process will not succeed it: it may have failed
/// before it could claim anything.
pub fn decline(message: &str) {
    let marker = std::env::var_os(PREDECESSOR).unwrap_or_default();
    let Some((pid, path)) = parse(marker.as_bytes()) else { return };
    if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(pid) {
        return;
    }
    // Whoever has been told already does not listen any more.
    let Ok(socket) = connect(&path) else { return };
    let words =
        [FromSuccessor::Hello(Hello::own()), FromSuccessor::Failed { message: message.to_owned() }];
    for word in words {
        let bytes = serde_json::to_vec(&word).unwrap_or_default();
        let _ = fdpass::send(socket.as_fd(), &[io::IoSlice::new(&bytes)], &[]);
    }
}

/// True in a process that was started to succeed another one.
pub fn is_successor() -> bool {
    std::env::var_os(PREDECESSOR)
        .and_then(|marker| parse(marker.as_bytes()))
        .is_some_and(|(pid, _)| u32::try_from(nix::unistd::getppid().as_raw()) == Ok(pid))
}

/// Process and path of [`PREDECESSOR`].
fn parse(marker: &[u8]) -> Option<(u32, PathBuf)> {
    let colon = marker.iter().position(|byte| *byte == b':')?;
    let pid = std::str::from_utf8(&marker[..colon]).ok()?.parse().ok()?;
    Some((pid, PathBuf::from(std::ffi::OsStr::from_bytes(&marker[colon + 1..]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_a_number_and_a_path() {
        assert_eq!(parse(b"12:/run/z:dt/h.sock"), Some((12, "/run/z:dt/h.sock".into())));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"x:/run"), None);
        assert_eq!(parse(b"12"), None);
    }
}
