//! The supervisor's loop, and all that it owns.
//!
//! Must not know: how each event is dealt with (its neighbours do).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::WorkerId;
use super::gateway::Gateway;
use super::handle::{AdminToken, Command, Counters, Readiness, Status, Totals};
use super::news::News;
use super::parking::Parking;
use super::reload::Verdict;
use super::reloading::previous::Build;
use super::reloading::{ActiveReload, QueuedReload, Wanted};
use super::requests::reception::Doors;
use super::requests::rehearsals::Rehearsals;
use super::requests::statuses::StatusRequests;
use super::rundir::RunDir;
use super::signals::{SignalEvent, Signals};
use super::sockets::listeners::Listeners;
use super::sockets::mending::Mending;
use super::sockets::proving::Proving;
use super::sockets::steer::Steer;
use super::stopping::Stopping;
use super::successor::{Estate, Predecessor, Replacement, ToHeir};
use super::takeover::store;
use super::workers::confining::Groups;
use super::workers::generations::{Generation, Phase, Worker, WorkerPhase};
use super::workers::link::LinkEvent;
use super::workers::respawn::RespawnGuard;
use super::workers::scoreboard::Board;
use crate::config::{Settings, ShownSetting, Sources};
use crate::control::ToWorker;

/// Living generations: the fifth ends the oldest drain first.
pub(super) const MAX_GENERATIONS: usize = 4;
/// A worker that was told to exit is killed after this.
pub(super) const EXIT_GRACE: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Core {
    /// As of the start; a reload reads its own.
    pub settings: Settings,
    /// They, and where each came from.
    pub shown: Vec<ShownSetting>,
    pub sources: Sources,
    pub executable_path: PathBuf,
    pub run_dir: RunDir,
    pub steer: Steer,
    pub max_workers: u32,
    pub scoreboard: Board,
    pub listeners: Listeners,
    pub generations: BTreeMap<u32, Generation>,
    pub workers: BTreeMap<WorkerId, Worker>,
    /// The generation that serves.
    pub current: Option<u32>,
    pub last_generation: u32,
    pub next_worker: WorkerId,
    pub next_reload: u64,
    pub reload: Option<ActiveReload>,
    pub queued: Option<QueuedReload>,
    /// What served before the present generation, to go back to.
    pub previous: Option<Build>,
    pub guard: RespawnGuard,
    pub groups: Groups,
    /// Places to fill, and when.
    pub respawns: Vec<(Instant, u32, u32)>,
    pub proving: Proving,
    pub mending: Mending,
    pub status_requests: StatusRequests,
    pub gateway: Gateway,
    pub rehearsals: Rehearsals,
    pub stopping: Option<Stopping>,
    /// Keys of session tickets, shared by all generations.
    pub tickets: super::credentials::Tickets,
    pub totals: Totals,
    /// What workers that are gone have counted.
    pub retired: Counters,
    pub last_verdict: Option<Verdict>,
    pub started: Instant,
    pub readiness: watch::Sender<Readiness>,
    pub admin_token: watch::Sender<AdminToken>,
    pub links: mpsc::Sender<(WorkerId, LinkEvent)>,
    /// For the reload machine, in order.
    pub machine_events: VecDeque<super::reload::Event>,
    /// From the reload machine, in order.
    pub pending_actions: VecDeque<super::reload::Action>,
    /// Adopted workers that hang, and have not said what they have.
    pub unheard: BTreeSet<WorkerId>,
    /// The workers that served were told to end before a reload begins (`zero_downtime = false`).
    pub drained_for_restart: bool,
    /// Sessions whose clients are away.
    pub parking: Parking,
    /// The durable state must be written again.
    pub dirty: bool,
    /// Where requests come in, to be passed on to a successor.
    pub doors: Option<Doors>,
    pub news: Rc<News>,
    /// A successor that gets ready.
    pub replacement: Option<Replacement>,
    /// It is ready.
    pub heir: Option<ToHeir>,
    /// Whom this supervisor succeeded, until the workers have followed.
    pub predecessor: Option<Predecessor>,
    /// The loop ends, with this result.
    pub finished: Option<Result<(), String>>,
}

/// How a supervisor ends.
pub(super) enum Ending {
    /// With its workers.
    Stopped,
    /// Its successor has been told to take over.
    HandedOver(Box<Handover>),
}

