//! A new supervisor takes over from another, which is dead or has just ceased to act: workers,
//! listeners, steering, numbering, and the reload that was going on.
//!
//! Must not know: how survivors were found.

pub mod adopt;
pub mod store;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::adopt::{Answer, Predecessor, Survivor};
use self::succession::{Decision, Flip, Found, decide};
use crate::config::{MAX_WORKERS, SteeringMode, Strategy};
use crate::control::{Adopted, FromWorker, Hello, Identity, ToWorker};
use crate::supervisor::WorkerId;
use crate::supervisor::core::{Core, Setup};
use crate::supervisor::handle::{Counters, ReloadRequest, Totals};
use crate::supervisor::reload::{Machine, Mark, Resume};
use crate::supervisor::reloading::{ActiveReload, DRAIN_GRACE, options};
use crate::supervisor::sockets::listeners::{Listeners, Role};
use crate::supervisor::sockets::steer::Steer;
use crate::supervisor::successor::{Estate, ago};
use crate::supervisor::workers::confining::group_name;
use crate::supervisor::workers::generations::{Generation, Phase, Place, Worker, WorkerPhase};
use crate::supervisor::workers::link::Link;
use crate::supervisor::workers::process::{Executable, Process, find_user};
use crate::supervisor::workers::scoreboard::Board;
use crate::supervisor::workers::watch::Pulse;
use crate::sys::cgroup::Delegation;

/// Builds the supervisor from what is left.
pub(in crate::supervisor) fn take_over(
    predecessor: Predecessor,
    setup: Setup,
) -> Result<Core, String> {
    let Predecessor { state, mut survivors, mut estate } = predecessor;
    let state = match state {
        Some(state) => state,
        None => {
            tracing::warn!("the state of the earlier supervisor is lost; asking its workers");
            reconstruct(&survivors)?
        }
    };
    let boards = survivors.iter_mut().filter_map(|survivor| take_board(survivor.answer.as_mut()?));
    let board = match &estate {
        Some(estate) => {
            let board = estate.board.try_clone().map_err(|error| error.to_string());
            Some(board.map(|board| (board, estate.will.board_has_totals)))
        }
        None => boards.map(Ok).next(),
    };
    let board = board
        .ok_or("no worker answers: wait until one does, or end them with `zdt stop --now`")?
        .and_then(|(board, has_totals)| Board::adopt(board, has_totals))?;
    let wanted = setup.settings.steering;
    if state.steering == "plain" && wanted == SteeringMode::Ebpf {
        tracing::warn!("the workers run without eBPF steering; it needs a stop and a start");
    }
    let steer = if state.steering == "ebpf" {
        Steer::reopen(setup.settings.policy, setup.run_dir.path()).map_err(|error| {
            format!(
                "the steering maps of the earlier supervisor cannot be taken over: {error}. Its \
                 workers serve on; `zdt stop` ends them"
            )
        })?
    } else {
        Steer::Plain
    };
    let count = survivors.len();
    let mut core = Core::new(setup, steer, board, state.max_workers);
    core.listeners = Listeners::starting_at(state.next_listener);
    core.last_generation = state.last_generation;
    core.next_worker = state.next_worker;
    core.next_reload = state.next_reload;
    core.current = state.current;
    core.take_over_counters(&state, |id| survivors.iter().any(|survivor| survivor.id == id));
    core.adopt_generations(&state, &survivors)?;
    if let Some(estate) = &mut estate {
        core.inherit_listeners(&state, estate);
    }
    core.adopt_ticket_keys(&mut survivors);
    let mut channels = BTreeMap::new();
    for survivor in survivors {
        if let Some(answer) = &survivor.answer {
            channels.insert(survivor.id, answer.adopted.channels.clone());
        }
        core.adopt_worker(&state, survivor)?;
    }
    tracing::info!(
        workers = count,
        generation = core.current.unwrap_or_default(),
        "took over from supervisor {}",
        state.pid
    );
    core.settle_generations();
    core.inherit_crash_history(&state);
    if let Some(estate) = &estate {
        core.inherit_figures(estate);
    }
    match &state.reload {
        Some(reload) => {
            let ends = channels
                .iter()
                .flat_map(|(&worker, open)| open.iter().map(move |channel| (worker, channel)))
                .filter(|(_, channel)| channel.reload == reload.id)
                .map(|(worker, channel)| (worker, channel.channel))
                .collect();
            core.take_up_reload(&state, reload, ends);
        }
        None => core.refill(&state),
    }
    core.tell_ticket_keys();
    core.take_over_gateway(&state.gateway);
    core.warn_of_differences();
    core.dirty = true;
    Ok(core)
}

