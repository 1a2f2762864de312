//! From the inherited control descriptor to a running worker.
//!
//! Must not know: who spawned the process, beyond what the control messages say.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use slab::Slab;
use zeroize::Zeroize;

use crate::config::AccessLogFormat;
use crate::config::{
    Confinement, LogFormat, RING_ENTRIES, ReceiveBuffers, SeccompMode, WorkerConfig,
};
use crate::control::{Configure, FromWorker, MAX_MESSAGE_BYTES, PROTOCOL_VERSIONS, ToWorker};
use crate::credentials::Credentials;
use crate::service::{Services, WorkerInfo};
use crate::shm::{LoadMap, Scoreboard};
use crate::sys::ring::Blank;
use crate::uring::{Ring, SetupError};
use crate::{fdpass, sys};

use super::access_log::AccessLog;
use super::budget::Budget;
use super::commands::{encode, hello};
use super::entry::BufferPool;
use super::event_loop::DateCache;
use super::feeding::Waiting;
use super::inbox::Inbox;
use super::incoming::Intake;
use super::pace::Pace;
use super::timers::Timers;
use super::tls::WorkerTls;
use super::tokens::Token;
use super::work::PutOff;
use super::{Worker, gateway};

/// The kernel gives the memory of rings back some time after their processes are gone: where it is counted, that of a
/// worker just stopped may still be missing.
const RING_PATIENCE: Duration = Duration::from_secs(10);
const RING_RETRY: Duration = Duration::from_millis(20);

/// A supervisor that says nothing for so long is not there.
const STARTUP_TIMEOUT_MS: u16 = 30_000;

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
enum StartupError {
    #[error("control socket: {0}")]
    Control(#[from] io::Error),
    #[error("the supervisor closed the control socket")]
    Closed,
    #[error("the supervisor did not configure this worker within {STARTUP_TIMEOUT_MS} ms")]
    Timeout,
    #[error("a control message is not understood: {0}")]
    Message(#[from] serde_json::Error),
    #[error("{0}")]
    Protocol(String),
    #[error("io_uring: {0}")]
    Ring(#[from] crate::uring::SetupError),
    #[error("shared memory: {0}")]
    Memory(#[from] crate::shm::MapError),
    #[error("{0}; with `seccomp = \"off\"` under [supervision] workers go without a filter")]
    Filter(#[from] sys::seccomp::FilterError),
    #[error("this program has no service {0:?}; it has: {1}")]
    UnknownService(String, String),
}

/// Runs a worker that talks to its supervisor over `control`, with the ring that was made for it, if one was.
pub fn main(control: OwnedFd, ring: Option<Blank>, services: &Services) -> ExitCode {
    if let Err(error) = sys::process::forbid_dumps() {
        tracing::warn!(%error, "cannot forbid dumps of this process");
    }
    let started = start(&control, ring, services).and_then(|worker| {
        confine(&worker.configure.config)?;
        Ok(worker)
    });
    match started {
        Ok(mut worker) => {
            worker.add_link(control, true);
            if fault_point!("worker.violate") {
                // Not what a worker does, hence refused by its filter.
                let refused = std::net::TcpListener::bind("127.0.0.1:0");
                tracing::info!("fault point worker.violate: {:?}", refused.map(drop));
            }
            match worker.run() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("io_uring_enter: {error}");
                    worker
                        .tell(&FromWorker::Failed { message: format!("io_uring_enter: {error}") });
                    ExitCode::FAILURE
                }
            }
        }
        Err(StartupError::Closed) => ExitCode::FAILURE, // nobody is left to hear about it
        Err(error) => {
            tracing::error!("worker: {error}");
            let bytes = encode(&FromWorker::Failed { message: error.to_string() });
            let _ = fdpass::send(control.as_fd(), &[IoSlice::new(&bytes)], &[]);
            ExitCode::FAILURE
        }
    }
}

/// Gives up the system calls that the loop does not need. The ring has given up its own.
fn confine(config: &WorkerConfig) -> Result<(), StartupError> {
    let Confinement { seccomp, seccomp_allow, log_format, .. } = &config.confinement;
    let mode = match seccomp {
        SeccompMode::Enforce => sys::seccomp::Mode::Enforce,
        SeccompMode::Log => sys::seccomp::Mode::Log,
        SeccompMode::Off => return Ok(()),
    };
    let filter = sys::seccomp::Filter {
        mode,
        outbound: config.service == "proxy",
        also: seccomp_allow.clone(),
        log_json: *log_format == LogFormat::Json,
    };
    Ok(filter.install()?)
}

fn start(
    control: &OwnedFd,
    ring: Option<Blank>,
    services: &Services,
) -> Result<Worker, StartupError> {
    let greeting = encode(&FromWorker::Hello(hello()));
    fdpass::send(control.as_fd(), &[IoSlice::new(&greeting)], &[])?;
    match receive(control)? {
        (ToWorker::Hello(theirs), _) => {
            if PROTOCOL_VERSIONS.newest_common(theirs.protocol).is_none() {
                return Err(StartupError::Protocol(format!(
                    "the supervisor speaks control protocol {:?}, this build {PROTOCOL_VERSIONS:?}",
                    theirs.protocol
                )));
            }
        }
        (other, _) => {
            return Err(StartupError::Protocol(format!("a hello was expected, not {other:?}")));
        }
    }
    match receive(control)? {
        (ToWorker::Configure(configure), descriptors) => {
            Worker::new(*configure, descriptors, ring, services)
        }
        (other, _) => {
            Err(StartupError::Protocol(format!("the configuration was expected, not {other:?}")))
        }
    }
}

fn receive(control: &OwnedFd) -> Result<(ToWorker, Vec<OwnedFd>), StartupError> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let mut polled = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(STARTUP_TIMEOUT_MS)) {
            Ok(0) => return Err(StartupError::Timeout),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut descriptors = Vec::new();
        match fdpass::receive(control.as_fd(), &mut bytes, &mut descriptors) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(StartupError::Closed);
            }
            Err(error) => return Err(error.into()),
            Ok(received) if received.bytes == 0 => return Err(StartupError::Closed),
            Ok(received) => {
                let message = serde_json::from_slice(&bytes[..received.bytes]);
                bytes.zeroize(); // it may have held a key
                return Ok((message?, descriptors));
            }
        }
    }
}

