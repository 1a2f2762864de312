//! One connection to a supervisor's control socket.
//!
//! A supervisor answers from one loop that waits for nothing. One that is silent is stopped, or its
//! machine is; then the caller is told so, instead of waiting with it.
//!
//! Must not know: what the commands are for.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::ClientError;
use crate::supervisor::handle::{Reply, Request};
use crate::supervisor::{check_run_dir, control_socket, workers_in};
use crate::sys;

/// How long a supervisor may be silent.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    run_dir: PathBuf,
    /// The supervisor's process.
    pub pid: u32,
}

impl Client {
    /// Connects to the supervisor of a run directory, if it is one to be trusted.
    ///
    /// # Errors
    /// If nobody is there, or the directory is somebody else's.
    pub fn connect(run_dir: &Path) -> Result<Client, ClientError> {
        let path = control_socket(run_dir);
        let nobody = |error: std::io::Error| {
            let orphans = workers_in(run_dir).is_ok_and(|workers| !workers.is_empty());
            ClientError::Absent { path: path.clone(), error, orphans }
        };
        // Root may look after everybody's.
        if run_dir.exists() && !nix::unistd::geteuid().is_root() {
            check_run_dir(run_dir)?;
        }
        let stream = connect_in_time(&path).map_err(nobody)?;
        let peer = sys::socket::peer_credentials(stream.as_fd()).map_err(nobody)?;
        let pid = u32::try_from(peer.pid).unwrap_or_default();
        stream.set_read_timeout(Some(PATIENCE)).map_err(nobody)?;
        Ok(Client { stream: BufReader::new(stream), run_dir: run_dir.to_owned(), pid })
    }

    /// One request, one reply.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        self.next_soon()?.ok_or(ClientError::Ended)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => silence(self.pid),
            _ => ClientError::Broken(error),
        })
    }

    /// The next reply, which must come soon; `None` once the supervisor has closed the connection.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn next_soon(&mut self) -> Result<Option<Reply>, ClientError> {
        self.read(|client| Err(silence(client.pid)))
    }

    /// The next reply, for as long as it takes, provided that the supervisor answers others meanwhile.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn next_when_it_comes(&mut self) -> Result<Option<Reply>, ClientError> {
        self.read(|client| {
            let mut other = Client::connect(&client.run_dir)?;
            other.ask(&Request::Status).map(drop)
        })
    }

    /// Stops the supervisor, and waits for its end: for as long as the configured drain lasts. Returns how
    /// many workers it had.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stop(&mut self, now: bool) -> Result<u32, ClientError> {
        // Before the request, while it is certain who has this number.
        let listens = sys::pidfd_open(self.pid).ok();
        let (workers, pid) = match self.ask(&Request::Stop { now })? {
            Reply::Stopping { workers, pid } => (workers, pid),
            _ => return Err(ClientError::Unexpected),
        };
        // Another one answers if it was replaced meanwhile. One that is gone has stopped.
        let process = match listens {
            Some(process) if pid == self.pid => process,
            _ => match sys::pidfd_open(pid) {
                Ok(process) => process,
                Err(_) => return Ok(workers),
            },
        };
        while !is_readable(&process, PATIENCE).map_err(ClientError::Broken)? {
            if matches!(process_state(pid), Some('T' | 't')) {
                return Err(silence(pid));
            }
        }
        Ok(workers)
    }

    fn read(
        &mut self,
        on_silence: impl Fn(&Client) -> Result<(), ClientError>,
    ) -> Result<Option<Reply>, ClientError> {
        let mut line = Vec::new();
        loop {
            match self.stream.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                // What was read of the line stays there.
                Err(error) if error.kind() == ErrorKind::WouldBlock => on_silence(self)?,
                Err(error) => return Err(ClientError::Broken(error)),
            }
        }
        match serde_json::from_slice(&line)? {
            Reply::Error { message } => Err(ClientError::Refused(message)),
            reply => Ok(Some(reply)),
        }
    }
}

/// A stopped supervisor does not accept, and its queue may be full: then a plain connect would wait.
fn connect_in_time(path: &Path) -> std::io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(seconds, 0))?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(nix::errno::Errno::EAGAIN) => {
            Err(std::io::Error::other("its queue of commands is full: it is stopped, or it hangs"))
        }
        Err(error) => Err(error.into()),
    }
}

fn silence(pid: u32) -> ClientError {
    ClientError::Silent { pid, state: process_state(pid) }
}

/// The state of a process as in `/proc/PID/stat`.
fn process_state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything, parentheses included.
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Waits that long at most; true once there is something to read.
///
/// # Errors
/// What poll(2) says.
pub fn is_readable(descriptor: &OwnedFd, patience: Duration) -> std::io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
