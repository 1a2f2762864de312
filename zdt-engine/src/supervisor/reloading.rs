//! Carries out what the reload machine decides.
//!
//! Must not know: in which order a reload proceeds.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::core::{Core, MAX_GENERATIONS};
use super::generations::{Generation, Phase, Place, WorkerPhase, resolve_addresses};
use super::handle::{Progress, Reply};
use super::listeners::Role;
use super::plan::{self, ChannelPlan};
use super::process::{Executable, find_user};
use super::reload::{
    Action, Circumstances, Event, Machine, Mark, Options, Outcome, Tally, Verdict,
};
use super::steer::Steer;
use super::{WorkerId, store};
use crate::config::Settings;
use crate::control::{Hello, OpenChannel, ToWorker};
use crate::shm::ChannelMemory;
use crate::sys;

/// For answers that take a worker no time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A draining worker that has not ended by itself so long after its deadline is killed.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// A reload that is going on; the first start is one, too, without blue.
pub(super) struct ActiveReload {
    pub machine: Machine,
    pub blue: Option<u32>,
    pub green: u32,
    pub mark: Mark,
    pub migrate: bool,
    /// What green was started with; becomes the supervisor's at the commit.
    pub settings: Settings,
    pub waiters: Vec<mpsc::Sender<Reply>>,
    pub requested: Instant,
    pub flipped: bool,
    /// Workers at the flip.
    pub blue_workers: BTreeSet<WorkerId>,
    pub green_workers: BTreeSet<WorkerId>,
    /// Those that died meanwhile, as the scoreboard stood then.
    pub dead: BTreeMap<WorkerId, Tally>,
    /// Green workers that have not yet armed the shared sockets.
    pub arming_shared: BTreeSet<WorkerId>,
    pub last_progress: Option<Progress>,
}

impl ActiveReload {
    pub fn durable(&self) -> store::Reload {
        store::Reload {
            id: self.machine.id(),
            blue: self.blue,
            green: self.green,
            mark: self.mark,
            migrate: self.migrate,
            blue_workers: self.blue_workers.iter().copied().collect(),
            green_workers: self.green_workers.iter().copied().collect(),
        }
    }

    pub fn progress(&self) -> Progress {
        let (moved, remaining) = self.machine.progress();
        let stage = self.machine.stage_name().to_owned();
        Progress { reload: self.machine.id(), stage, moved, remaining }
    }
}

/// A reload that waits for another to end.
pub(super) struct QueuedReload {
    pub no_rollback: bool,
    pub waiters: Vec<mpsc::Sender<Reply>>,
    pub requested: Instant,
}

/// The machine's options from the settings.
pub(super) fn options(settings: &Settings, no_rollback: bool) -> Options {
    let ms = Duration::from_millis;
    Options {
        ready_timeout: ms(settings.reload.ready_timeout_ms),
        settle: ms(settings.reload.settle_ms),
        handoff_timeout: ms(settings.reload.handoff_timeout_ms),
        answer_timeout: ANSWER_TIMEOUT,
        probation: ms(settings.reload.probation_ms),
        drain: ms(settings.drain_timeout_ms),
        migrate: settings.migrate_connections,
        allow_no_rollback: no_rollback,
    }
}

impl Core {
    /// A reload is wanted: now, instead of one that has not flipped, or after one that has.
    pub fn request_reload(&mut self, no_rollback: bool, waiter: Option<mpsc::Sender<Reply>>) {
        let requested = Instant::now();
        let mut wanted = QueuedReload { no_rollback, waiters: Vec::new(), requested };
        wanted.waiters.extend(waiter);
        if self.stopping.is_some() {
            self.refuse(&wanted, &Outcome::Stopped);
            return;
        }
        // Whoever waits for an earlier one that has not begun gets the verdict of this one.
        if let Some(earlier) = self.queued.take() {
            wanted.waiters.extend(earlier.waiters);
            wanted.requested = earlier.requested;
        }
        self.queued = Some(wanted);
        match &self.reload {
            Some(reload) if reload.blue.is_some() && reload.machine.is_before_flip() => {
                self.machine_events.push_back(Event::Supersede);
            }
            Some(_) => tracing::info!("the reload waits for the one that is going on"),
            None => self.start_queued(),
        }
    }

