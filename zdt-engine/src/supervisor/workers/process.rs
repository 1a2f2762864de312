//! Worker processes: which program, as whom, and how they end.
//!
//! The program is opened once for a generation and executed through that descriptor: a worker that
//! is restarted gets the build of its generation even if the file was replaced meanwhile, and an
//! unprivileged user needs no way to the directory that it lies in.
//!
//! Must not know: what workers do.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::Signal;

use super::watch::Sample;
use crate::config::LogFormat;
use crate::sys;
use crate::sys::birth::Birth;

/// Says what is wrong with the program at this path, if anything is.
///
/// # Errors
/// See `Executable::open`.
pub fn check_executable(path: &Path) -> Result<(), String> {
    Executable::open(path).map(drop)
}

/// A program, held open.
#[derive(Debug)]
pub struct Executable {
    path: PathBuf,
    file: OwnedFd,
}

impl Executable {
    /// Opens the program that is at this path now.
    ///
    /// # Errors
    /// Says which file, and what is wrong with it.
    pub fn open(path: &Path) -> Result<Executable, String> {
        let file =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).map_err(
                |error| format!("the program of the workers, {}: {error}", path.display()),
            )?;
        let metadata = file.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
        if !metadata.is_file() {
            return Err(format!("the program of the workers, {}, is not a file", path.display()));
        }
        Ok(Executable { path: path.to_owned(), file: file.into() })
    }

    /// The program that a running process executes, even if its file is gone.
    ///
    /// # Errors
    /// If the process may not be looked at.
    pub fn of_process(pid: u32) -> Result<Executable, String> {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let executable = Self::open(&link)?;
        let path = std::fs::read_link(&link).unwrap_or(link);
        Ok(Executable { path, ..executable })
    }

    /// Another handle on the same program.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn try_clone(&self) -> io::Result<Executable> {
        Ok(Executable { path: self.path.clone(), file: self.file.try_clone()? })
    }

    /// True if it is the very file, unchanged since.
    pub fn is_same_file(&self, other: &Executable) -> bool {
        let identity = |one: &Executable| {
            let stat = nix::sys::stat::fstat(&one.file).ok()?;
            Some((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec))
        };
        identity(self).is_some_and(|own| Some(own) == identity(other))
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The path from which to start workers at each reload: as the supervisor was called, so that a
/// link to the current release keeps being followed, or where its file is.
///
/// # Errors
/// If `/proc` is not mounted, or the file has been removed already.
pub fn own_path() -> io::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let candidates: Vec<PathBuf> = if called.components().count() > 1 {
        vec![called]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(&called)).collect()
    };
    for candidate in candidates {
        if candidate.canonicalize().is_ok_and(|real| real == running) {
            return std::path::absolute(candidate);
        }
    }
    Ok(running)
}

/// Whom workers run as; `None` is the supervisor's own user.
pub type User = Option<(u32, u32)>;

/// Finds the user by name, and the group, which is otherwise the user's. Only root can choose.
///
/// # Errors
/// If there is no such user or group.
pub fn find_user(name: &str, group: Option<&str>) -> Result<User, String> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let user = match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => user,
        Ok(None) => {
            return Err(format!("user: there is no user {name:?} for the workers to run as"));
        }
        Err(error) => return Err(format!("user: cannot look up {name:?}: {error}")),
    };
    let Some(group) = group else { return Ok(Some((user.uid.as_raw(), user.gid.as_raw()))) };
    match nix::unistd::Group::from_name(group) {
        Ok(Some(group)) => Ok(Some((user.uid.as_raw(), group.gid.as_raw()))),
        Ok(None) => Err(format!("group: there is no group {group:?} for the workers to run as")),
        Err(error) => Err(format!("group: cannot look up {group:?}: {error}")),
    }
}

/// A process of ours, or one that was adopted from an earlier supervisor.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
    child: Option<Child>,
}

