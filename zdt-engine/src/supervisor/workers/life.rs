//! The life of workers outside of what a reload does with them: start, greeting, listeners, death.
//!
//! Must not know: in which order a reload proceeds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::generations::{Phase, Worker, WorkerPhase};
use super::link::{Link, LinkEvent};
use super::process::Process;
use super::respawn::Ending;
use super::spilling::open_spill_dir;
use super::watch::Pulse;
use crate::config::{AccessLogFormat, AccessLogOptions, PROXY_SERVICE};
use crate::control::{
    self, Configure, FromWorker, Hello, Identity, ListenerInfo, MAX_MESSAGE_FDS, PROTOCOL_VERSIONS,
    ToWorker,
};
use crate::state::{FORMAT_READS, FORMAT_WRITES};
use crate::supervisor::WorkerId;
use crate::supervisor::core::{Core, EXIT_GRACE};
use crate::supervisor::reload::{Event, Tally};
use crate::supervisor::sockets::listeners::{ListenerId, Role};
use crate::sys;

/// The file of the access log, opened by the supervisor: workers may not be able to.
pub(in crate::supervisor) fn open_access_log(
    options: &AccessLogOptions,
) -> Result<Option<std::fs::File>, String> {
    use std::os::unix::fs::OpenOptionsExt;
    let Some(path) = options.file.as_ref().filter(|_| options.format != AccessLogFormat::Off)
    else {
        return Ok(None);
    };
    // A FIFO without a reader would stop the supervisor.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let opened = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags)
        .open(path);
    opened.map(Some).map_err(|error| format!("access_log.file: {}: {error}", path.display()))
}

/// What the supervisor says first.
pub(in crate::supervisor) fn own_hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSIONS,
        state_reads: FORMAT_READS,
        state_writes: FORMAT_WRITES,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    }
}

impl Core {
    /// Starts a worker at a place.
    pub fn start_worker(&mut self, generation: u32, index: u32) -> Result<WorkerId, String> {
        let Some(of) = self.generations.get(&generation) else {
            return Err(format!("there is no generation {generation}"));
        };
        let slot = of.bank * self.max_workers + index;
        let of_reload = of.phase == Phase::Green;
        let (ours, theirs) = sys::socket::seqpacket_pair()
            .map_err(|error| format!("cannot make a control socket: {error}"))?;
        let log_format = self.settings.log_format;
        let id = self.next_worker;
        self.next_worker += 1;
        let (birth, group) = self.birth(generation, index, id);
        let Some(of) = self.generations.get(&generation) else {
            return Err(format!("there is no generation {generation}"));
        };
        let explain = |error: std::io::Error| {
            format!("cannot start a worker from {}: {error}", of.executable.path().display())
        };
        let process = Process::start(&of.executable, birth, log_format, theirs).map_err(explain)?;
        let link = process
            .pidfd()
            .try_clone()
            .and_then(|pidfd| Link::start(id, ours, pidfd, self.links.clone()))
            .map_err(|error| {
                process.kill();
                format!("cannot watch worker {id}: {error}")
            })?;
        let pid = process.pid();
        self.scoreboard.clear(slot);
        let identity = Identity { worker: id, generation, index, slot };
        let now = Instant::now();
        let ready_timeout = Duration::from_millis(self.settings.reload.ready_timeout_ms);
        let worker = Worker {
            identity,
            process,
            link,
            hello: None,
            phase: WorkerPhase::Starting,
            unanswered_listens: 0,
            kill_at: None,
            why: None,
            group,
            ready_by: (!of_reload).then(|| now + ready_timeout),
            pulse: Pulse::new(now),
            baseline: (0, 0),
        };
        self.workers.insert(id, worker);
        if let Some(of) = self.generations.get_mut(&generation) {
            of.places[index as usize].worker = Some(id);
        }
        tracing::info!(worker = id, pid, generation, index, "started");
        self.send(id, &ToWorker::Hello(own_hello()));
        fault_point!("supervisor.worker_started");
        self.dirty = true;
        Ok(id)
    }