/// What is left of a supervisor that has told its successor to take over.
pub(super) struct Handover {
    pub setup: Setup,
    pub replacement: Replacement,
    pub channel: ToHeir,
    pub estate: Estate,
    pub queued: Option<QueuedReload>,
    pub doors: Doors,
    /// How everything was, for whoever still asks here.
    pub last_status: Box<Status>,
}

/// What a supervisor has before it knows whether it had a predecessor.
pub(super) struct Setup {
    pub settings: Settings,
    pub shown: Vec<ShownSetting>,
    pub sources: Sources,
    pub executable_path: PathBuf,
    pub run_dir: RunDir,
    pub links: mpsc::Sender<(WorkerId, LinkEvent)>,
    pub readiness: watch::Sender<Readiness>,
    pub admin_token: watch::Sender<AdminToken>,
    pub news: Rc<News>,
    pub parking: Parking,
}

/// What the loop listens to.
pub(super) struct Inputs {
    pub links: mpsc::Receiver<(WorkerId, LinkEvent)>,
    pub commands: mpsc::Receiver<Command>,
    pub signals: Signals,
}

impl Core {
    /// A supervisor without workers.
    pub fn new(setup: Setup, steer: Steer, scoreboard: Board, max_workers: u32) -> Core {
        Core {
            settings: setup.settings,
            shown: setup.shown,
            sources: setup.sources,
            executable_path: setup.executable_path,
            run_dir: setup.run_dir,
            steer,
            max_workers,
            scoreboard,
            listeners: Listeners::default(),
            generations: BTreeMap::new(),
            workers: BTreeMap::new(),
            current: None,
            last_generation: 0,
            next_worker: 1,
            next_reload: 0,
            reload: None,
            queued: None,
            previous: None,
            guard: RespawnGuard::default(),
            groups: Groups::default(),
            respawns: Vec::new(),
            proving: Proving::default(),
            mending: Mending::default(),
            status_requests: StatusRequests::default(),
            gateway: Gateway::default(),
            rehearsals: Rehearsals::default(),
            stopping: None,
            tickets: super::credentials::Tickets::new(Instant::now()),
            totals: Totals::default(),
            retired: Counters::default(),
            last_verdict: None,
            started: Instant::now(),
            readiness: setup.readiness,
            admin_token: setup.admin_token,
            parking: setup.parking,
            links: setup.links,
            machine_events: VecDeque::new(),
            pending_actions: VecDeque::new(),
            unheard: BTreeSet::new(),
            drained_for_restart: false,
            dirty: false,
            doors: None,
            news: setup.news,
            replacement: None,
            heir: None,
            predecessor: None,
            finished: None,
        }
    }

    /// What a supervisor needs in order to begin again.
    fn into_setup(self) -> Setup {
        Setup {
            settings: self.settings,
            shown: self.shown,
            sources: self.sources,
            executable_path: self.executable_path,
            run_dir: self.run_dir,
            links: self.links,
            readiness: self.readiness,
            admin_token: self.admin_token,
            news: self.news,
            parking: self.parking,
        }
    }