impl Process {
    /// Starts a worker. `control` becomes its standard input: the one descriptor that can be handed
    /// to a new program without unsafe code.
    ///
    /// # Errors
    /// What fork(2), execve(2) and the system calls between them (see [`Birth`]) say.
    pub fn start(
        executable: &Executable,
        birth: Birth,
        log_format: LogFormat,
        control: OwnedFd,
    ) -> io::Result<Process> {
        let mut command = Command::new(format!("/proc/self/fd/{}", executable.file.as_raw_fd()));
        command
            .arg0("zdt")
            .args(["worker", "--control-fd", "0", "--log-format"])
            .arg(match log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            })
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(control))
            .stdout(Stdio::null())
            // The terminal's Ctrl-C is for the supervisor, which decides what becomes of workers.
            .process_group(0);
        let passed: &[&str] = if cfg!(feature = "fault-points") {
            &["RUST_LOG", "ZDT_FAULT", "ZDT_NONCES"]
        } else {
            &["RUST_LOG"]
        };
        for name in passed {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(ring) = &birth.ring {
            // Not among the arguments: an earlier build, to which a rollback returns, passes over it here.
            command.env(crate::sys::ring::VARIABLE, ring.number().to_string());
        }
        birth.of(&mut command);
        let mut child = command.spawn()?;
        match sys::pidfd_open(child.id()) {
            Ok(pidfd) => Ok(Process { pid: child.id(), pidfd, child: Some(child) }),
            Err(error) => {
                // Without a handle its death would go unnoticed.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Starts another program than a worker's.
    ///
    /// # Errors
    /// What fork(2) and execve(2) say.
    pub fn start_command(command: &mut Command) -> io::Result<Process> {
        let mut child = command.spawn()?;
        match sys::pidfd_open(child.id()) {
            Ok(pidfd) => Ok(Process { pid: child.id(), pidfd, child: Some(child) }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Takes over a process that another supervisor had started.
    ///
    /// # Errors
    /// If it is gone.
    pub fn adopt(pid: u32) -> io::Result<Process> {
        Ok(Process { pid, pidfd: sys::pidfd_open(pid)?, child: None })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its handle.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// What the kernel says of its first thread, which is the loop.
    pub fn sample(&self) -> Option<Sample> {
        let (state, cpu) = sys::process::thread_state(self.pid, self.pid).ok()?;
        Some(Sample { state, cpu })
    }

    /// True once it has ended.
    pub fn has_ended(&self) -> bool {
        sys::process::pidfd_has_ended(self.pidfd.as_fd()).unwrap_or(true)
    }

    /// Kills it. One that is dead already stays dead.
    pub fn kill(&self) {
        if let Err(error) = sys::pidfd_send_signal(self.pidfd.as_fd(), Some(Signal::SIGKILL))
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            tracing::error!(pid = self.pid, %error, "cannot kill a worker");
        }
    }

    /// After its end: removes the zombie, and says how it ended.
    pub fn reap(&mut self) -> String {
        let status = match &mut self.child {
            Some(child) => child.try_wait().ok().flatten(),
            // It may be a child of this process all the same: given to a successor, and taken back.
            None => wait_for_zombie(self.pid),
        };
        status.map_or_else(|| "ended".to_owned(), describe)
    }
}

/// The status of a child that has ended, if it is one.
fn wait_for_zombie(pid: u32) -> Option<ExitStatus> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)).ok()? {
        WaitStatus::Exited(_, code) => Some(ExitStatus::from_raw(code << 8)),
        WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
        _ => None,
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (_, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_described() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exited with code 3");
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by SIGKILL");
    }

    #[test]
    fn a_missing_program_is_named() {
        let message = Executable::open(Path::new("/nonexistent/zdt")).unwrap_err();
        assert!(message.contains("/nonexistent/zdt"), "{message}");
        assert!(Executable::open(Path::new("/tmp")).unwrap_err().contains("not a file"));
        Executable::of_process(std::process::id()).unwrap();
    }

    #[test]
    fn only_existing_users_are_found() {
        if nix::unistd::geteuid().is_root() {
            assert_eq!(find_user("root", None).unwrap(), Some((0, 0)));
            assert_eq!(find_user("nobody", Some("root")).unwrap(), Some((65_534, 0)));
            assert!(find_user("no such user", None).unwrap_err().contains("no such user"));
            assert!(
                find_user("root", Some("no such group")).unwrap_err().contains("no such group")
            );
        } else {
            assert_eq!(find_user("anybody", None).unwrap(), None);
        }
    }
}