/// Ends what an earlier supervisor had begun to start and nobody has ever been served by; true if
/// that is all there was.
pub(in crate::supervisor) fn discard_unborn(predecessor: &Predecessor) -> bool {
    let Some(state) = &predecessor.state else { return false };
    let unborn = state.current.is_none()
        && state.reload.as_ref().is_none_or(|reload| reload.mark == Mark::Preparing);
    if unborn {
        tracing::warn!("the earlier supervisor died before it served; starting afresh");
        let workers = state.generations.iter().flat_map(|generation| &generation.workers);
        for worker in workers {
            // Its control socket was there a moment ago, so the number is still its own.
            if predecessor.survivors.iter().any(|survivor| survivor.id == worker.id)
                && let Ok(process) = Process::adopt(worker.pid)
            {
                process.kill();
            }
        }
    }
    unborn
}

/// The scoreboard's descriptor comes after those of the listeners.
fn take_board(answer: &mut Answer) -> Option<(OwnedFd, bool)> {
    let at = answer.adopted.listeners.len();
    let has_totals = answer.adopted.configure.has_totals;
    (at < answer.descriptors.len()).then(|| (answer.descriptors.remove(at), has_totals))
}

/// What the state file would have said, as far as workers know it.
fn reconstruct(survivors: &[Survivor]) -> Result<store::State, String> {
    let answers: Vec<(WorkerId, &Answer)> = survivors
        .iter()
        .filter_map(|survivor| Some((survivor.id, survivor.answer.as_ref()?)))
        .collect();
    let ebpf = answers.iter().any(|(_, answer)| answer.adopted.configure.has_load_map);
    let mut generations: BTreeMap<u32, store::Generation> = BTreeMap::new();
    let mut listeners: BTreeMap<u64, store::Listener> = BTreeMap::new();
    let mut current = None;
    for (id, answer) in &answers {
        let Adopted { configure, listeners: held, accepting, draining, .. } = &*answer.adopted;
        let Identity { generation, index, slot, .. } = configure.identity;
        let of = generations.entry(generation).or_insert_with(|| store::Generation {
            number: generation,
            bank: slot / MAX_WORKERS,
            listen: Vec::new(),
            size: 0,
            config: configure.config.clone(),
            user: None,
            workers: Vec::new(),
        });
        of.size = of.size.max(index + 1);
        let (pid, hello) = (answer.hello.pid, Some(answer.hello.clone()));
        of.workers.push(store::Worker { id: *id, index, pid, hello });
        for info in held.iter().filter(|info| info.own) {
            if !of.listen.contains(&info.address) {
                of.listen.push(info.address);
            }
            let role = if ebpf { Role::Own { generation, index } } else { Role::Shared };
            let listener = store::Listener { id: info.id, address: info.address, role };
            listeners.insert(info.id, listener);
        }
        if *accepting && !*draining && held.iter().any(|info| info.own) {
            current = current.max(Some(generation));
        }
    }
    let last = |numbers: &mut dyn Iterator<Item = u64>| numbers.max().unwrap_or_default();
    Ok(store::State {
        version: store::VERSION,
        boot_id: String::new(),
        pid: 0,
        last_generation: generations.keys().copied().max().unwrap_or_default(),
        next_worker: survivors.iter().map(|survivor| survivor.id).max().unwrap_or_default() + 1,
        next_listener: last(&mut listeners.keys().copied()) + 1,
        // Nothing tells how many there were; a number that cannot have been used.
        next_reload: 1 << 32,
        steering: if ebpf { "ebpf" } else { "plain" }.to_owned(),
        max_workers: MAX_WORKERS,
        current: Some(current.ok_or(
            "no worker of the earlier supervisor accepts connections, and its state is lost; end \
             them with `zdt stop`",
        )?),
        generations: generations.into_values().collect(),
        listeners: listeners.into_values().collect(),
        reload: None,
        crashes: Vec::new(),
        counters: Counters::default(),
        totals: Totals::default(),
        gateway: store::Gateway::default(),
    })
}