    /// Runs until the supervisor has stopped, or handed over.
    pub async fn run(mut self, inputs: &mut Inputs) -> Result<Ending, String> {
        let mut gateway_events = self.gateway.take_events().ok_or("the loop runs already")?;
        loop {
            self.pump().await;
            self.update_readiness();
            self.save_if_dirty().await;
            self.gateway_written();
            if let Some(result) = self.finished.take() {
                while !self.gateway.swaps.end_all(EXIT_GRACE) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                self.leave_nothing();
                if let Some(predecessor) = self.predecessor.take() {
                    predecessor.dismiss().await;
                }
                let parked = self.save_parked(inputs).await;
                return result.and(parked).map(|()| Ending::Stopped);
            }
            if !self.gateway.is_asked()
                && let Some(channel) = self.heir.take()
                && let Some(estate) = self.hand_over(&channel).await
                && let Some(replacement) = self.replacement.take()
                && let Some(doors) = self.doors.take()
            {
                let last_status = Box::new(self.last_status());
                let queued = self.queued.take();
                let setup = self.into_setup();
                let handover =
                    Handover { setup, replacement, channel, estate, queued, doors, last_status };
                return Ok(Ending::HandedOver(Box::new(handover)));
            }
            let deadline = self.next_deadline();
            let wait = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((worker, event)) = inputs.links.recv() => self.on_link(worker, event),
                Some(command) = inputs.commands.recv() => self.on_command(command),
                Some(event) = gateway_events.recv() => self.on_gateway_event(event),
                signal = inputs.signals.next() => self.on_signal(signal),
                event = next_event(&mut self.replacement) => self.on_successor(event),
                () = wait => {}
            }
            self.on_time(Instant::now());
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Reload { request, replies } => {
                self.request_reload(Wanted::Reload(request), Some(replies));
            }
            Command::Rollback { replies } => self.request_rollback(replies),
            Command::Status { reply } => self.begin_status(reply),
            Command::TestMigration { reply } => self.begin_rehearsal(reply),
            Command::Plan { reply } => {
                let _ = reply.send(Box::new(self.preview()));
            }
            Command::FlushQueue { reply } => self.begin_flush(reply),
            Command::Gateway { request, reply } => self.on_gateway_request(request, reply),
            Command::Config { reply } => {
                let _ = reply.send(self.shown.clone());
            }
            Command::Stop { now, reply } => {
                let _ = reply.send(u32::try_from(self.workers.len()).unwrap_or(u32::MAX));
                self.begin_stop(now);
            }
        }
    }

    fn on_signal(&mut self, signal: SignalEvent) {
        match signal {
            SignalEvent::Reload => {
                tracing::info!("SIGHUP: reload");
                self.request_reload(Wanted::default(), None);
            }
            SignalEvent::Stop => {
                tracing::info!("SIGTERM or SIGINT: graceful stop; once more to stop now");
                self.begin_stop(self.stopping.is_some());
            }
            SignalEvent::StopNow => {
                tracing::info!("SIGQUIT: stop now");
                self.begin_stop(true);
            }
        }
    }

    fn on_time(&mut self, now: Instant) {
        self.reload_on_time(now);
        self.replacement_on_time(now);
        self.prove_on_time(now);
        self.respawn_on_time(now);
        self.watch_on_time(now);
        self.mend_on_time(now);
        self.kill_on_time(now);
        self.forget_on_time(now);
        self.status_on_time(now);
        self.rehearse_on_time(now);
        self.gateway_on_time(now);
        self.stop_on_time(now);
        self.change_tickets_on_time(now);
        self.parking.on_time(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let kills = self.workers.values().filter_map(|worker| worker.kill_at).min();
        [
            self.reload_deadline(),
            self.replacement.as_ref().map(Replacement::deadline),
            self.proving.deadline(),
            self.respawns.iter().map(|&(at, _, _)| at).min(),
            kills,
            self.watch_deadline(),
            self.mend_deadline(),
            self.listeners.next_expiry(),
            self.status_requests.deadline(),
            self.rehearsals.deadline(),
            self.gateway.deadline(),
            self.stopping.as_ref().and_then(Stopping::deadline),
            self.tickets_deadline(),
            self.parking.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Sends a message; a worker that cannot be told anything any more is ended.
    pub fn send(&mut self, worker: WorkerId, message: &ToWorker) {
        self.send_with(worker, message, &[]);
    }

    pub fn send_with(&self, worker: WorkerId, message: &ToWorker, fds: &[BorrowedFd<'_>]) {
        let Some(to) = self.workers.get(&worker) else { return };
        if let Err(error) = to.link.send(message, fds)
            && !matches!(error.kind(), std::io::ErrorKind::BrokenPipe)
        {
            // A broken pipe is a dead worker, whose pidfd reports it.
            tracing::error!(worker, %error, "cannot send a control message; ending the worker");
            to.process.kill();
        }
    }

    /// Kills those that had their time.
    fn kill_on_time(&mut self, now: Instant) {
        for (&id, worker) in &mut self.workers {
            if worker.kill_at.is_some_and(|at| now >= at) {
                worker.kill_at = None;
                tracing::warn!(worker = id, "has not ended in time; killing it");
                worker.process.kill();
            }
        }
    }

    /// Lets go of listeners whose linger is over.
    fn forget_on_time(&mut self, now: Instant) {
        let expired = self.listeners.expired(now);
        if expired.is_empty() {
            return;
        }
        for &id in &expired {
            // First the duplicate here, so that the worker's is the last, and what the kernel moves
            // on at its close is noticed by the worker.
            self.listeners.remove(id);
        }
        self.forget_listeners(&expired);
        let used: Vec<SocketAddr> =
            self.listeners.iter().map(|listener| listener.address).collect();
        self.steer.retain_groups(&used);
        self.dirty = true;
    }

    /// Tells every worker that accepts from one of them to stop that.
    pub fn forget_listeners(&mut self, ids: &[u64]) {
        let mut messages = Vec::new();
        for generation in self.generations.values_mut() {
            for place in &mut generation.places {
                let held: Vec<u64> =
                    place.foreign.iter().copied().filter(|id| ids.contains(id)).collect();
                place.foreign.retain(|id| !ids.contains(id));
                if let (Some(worker), false) = (place.worker, held.is_empty()) {
                    messages.push((worker, ToWorker::ForgetListeners { ids: held }));
                }
            }
        }
        for (worker, message) in messages {
            self.send(worker, &message);
        }
    }

    fn update_readiness(&mut self) {
        let serving = self.current.and_then(|current| self.generations.get(&current));
        let accepts = |worker: WorkerId| {
            self.workers.get(&worker).is_some_and(|worker| worker.phase == WorkerPhase::Serving)
        };
        let readiness = if self.stopping.is_some() {
            Readiness::Stopping
        } else {
            match serving {
                None => Readiness::Starting,
                Some(generation) if generation.workers().any(accepts) => {
                    let given_up = generation.places.iter().any(|place| place.given_up.is_some());
                    if given_up { Readiness::Degraded } else { Readiness::Ready }
                }
                Some(_) => Readiness::NoWorker,
            }
        };
        self.readiness.send_if_modified(|known| std::mem::replace(known, readiness) != readiness);
    }

    async fn save_if_dirty(&mut self) {
        if std::mem::take(&mut self.dirty)
            && self.finished.is_none()
            && let Err(error) = self.save().await
        {
            tracing::error!(%error, "cannot write the state; a later supervisor could not take over");
        }
    }

    /// Writes the durable state.
    pub async fn save(&self) -> Result<(), String> {
        let state = self.durable_state();
        let path = self.run_dir.state_file();
        store::save(&path, &state).await.map_err(|error| format!("{}: {error}", path.display()))
    }

    pub fn durable_state(&self) -> store::State {
        let worker = |(index, id): (u32, WorkerId)| {
            self.workers.get(&id).map(|worker| store::Worker {
                id,
                index,
                pid: worker.process.pid(),
                hello: worker.hello.clone(),
            })
        };
        let generation = |generation: &Generation| store::Generation {
            number: generation.number,
            bank: generation.bank,
            listen: generation.listen.clone(),
            size: u32::try_from(generation.places.len()).unwrap_or(u32::MAX),
            config: generation.config.clone(),
            user: generation.user,
            workers: (0u32..)
                .zip(&generation.places)
                .filter_map(|(index, place)| Some((index, place.worker?)))
                .filter_map(worker)
                .collect(),
        };
        store::State {
            version: store::VERSION,
            boot_id: store::boot_id().unwrap_or_default(),
            pid: std::process::id(),
            last_generation: self.last_generation,
            next_worker: self.next_worker,
            next_listener: self.listeners.next_id(),
            next_reload: self.next_reload,
            steering: self.steer.name().to_owned(),
            max_workers: self.max_workers,
            current: self.current,
            generations: self.generations.values().map(generation).collect(),
            listeners: self
                .listeners
                .iter()
                .map(|listener| store::Listener {
                    id: listener.id,
                    address: listener.address,
                    role: listener.role,
                })
                .collect(),
            reload: self.reload.as_ref().map(|reload| reload.durable()),
            crashes: self.crash_history(),
            counters: self.retired,
            totals: self.totals,
            gateway: self.gateway.durable(),
        }
    }

    /// The generation that serves, or is to serve.
    pub fn serving(&self) -> Option<&Generation> {
        self.generations.get(&self.current?)
    }

    /// Where a worker belongs.
    pub fn place_of(&self, worker: WorkerId) -> Option<(u32, u32)> {
        let identity = &self.workers.get(&worker)?.identity;
        Some((identity.generation, identity.index))
    }

    /// Ends the generations that have no worker left and are not to have any.
    pub fn retire_generations(&mut self) {
        let over: Vec<u32> = self
            .generations
            .values()
            .filter(|generation| {
                matches!(generation.phase, Phase::Draining { .. })
                    && generation.workers().next().is_none()
            })
            .map(|generation| generation.number)
            .collect();
        for number in over {
            tracing::info!(generation = number, "has ended");
            self.generations.remove(&number);
            self.guard.forget(number);
            self.dirty = true;
        }
    }
}

async fn next_event(replacement: &mut Option<Replacement>) -> super::successor::Event {
    match replacement {
        Some(replacement) => replacement.next_event().await,
        None => std::future::pending().await,
    }
}