    /// Starts the reload that waits, if nothing is in its way.
    pub fn start_queued(&mut self) {
        if self.reload.is_some() || self.stopping.is_some() {
            return;
        }
        if self.queued.is_some() && self.generations.len() >= MAX_GENERATIONS {
            self.end_oldest_drain();
            return;
        }
        let Some(wanted) = self.queued.take() else { return };
        if let Err(message) = self.start_reload(&wanted) {
            self.refuse(&wanted, &Outcome::FailedBeforeFlip(message));
        }
    }

    fn end_oldest_drain(&mut self) {
        let oldest = self
            .generations
            .values()
            .find(|generation| matches!(generation.phase, Phase::Draining { .. }));
        let Some(oldest) = oldest else { return };
        tracing::warn!(
            generation = oldest.number,
            "{MAX_GENERATIONS} generations live: the oldest drain ends before the reload"
        );
        let workers: Vec<WorkerId> = oldest
            .workers()
            .filter(|id| self.workers.get(id).is_some_and(|w| w.phase != WorkerPhase::Ending))
            .collect();
        for worker in workers {
            self.tell_exit(worker);
        }
    }

    /// A verdict for a reload that never began.
    fn refuse(&mut self, wanted: &QueuedReload, outcome: &Outcome) {
        let mut verdict = Verdict::new(&Circumstances {
            outcome,
            facts: &super::reload::Facts::default(),
            tallies: &BTreeMap::new(),
            blue: &BTreeSet::new(),
            migrate: true,
        });
        self.complete(&mut verdict, wanted.requested, self.current);
        self.announce(verdict, &wanted.waiters);
    }

    fn start_reload(&mut self, wanted: &QueuedReload) -> Result<(), String> {
        let settings = self.sources.load().map_err(|error| error.to_string())?;
        self.begin(settings, wanted)
    }

    /// Begins a reload, or the first start, with these settings.
    pub fn begin(&mut self, settings: Settings, wanted: &QueuedReload) -> Result<(), String> {
        let path = settings.executable.as_ref().unwrap_or(&self.executable_path);
        let executable = Executable::open(path)?;
        let user = find_user(&settings.user)?;
        let number = self.last_generation + 1;
        let used: Vec<u32> = self.generations.values().map(|generation| generation.bank).collect();
        let bank = plan::free_bank(number % Steer::banks(), Steer::banks(), &used)
            .ok_or("every bank of slots is in use; wait until a generation has drained")?;
        let count = settings.worker_count();
        if count > self.max_workers {
            return Err(format!(
                "workers: {count} are more than the {} that the steering maps were made for",
                self.max_workers
            ));
        }
        let known: Vec<_> = self.serving().map(|of| of.listen.clone()).unwrap_or_default();
        let generation = Generation {
            number,
            bank,
            phase: Phase::Green,
            config: settings.worker_config(),
            executable,
            user,
            listen: resolve_addresses(&settings.listen, &known),
            places: (0..count).map(|_| Place::default()).collect(),
            drain_reasons: BTreeMap::new(),
        };
        self.last_generation = number;
        self.generations.insert(number, generation);
        let id = self.next_reload;
        self.next_reload += 1;
        let blue = self.serving_workers();
        tracing::info!(reload = id, generation = number, workers = count, "reload begins");
        let (machine, actions) =
            Machine::start(id, options(&settings, wanted.no_rollback), blue, Instant::now());
        self.reload = Some(ActiveReload {
            machine,
            blue: self.current,
            green: number,
            mark: Mark::Preparing,
            migrate: settings.migrate_connections,
            settings,
            waiters: wanted.waiters.clone(),
            requested: wanted.requested,
            flipped: false,
            blue_workers: BTreeSet::new(),
            green_workers: BTreeSet::new(),
            dead: BTreeMap::new(),
            arming_shared: BTreeSet::new(),
            last_progress: None,
        });
        self.pending_actions.extend(actions);
        Ok(())
    }

