//! The run directory: one supervisor's, nobody else's.
//!
//! It is 0700, belongs to the user that runs the supervisor, and holds `lock` (held while a
//! supervisor lives), `state.json`, `control.sock`, a `worker-ID.sock` for each worker, and
//! `handoff.sock` while a supervisor is being replaced.
//!
//! The lock belongs to the open file, not to the process: a supervisor passes its descriptor to its
//! successor, and there is no moment at which a third one could have it. It is never let go of, only
//! closed.
//!
//! Must not know: what is written there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use super::WorkerId;

/// Connections that may wait on a socket here.
pub(super) const BACKLOG: Backlog = Backlog::MAXALLOWABLE;

/// Longest path of a Unix socket (unix(7), less the terminating zero).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Room for the longest file name of a socket there.
const LONGEST_NAME_BYTES: usize = "/worker-4294967295.sock".len();

/// Why a run directory cannot be used. All are the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Cannot be made, opened or read.
    #[error("run directory {}: {action}: {error}; choose another with --run-dir", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something else has the name.
    #[error("run directory {} is not a directory (links are not followed); choose another with --run-dir", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else could have prepared it.
    #[error("run directory {} belongs to user {owner}, this is user {own}, who does not trust what is in it: run this as that user, or choose another with --run-dir", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who this is.
        own: u32,
    },
    /// Others may read or write it.
    #[error("run directory {} has mode {mode:o}: others could reach the sockets in it; run `chmod 700 {}` if you trust what is in it", path.display(), path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A supervisor runs there.
    #[error("another supervisor{holder} runs on {}: use `zdt reload`, or `zdt stop` first, or another --run-dir", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Its process, if known.
        holder: String,
    },
    /// The path is too long for sockets in it.
    #[error("run directory {}: the path is too long for Unix sockets in it ({} bytes at most); choose another with --run-dir", path.display(), MAX_SOCKET_PATH_BYTES - LONGEST_NAME_BYTES)]
    TooLong {
        /// The path.
        path: PathBuf,
    },
}

/// The default: `/run/zdt` as root, `$XDG_RUNTIME_DIR/zdt` otherwise.
///
/// # Errors
/// Without root and without `XDG_RUNTIME_DIR`.
pub fn default_path() -> Result<PathBuf, String> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/run/zdt"));
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => Ok(Path::new(&dir).join("zdt")),
        None => Err("XDG_RUNTIME_DIR is not set: name a run directory with --run-dir".to_owned()),
    }
}

/// The control socket of the supervisor of a run directory.
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// A run directory that belongs to this process as long as this lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    lock: fs::File,
}