    pub fn on_link(&mut self, worker: WorkerId, event: LinkEvent) {
        match event {
            LinkEvent::Message(message, fds) => self.on_message(worker, message, fds),
            LinkEvent::Malformed(reason) => {
                tracing::error!(worker, reason, "speaks nonsense; ending it");
                self.end_now(worker);
            }
            LinkEvent::HungUp => self.on_hung_up(worker),
            LinkEvent::Exited => self.on_exit(worker),
        }
    }

    /// No command reaches it any more, so that every reload would fail.
    fn on_hung_up(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if !matches!(worker.phase, WorkerPhase::Draining | WorkerPhase::Ending) {
            tracing::error!(worker = id, "has hung up on the supervisor; ending it");
            self.end_for(id, "hung up on the supervisor".to_owned());
        }
    }

    fn on_message(&mut self, worker: WorkerId, message: Box<FromWorker>, fds: Vec<OwnedFd>) {
        tracing::trace!(worker, ?message);
        if !self.workers.contains_key(&worker) {
            return;
        }
        match *message {
            FromWorker::Hello(hello) => self.on_hello(worker, hello),
            FromWorker::Ready => self.on_ready(worker),
            FromWorker::ProbeSeen { nonce } => self.on_probe_seen(worker, nonce),
            FromWorker::Status { request, status } => self.on_status(worker, request, *status),
            FromWorker::Rehearsed { request, report } => {
                self.on_rehearsed(worker, request, *report)
            }
            FromWorker::UpstreamIdle { url } => self.on_worker_upstream_idle(worker, &url),
            FromWorker::Drained => self.on_drained(worker),
            FromWorker::Failed { message } => self.on_failed(worker, &message),
            FromWorker::Parked { count } => self.on_parked(worker, count, &fds),
            FromWorker::Unpark { request, id } => self.on_unpark(worker, request, &id),
            FromWorker::Adopted(_) => self.on_adopted_late(worker, &message, fds),
            FromWorker::ChannelFailed { .. } => {
                // If an end has died, that is the news; its pidfd may not have been read yet.
                self.notice_deaths();
                self.machine_message(worker, message);
            }
            FromWorker::ChannelReady { .. }
            | FromWorker::Progress(_)
            | FromWorker::Empty(_)
            | FromWorker::Committed { .. } => self.machine_message(worker, message),
        }
    }