    /// The workers of the serving generation that serve, and what they said.
    pub fn serving_workers(&self) -> Vec<(WorkerId, Hello)> {
        let Some(serving) = self.serving() else { return Vec::new() };
        serving
            .workers()
            .filter_map(|id| {
                let worker = self.workers.get(&id)?;
                let serves = worker.phase == WorkerPhase::Serving;
                Some((id, worker.hello.clone().filter(|_| serves)?))
            })
            .collect()
    }

    pub fn reload_deadline(&self) -> Option<Instant> {
        self.reload.as_ref().and_then(|reload| reload.machine.deadline())
    }

    pub fn reload_on_time(&mut self, now: Instant) {
        if self.reload_deadline().is_some_and(|deadline| now >= deadline) {
            self.machine_events.push_back(Event::Tick);
        }
    }

    /// Feeds the machine and does what it says, until both have nothing left.
    pub async fn pump(&mut self) {
        loop {
            while let Some(action) = self.pending_actions.pop_front() {
                self.execute(action).await;
            }
            let Some(event) = self.machine_events.pop_front() else { break };
            let Some(reload) = &mut self.reload else { continue };
            let before = reload.machine.stage_name();
            let actions = reload.machine.handle(Instant::now(), event);
            if reload.machine.stage_name() != before {
                tracing::debug!(reload = reload.machine.id(), stage = reload.machine.stage_name());
            }
            self.pending_actions.extend(actions);
            self.tell_progress();
        }
    }

    fn tell_progress(&mut self) {
        let Some(reload) = &mut self.reload else { return };
        let progress = reload.progress();
        if reload.last_progress.as_ref() != Some(&progress) {
            for waiter in &reload.waiters {
                // Whoever does not listen misses it.
                let _ = waiter.try_send(Reply::Progress(progress.clone()));
            }
            reload.last_progress = Some(progress);
        }
    }

    fn fail_reload(&mut self, message: impl Into<String>) {
        self.machine_events.push_back(Event::Failed { message: message.into() });
    }