impl RunDir {
    /// Makes the directory if needed, checks whose it is, and locks it.
    ///
    /// # Errors
    /// See [`RunDirError`].
    pub fn take(path: &Path) -> Result<RunDir, RunDirError> {
        let path = std::path::absolute(path)
            .map_err(|error| io_error(path, "cannot be resolved", error))?;
        if path.as_os_str().len() + LONGEST_NAME_BYTES > MAX_SOCKET_PATH_BYTES {
            return Err(RunDirError::TooLong { path });
        }
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error(&path, "cannot be made", error)),
        }
        check(&path)?;
        let lock_path = path.join("lock");
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| io_error(&path, "cannot open its lock", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&lock_path).unwrap_or_default();
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(RunDirError::Taken { path, holder });
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(io_error(&path, "cannot be locked", error));
            }
        }
        let run_dir = RunDir { path, lock: file };
        run_dir.sign()?;
        Ok(run_dir)
    }

    /// The run directory of a predecessor, with the lock that it passed on. Until [`RunDir::sign`] is
    /// called nothing tells that it has a new owner.
    ///
    /// # Errors
    /// See [`RunDirError`]: also if that is not the directory's lock.
    pub fn inherit(path: &Path, lock: OwnedFd) -> Result<RunDir, RunDirError> {
        check(path)?;
        let lock = fs::File::from(lock);
        let there = fs::metadata(path.join("lock"));
        let is_lock = there.and_then(|there| {
            let passed = lock.metadata()?;
            Ok((passed.dev(), passed.ino()) == (there.dev(), there.ino()))
        });
        match is_lock {
            // Held by this very open file already, so that it cannot be refused to it.
            Ok(true) if lock.try_lock().is_ok() => Ok(RunDir { path: path.to_owned(), lock }),
            Ok(_) => {
                let why = io::Error::other("another file than the one that was passed on");
                Err(io_error(path, "its lock", why))
            }
            Err(error) => Err(io_error(path, "cannot look at its lock", error)),
        }
    }

    /// Writes into the lock who holds it.
    ///
    /// # Errors
    /// See [`RunDirError`].
    pub fn sign(&self) -> Result<(), RunDirError> {
        // Never empty in between: whoever reads it while it changes gets one number or the other,
        // and perhaps the last digits of a longer one behind the line.
        let text = format!("{}\n", std::process::id());
        self.lock
            .write_all_at(text.as_bytes(), 0)
            .and_then(|()| self.lock.set_len(text.len() as u64))
            .map_err(|error| io_error(&self.path, "cannot write its lock", error))
    }

    /// The lock, to be passed on.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the durable state is written.
    pub fn state_file(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// The socket on which a worker waits for a later supervisor.
    pub fn worker_socket(&self, worker: WorkerId) -> PathBuf {
        self.path.join(format!("worker-{worker}.sock"))
    }

    /// Makes that socket, listening, mode 0600.
    ///
    /// # Errors
    /// What socket(2), bind(2), chmod(2) and listen(2) say.
    pub fn listen_for_successor(&self, worker: WorkerId) -> io::Result<OwnedFd> {
        bind_private(&self.worker_socket(worker), SockType::SeqPacket)
    }

    /// Makes the control socket, listening, mode 0600, in place of a dead supervisor's.
    ///
    /// # Errors
    /// What socket(2), bind(2), chmod(2) and listen(2) say.
    pub fn listen_for_commands(&self) -> io::Result<OwnedFd> {
        bind_private(&control_socket(&self.path), SockType::Stream)
    }

    /// Where a successor is waited for, unless the configuration says otherwise.
    pub fn handoff_socket(&self) -> PathBuf {
        self.path.join("handoff.sock")
    }

    /// The workers that have, or had, a socket here.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn workers(&self) -> io::Result<Vec<WorkerId>> {
        workers_in(&self.path)
    }

    /// Removes a worker's socket.
    pub fn remove_worker(&self, worker: WorkerId) {
        remove_if_there(&self.worker_socket(worker));
    }

    /// Removes everything that a supervisor leaves, at the end of a stop: the directory stays, and
    /// the lock with it.
    pub fn clear(&self) {
        for worker in self.workers().unwrap_or_default() {
            self.remove_worker(worker);
        }
        remove_if_there(&self.state_file());
        remove_if_there(&control_socket(&self.path));
        remove_if_there(&self.handoff_socket());
        // Where the steering maps were pinned, if they were pinned here; still mounted, it stays.
        let _ = fs::remove_dir(self.path.join("bpf"));
        let _ = fs::remove_dir(self.path.join(super::workers::spilling::NAME));
    }
}

/// The workers that have, or had, a socket in this run directory.
///
/// # Errors
/// If the directory cannot be read.
pub fn workers_in(run_dir: &Path) -> io::Result<Vec<WorkerId>> {
    let mut workers = Vec::new();
    for entry in fs::read_dir(run_dir)? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("worker-")?.strip_suffix(".sock"));
        workers.extend(id.and_then(|id| id.parse::<WorkerId>().ok()));
    }
    workers.sort_unstable();
    Ok(workers)
}

/// Connects to the socket on which a worker waits for a supervisor.
///
/// # Errors
/// `ConnectionRefused` if the worker is gone.
pub fn connect_to_worker(run_dir: &Path, worker: WorkerId) -> io::Result<OwnedFd> {
    let path = run_dir.join(format!("worker-{worker}.sock"));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
    Ok(socket)
}

