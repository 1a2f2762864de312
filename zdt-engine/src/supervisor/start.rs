//! The start of a supervisor: what must be there before the loop can run.
//!
//! Must not know: what the loop does.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::{mpsc, watch};

use super::core::{Core, Ending, Handover, Inputs, Setup};
use super::handle::{Handle, Readiness, Reply};
use super::news::News;
use super::parking::Parking;
use super::reloading::{Program, QueuedReload, Wanted};
use super::requests::control_socket::Passed;
use super::requests::reception::{Doors, Open, Reception, answer_all};
use super::rundir::{self, RunDir, RunDirError};
use super::signals::Signals;
use super::sockets::steer::Steer;
use super::successor;
use super::successor::{Claim, Estate, Heir, Replacement, Standby, ago, not_replaced};
use super::takeover;
use super::takeover::adopt;
use super::takeover::adopt::{Predecessor, Survivor};
use super::takeover::store;
use super::workers::process;
use super::workers::scoreboard::Board;
use crate::config::{ConfigError, Loaded, MAX_WORKERS, Sources};
use crate::{fault, sys};

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
    if successor::is_successor() {
        fault::set_generation(fault::SUCCESSOR);
        fault_point!("succession.executed");
    }
    // Private keys and the key of parked sessions are in its memory. What it starts may be dumped again.
    if let Err(error) = sys::process::forbid_dumps() {
        tracing::warn!(%error, "cannot forbid dumps of this process");
    }
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
    let signals = Signals::install()
        .map_err(|error| other(format!("cannot install the signal handlers: {error}")))?;
    let run_dir = match &settings.run_dir {
        Some(path) => path.clone(),
        None => rundir::default_path().map_err(other)?,
    };
    let claim = Claim::from_environment().await.map_err(other)?;
    if let Err(error) = sys::process::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let executable_path = process::own_path()
        .map_err(|error| other(format!("cannot find the own program: {error}")))?;
    let heir = match claim {
        Some(claim) => claim.inherit(&settings, &run_dir).await.map_err(other)?,
        None => None,
    };

    let (links, link_events) = mpsc::channel(1_024);
    let (commands, command_events) = mpsc::channel(64);
    let (readiness, readiness_seen) = watch::channel(Readiness::Starting);
    let (admin_token, token_seen) = watch::channel(settings.admin_token.clone());
    let mut reception = Reception::new(Handle::new(commands, readiness_seen, token_seen));
    let mut inputs = Inputs { links: link_events, commands: command_events, signals };
    let news = Rc::new(News::from_environment());
    let parking = Parking::new(&settings.parking, &run_dir).map_err(other)?;
    let setup = |run_dir| Setup {
        settings,
        shown,
        sources,
        executable_path,
        run_dir,
        links,
        readiness,
        admin_token,
        news,
        parking,
    };
    let (mut core, mut doors) = match heir {
        Some(heir) => accede(heir, setup, &reception).await.map_err(other)?,
        None => begin(setup(RunDir::take(&run_dir)?)).await?,
    };
    loop {
        let open = reception
            .open(&mut core, doors)
            .map_err(|error| other(format!("cannot open the control socket: {error}")))?;
        match core.run(&mut inputs).await.map_err(other)? {
            Ending::Stopped => return Ok(()),
            Ending::HandedOver(handover) => {
                match stand_by(*handover, &mut inputs, open, &mut reception).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(again)) => (core, doors) = again,
                    Err(message) => return Err(other(message)),
                }
            }
        }
    }
}

/// A start without anybody who hands over: there was no supervisor, or it is dead.
async fn begin(mut setup: Setup) -> Result<(Core, Doors), StartError> {
    setup.parking.prepare().map_err(StartError::Other)?;
    setup.parking.open().await;
    let admin_address = setup.settings.admin.0;
    let admin = admin_address.map(listen_for_admin).transpose().map_err(StartError::Other)?;
    let state = store::load(&setup.run_dir.state_file());
    let left_over = state.as_ref().map(|state| state.gateway.clone()).unwrap_or_default();
    let predecessor = adopt::find(&setup.run_dir, state).await;
    let core = match predecessor {
        Some(predecessor) if takeover::discard_unborn(&predecessor) => fresh(setup, &left_over)?,
        Some(predecessor) => {
            let core = takeover::take_over(predecessor, setup).map_err(StartError::Other)?;
            core.news.ready();
            core
        }
        None => fresh(setup, &left_over)?,
    };
    let control = core
        .run_dir
        .listen_for_commands()
        .map_err(|error| StartError::Other(format!("cannot make the control socket: {error}")))?;
    Ok((core, Doors { control, admin, admin_address }))
}

/// Makes the admin endpoint's listener.
pub(super) fn listen_for_admin(address: SocketAddr) -> Result<OwnedFd, String> {
    // As tokio does it: a port whose last connections are still winding up can be had.
    sys::socket::listener(address, false, 1_024).map_err(|error| {
        format!(
            "cannot listen on {address} for the admin endpoint: {error}; choose another with \
             --admin, or `--admin off`"
        )
    })
}