impl Core {
    /// Listeners that the predecessor held, among them those that no worker holds.
    fn inherit_listeners(&mut self, state: &store::State, estate: &mut Estate) {
        let named = &estate.will.state.listeners;
        for (info, socket) in named.iter().zip(std::mem::take(&mut estate.listeners)) {
            // Gone since, and so is its place.
            if !state.listeners.contains(info) {
                continue;
            }
            self.listeners.adopt(info.id, info.address, info.role, socket);
        }
    }

    /// What nobody else knows: counters, and what lingers or drains since when.
    fn inherit_figures(&mut self, estate: &Estate) {
        let will = &estate.will;
        self.last_verdict.clone_from(&will.last_verdict);
        self.started = ago(will.up_ms);
        for (info, out_ms) in will.state.listeners.iter().zip(&will.out_ms) {
            if let Some(out_ms) = out_ms {
                self.listeners.set_out_since(info.id, ago(*out_ms));
            }
        }
        for (number, drain) in &will.drains {
            let Some(generation) = self.generations.get_mut(number) else { continue };
            let until = Instant::now() + Duration::from_millis(drain.left_ms);
            if matches!(generation.phase, Phase::Draining { .. }) {
                generation.phase = Phase::Draining { until };
                generation.drain_reasons.clone_from(&drain.reasons);
                for id in generation.workers() {
                    if let Some(worker) = self.workers.get_mut(&id) {
                        worker.kill_at = worker.kill_at.map(|_| until + DRAIN_GRACE);
                    }
                }
            }
        }
    }

    fn adopt_generations(
        &mut self,
        state: &store::State,
        survivors: &[Survivor],
    ) -> Result<(), String> {
        let drain = Duration::from_millis(self.settings.drain_timeout_ms);
        for saved in &state.generations {
            let member = saved
                .workers
                .iter()
                .find(|worker| survivors.iter().any(|survivor| survivor.id == worker.id));
            let serves = state.current == Some(saved.number);
            let is_green = state.reload.as_ref().is_some_and(|reload| reload.green == saved.number);
            let executable = match member {
                Some(worker) => Executable::of_process(worker.pid),
                None if serves || is_green => Executable::open(&self.program()),
                None => continue,
            };
            let executable = executable
                .or_else(|_| Executable::open(&self.program()))
                .map_err(|error| format!("generation {}: {error}", saved.number))?;
            let user = match saved.user {
                Some(user) => Some(user),
                None => find_user(&self.settings.user, self.settings.group.as_deref())?,
            };
            let phase = if is_green {
                Phase::Green
            } else if serves {
                Phase::Serving
            } else {
                Phase::Draining { until: Instant::now() + drain }
            };
            let generation = Generation {
                number: saved.number,
                bank: saved.bank,
                phase,
                config: saved.config.clone(),
                credentials: None,
                executable,
                user,
                listen: saved.listen.clone(),
                places: (0..saved.size).map(|_| Place::default()).collect(),
                drain_reasons: BTreeMap::new(),
            };
            self.generations.insert(saved.number, generation);
        }
        Ok(())
    }

    /// The program for new generations.
    pub fn program(&self) -> PathBuf {
        self.settings.executable.clone().unwrap_or_else(|| self.executable_path.clone())
    }