    /// A worker cannot go on. A green one fails its reload with the worker's own words.
    fn on_failed(&mut self, id: WorkerId, message: &str) {
        // Once: it has no time to say more.
        if self.workers.get(&id).is_none_or(|worker| worker.why.is_some()) {
            return;
        }
        tracing::error!(worker = id, "{message}");
        let green = self.reload.as_ref().map(|reload| reload.green);
        let generation = self.place_of(id).map(|(generation, _)| generation);
        if green.is_some() && green == generation {
            let message = format!("new worker {id}: {message}");
            self.machine_events.push_back(Event::Failed { message });
        }
        // Not an end that was asked for: its place is filled again.
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.why = Some(message.to_owned());
            worker.kill_by(Instant::now() + EXIT_GRACE);
        }
    }

    fn machine_message(&mut self, worker: WorkerId, message: Box<FromWorker>) {
        if self.reload.is_some() {
            self.machine_events.push_back(Event::Message { worker, message });
        }
    }

    /// The greeting: agreed, and the worker is told who it is.
    fn on_hello(&mut self, id: WorkerId, hello: Hello) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.phase != WorkerPhase::Starting {
            return;
        }
        if PROTOCOL_VERSIONS.newest_common(hello.protocol).is_none() {
            tracing::error!(
                worker = id,
                build = hello.build,
                "speaks control protocols {:?}, this supervisor {PROTOCOL_VERSIONS:?}; ending it",
                hello.protocol
            );
            self.end_now(id);
            return;
        }
        worker.hello = Some(hello.clone());
        worker.phase = WorkerPhase::Greeted;
        let identity = worker.identity.clone();
        let (generation, index) = (identity.generation, identity.index);
        let successor = match self.run_dir.listen_for_successor(id) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(worker = id, %error, "cannot make its socket; ending it");
                self.end_for(id, format!("its socket cannot be made: {error}"));
                return;
            }
        };
        let credentials = match self.credentials_for(generation) {
            Ok(credentials) => credentials,
            Err(error) => {
                tracing::error!(worker = id, %error, "no certificates for it; ending it");
                self.end_for(id, format!("no certificates for it: {error}"));
                return;
            }
        };
        let Some(of) = self.generations.get(&generation) else { return };
        let is_green = of.phase == Phase::Green;
        let mut config = of.config.clone();
        // Where the kernel does it, the worker need not.
        let grouped = self.workers.get(&id).is_some_and(|worker| worker.group.is_some());
        config.confinement.paces_itself = !grouped;
        config.gateway.routes = self.gateway.in_force(&config.gateway.routes);
        // Anew for each worker: a reload finds a file that was rotated away.
        let access_log = match open_access_log(&config.access_log) {
            Ok(file) => file,
            Err(message) => return self.on_failed(id, &message),
        };
        let hold = &config.gateway.options.hold;
        let is_gateway = config.service == PROXY_SERVICE;
        let spill_dir = match is_gateway.then(|| open_spill_dir(hold, self.run_dir.path(), of.user))
        {
            None => None,
            Some(Ok(directory)) => directory,
            Some(Err(message)) => return self.on_failed(id, &message),
        };
        let resume_secret = self.parking.resume_secret(&config.parking);
        let configure = Configure {
            identity,
            config,
            has_load_map: self.steer.load_map().is_some(),
            has_totals: self.scoreboard.has_totals(),
            has_access_log: access_log.is_some(),
            has_spill_dir: spill_dir.is_some(),
            supervisor_uid: nix::unistd::geteuid().as_raw(),
            resume_secret,
        };
        let mut fds: Vec<BorrowedFd<'_>> = vec![successor.as_fd(), self.scoreboard.as_fd()];
        fds.extend(self.steer.load_map());
        fds.extend(credentials.as_ref().map(AsFd::as_fd));
        fds.extend(access_log.as_ref().map(AsFd::as_fd));
        fds.extend(spill_dir.as_ref().map(AsFd::as_fd));
        self.send_with(id, &ToWorker::Configure(Box::new(configure)), &fds);
        fault_point!("supervisor.worker_configured");
        self.dirty = true;
        if is_green && self.reload.is_some() {
            self.machine_events.push_back(Event::Greeted { worker: id, hello });
        } else if !self.place_is_held(generation, index) {
            self.arm_place(id);
        }
    }

    /// True while a reload is between the flip of this place and its end, and this is the generation
    /// that may end: a worker that would start to accept now would have nobody to hand its connections
    /// to.
    pub fn place_is_held(&self, generation: u32, index: u32) -> bool {
        self.reload.as_ref().is_some_and(|reload| {
            reload.blue == Some(generation)
                && !reload.machine.may_join(index)
                && !reload.machine.is_rolling_back()
        })
    }

    /// Gives a restarted worker what its predecessor had.
    pub fn arm_place(&mut self, id: WorkerId) {
        let Some((generation, index)) = self.place_of(id) else { return };
        fault_point!("supervisor.before_arming");
        if let Err(message) = self.ensure_listeners(generation, index) {
            tracing::error!(worker = id, "{message}; ending it");
            self.end_for(id, message);
            return;
        }
        let Some(place) = self
            .generations
            .get(&generation)
            .and_then(|generation| generation.places.get(index as usize))
        else {
            return;
        };
        let (own, foreign) = (place.own.clone(), place.foreign.clone());
        self.listen(id, &own, true);
        self.listen(id, &foreign, false);
    }

    /// Makes listeners for a place whose own are gone: they died with its worker while there was no
    /// supervisor to keep duplicates.
    fn ensure_listeners(&mut self, number: u32, index: u32) -> Result<(), String> {
        let Some(generation) = self.generations.get_mut(&number) else { return Ok(()) };
        let workers = generation.places.len();
        let slot = generation.bank * self.max_workers + index;
        let Some(place) = generation.places.get_mut(index as usize) else { return Ok(()) };
        place.own.retain(|id| self.listeners.find(*id).is_some());
        place.foreign.retain(|id| self.listeners.find(*id).is_some());
        for &address in &generation.listen {
            let has = place
                .own
                .iter()
                .filter_map(|id| self.listeners.find(*id))
                .any(|listener| listener.address == address);
            if has {
                continue;
            }
            let backlog = self.settings.backlog;
            if self.steer.is_ebpf() {
                let role = Role::Own { generation: number, index };
                let id = self.listeners.create(address, role, true, backlog)?;
                if let Some(listener) = self.listeners.find(id) {
                    self.steer
                        .place(listener, slot)
                        .map_err(|error| format!("steering of {address}: {error}"))?;
                }
                place.own.push(id);
            } else {
                let sockets = self.listeners.shared(address);
                let reuse = self.settings.reuse_port;
                let wanted = if reuse { workers } else { 1 };
                if sockets.len() < wanted {
                    // One that nobody else accepts from.
                    let new = self.listeners.create(address, Role::Shared, reuse, backlog)?;
                    place.own.push(new);
                } else {
                    place.own.push(sockets[index as usize % sockets.len()]);
                }
            }
        }
        Ok(())
    }

    /// Tells a worker to accept from these.
    pub fn listen(&mut self, id: WorkerId, listeners: &[ListenerId], own: bool) {
        for part in listeners.chunks(MAX_MESSAGE_FDS) {
            let (infos, fds): (Vec<ListenerInfo>, Vec<BorrowedFd<'_>>) =
                self.listeners.describe(part, own).into_iter().unzip();
            if infos.is_empty() {
                continue;
            }
            self.send_with(id, &ToWorker::Listen { listeners: infos }, &fds);
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.unanswered_listens += 1;
                if matches!(worker.phase, WorkerPhase::Greeted) {
                    worker.phase = WorkerPhase::Arming;
                }
            }
        }
    }

    fn on_ready(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.unanswered_listens = worker.unanswered_listens.saturating_sub(1);
        if worker.unanswered_listens > 0 {
            return;
        }
        if worker.phase != WorkerPhase::Arming {
            // Listeners that came later, such as the shared ones at the flip.
            self.on_armed_again(id);
            return;
        }
        worker.phase = WorkerPhase::Serving;
        worker.ready_by = None;
        let Identity { generation, index, slot, .. } = worker.identity;
        let hello = worker.hello.clone();
        let green = self
            .generations
            .get(&generation)
            .is_some_and(|generation| generation.phase == Phase::Green);
        if green {
            self.machine_events.push_back(Event::Armed { worker: id });
            return;
        }
        self.set_ready(slot, true);
        tracing::info!(worker = id, generation, "serves");
        self.ask_what_is_left();
        self.bequeath(generation);
        if let (Some(reload), Some(hello)) = (&self.reload, hello)
            && reload.blue == Some(generation)
            && reload.machine.may_join(index)
        {
            self.machine_events.push_back(Event::BlueJoined { worker: id, index, hello });
        }
    }

    pub fn set_ready(&mut self, slot: u32, ready: bool) {
        if let Err(error) = self.steer.set_ready(slot, ready) {
            tracing::error!(slot, ready, %error, "cannot change the steering map");
        }
    }

    pub fn clear_slot(&mut self, slot: u32) {
        if let Err(error) = self.steer.clear(slot) {
            tracing::error!(slot, %error, "cannot clear a slot of the steering map");
        }
    }

    /// Kills a worker that holds nothing of anybody's, or is broken.
    pub fn end_now(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.process.kill();
            worker.kill_at = None;
        }
    }

    /// Tells a worker to exit, and sees to it.
    pub fn tell_exit(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.phase = WorkerPhase::Ending;
            worker.kill_at = Some(Instant::now() + EXIT_GRACE);
            self.send(id, &ToWorker::Exit);
        }
    }

    /// A worker says that it has nothing left, and exits. If nobody has asked it to drain, that is an end
    /// like others: its place is filled again.
    fn on_drained(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if matches!(worker.phase, WorkerPhase::Draining | WorkerPhase::Ending) {
            worker.phase = WorkerPhase::Ending;
        } else {
            if worker.kill_at.is_some() {
                return; // it has said so before
            }
            tracing::warn!(worker = id, "has drained, for which nobody has asked");
        }
        worker.kill_by(Instant::now() + EXIT_GRACE);
    }

    /// What the scoreboard says of a worker, relative to the flip of the present reload.
    pub fn tally(&self, worker: &Worker, dead: bool) -> Tally {
        let figures = self.scoreboard.figures(worker.identity.slot);
        let (moved_before, adopted_before) = worker.baseline;
        Tally {
            connections: figures.connections,
            moved_out: figures.moved_out.saturating_sub(moved_before),
            adopted_in: figures.adopted_in.saturating_sub(adopted_before),
            dead,
        }
    }

    /// Treats those as dead whose process has ended, although the news is still on its way.
    fn notice_deaths(&mut self) {
        let ended: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.process.has_ended())
            .map(|(&id, _)| id)
            .collect();
        for id in ended {
            self.on_exit(id);
        }
    }

    fn on_exit(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        let Identity { generation, index, slot, .. } = worker.identity;
        let phase = self.generations.get(&generation).map(|generation| generation.phase);
        let expected = worker.phase == WorkerPhase::Ending
            || worker.phase == WorkerPhase::Draining
            || self.stopping.is_some();
        // First of all: the supervisor's duplicate keeps the dead socket alive, and the kernel would go on filling
        // its queue. Without the ready mark it gets connections only if no other worker can.
        let tally = self.tally(worker, true);
        self.set_ready(slot, false);
        let Some(mut worker) = self.workers.remove(&id) else { return };
        let status = worker.process.reap();
        if worker.group.as_ref().is_some_and(|group| group.memory_kills() > 0) {
            worker.why = Some("went over worker_limits.memory_bytes".to_owned());
        }
        let how = worker.why.take().map_or(status.clone(), |why| format!("{why} ({status})"));
        // What it has counted goes on counting.
        self.retired.add(&self.scoreboard.counters(slot));
        self.run_dir.remove_worker(id);
        self.proving.forget_worker(id);
        self.status_requests.forget_worker(id);
        self.rehearsals.forget_worker(id);
        self.unheard.remove(&id);
        if let Some(place) = self
            .generations
            .get_mut(&generation)
            .and_then(|generation| generation.places.get_mut(index as usize))
        {
            place.worker = None;
        }
        self.dirty = true;
        if expected && (tally.connections == 0 || self.stopping.is_some()) {
            tracing::info!(worker = id, generation, connections = tally.connections, "{how}");
        } else {
            tracing::error!(worker = id, generation, connections = tally.connections, "{how}");
        }
        let ending = match worker.phase {
            WorkerPhase::Starting | WorkerPhase::Greeted | WorkerPhase::Arming => {
                Ending::FailedStart
            }
            _ => Ending::Crash,
        };
        match ending {
            _ if expected => {}
            Ending::Crash => self.totals.crashes += 1,
            Ending::FailedStart => self.totals.failed_starts += 1,
        }
        if let Some(reload) = &mut self.reload
            && (reload.green == generation || reload.blue == Some(generation))
        {
            // Before the flip nothing had moved, and the counters have no baseline.
            let moved =
                if reload.flipped { tally } else { Tally { moved_out: 0, adopted_in: 0, ..tally } };
            reload.dead.insert(id, moved);
            reload.arming_shared.remove(&id);
            self.machine_events.push_back(Event::Exited { worker: id, how: how.clone() });
        } else {
            control::add(&mut self.totals.lost_connections, tally.connections);
        }
        if phase == Some(Phase::Serving) && !expected && !self.place_is_held(generation, index) {
            self.fill_place_after(generation, index, ending, &how);
        }
        self.retire_generations();
        self.on_worker_gone();
    }
}
