//! The start of a supervisor: what must be there before the loop can run.
//!
//! Must not know: what the loop does.

use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::core::{Core, Inputs, Setup};
use super::handle::{Handle, Readiness};
use super::reloading::{QueuedReload, Wanted};
use super::rundir::{self, RunDir, RunDirError};
use super::scoreboard::Board;
use super::signals::Signals;
use super::steer::Steer;
use super::{adopt, control_socket, process, store, takeover};
use crate::config::{ConfigError, Loaded, MAX_WORKERS, Sources};
use crate::{admin, sys};

/// Why a supervisor does not start, or ended badly. Whoever started it can mend it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The run directory.
    #[error("{0}")]
    RunDir(#[from] RunDirError),
    /// io_uring, which the supervisor's runtime runs on, and the workers after it.
    #[error("io_uring is not to be had: {0}; `zdt doctor` says what to do")]
    IoUring(std::io::Error),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Runs a supervisor until it is stopped.
///
/// # Errors
/// See [`StartError`].
pub fn run(sources: Sources) -> Result<(), StartError> {
    let loaded = sources.load_shown()?;
    // Before there are other threads.
    super::privileges::give_up_others();
    let runtime =
        tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(StartError::IoUring)?;
    runtime.block_on(supervise(loaded, sources))
}

async fn supervise(loaded: Loaded, sources: Sources) -> Result<(), StartError> {
    let Loaded { settings, shown } = loaded;
    let other = |message: String| StartError::Other(message);
    let run_dir = match &settings.run_dir {
        Some(path) => path.clone(),
        None => rundir::default_path().map_err(other)?,
    };
    let run_dir = RunDir::take(&run_dir)?;
    let signals = Signals::install()
        .map_err(|error| other(format!("cannot install the signal handlers: {error}")))?;
    if let Err(error) = sys::process::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let executable_path = process::own_path()
        .map_err(|error| other(format!("cannot find the own program: {error}")))?;
    let admin_listener = match settings.admin.0 {
        Some(address) => Some(tokio::net::TcpListener::bind(address).await.map_err(|error| {
            other(format!(
                "cannot listen on {address} for the admin endpoint: {error}; choose another \
                     with --admin, or `--admin off`"
            ))
        })?),
        None => None,
    };

    let (links, link_events) = mpsc::channel(1_024);
    let (commands, command_events) = mpsc::channel(64);
    let (readiness, readiness_seen) = watch::channel(Readiness::Starting);
    let (admin_token, token_seen) = watch::channel(settings.admin_token.clone());
    let predecessor = adopt::find(&run_dir, store::load(&run_dir.state_file())).await;
    let setup =
        Setup { settings, shown, sources, executable_path, run_dir, links, readiness, admin_token };
    let core = match predecessor {
        Some(predecessor) if takeover::discard_unborn(&predecessor) => fresh(setup)?,
        Some(predecessor) => takeover::take_over(predecessor, setup).map_err(other)?,
        None => fresh(setup)?,
    };
    let control = core
        .run_dir
        .listen_for_commands()
        .map_err(|error| other(format!("cannot make the control socket: {error}")))?;
    let handle = Handle::new(commands, readiness_seen, token_seen);
    let control = tokio::task::spawn_local(control_socket::serve(control, handle.clone()));
    let admin = admin_listener
        .map(|listener| tokio::task::spawn_local(admin::serve(listener, handle.clone())));
    drop(handle);
    let inputs = Inputs { links: link_events, commands: command_events, signals };
    let result = core.run(inputs).await;
    control.abort();
    if let Some(admin) = admin {
        admin.abort();
    }
    result.map_err(other)
}

/// A supervisor with nothing, and the start of its first generation.
fn fresh(setup: Setup) -> Result<Core, StartError> {
    let settings = setup.settings.clone();
    let loaded = Loaded { settings: settings.clone(), shown: setup.shown.clone() };
    setup.run_dir.clear();
    Steer::remove_stale(setup.run_dir.path());
    let steer = Steer::load(
        settings.steering,
        settings.policy,
        settings.reuse_port,
        MAX_WORKERS,
        setup.run_dir.path(),
    )
    .map_err(StartError::Other)?;
    let board = Board::create(Steer::banks() * MAX_WORKERS).map_err(StartError::Other)?;
    let mut core = Core::new(setup, steer, board, MAX_WORKERS);
    let start =
        QueuedReload { wanted: Wanted::default(), waiters: Vec::new(), requested: Instant::now() };
    core.begin(loaded, None, &start).map_err(StartError::Other)?;
    Ok(core)
}