    fn adopt_worker(&mut self, state: &store::State, survivor: Survivor) -> Result<(), String> {
        let Survivor { id, socket, answer } = survivor;
        let saved = state.generations.iter().find_map(|generation| {
            let worker = generation.workers.iter().find(|worker| worker.id == id)?;
            Some((generation, worker))
        });
        // What it says itself counts; what was written down stands in for one that hangs.
        let (identity, pid, hello) = match (&answer, saved) {
            (Some(answer), _) => {
                let identity = answer.adopted.configure.identity.clone();
                (identity, answer.hello.pid, Some(answer.hello.clone()))
            }
            (None, Some((generation, worker))) => {
                let slot = generation.bank * self.max_workers + worker.index;
                let number = generation.number;
                let identity =
                    Identity { worker: id, generation: number, index: worker.index, slot };
                (identity, worker.pid, worker.hello.clone())
            }
            (None, None) => {
                tracing::error!(worker = id, "hangs, and nothing is known of it; left alone");
                return Ok(());
            }
        };
        let Ok(process) = Process::adopt(pid) else {
            tracing::info!(worker = id, pid, "has just died");
            return Ok(());
        };
        let link = process
            .pidfd()
            .try_clone()
            .and_then(|pidfd| Link::start(id, socket, pidfd, self.links.clone()))
            .map_err(|error| format!("cannot watch worker {id}: {error}"))?;
        let draining = answer.as_ref().is_some_and(|answer| answer.adopted.draining);
        let drain = Duration::from_millis(self.settings.drain_timeout_ms);
        let figures = self.scoreboard.figures(identity.slot);
        let (generation, index) = (identity.generation, identity.index);
        let worker = Worker {
            identity,
            process,
            link,
            hello,
            phase: if draining { WorkerPhase::Draining } else { WorkerPhase::Serving },
            unanswered_listens: 0,
            kill_at: draining.then(|| Instant::now() + drain + DRAIN_GRACE),
            why: None,
            group: Delegation::adopt(&group_name(id), pid),
            ready_by: None,
            pulse: Pulse::new(Instant::now()),
            baseline: (figures.moved_out, figures.adopted_in),
        };
        self.workers.insert(id, worker);
        // The predecessor may have died before it did this.
        self.restore_priority([id]);
        if let Some(place) = self.place_mut(generation, index) {
            place.worker = Some(id);
            if answer.is_none() {
                self.unheard.insert(id);
            }
        } else {
            tracing::warn!(worker = id, generation, "of a generation that nobody knows: it drains");
            self.send(id, &ToWorker::Drain { timeout_ms: self.settings.drain_timeout_ms });
        }
        if let Some(answer) = answer {
            let roles: BTreeMap<u64, Role> =
                state.listeners.iter().map(|listener| (listener.id, listener.role)).collect();
            let accepts = answer.adopted.accepting && !draining;
            self.adopt_listeners(id, &answer.adopted, answer.descriptors, &roles);
            self.confirm_ready(id, accepts);
        }
        Ok(())
    }

    /// Takes duplicates of a worker's listeners. Also when a worker that hung answers at last.
    pub fn adopt_listeners(
        &mut self,
        id: WorkerId,
        adopted: &Adopted,
        descriptors: Vec<std::os::fd::OwnedFd>,
        roles: &BTreeMap<u64, Role>,
    ) {
        let Some((generation, index)) = self.place_of(id) else { return };
        let ebpf = self.steer.is_ebpf();
        for (info, socket) in adopted.listeners.iter().zip(descriptors) {
            let role = match roles.get(&info.id) {
                Some(role) => *role,
                None if ebpf && info.own => Role::Own { generation, index },
                None if info.own => Role::Shared,
                // Of a generation that is gone but for this socket.
                None if ebpf => Role::Own { generation: 0, index: 0 },
                None => Role::Proof { generation, index },
            };
            self.listeners.adopt(info.id, info.address, role, socket);
            if let Some(place) = self.place_mut(generation, index) {
                let list = if info.own { &mut place.own } else { &mut place.foreign };
                if !list.contains(&info.id) {
                    list.push(info.id);
                }
            }
        }
    }