/// Becomes the supervisor, as its predecessor has said.
async fn accede(
    heir: Heir,
    setup: impl FnOnce(RunDir) -> Setup,
    reception: &Reception,
) -> Result<(Core, Doors), String> {
    let Heir { mut estate, run_dir, doors, greeted, predecessor } = heir;
    let mut setup = setup(run_dir);
    estate.will.keep_fixed(&mut setup.settings);
    if let Err(error) = setup.parking.prepare() {
        tracing::error!(error, "parked sessions");
    }
    match estate.parked.take() {
        // What the file has in addition was given back.
        Some(parked) => setup.parking.inherit(&parked),
        None => setup.parking.open().await,
    }
    // Until the predecessor has gone, the service manager listens to that.
    setup.news.mute(true);
    let request = estate.will.request;
    let requested = ago(estate.will.asked_ms_ago);
    let survivors = adopt::adopt_all(&setup.run_dir, greeted).await;
    fault_point!("succession.adopted");
    let mut core = match take_over_from(estate, None, survivors, setup).await {
        Ok(core) => core,
        Err(message) => {
            predecessor.refuse(&message).await;
            return Err(message);
        }
    };
    fault_point!("succession.taken_over");
    let mut waiters = Vec::new();
    for client in predecessor.take_clients().await {
        let answers = client.waits.then(|| {
            let (replies, answers) = mpsc::channel(64);
            waiters.push(replies);
            answers
        });
        if let Err(error) = reception.clients.resume(client, answers) {
            tracing::warn!(%error, "a client of the predecessor cannot be served");
        }
    }
    let predecessor_pid = Some(predecessor.pid);
    core.predecessor = Some(predecessor);
    core.queued = Some(QueuedReload {
        wanted: Wanted::Reload(request),
        predecessor: predecessor_pid,
        anew: false,
        waiters,
        requested,
    });
    core.start_queued();
    Ok((core, doors))
}

/// Takes over from a supervisor that lived a moment ago, and signs for it. `later`: what was written
/// down since it left its estate.
async fn take_over_from(
    estate: Estate,
    later: Option<store::State>,
    survivors: Vec<Survivor>,
    setup: Setup,
) -> Result<Core, String> {
    let control = estate.control.try_clone().map_err(|error| error.to_string())?;
    let state = Some(later.unwrap_or_else(|| estate.will.state.clone()));
    let estate = Some(Box::new(estate));
    let mut core = takeover::take_over(Predecessor { state, survivors, estate }, setup)?;
    core.run_dir.sign().map_err(|error| error.to_string())?;
    // Whoever connects sees in the socket's credentials who listened last.
    nix::sys::socket::listen(&control, rundir::BACKLOG)
        .map_err(|error| format!("the control socket: {error}"))?;
    match core.save().await {
        Ok(()) => core.dirty = false,
        Err(error) => tracing::error!(%error, "cannot write the state"),
    }
    Ok(core)
}

/// Waits until the successor is settled, which is the end here: `None`. If the successor dies before,
/// this process is the supervisor again.
async fn stand_by(
    handover: Handover,
    inputs: &mut Inputs,
    open: Open,
    reception: &mut Reception,
) -> Result<Option<(Core, Doors)>, String> {
    let Handover { setup, replacement, channel, mut estate, queued, doors, last_status } = handover;
    let Replacement { mut wanted, process, .. } = replacement;
    let mut successor = Standby::new(process, channel)
        .map_err(|error| format!("cannot watch the successor, and ended it: {error}"))?;
    if let Err(why) = successor.taken_over().await {
        let mut core = take_back(&why, estate, None, setup).await?;
        core.queued = queued;
        core.refuse(&wanted, &not_replaced(&why));
        core.start_queued();
        return Ok(Some((core, doors)));
    }
    fault_point!("handover.taken_over");
    let pid = successor.pid();
    tracing::info!(successor = pid, "is the supervisor now; this process ends after the reload");
    // A socket that nobody else holds any more would be kept open here.
    estate.listeners.clear();
    setup.readiness.send_replace(Readiness::HandedOver);
    for waiter in wanted.waiters.drain(..) {
        let _ = waiter.try_send(Reply::Inherited);
    }
    drop(queued);
    open.close();
    reception.pass_on(&mut successor, &mut inputs.commands, &last_status).await;
    let outcome = tokio::select! {
        outcome = successor.settled(&mut inputs.signals) => outcome,
        never = answer_all(&mut inputs.commands, &last_status) => never,
    };
    let Err(why) = outcome else {
        setup.news.replaced(pid);
        tracing::info!(successor = pid, "replaced; this process ends, the service goes on");
        return Ok(None);
    };
    let later = store::load(&setup.run_dir.state_file());
    let mut core = take_back(&why, estate, later, setup).await?;
    for stream in successor.waiting.drain(..) {
        let (replies, answers) = mpsc::channel(64);
        wanted.waiters.push(replies);
        let client = Passed { stream, unread: String::new(), waits: false };
        if let Err(error) = reception.clients.resume(client, Some(answers)) {
            tracing::warn!(%error, "a client cannot be told");
        }
    }
    core.refuse(&wanted, &not_replaced(&why));
    Ok(Some((core, doors)))
}

/// Takes over from a successor that has died, as from any supervisor that has died.
async fn take_back(
    why: &str,
    estate: Estate,
    later: Option<store::State>,
    mut setup: Setup,
) -> Result<Core, String> {
    tracing::error!("{why}: taking over again");
    setup.parking.open_again().await;
    let greeted = adopt::greet_all(&setup.run_dir).await;
    let survivors = adopt::adopt_all(&setup.run_dir, greeted).await;
    take_over_from(estate, later, survivors, setup).await
}

/// A supervisor with nothing, and the start of its first generation. What an earlier one has left ends.
fn fresh(setup: Setup, left_over: &store::Gateway) -> Result<Core, StartError> {
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
    core.end_left_over(left_over);
    let start = QueuedReload::new(Wanted::default());
    if let Err(message) = core.begin(loaded, Program::Configured, &start) {
        core.leave_nothing();
        return Err(StartError::Other(message));
    }
    Ok(core)
}