    async fn execute(&mut self, action: Action) {
        match action {
            Action::Persist(mark) => self.persist(mark).await,
            Action::Spawn => self.spawn_green(),
            Action::Listen(worker) => {
                if let Err(message) = self.listen_green(worker) {
                    self.fail_reload(message);
                }
            }
            Action::Prove(worker) => self.prove(worker),
            Action::Flip => self.flip(),
            Action::FlipBack => self.flip_back(),
            Action::ShareListeners => self.share_listeners(),
            Action::OpenChannels(plan) => {
                if let Err(message) = self.open_channels(&plan) {
                    self.fail_reload(message);
                }
            }
            Action::Send(worker, message) => {
                if let ToWorker::Commit { drain_ms: Some(drain_ms), .. } = message
                    && let Some(worker) = self.workers.get_mut(&worker)
                {
                    // It may be gone before the verdict is.
                    worker.phase = WorkerPhase::Draining;
                    let at = Instant::now() + Duration::from_millis(drain_ms) + DRAIN_GRACE;
                    worker.kill_at = Some(at);
                }
                self.send(worker, &message);
            }
            Action::Kill(worker) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.phase = WorkerPhase::Ending;
                }
                self.end_now(worker);
            }
            Action::HandoffBegun => {
                if fault_point!("supervisor.during_handoff") {
                    self.fail_reload("fault point supervisor.during_handoff");
                }
            }
            Action::Finish(outcome) => self.finish_reload(&outcome),
        }
    }

    async fn persist(&mut self, mark: Mark) {
        if mark == Mark::Flipped {
            self.note_flip();
        }
        if mark == Mark::Committed && fault_point!("supervisor.before_commit") {
            self.fail_reload("fault point supervisor.before_commit");
            return;
        }
        let Some(reload) = &mut self.reload else { return };
        reload.mark = mark;
        let (blue, first) = (reload.blue, reload.blue.is_none());
        match self.save().await {
            Ok(()) => {
                self.dirty = false;
                self.machine_events.push_back(Event::Persisted(mark));
            }
            // Going back must not depend on a full disk.
            Err(message) if mark == Mark::RollingBack => {
                tracing::error!("cannot write the state: {message}");
            }
            Err(message) => {
                self.fail_reload(format!("cannot write the state: {message}"));
                return;
            }
        }
        if mark == Mark::Committed && !first {
            self.retire_slots(blue);
            if fault_point!("supervisor.after_commit") {
                tracing::warn!("fault point supervisor.after_commit: there is no way back");
            }
        }
    }

    /// Remembers who takes part, and their counters.
    fn note_flip(&mut self) {
        let Some(reload) = &mut self.reload else { return };
        reload.flipped = true;
        for (&id, worker) in &mut self.workers {
            let side = if worker.identity.generation == reload.green {
                &mut reload.green_workers
            } else if Some(worker.identity.generation) == reload.blue
                && worker.phase == WorkerPhase::Serving
            {
                &mut reload.blue_workers
            } else {
                continue;
            };
            side.insert(id);
            let figures = self.scoreboard.figures(worker.identity.slot);
            worker.baseline = (figures.moved_out, figures.adopted_in);
        }
    }

    fn spawn_green(&mut self) {
        let Some(green) = self.reload.as_ref().map(|reload| reload.green) else { return };
        let count = self.generations.get(&green).map_or(0, |of| of.places.len());
        let mut started = Vec::with_capacity(count);
        let mut failure = None;
        for index in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            match self.start_worker(green, index) {
                Ok(worker) => started.push(worker),
                Err(message) => {
                    failure = Some(message);
                    break;
                }
            }
        }
        self.machine_events.push_back(Event::Spawned { green: started });
        if let Some(message) = failure {
            self.fail_reload(message);
        }
        if fault_point!("supervisor.after_spawn") {
            self.fail_reload("fault point supervisor.after_spawn");
        }
    }

    /// Gives a green worker listeners of its own; without eBPF one that only proves it.
    fn listen_green(&mut self, id: WorkerId) -> Result<(), String> {
        let Some((number, index)) = self.place_of(id) else { return Ok(()) };
        let Some(generation) = self.generations.get_mut(&number) else { return Ok(()) };
        let slot = generation.bank * self.max_workers + index;
        if !self.steer.is_ebpf() {
            let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
            let role = Role::Proof { generation: number, index };
            let proof = self.listeners.create(any, role, false, 16)?;
            generation.places[index as usize].foreign.push(proof);
            self.listen(id, &[proof], false);
            return Ok(());
        }
        let mut own = Vec::with_capacity(generation.listen.len());
        for address in &mut generation.listen {
            let role = Role::Own { generation: number, index };
            let listener = self.listeners.create(*address, role, true, self.settings.backlog)?;
            own.push(listener);
            if let Some(listener) = self.listeners.find(listener) {
                *address = listener.address;
                self.steer
                    .place(listener, slot)
                    .map_err(|error| format!("steering of {}: {error}", listener.address))?;
            }
        }
        generation.places[index as usize].own.clone_from(&own);
        self.listen(id, &own, true);
        Ok(())
    }

    fn flip(&mut self) {
        if fault_point!("supervisor.before_flip") {
            self.fail_reload("fault point supervisor.before_flip");
            return;
        }
        let Some(reload) = &self.reload else { return };
        let (blue, green) = (reload.blue, reload.green);
        let done = if self.steer.is_ebpf() {
            let slots: Vec<u32> = reload
                .green_workers
                .iter()
                .filter_map(|id| Some(self.workers.get(id)?.identity.slot))
                .collect();
            for slot in slots {
                self.set_ready(slot, true);
            }
            let bank = |number: u32| self.generations.get(&number).map(|of| of.bank);
            let to = bank(green).unwrap_or_default();
            let from = blue.and_then(bank).unwrap_or(to);
            self.steer.flip(from, to).map_err(|error| format!("the flip: {error}"))
        } else {
            self.share_sockets(green)
        };
        if let Err(message) = done {
            self.fail_reload(message);
            return;
        }
        tracing::info!(generation = green, "flip");
        if fault_point!("supervisor.after_flip") {
            self.fail_reload("fault point supervisor.after_flip");
            return;
        }
        if self.reload.as_ref().is_some_and(|reload| reload.arming_shared.is_empty()) {
            self.machine_events.push_back(Event::Flipped);
        }
    }

    /// Without eBPF: the new generation accepts from the sockets that every generation shares.
    fn share_sockets(&mut self, green: u32) -> Result<(), String> {
        let Some(generation) = self.generations.get_mut(&green) else { return Ok(()) };
        let workers = generation.places.len();
        let wanted = if self.settings.reuse_port { workers } else { 1 };
        for address in &mut generation.listen {
            let mut sockets = self.listeners.shared(*address);
            while sockets.len() < wanted {
                let (reuse, backlog) = (self.settings.reuse_port, self.settings.backlog);
                let id = self.listeners.create(*address, Role::Shared, reuse, backlog)?;
                *address = self.listeners.find(id).map_or(*address, |listener| listener.address);
                sockets.push(id);
            }
            let shares = plan::shared_sockets(sockets.len(), workers);
            for (place, share) in generation.places.iter_mut().zip(shares) {
                place.own.extend(share.into_iter().map(|k| sockets[k]));
            }
        }
        let given: Vec<_> = generation
            .places
            .iter()
            .filter_map(|place| Some((place.worker?, place.own.clone())))
            .collect();
        for (worker, own) in given {
            self.listen(worker, &own, true);
            if let Some(reload) = &mut self.reload {
                reload.arming_shared.insert(worker);
            }
        }
        Ok(())
    }

    /// A worker that serves already has armed the listeners that it was given later.
    pub fn on_armed_again(&mut self, worker: WorkerId) {
        if let Some(reload) = &mut self.reload
            && reload.arming_shared.remove(&worker)
            && reload.arming_shared.is_empty()
        {
            self.machine_events.push_back(Event::Flipped);
        }
    }

    fn flip_back(&mut self) {
        let Some(reload) = &self.reload else { return };
        let (Some(blue), green) = (reload.blue, reload.green) else { return };
        tracing::warn!(generation = blue, "flip back");
        let bank = |number: u32| self.generations.get(&number).map_or(0, |of| of.bank);
        let (from, to) = (bank(green), bank(blue));
        if let Err(error) = self.steer.flip(from, to) {
            tracing::error!(%error, "cannot flip back");
        }
        let slots: Vec<u32> = self.slots_of(green);
        for slot in slots {
            self.set_ready(slot, false);
        }
        // Places of blue whose worker died during the handoff.
        let vacant: Vec<u32> = self.vacant_places(blue);
        for index in vacant {
            self.fill_place(blue, index);
        }
        let parked: Vec<WorkerId> = self
            .generations
            .get(&blue)
            .into_iter()
            .flat_map(Generation::workers)
            .filter(|id| self.workers.get(id).is_some_and(|w| w.phase == WorkerPhase::Greeted))
            .collect();
        for worker in parked {
            self.arm_place(worker);
        }
        self.blue_takes_listeners(blue, green);
    }

    /// What was given to green, or made for it, blue accepts from as well: nothing that is queued
    /// there, or ends its handshake there, is lost.
    fn blue_takes_listeners(&mut self, blue: u32, green: u32) {
        let own = !self.steer.is_ebpf();
        let held: BTreeSet<u64> = self
            .generations
            .get(&blue)
            .into_iter()
            .flat_map(|of| &of.places)
            .flat_map(|place| &place.own)
            .copied()
            .collect();
        let orphans: Vec<u64> = self
            .listeners
            .iter()
            .filter(|listener| match listener.role {
                Role::Own { generation, .. } => generation == green,
                Role::Shared => own && !held.contains(&listener.id),
                Role::Proof { .. } => false,
            })
            .map(|listener| listener.id)
            .collect();
        self.deal_listeners(blue, orphans, own);
    }

    fn share_listeners(&mut self) {
        let Some(green) = self.reload.as_ref().map(|reload| reload.green) else { return };
        let others: Vec<u64> = self
            .listeners
            .iter()
            .filter(|one| matches!(one.role, Role::Own { generation, .. } if generation != green))
            .map(|listener| listener.id)
            .collect();
        self.deal_listeners(green, others, false);
    }

    fn deal_listeners(&mut self, number: u32, listeners: Vec<u64>, own: bool) {
        let Some(generation) = self.generations.get_mut(&number) else { return };
        let mut places: Vec<(WorkerId, &mut Place)> = generation
            .places
            .iter_mut()
            .filter_map(|place| {
                let worker = place.worker?;
                let serves = self
                    .workers
                    .get(&worker)
                    .is_some_and(|worker| worker.phase == WorkerPhase::Serving);
                serves.then_some((worker, place))
            })
            .collect();
        let shares = plan::deal(listeners, places.len());
        let mut given = Vec::new();
        for ((worker, place), share) in places.iter_mut().zip(shares) {
            let list = if own { &mut place.own } else { &mut place.foreign };
            list.extend(&share);
            given.push((*worker, share));
        }
        for (worker, share) in given {
            self.listen(worker, &share, own);
        }
    }

    fn open_channels(&mut self, plan: &[ChannelPlan]) -> Result<(), String> {
        let Some(reload) = self.reload.as_ref().map(|reload| reload.machine.id()) else {
            return Ok(());
        };
        for channel in plan {
            self.open_channel(reload, *channel).map_err(|error| {
                format!("cannot make channel {} of the handoff: {error}", channel.channel)
            })?;
        }
        Ok(())
    }

    fn open_channel(&mut self, reload: u64, plan: ChannelPlan) -> std::io::Result<()> {
        let (Some(blue), Some(green)) =
            (self.workers.get(&plan.blue), self.workers.get(&plan.green))
        else {
            // One has died; the machine hears of it.
            return Ok(());
        };
        let (Some(blue_hello), Some(green_hello)) = (&blue.hello, &green.hello) else {
            return Ok(());
        };
        let forward = blue_hello.state_writes.newest_common(green_hello.state_reads);
        let back = green_hello.state_writes.newest_common(blue_hello.state_reads);
        let memory = ChannelMemory::create()?;
        let (blue_end, green_end) = sys::socket::seqpacket_pair()?;
        let (wakes_blue, wakes_green) = (sys::EventFd::new()?, sys::EventFd::new()?);
        let open = |is_blue: bool, peer: &super::generations::Worker, write_format| {
            ToWorker::OpenChannel(OpenChannel {
                reload,
                channel: plan.channel,
                is_blue,
                peer: peer.identity.clone(),
                write_format,
            })
        };
        self.send_with(
            plan.blue,
            &open(true, green, forward),
            &[
                memory.as_fd(),
                blue_end.as_fd(),
                wakes_blue.as_fd(),
                wakes_green.as_fd(),
                green.process.pidfd().as_fd(),
            ],
        );
        self.send_with(
            plan.green,
            &open(false, blue, back),
            &[
                memory.as_fd(),
                green_end.as_fd(),
                wakes_green.as_fd(),
                wakes_blue.as_fd(),
                blue.process.pidfd().as_fd(),
            ],
        );
        // The copies here are closed now: each end lives in one process.
        Ok(())
    }

    fn slots_of(&self, number: u32) -> Vec<u32> {
        let Some(generation) = self.generations.get(&number) else { return Vec::new() };
        let count = u32::try_from(generation.places.len()).unwrap_or(u32::MAX);
        (0..count).map(|index| generation.bank * self.max_workers + index).collect()
    }

    pub fn vacant_places(&self, number: u32) -> Vec<u32> {
        let Some(generation) = self.generations.get(&number) else { return Vec::new() };
        let scheduled =
            |index: u32| self.respawns.iter().any(|&(_, of, at)| (of, at) == (number, index));
        (0u32..)
            .zip(&generation.places)
            .filter(|(index, place)| {
                place.worker.is_none() && !place.given_up && !scheduled(*index)
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// A generation gets nothing new any more, for good.
    pub fn retire_slots(&mut self, number: Option<u32>) {
        let Some(number) = number else { return };
        for slot in self.slots_of(number) {
            self.clear_slot(slot);
        }
        self.listeners.take_out(number, Instant::now());
    }

    fn finish_reload(&mut self, outcome: &Outcome) {
        let Some(reload) = self.reload.take() else { return };
        self.machine_events.clear();
        self.pending_actions.clear();
        self.proving.clear();
        self.steer.clear_probe();
        let mut tallies = reload.dead.clone();
        if reload.flipped {
            for id in reload.blue_workers.iter().chain(&reload.green_workers) {
                if let Some(worker) = self.workers.get(id) {
                    tallies.insert(*id, self.tally(worker, false));
                }
            }
        }
        let mut verdict = Verdict::new(&Circumstances {
            outcome,
            facts: reload.machine.facts(),
            tallies: &tallies,
            blue: &reload.blue_workers,
            migrate: reload.migrate,
        });
        let drain = Duration::from_millis(reload.settings.drain_timeout_ms);
        match outcome {
            Outcome::Committed => self.finish_committed(&reload, drain, &verdict),
            Outcome::RolledBack(_) => {
                self.retire_slots(Some(reload.green));
                self.start_drain(reload.green, drain, &verdict);
            }
            Outcome::FailedBeforeFlip(_) | Outcome::Superseded | Outcome::Stopped => {
                self.discard_green(reload.green);
            }
        }
        let proofs: Vec<u64> = self
            .listeners
            .iter()
            .filter(|listener| matches!(listener.role, Role::Proof { .. }))
            .map(|listener| listener.id)
            .collect();
        for &id in &proofs {
            self.listeners.remove(id);
        }
        self.forget_listeners(&proofs);
        self.dirty = true;
        let first_start = reload.blue.is_none() && self.current.is_none();
        if first_start && !verdict.reload_successful {
            let why = verdict.error.clone().unwrap_or_default();
            self.finished = Some(Err(format!("cannot start: {why}")));
            return;
        }
        self.complete(&mut verdict, reload.requested, reload.blue);
        self.totals.lost_connections += verdict.lost_connections;
        self.totals.migrated_connections += verdict.migrated_connections;
        if reload.blue.is_some() {
            self.announce(verdict, &reload.waiters);
        } else {
            tracing::info!(
                generation = verdict.generation,
                workers = verdict.workers,
                steering = self.steer.name(),
                "serving on {:?}",
                self.serving().map(|of| of.listen.clone()).unwrap_or_default()
            );
        }
        self.retire_generations();
        self.on_reload_over();
        self.start_queued();
    }

    fn finish_committed(&mut self, reload: &ActiveReload, drain: Duration, verdict: &Verdict) {
        if let Some(blue) = reload.blue {
            self.start_drain(blue, drain, verdict);
        }
        self.current = Some(reload.green);
        if let Some(green) = self.generations.get_mut(&reload.green) {
            green.phase = Phase::Serving;
        }
        // What cannot change while a supervisor lives stays as it was.
        let fixed = &self.settings;
        self.settings = Settings {
            admin: fixed.admin,
            run_dir: fixed.run_dir.clone(),
            steering: fixed.steering,
            policy: fixed.policy,
            reuse_port: fixed.reuse_port,
            log_format: fixed.log_format,
            ..reload.settings.clone()
        };
        for index in self.vacant_places(reload.green) {
            self.fill_place(reload.green, index);
        }
        // Shared sockets of addresses that are served no longer.
        let listen = self.serving().map(|of| of.listen.clone()).unwrap_or_default();
        let gone: Vec<u64> = self
            .listeners
            .iter()
            .filter(|one| one.role == Role::Shared && !listen.contains(&one.address))
            .map(|listener| listener.id)
            .collect();
        for id in gone {
            self.listeners.remove(id);
        }
    }

    /// The generation has been told to drain; workers that hold nothing end at once.
    fn start_drain(&mut self, number: u32, drain: Duration, verdict: &Verdict) {
        let now = Instant::now();
        let Some(generation) = self.generations.get_mut(&number) else { return };
        generation.phase = Phase::Draining { until: now + drain };
        generation.drain_reasons.clone_from(&verdict.drain_reasons);
        let workers: Vec<WorkerId> = generation.workers().collect();
        for id in workers {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            if !matches!(worker.phase, WorkerPhase::Draining | WorkerPhase::Ending) {
                // It never took part, and holds nothing.
                worker.phase = WorkerPhase::Ending;
                worker.process.kill();
            }
        }
    }

    /// Green had nothing; it is as if it had never been.
    pub fn discard_green(&mut self, number: u32) {
        for slot in self.slots_of(number) {
            self.clear_slot(slot);
        }
        let Some(generation) = self.generations.get_mut(&number) else { return };
        generation.phase = Phase::Draining { until: Instant::now() };
        let workers: Vec<WorkerId> = generation.workers().collect();
        for id in workers {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.phase = WorkerPhase::Ending;
                worker.process.kill();
            }
        }
        let own: Vec<u64> = self
            .listeners
            .iter()
            .filter(|one| matches!(one.role, Role::Own { generation, .. } if generation == number))
            .map(|listener| listener.id)
            .collect();
        for id in own {
            self.listeners.remove(id);
        }
    }

    fn complete(&self, verdict: &mut Verdict, requested: Instant, previous: Option<u32>) {
        verdict.strategy = self.settings.strategy.name().to_owned();
        verdict.duration_ms = requested.elapsed().as_secs_f64() * 1_000.0;
        verdict.steering = self.steer.name().to_owned();
        verdict.reload = self.next_reload.saturating_sub(1);
        verdict.generation = self.current.unwrap_or_default();
        verdict.previous_generation = previous.unwrap_or_default();
        verdict.workers =
            self.serving().map_or(0, |of| u32::try_from(of.places.len()).unwrap_or(u32::MAX));
    }

    /// The verdict is logged, kept, and told to whoever waits for it.
    fn announce(&mut self, verdict: Verdict, waiters: &[mpsc::Sender<Reply>]) {
        let text = serde_json::to_string(&verdict).unwrap_or_default();
        if verdict.reload_successful {
            self.totals.reloads += 1;
            tracing::info!(verdict = text, "reload succeeded");
        } else {
            self.totals.failed_reloads += 1;
            let why = verdict.error.clone().unwrap_or_default();
            tracing::error!(verdict = text, "reload failed: {why}");
        }
        for waiter in waiters {
            let (waiter, verdict) = (waiter.clone(), Box::new(verdict.clone()));
            // Unlike progress it must arrive; whoever waits reads, or is gone.
            tokio::task::spawn_local(async move {
                let _ = waiter.send(Reply::Verdict(verdict)).await;
            });
        }
        self.last_verdict = Some(verdict);
    }

    /// The reloads that wait will not run.
    pub fn refuse_queued(&mut self) {
        if let Some(wanted) = self.queued.take() {
            self.refuse(&wanted, &Outcome::Stopped);
        }
    }
}