    /// A worker that serves may have said so to nobody who lives.
    fn confirm_ready(&mut self, id: WorkerId, accepts: bool) {
        let Some((number, index)) = self.place_of(id) else { return };
        let Some(generation) = self.generations.get(&number) else { return };
        let has_listeners = !generation.places[index as usize].own.is_empty();
        if accepts && has_listeners && generation.phase == Phase::Serving {
            self.set_ready(generation.bank * self.max_workers + index, true);
        }
    }

    fn place_mut(&mut self, generation: u32, index: u32) -> Option<&mut Place> {
        self.generations.get_mut(&generation)?.places.get_mut(index as usize)
    }

    /// Lingers of listeners begin anew; generations that have ended are forgotten.
    fn settle_generations(&mut self) {
        let steered: BTreeSet<u32> = self
            .generations
            .values()
            .filter(|of| !matches!(of.phase, Phase::Draining { .. }))
            .map(|of| of.number)
            .collect();
        let others: BTreeSet<u32> = self
            .listeners
            .iter()
            .filter_map(|listener| match listener.role {
                Role::Own { generation, .. } if !steered.contains(&generation) => Some(generation),
                _ => None,
            })
            .collect();
        for generation in others {
            self.listeners.take_out(generation, Instant::now());
        }
        // Those of addresses that nobody is to serve were on their way out, too.
        let served: BTreeSet<SocketAddr> = self
            .generations
            .values()
            .filter(|of| !matches!(of.phase, Phase::Draining { .. }))
            .flat_map(|of| of.listen.iter().copied())
            .collect();
        let left: Vec<u64> = self
            .listeners
            .iter()
            .filter(|one| one.role == Role::Shared && !served.contains(&one.address))
            .map(|listener| listener.id)
            .collect();
        left.iter().for_each(|id| self.listeners.set_out_since(*id, Instant::now()));
        self.retire_generations();
    }

    /// Starts workers for the places of the serving generation that have none, and gives listeners to
    /// those that the predecessor had started but not armed. A worker that had not even greeted it could
    /// not but end with it: that is no crash.
    fn refill(&mut self, state: &store::State) {
        let Some(current) = self.current else { return };
        let half_started: Vec<WorkerId> = self
            .serving()
            .into_iter()
            .flat_map(|of| &of.places)
            .filter(|place| place.own.is_empty())
            .filter_map(|place| place.worker)
            .filter(|id| !self.unheard.contains(id))
            .collect();
        let ready_timeout = Duration::from_millis(self.settings.reload.ready_timeout_ms);
        for id in half_started {
            let Some(worker) =
                self.workers.get_mut(&id).filter(|worker| worker.phase == WorkerPhase::Serving)
            else {
                continue;
            };
            worker.phase = WorkerPhase::Greeted;
            worker.ready_by = Some(Instant::now() + ready_timeout);
            self.arm_place(id);
        }
        let bank = self.serving().map_or(0, |of| of.bank);
        for index in self.vacant_places(current) {
            self.set_ready(bank * self.max_workers + index, false);
            let of = state.generations.iter().find(|of| of.number == current);
            let last = of.and_then(|of| of.workers.iter().find(|worker| worker.index == index));
            match last {
                Some(worker) if worker.hello.is_some() => self.fill_place(current, index),
                _ => self.respawns.push((Instant::now(), current, index)),
            }
        }
    }

    fn flip_state(&self, reload: &store::Reload) -> Flip {
        let Some(green) = self.generations.get(&reload.green) else { return Flip::No };
        if let Some(share) = self.steer.share_of(green.bank) {
            return match share {
                0 => Flip::No,
                1_000.. => Flip::Yes,
                _ => Flip::Partly,
            };
        }
        let armed = green.places.iter().filter(|place| !place.own.is_empty()).count();
        match armed {
            0 => Flip::No,
            all if all == green.places.len() => Flip::Yes,
            _ => Flip::Partly,
        }
    }

