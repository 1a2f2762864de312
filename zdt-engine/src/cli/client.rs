//! The command line's side of the control socket.
//!
//! Must not know: what the commands are for.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::RunDirArg;
use crate::supervisor::handle::{Reply, Request};
use crate::supervisor::{check_run_dir, control_socket, default_run_dir};
use crate::sys;

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
    /// The supervisor's process.
    pub pid: u32,
}

impl Client {
    /// Connects to the supervisor of a run directory, if it is one to be trusted.
    pub fn connect(run_dir: &Path) -> Result<Client, String> {
        let socket = control_socket(run_dir);
        let nobody = |error: std::io::Error| {
            format!(
                "no supervisor answers at {}: {error}; `zdt serve` starts one, --run-dir names \
                 another directory",
                socket.display()
            )
        };
        // Root may look after everybody's.
        if run_dir.exists() && !nix::unistd::geteuid().is_root() {
            check_run_dir(run_dir).map_err(|error| error.to_string())?;
        }
        let stream = UnixStream::connect(&socket).map_err(nobody)?;
        let peer = sys::socket::peer_credentials(stream.as_fd()).map_err(nobody)?;
        let pid = u32::try_from(peer.pid).unwrap_or_default();
        Ok(Client { stream: BufReader::new(stream), pid })
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request) -> Result<(), String> {
        let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .map_err(|error| format!("the supervisor does not listen: {error}"))
    }

    /// The next reply; `None` once the supervisor has closed the connection.
    pub fn next(&mut self) -> Result<Option<Reply>, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => match serde_json::from_str(&line) {
                Ok(Reply::Error { message }) => Err(message),
                Ok(reply) => Ok(Some(reply)),
                Err(error) => Err(format!(
                    "reply not understood ({error}); is the supervisor of another version?"
                )),
            },
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(format!("the connection to the supervisor broke: {error}")),
        }
    }
}
