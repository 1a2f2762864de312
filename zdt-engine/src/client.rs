//! A running supervisor, from another process: what the command line does, for programs.
//!
//! Must not know: how the supervisor does what it is told.

mod connection;

use std::path::{Path, PathBuf};

use crate::supervisor::handle::{Components, ReloadRequest, Reply, Request, Status, TestMigration};
use crate::supervisor::reload::Verdict;
use crate::supervisor::{RunDirError, default_run_dir};

pub use connection::{Client, PATIENCE, is_readable};

/// Why a supervisor was not asked, or has not answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no supervisor answers at {}: {error}; {}", path.display(),
        if *orphans {
            "a dead one has left workers behind, which serve on: `zdt serve` takes them over, `zdt stop` ends them"
        } else {
            "`zdt serve` starts one, --run-dir names another directory"
        }
    )]
    Absent {
        /// The control socket.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
        /// A dead one has left the sockets of workers.
        orphans: bool,
    },
    /// The run directory is somebody else's, or none.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// There is no default run directory for this user.
    #[error("{0}")]
    NoRunDir(String),
    /// It does not answer.
    #[error(
        "the supervisor (process {pid}) does not answer within {} s: {}",
        PATIENCE.as_secs(), hint(*pid, *state)
    )]
    Silent {
        /// Its process.
        pid: u32,
        /// What that does, as in `/proc/PID/stat`.
        state: Option<char>,
    },
    /// It answered with an error.
    #[error("{0}")]
    Refused(String),
    /// It ended, or closed the connection, before it answered.
    #[error(
        "the supervisor ended before it answered; its workers serve on, and the next `zdt serve` takes \
         them over"
    )]
    Ended,
    /// The connection broke.
    #[error("the connection to the supervisor broke: {0}")]
    Broken(std::io::Error),
    /// The answer is not one.
    #[error("reply not understood ({0}); is the supervisor of another version?")]
    NotUnderstood(#[from] serde_json::Error),
    /// The answer is one to something else.
    #[error("the supervisor answered something else; is it of another version?")]
    Unexpected,
}

fn hint(pid: u32, state: Option<char>) -> String {
    match state {
        Some('T' | 't') => format!("it is stopped; `kill -CONT {pid}` lets it go on"),
        Some('D') => "it waits for a device; look at the disk of its run directory".to_owned(),
        _ => "if it hangs for good, kill it and start `zdt serve` again: the workers serve on \
              meanwhile, and the new supervisor takes them over"
            .to_owned(),
    }
}

impl From<ClientError> for String {
    fn from(error: ClientError) -> String {
        error.to_string()
    }
}

/// Health at a glance: the fields of the original library's `getHealthStatus`.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// `healthy`, `reloading` or `degraded`.
    pub status: String,
    /// What is degraded.
    pub problems: Vec<String>,
    /// By component.
    pub components: Components,
    /// Since the supervisor took over.
    pub uptime_seconds: f64,
    /// Resident memory of the supervisor and all workers.
    pub memory_usage_mb: f64,
}

/// A running zdt, found by its run directory.
///
/// Each call is a connection of its own, waits for its answer, and fails within 10 s if the supervisor
/// says nothing to anybody. The calls block: within an async program, give them a thread.
///
/// ```
/// use zdt_engine::{ClientError, ZeroDowntime};
///
/// let zdt = ZeroDowntime::at("/nonexistent/run/zdt");
/// match zdt.is_reloading() {
///     Ok(reloading) => println!("reloading: {reloading}"),
///     Err(ClientError::Absent { .. }) => println!("not running"),
///     Err(error) => println!("{error}"),
/// }
/// # assert!(matches!(zdt.stats(), Err(ClientError::Absent { .. })));
/// ```
///
/// A deploy that looks before it leaps (`examples/deploy.rs` is the whole program, and a test runs it):
///
/// ```no_run
/// # fn main() -> Result<(), zdt_engine::ClientError> {
/// let zdt = zdt_engine::ZeroDowntime::at("/run/zdt");
/// let test = zdt.test_migration()?;
/// println!("{} of {} connections will move", test.movable_connections, test.tested_connections);
/// let verdict = zdt.reload()?;
/// println!("migrated {} connections", verdict.migrated_connections);
/// assert_eq!(zdt.health()?.status, "healthy");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ZeroDowntime {
    run_dir: PathBuf,
}

impl ZeroDowntime {
    /// The one of this run directory. Nothing is asked yet.
    pub fn at(run_dir: impl AsRef<Path>) -> Self {
        Self { run_dir: run_dir.as_ref().to_owned() }
    }

    /// The one of this user's default run directory.
    ///
    /// # Errors
    /// If there is no default: not root, and `XDG_RUNTIME_DIR` is not set.
    pub fn of_this_user() -> Result<Self, ClientError> {
        default_run_dir().map(Self::at).map_err(ClientError::NoRunDir)
    }

    /// Replaces the workers with the configured strategy and waits for the verdict, which may be that it
    /// failed and was undone: see `reload_successful`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reload(&self) -> Result<Verdict, ClientError> {
        self.reload_with(ReloadRequest::default())
    }

    /// Like [`ZeroDowntime::reload`], differing from the configuration.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reload_with(&self, request: ReloadRequest) -> Result<Verdict, ClientError> {
        let mut client = self.connect()?;
        client.send(&Request::Reload(request))?;
        loop {
            match client.next_when_it_comes()?.ok_or(ClientError::Ended)? {
                Reply::Verdict(verdict) => return Ok(*verdict),
                Reply::Progress(_) => {}
                _ => return Err(ClientError::Unexpected),
            }
        }
    }

    /// Stops the service and waits for its end: connections drain first. Returns how many workers it had.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn shutdown(&self) -> Result<u32, ClientError> {
        self.connect()?.stop(false)
    }

    /// Tries the handoff of every connection aside, without its client noticing.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn test_migration(&self) -> Result<TestMigration, ClientError> {
        let mut client = self.connect()?;
        client.send(&Request::TestMigration)?;
        match client.next_when_it_comes()?.ok_or(ClientError::Ended)? {
            Reply::TestMigration(result) => Ok(*result),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Everything that `zdt status` shows.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stats(&self) -> Result<Status, ClientError> {
        match self.connect()?.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Whether all is well.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn health(&self) -> Result<Health, ClientError> {
        let Status { status, problems, components, uptime_seconds, memory_usage_mb, .. } =
            self.stats()?;
        Ok(Health { status, problems, components, uptime_seconds, memory_usage_mb })
    }

    /// Whether a reload is going on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn is_reloading(&self) -> Result<bool, ClientError> {
        Ok(self.stats()?.reload_in_progress)
    }

    fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.run_dir)
    }
}