    fn take_up_reload(
        &mut self,
        state: &store::State,
        reload: &store::Reload,
        ends: BTreeSet<(WorkerId, u32)>,
    ) {
        let alive: BTreeSet<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| !worker.process.has_ended())
            .map(|(&id, _)| id)
            .collect();
        let decision = decide(&Found {
            mark: reload.mark,
            migrate: reload.migrate,
            rolling: reload.rolling,
            flip: self.flip_state(reload),
            blue: reload.blue_workers.clone(),
            green: reload.green_workers.clone(),
            alive: alive.clone(),
            ends,
        });
        tracing::warn!(
            reload = reload.id,
            mark = ?reload.mark,
            "the earlier supervisor died during a reload: {}",
            match decision {
                Decision::Discard => "it had not flipped, and is dropped",
                Decision::Resume(Resume::RollingBack { .. }) => "it is undone",
                Decision::Resume(_) => "it is finished",
            }
        );
        let Decision::Resume(at) = decision else {
            if reload.revived {
                let drain = Duration::from_millis(self.settings.drain_timeout_ms);
                self.return_to_drain(reload.green, reload.id, Instant::now() + drain);
            } else {
                self.discard_green(reload.green);
            }
            self.refill(state);
            return;
        };
        let side = |workers: &[WorkerId]| -> Vec<(WorkerId, Hello)> {
            workers
                .iter()
                .filter(|id| alive.contains(id))
                .filter_map(|id| Some((*id, self.workers.get(id)?.hello.clone()?)))
                .collect()
        };
        let (blue, green) = (side(&reload.blue_workers), side(&reload.green_workers));
        let request = ReloadRequest { no_rollback: true, ..ReloadRequest::default() };
        let mut options = options(&self.settings, request);
        options.migrate = reload.migrate;
        let (machine, actions) =
            Machine::resume(reload.id, options, blue, green, at, Instant::now());
        self.reload = Some(ActiveReload {
            machine,
            blue: reload.blue,
            green: reload.green,
            mark: reload.mark,
            migrate: reload.migrate,
            strategy: if reload.rolling { Strategy::Rolling } else { Strategy::BlueGreen },
            settings: self.settings.clone(),
            shown: self.shown.clone(),
            restart_required: Vec::new(),
            rollback: false,
            revived: None,
            predecessor: None,
            undo: Vec::new(),
            waiters: Vec::new(),
            requested: Instant::now(),
            flipped: reload.mark != Mark::Preparing,
            blue_workers: reload.blue_workers.iter().copied().collect(),
            green_workers: reload.green_workers.iter().copied().collect(),
            dead: BTreeMap::new(),
            arming_shared: BTreeSet::new(),
            last_progress: None,
            replayed_before: self.counters().replayed_requests,
        });
        self.pending_actions.extend(actions);
    }

    fn warn_of_differences(&self) {
        let Some(serving) = self.serving() else { return };
        let wanted = crate::supervisor::workers::generations::resolve_addresses(
            &self.settings.listen,
            &serving.listen,
        );
        if wanted != serving.listen || self.settings.worker_count() as usize != serving.places.len()
        {
            tracing::warn!(
                "the workers serve {:?} with {} workers; the configuration says {:?} and {}: \
                 `zdt reload` brings it about",
                serving.listen,
                serving.places.len(),
                wanted,
                self.settings.worker_count()
            );
        }
    }

    /// A worker that hung when this supervisor took over.
    pub fn on_adopted_late(
        &mut self,
        id: WorkerId,
        message: &FromWorker,
        descriptors: Vec<std::os::fd::OwnedFd>,
    ) {
        if let FromWorker::Adopted(adopted) = message {
            tracing::info!(worker = id, "answers at last");
            self.unheard.remove(&id);
            self.adopt_listeners(id, adopted, descriptors, &BTreeMap::new());
            self.dirty = true;
        }
    }
}
