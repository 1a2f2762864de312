//! Carries out what the reload machine decides.
//!
//! Must not know: in which order a reload proceeds.

mod finishing;
pub mod previous;
pub mod restart;
pub mod revival;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use self::previous::Build;
use crate::config::{Loaded, Settings, ShownSetting, Strategy};
use crate::control::{Hello, ToWorker};
use crate::supervisor::WorkerId;
use crate::supervisor::core::{Core, EXIT_GRACE, MAX_GENERATIONS};
use crate::supervisor::handle::{Progress, ReloadRequest, Reply};
use crate::supervisor::reload::{
    Action, CanaryOptions, Event, Machine, Mark, Options, Outcome, Places, Rolling, Tally,
};
use crate::supervisor::sockets::plan::{self, Batch};
use crate::supervisor::sockets::steer::Steer;
use crate::supervisor::takeover::store;
use crate::supervisor::workers::generations::{
    Generation, Phase, Place, WorkerPhase, resolve_addresses,
};
use crate::supervisor::workers::process::{Executable, check_executable, find_user};

/// For answers that take a worker no time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What is left of a drain that a fifth generation cuts short: time to say goodbye.
const CUT_SHORT: Duration = Duration::from_millis(500);
/// A draining worker that has not ended by itself so long after its deadline is killed.
pub(in crate::supervisor) const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// A reload that is going on; the first start is one, too, without blue.
pub(in crate::supervisor) struct ActiveReload {
    pub machine: Machine,
    pub blue: Option<u32>,
    pub green: u32,
    pub mark: Mark,
    pub migrate: bool,
    pub strategy: Strategy,
    /// What green was started with; becomes the supervisor's at the commit.
    pub settings: Settings,
    pub shown: Vec<ShownSetting>,
    /// Settings that it cannot bring about.
    pub restart_required: Vec<String>,
    /// Back to the build that served before.
    pub rollback: bool,
    /// Green is a generation that drained, and would have done so until then.
    pub revived: Option<Instant>,
    /// Process of the supervisor that was replaced before.
    pub predecessor: Option<u32>,
    /// Those who want it undone.
    pub undo: Vec<mpsc::Sender<Reply>>,
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
    /// Held requests that had been sent before it began.
    pub replayed_before: u64,
}