/// Whether a run directory is fit to be trusted: a directory, ours, and ours alone.
///
/// # Errors
/// See [`RunDirError`].
pub fn check(path: &Path) -> Result<(), RunDirError> {
    let metadata =
        fs::symlink_metadata(path).map_err(|error| io_error(path, "cannot be looked at", error))?;
    let own = nix::unistd::geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(RunDirError::NotADirectory { path: path.to_owned() });
    }
    if metadata.uid() != own {
        return Err(RunDirError::Foreign { path: path.to_owned(), owner: metadata.uid(), own });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(RunDirError::Open { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Whether only this user and root can put sockets where this one is to be.
///
/// # Errors
/// Why not, and what to do.
pub(super) fn check_socket_parent(path: &Path) -> Result<(), String> {
    let parent = path.parent().filter(|parent| parent.is_absolute()).ok_or_else(|| {
        format!("handoff_socket: {} is no absolute path of a socket", path.display())
    })?;
    let metadata = fs::metadata(parent)
        .map_err(|error| format!("handoff_socket: {}: {error}", parent.display()))?;
    let own = nix::unistd::geteuid().as_raw();
    if ![own, 0].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0 {
        return Err(format!(
            "handoff_socket: others than this user can change {}; choose a directory that they \
             cannot, or leave it to the run directory",
            parent.display()
        ));
    }
    Ok(())
}

/// Makes a listening socket, mode 0600, in place of a dead supervisor's.
///
/// # Errors
/// What socket(2), bind(2), chmod(2) and listen(2) say.
pub(super) fn bind_private(path: &Path, kind: SockType) -> io::Result<OwnedFd> {
    remove_if_there(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, kind, flags, None)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Nobody else gets into the directory, whatever the mode was until here.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    nix::sys::socket::listen(&socket, BACKLOG)?;
    Ok(socket)
}

pub(super) fn remove_if_there(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file of the run directory");
    }
}

fn io_error(path: &Path, action: &'static str, error: io::Error) -> RunDirError {
    RunDirError::Io { path: path.to_owned(), action, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_supervisor_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let first = RunDir::take(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let message = RunDir::take(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        // A duplicate holds it just as well, whoever has it.
        let second = RunDir::inherit(&path, first.lock().try_clone_to_owned().unwrap()).unwrap();
        drop(first);
        assert!(matches!(RunDir::take(&path), Err(RunDirError::Taken { .. })));
        drop(second);
        // A child that another test has just forked may have one, too, until it executes.
        let again = (0..200).find_map(|_| match RunDir::take(&path) {
            Err(RunDirError::Taken { .. }) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
                None
            }
            other => Some(other.unwrap()),
        });
        again.expect("the lock is free");
        let other = fs::File::open("/dev/null").unwrap().into();
        assert!(RunDir::inherit(&path, other).is_err(), "that is no lock");
    }

    #[test]
    fn a_directory_that_others_can_reach_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(RunDir::take(&path), Err(RunDirError::Open { mode: 0o755, .. })));
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(RunDir::take(&link), Err(RunDirError::NotADirectory { .. })));
        if nix::unistd::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            assert!(matches!(RunDir::take(&path), Err(RunDirError::Foreign { owner: 65_534, .. })));
        }
    }

    #[test]
    fn sockets_are_private_and_found_again() {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = RunDir::take(&parent.path().join("run")).unwrap();
        let socket = run_dir.listen_for_successor(7).unwrap();
        assert_eq!(run_dir.workers().unwrap(), [7]);
        let mode = fs::metadata(run_dir.worker_socket(7)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        connect_to_worker(run_dir.path(), 7).unwrap();
        drop(socket);
        let gone = connect_to_worker(run_dir.path(), 7).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
        run_dir.clear();
        assert!(run_dir.workers().unwrap().is_empty());
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused_early() {
        let path = Path::new("/tmp").join("x".repeat(100));
        assert!(matches!(RunDir::take(&path), Err(RunDirError::TooLong { .. })));
    }
}