/// The worker's ring: the one that was made for it, or one of its own.
fn make_ring(
    blank: Option<Blank>,
    connecting: bool,
    buffers: &ReceiveBuffers,
) -> Result<Ring, SetupError> {
    if let Some(blank) = blank {
        return Ring::from_blank(blank, connecting, buffers.count, buffers.bytes);
    }
    let make = if connecting { Ring::new_connecting } else { Ring::new };
    let started = Instant::now();
    let mut pause = RING_RETRY;
    loop {
        match make(RING_ENTRIES, buffers.count, buffers.bytes) {
            Err(error @ SetupError::Memory { .. }) if started.elapsed() < RING_PATIENCE => {
                if pause == RING_RETRY {
                    tracing::warn!("{error}; trying again for {} s", RING_PATIENCE.as_secs());
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(300));
            }
            made => return made,
        }
    }
}

impl Worker {
    fn new(
        mut configure: Configure,
        mut descriptors: Vec<OwnedFd>,
        ring: Option<Blank>,
        services: &Services,
    ) -> Result<Self, StartupError> {
        let has_tls = configure.config.tls.is_some();
        let expected = 2
            + usize::from(configure.has_load_map)
            + usize::from(has_tls)
            + usize::from(configure.has_access_log)
            + usize::from(configure.has_spill_dir);
        if descriptors.len() != expected {
            return Err(StartupError::Protocol(format!(
                "{expected} descriptors were expected with the configuration, {} came",
                descriptors.len()
            )));
        }
        crate::fault::set_generation(configure.identity.generation);
        let spill_dir = if configure.has_spill_dir { descriptors.pop() } else { None };
        let format = configure.config.access_log.format;
        let log_file = match (format, configure.has_access_log) {
            (_, true) => descriptors.pop(),
            (AccessLogFormat::Off, false) => None,
            (_, false) => Some(io::stderr().as_fd().try_clone_to_owned()?),
        };
        // The one before; closed as soon as it has been read.
        let credentials = if has_tls { descriptors.pop() } else { None };
        let tls = match (&configure.config.tls, credentials) {
            (Some(config), Some(credentials)) => {
                let credentials =
                    Credentials::receive(&credentials).map_err(StartupError::Protocol)?;
                let http2 = configure.config.http2.enabled;
                let tls = WorkerTls::new(config, http2, &credentials);
                Some(tls.map_err(StartupError::Protocol)?)
            }
            _ => None,
        };
        fault_point!("worker.start");
        let name = &configure.config.service;
        let now_ms = sys::monotonic_ns() / 1_000_000;
        let gateway = (name == crate::config::PROXY_SERVICE)
            .then(|| gateway::Core::new(&configure.config.gateway, spill_dir, now_ms))
            .map(|core| Rc::new(RefCell::new(core)));
        let service = match &gateway {
            Some(core) => gateway::service(Rc::clone(core)),
            None => services.create(name).ok_or_else(|| {
                let known: Vec<&str> = services.names().collect();
                StartupError::UnknownService(name.clone(), known.join(", "))
            })?,
        };
        let shared_descriptors = descriptors.split_off(1);
        let reattach = descriptors.remove(0);
        let scoreboard = match configure.has_totals {
            true => Scoreboard::map_with_totals(shared_descriptors[0].as_fd())?,
            false => Scoreboard::map_all(shared_descriptors[0].as_fd())?,
        };
        let load_map = match shared_descriptors.get(1) {
            Some(map) => Some(LoadMap::map(map.as_fd(), configure.identity.slot as usize + 1)?),
            None => None,
        };
        let buffers = &configure.config.receive_buffers;
        let mut ring = make_ring(ring, gateway.is_some(), buffers)?;
        let inbox = Arc::new(Inbox::new()?);
        ring.poll_multishot(reattach.as_fd(), Token::Reattach.pack());
        ring.poll_multishot(inbox.wake(), Token::Inbox.pack());
        // It ends here: what a later supervisor is told has none.
        let secret = configure.resume_secret.take().filter(|_| configure.config.parking.enabled);
        let tokens = secret.as_ref().map(super::resume_token::TokenKey::new);
        let parking = super::parking::Parking::new(tokens, &configure.config.parking);
        let budget = Budget::new(&configure.config.limits);
        let mut date = DateCache::default();
        date.refresh();
        let confinement = &configure.config.confinement;
        let share = confinement.limits.cpu_percent;
        let pace = (share > 0 && confinement.paces_itself)
            .then(|| Pace::new(share, sys::monotonic_ns(), sys::clock::process_cpu_ns()));
        let info = WorkerInfo {
            pid: std::process::id(),
            worker: configure.identity.worker,
            generation: configure.identity.generation,
        };
        Ok(Self {
            ring,
            info,
            configure,
            service,
            fields: crate::proto::hpack::Fields::default(),
            entries: Slab::new(),
            timers: Timers::default(),
            waiting: Waiting::default(),
            put_off: PutOff::default(),
            turn: 0,
            budget,
            buffers: BufferPool::default(),
            date,
            now_ms,
            pace,
            next_connection: 0,
            tls,
            status: Default::default(),
            by_address: HashMap::new(),
            links: Vec::new(),
            next_link: 0,
            reattach,
            scoreboard,
            spare_figures: Default::default(),
            load_map,
            shared_descriptors,
            listeners: Slab::new(),
            accepting: true,
            next_sweep_ms: 0,
            probes: Vec::new(),
            refused: Default::default(),
            channels: Slab::new(),
            job: None,
            intake: Intake::new(),
            parking,
            packer: Default::default(),
            unpacker: Default::default(),
            rehearsals: Default::default(),
            gateway,
            access_log: log_file
                .filter(|_| format != AccessLogFormat::Off)
                .map(|file| AccessLog::new(format, file, info)),
            inbox,
            pushable: HashMap::new(),
            followed: HashMap::new(),
            drain: None,
            exit: false,
        })
    }
}