impl ActiveReload {
    pub fn durable(&self) -> store::Reload {
        store::Reload {
            id: self.machine.id(),
            blue: self.blue,
            green: self.green,
            mark: self.mark,
            migrate: self.migrate,
            rolling: self.strategy == Strategy::Rolling,
            revived: self.revived.is_some(),
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

/// What is to serve next.
#[derive(Debug, Clone, Copy)]
pub(in crate::supervisor) enum Wanted {
    /// What is on disk now.
    Reload(ReloadRequest),
    /// What served before.
    Rollback,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted::Reload(ReloadRequest::default())
    }
}

impl Wanted {
    /// The strategy that was asked for.
    pub fn strategy(self) -> Option<Strategy> {
        let request = self.request();
        // A canary is a choice between two whole generations.
        request.canary.map(|_| Strategy::BlueGreen).or(request.strategy)
    }

    /// How it is to be done.
    pub fn request(self) -> ReloadRequest {
        match self {
            Wanted::Reload(request) => request,
            // Whoever goes back does not want to come again.
            Wanted::Rollback => {
                let strategy = Some(Strategy::BlueGreen);
                ReloadRequest { no_rollback: true, strategy, canary: None }
            }
        }
    }
}

/// A reload that waits for another to end.
#[derive(Clone)]
pub(in crate::supervisor) struct QueuedReload {
    pub wanted: Wanted,
    /// The supervisor is new already, and this was the old one's process: only the workers follow.
    pub predecessor: Option<u32>,
    /// A rollback that could not have the old workers back.
    pub anew: bool,
    pub waiters: Vec<mpsc::Sender<Reply>>,
    pub requested: Instant,
}

/// What the workers of the incoming generation execute.
#[derive(Debug)]
pub(in crate::supervisor) enum Program {
    /// The configured one.
    Configured,
    /// One that was kept.
    Kept(Executable),
    /// Some of them run already: they drain.
    Draining(u32),
}

impl QueuedReload {
    /// What is asked for from now on.
    pub fn new(wanted: Wanted) -> QueuedReload {
        let (waiters, requested) = (Vec::new(), Instant::now());
        QueuedReload { wanted, predecessor: None, anew: false, waiters, requested }
    }

    /// The strategy that the verdict names.
    pub fn shown_strategy(&self, configured: Strategy) -> Strategy {
        match self.predecessor {
            Some(_) => Strategy::SocketHandoff,
            None => self.wanted.strategy().unwrap_or(configured),
        }
    }
}

/// The machine's options from the settings and the request.
pub(in crate::supervisor) fn options(settings: &Settings, request: ReloadRequest) -> Options {
    let ms = Duration::from_millis;
    let of = &settings.reload;
    let strategy = request.strategy.unwrap_or(settings.strategy);
    Options {
        ready_timeout: ms(settings.reload.ready_timeout_ms),
        settle: ms(settings.reload.settle_ms),
        handoff_timeout: ms(settings.reload.handoff_timeout_ms),
        answer_timeout: ANSWER_TIMEOUT,
        probation: ms(settings.reload.probation_ms),
        drain: ms(settings.drain_timeout_ms),
        migrate: settings.migrate_connections,
        allow_no_rollback: request.no_rollback,
        // A canary is a choice between two whole generations.
        rolling: (strategy == Strategy::Rolling && request.canary.is_none())
            .then(|| Rolling { batch: of.rolling_batch, pause: ms(of.rolling_pause_ms) }),
        canary: request.canary.map(|canary| CanaryOptions {
            permille: canary.permille.clamp(1, 999),
            watch: ms(canary.for_ms),
            min_requests: of.canary_min_requests,
            more_errors_permille: of.canary_more_errors_permille,
            slower_percent: of.canary_slower_percent,
            slower_us: of.canary_slower_ms.saturating_mul(1_000),
        }),
    }
}

impl Core {
    /// A reload is wanted: now, instead of one that has not flipped, or after one that has.
    pub fn request_reload(&mut self, wanted: Wanted, waiter: Option<mpsc::Sender<Reply>>) {
        let mut wanted = QueuedReload::new(wanted);
        wanted.waiters.extend(waiter);
        if self.stopping.is_some() {
            self.refuse(&wanted, &Outcome::Stopped);
            return;
        }
        // Whoever waits for an earlier one that has not begun gets the verdict of this one, unless that
        // is the opposite of what was asked for.
        if let Some(earlier) = self.queued.take() {
            let is_rollback = |of: &QueuedReload| matches!(of.wanted, Wanted::Rollback);
            if is_rollback(&earlier) == is_rollback(&wanted) {
                // Who asked for a new supervisor as well gets one.
                if earlier.wanted.strategy() == Some(Strategy::SocketHandoff) {
                    wanted.wanted = earlier.wanted;
                }
                wanted.waiters.extend(earlier.waiters);
                wanted.requested = earlier.requested;
            } else {
                self.refuse(&earlier, &Outcome::Superseded);
            }
        }
        self.queued = Some(wanted);
        match &self.reload {
            Some(reload) if reload.blue.is_some() && reload.machine.is_before_flip() => {
                self.machine_events.push_back(Event::Supersede);
            }
            None if self.replacement.is_none() => self.start_queued(),
            _ => tracing::info!("the reload waits for the one that is going on"),
        }
    }

    /// Starts the reload that waits, if nothing is in its way.
    pub fn start_queued(&mut self) {
        if self.reload.is_some() || self.replacement.is_some() || self.stopping.is_some() {
            return;
        }
        let adds = self.queued.as_ref().is_some_and(|wanted| self.to_revive(wanted).is_none());
        if adds && self.generations.len() >= MAX_GENERATIONS {
            self.end_oldest_drain();
            return;
        }
        let Some(wanted) = self.queued.take() else { return };
        self.news.reloading();
        if self.strategy_of(&wanted) == Strategy::SocketHandoff {
            self.begin_replacement(wanted);
            return;
        }
        match self.start_reload(&wanted) {
            Ok(true) => {}
            // Until the workers that serve have ended.
            Ok(false) => self.queued = Some(wanted),
            Err(message) => self.refuse(&wanted, &Outcome::FailedBeforeFlip(message)),
        }
    }

    /// How a reload is to be done. A configuration that this build does not understand may be meant for
    /// its successor.
    fn strategy_of(&self, wanted: &QueuedReload) -> Strategy {
        match (wanted.predecessor, wanted.wanted.strategy()) {
            (Some(_), _) => Strategy::BlueGreen,
            (None, Some(strategy)) => strategy,
            (None, None) => match self.sources.load() {
                Ok(settings) => settings.strategy,
                Err(_) => self.settings.strategy,
            },
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
        let workers: Vec<WorkerId> = oldest.workers().collect();
        let timeout_ms = u64::try_from(CUT_SHORT.as_millis()).unwrap_or(u64::MAX);
        for id in workers {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            if worker.phase != WorkerPhase::Ending {
                worker.phase = WorkerPhase::Ending;
                worker.kill_at = Some(Instant::now() + CUT_SHORT + EXIT_GRACE);
                self.send(id, &ToWorker::Drain { timeout_ms });
            }
        }
    }

    /// False if it cannot begin yet.
    fn start_reload(&mut self, wanted: &QueuedReload) -> Result<bool, String> {
        let (loaded, program) = match wanted.wanted {
            Wanted::Reload(_) => {
                let loaded = self.sources.load_shown().map_err(|error| error.to_string())?;
                let path = loaded.settings.executable.as_ref().unwrap_or(&self.executable_path);
                check_executable(path)?;
                (loaded, Program::Configured)
            }
            Wanted::Rollback => {
                let Build { executable, loaded, .. } = self.previous_build()?;
                let program = self.to_revive(wanted).map(Program::Draining);
                (loaded, program.unwrap_or(Program::Kept(executable)))
            }
        };
        if self.drains_before(&loaded.settings, wanted) {
            return Ok(false);
        }
        self.begin(loaded, program, wanted).map(|()| true)
    }

    /// Begins a reload, or the first start, with these settings and this program.
    pub fn begin(
        &mut self,
        loaded: Loaded,
        program: Program,
        wanted: &QueuedReload,
    ) -> Result<(), String> {
        let Loaded { settings, shown } = loaded;
        let request = wanted.wanted.request();
        if request.canary.is_some() && !self.steer.is_ebpf() {
            return Err("a canary needs eBPF steering to send it a share of the connections; \
                        `zdt doctor` says what is missing"
                .to_owned());
        }
        let restart_required = self.settings.restart_required_for(&settings);
        let (number, revived) = match program {
            Program::Draining(number) => (number, self.revive(number)),
            Program::Kept(executable) => (self.add_generation(&settings, executable)?, None),
            Program::Configured => {
                let path = settings.executable.as_ref().unwrap_or(&self.executable_path);
                let executable = Executable::open(path)?;
                (self.add_generation(&settings, executable)?, None)
            }
        };
        if !restart_required.is_empty() {
            let settings = restart_required.join(", ");
            tracing::warn!(
                "changed, but not in force before a restart of the supervisor: {settings}"
            );
        }
        let count = self.generations.get(&number).map_or(0, |of| of.places.len());
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let id = self.next_reload;
        self.next_reload += 1;
        let blue = self.serving_workers();
        let strategy = wanted.shown_strategy(settings.strategy);
        tracing::info!(
            reload = id,
            generation = number,
            workers = count,
            strategy = strategy.name(),
            "reload begins"
        );
        let outgoing = self.serving().map_or(0, |of| of.places.len());
        let places = Places { blue: u32::try_from(outgoing).unwrap_or(u32::MAX), green: count };
        let options = options(&settings, request);
        let (machine, actions) = Machine::start(id, options, places, blue, Instant::now());
        self.reload = Some(ActiveReload {
            machine,
            blue: self.current,
            green: number,
            mark: Mark::Preparing,
            migrate: settings.migrate_connections,
            strategy,
            predecessor: wanted.predecessor,
            settings,
            shown,
            restart_required,
            rollback: matches!(wanted.wanted, Wanted::Rollback),
            revived,
            undo: Vec::new(),
            waiters: wanted.waiters.clone(),
            requested: wanted.requested,
            flipped: false,
            blue_workers: BTreeSet::new(),
            green_workers: BTreeSet::new(),
            dead: BTreeMap::new(),
            arming_shared: BTreeSet::new(),
            last_progress: None,
            replayed_before: self.counters().replayed_requests,
        });
        self.pending_actions.extend(actions);
        Ok(())
    }

    /// A generation with these settings, without workers; returns its number.
    fn add_generation(
        &mut self,
        settings: &Settings,
        executable: Executable,
    ) -> Result<u32, String> {
        let credentials = crate::supervisor::credentials::read(settings)?;
        let user = find_user(&settings.user, settings.group.as_deref())?;
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
            credentials,
            executable,
            user,
            listen: resolve_addresses(&settings.listen, &known),
            places: (0..count).map(|_| Place::default()).collect(),
            drain_reasons: BTreeMap::new(),
        };
        self.last_generation = number;
        self.generations.insert(number, generation);
        Ok(number)
    }

    /// The workers of the serving generation that serve, their places, and what they said.
    pub fn serving_workers(&self) -> Vec<(WorkerId, u32, Hello)> {
        let Some(serving) = self.serving() else { return Vec::new() };
        serving
            .workers()
            .filter_map(|id| {
                let worker = self.workers.get(&id)?;
                let serves = worker.phase == WorkerPhase::Serving;
                let index = worker.identity.index;
                Some((id, index, worker.hello.clone().filter(|_| serves)?))
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

    pub fn fail_reload(&mut self, message: impl Into<String>) {
        self.machine_events.push_back(Event::Failed { message: message.into() });
    }

    async fn execute(&mut self, action: Action) {
        match action {
            Action::Persist(mark) => self.persist(mark).await,
            Action::Spawn(batch) => self.spawn_green(&batch),
            Action::Listen(worker) => {
                if let Err(message) = self.listen_green(worker) {
                    self.fail_reload(message);
                }
            }
            Action::Prove(worker) => self.prove(worker),
            Action::Flip { batch, permille } => self.flip(&batch, permille),
            Action::FlipBack => self.flip_back(),
            Action::ShareListeners(batch) => self.share_listeners(&batch),
            Action::Sample => self.begin_sample(),
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
            // They may have clients of their own, and return to their drain.
            Action::Kill(_) if self.reload.as_ref().is_some_and(|of| of.revived.is_some()) => {}
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
        let first = reload.blue.is_none();
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
        if mark == Mark::Committed && !first && fault_point!("supervisor.after_commit") {
            tracing::warn!("fault point supervisor.after_commit: there is no way back");
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
            // Of an earlier step of the same reload, some have moved already.
            if side.insert(id) {
                let figures = self.scoreboard.figures(worker.identity.slot);
                worker.baseline = (figures.moved_out, figures.adopted_in);
            }
        }
    }

    fn spawn_green(&mut self, batch: &Batch) {
        let Some(green) = self.reload.as_ref().map(|reload| reload.green) else { return };
        let mut started = Vec::with_capacity(batch.green.len());
        let mut failure = None;
        for index in batch.green.clone() {
            match self.start_or_keep(green, index) {
                Ok(worker) => started.push(worker),
                Err(message) => {
                    failure = Some(message);
                    break;
                }
            }
        }
        let greeted: Vec<Event> =
            started.iter().filter_map(|&id| self.greeted_already(id)).collect();
        self.machine_events.push_back(Event::Spawned { green: started });
        self.machine_events.extend(greeted);
        if let Some(message) = failure {
            self.fail_reload(message);
        }
        if fault_point!("supervisor.after_spawn") {
            self.fail_reload("fault point supervisor.after_spawn");
        }
    }
}
