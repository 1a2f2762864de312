//! The command line's side of the control socket.
//!
//! A supervisor answers from one loop that waits for nothing. One that is silent is stopped, or its
//! machine is; then the command says so, instead of waiting with it.
//!
//! Must not know: what the commands are for.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::RunDirArg;
use crate::supervisor::handle::{Reply, Request};
use crate::supervisor::{check_run_dir, control_socket, default_run_dir};
use crate::sys;

/// How long a supervisor may be silent.
pub const PATIENCE: Duration = Duration::from_secs(10);

impl RunDirArg {
    /// The directory that is meant.
    pub fn path(&self) -> Result<PathBuf, String> {
        match &self.run_dir {
            Some(path) => Ok(path.clone()),
            None => default_run_dir(),
        }
    }
}

/// A connection to a supervisor.
pub struct Client {
    stream: BufReader<UnixStream>,
    run_dir: PathBuf,
    /// The supervisor's process.
    pub pid: u32,
}

impl Client {
    /// Connects to the supervisor of a run directory, if it is one to be trusted.
    pub fn connect(run_dir: &Path) -> Result<Client, String> {
        let path = control_socket(run_dir);
        let nobody = |error: std::io::Error| {
            format!(
                "no supervisor answers at {}: {error}; `zdt serve` starts one, --run-dir names \
                 another directory",
                path.display()
            )
        };
        // Root may look after everybody's.
        if run_dir.exists() && !nix::unistd::geteuid().is_root() {
            check_run_dir(run_dir).map_err(|error| error.to_string())?;
        }
        let stream = connect_in_time(&path).map_err(nobody)?;
        let peer = sys::socket::peer_credentials(stream.as_fd()).map_err(nobody)?;
        let pid = u32::try_from(peer.pid).unwrap_or_default();
        let client = Client { stream: BufReader::new(stream), run_dir: run_dir.to_owned(), pid };
        client.stream.get_ref().set_read_timeout(Some(PATIENCE)).map_err(nobody)?;
        Ok(client)
    }

    /// One request, one reply.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, String> {
        self.send(request)?;
        self.next()?.ok_or_else(|| {
            "the supervisor closed the connection without an answer; its log may say why".to_owned()
        })
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request) -> Result<(), String> {
        let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => silence(self.pid),
            _ => format!("the supervisor does not listen: {error}"),
        })
    }

    /// The next reply, which must come soon; `None` once the supervisor has closed the connection.
    pub fn next(&mut self) -> Result<Option<Reply>, String> {
        self.read(|client| Err(silence(client.pid)))
    }

    /// The next reply, for as long as it takes, provided that the supervisor answers others meanwhile.
    pub fn next_when_it_comes(&mut self) -> Result<Option<Reply>, String> {
        self.read(|client| {
            let mut other = Client::connect(&client.run_dir)?;
            other.ask(&Request::Status).map(drop)
        })
    }

    fn read(
        &mut self,
        on_silence: impl Fn(&Client) -> Result<(), String>,
    ) -> Result<Option<Reply>, String> {
        let mut line = Vec::new();
        loop {
            match self.stream.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                // What was read of the line stays there.
                Err(error) if error.kind() == ErrorKind::WouldBlock => on_silence(self)?,
                Err(error) => {
                    return Err(format!("the connection to the supervisor broke: {error}"));
                }
            }
        }
        match serde_json::from_slice(&line) {
            Ok(Reply::Error { message }) => Err(message),
            Ok(reply) => Ok(Some(reply)),
            Err(error) => Err(format!(
                "reply not understood ({error}); is the supervisor of another version?"
            )),
        }
    }
}

/// A stopped supervisor does not accept, and its queue may be full: then a plain connect would wait.
fn connect_in_time(path: &Path) -> std::io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
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

/// What to say, and to do, about a supervisor that does not answer.
pub fn silence(pid: u32) -> String {
    let state = process_state(pid);
    let hint = match state {
        Some('T' | 't') => format!("it is stopped; `kill -CONT {pid}` lets it go on"),
        Some('D') => "it waits for a device; look at the disk of its run directory".to_owned(),
        _ => "if it hangs for good, kill it and start `zdt serve` again: the workers serve on \
              meanwhile, and the new supervisor takes them over"
            .to_owned(),
    };
    format!(
        "the supervisor (process {pid}) does not answer within {} s: {hint}",
        PATIENCE.as_secs()
    )
}

/// The state of a process as in `/proc/PID/stat`.
pub fn process_state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything, parentheses included.
    text.rsplit_once(')')?.1.trim_start().chars().next()
}
