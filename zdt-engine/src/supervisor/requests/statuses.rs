//! The status: asked of every worker, answered with whatever has come after a moment.
//!
//! Must not know: who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::control::{self, ToWorker, WorkerStatus};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::{
    BufferingComponent, Components, GenerationStats, MigrationComponent, SocketStats, Status,
    WorkerStats,
};
use crate::supervisor::reload::{Event, Sample};
use crate::supervisor::workers::generations::{Generation, Phase};

/// Workers answer within a turn of their loop; one that hangs must not make the status hang.
const PATIENCE: Duration = Duration::from_millis(500);
/// Statuses that may be asked for at once; more are answered without asking the workers.
const MAX_REQUESTS: usize = 64;

/// The statuses that are being put together.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct StatusRequests {
    next: u64,
    open: BTreeMap<u64, Request>,
}

#[derive(Debug)]
struct Request {
    purpose: Purpose,
    missing: BTreeSet<WorkerId>,
    answers: BTreeMap<WorkerId, WorkerStatus>,
    until: Instant,
}

/// What the answers are for.
#[derive(Debug)]
enum Purpose {
    /// Somebody asked for the status.
    Status(oneshot::Sender<Box<Status>>),
    /// A canary is compared.
    Sample,
}

impl StatusRequests {
    pub fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|request| request.until).min()
    }

    pub fn forget_worker(&mut self, worker: WorkerId) {
        for request in self.open.values_mut() {
            request.missing.remove(&worker);
            if request.missing.is_empty() {
                request.until = Instant::now();
            }
        }
    }
}

impl Core {
    pub fn begin_status(&mut self, reply: oneshot::Sender<Box<Status>>) {
        let nobody = self.workers.values().all(|worker| worker.hello.is_none());
        if nobody || self.status_requests.open.len() >= MAX_REQUESTS {
            let _ = reply.send(Box::new(self.status(&BTreeMap::new())));
            return;
        }
        self.ask_workers(Purpose::Status(reply));
    }

    /// What both generations of a reload have done so far; the machine gets it.
    pub fn begin_sample(&mut self) {
        self.ask_workers(Purpose::Sample);
    }

    fn ask_workers(&mut self, purpose: Purpose) {
        let greeted: BTreeSet<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.hello.is_some())
            .map(|(&id, _)| id)
            .collect();
        self.status_requests.next += 1;
        let request = self.status_requests.next;
        for &worker in &greeted {
            self.send(worker, &ToWorker::Status { request });
        }
        self.status_requests.open.insert(
            request,
            Request {
                purpose,
                missing: greeted,
                answers: BTreeMap::new(),
                until: Instant::now() + PATIENCE,
            },
        );
    }

    pub fn on_status(&mut self, worker: WorkerId, request: u64, status: WorkerStatus) {
        let Some(open) = self.status_requests.open.get_mut(&request) else { return };
        if open.missing.remove(&worker) {
            open.answers.insert(worker, status);
        }
        if open.missing.is_empty() {
            open.until = Instant::now();
        }
    }

    pub fn status_on_time(&mut self, now: Instant) {
        let due: Vec<u64> = self
            .status_requests
            .open
            .iter()
            .filter(|(_, request)| now >= request.until)
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            let Some(request) = self.status_requests.open.remove(&id) else { continue };
            match request.purpose {
                Purpose::Status(reply) => {
                    let _ = reply.send(Box::new(self.status(&request.answers)));
                }
                Purpose::Sample => {
                    let sample = self.sample(&request.answers);
                    self.machine_events.push_back(Event::Sampled(sample));
                }
            }
        }
    }

    /// A worker that does not answer in time counts as if it had done nothing.
    fn sample(&self, answers: &BTreeMap<WorkerId, WorkerStatus>) -> Sample {
        let mut sample = Sample::default();
        let Some(reload) = &self.reload else { return sample };
        for (id, status) in answers {
            let side = match self.place_of(*id) {
                Some((of, _)) if of == reload.green => &mut sample.green,
                Some((of, _)) if Some(of) == reload.blue => &mut sample.blue,
                _ => continue,
            };
            let requests = status.requests.saturating_add(status.messages_received);
            side.add(requests, status.errors, &status.service_us);
        }
        sample
    }

    fn status(&self, answers: &BTreeMap<WorkerId, WorkerStatus>) -> Status {
        let worker_stats: BTreeMap<u32, WorkerStats> = self
            .workers
            .iter()
            .map(|(&id, worker)| {
                let answer = answers.get(&id);
                let pid = worker.process.pid();
                let figures = self.scoreboard.figures(worker.identity.slot);
                let from_scoreboard = || WorkerStatus {
                    pid,
                    connections: figures.connections,
                    accepted: figures.accepted,
                    adopted: figures.adopted_in,
                    moved: figures.moved_out,
                    ..WorkerStatus::default()
                };
                let figures = answer.cloned().unwrap_or_else(from_scoreboard);
                let stats = WorkerStats {
                    generation: worker.identity.generation,
                    index: worker.identity.index,
                    slot: worker.identity.slot,
                    state: worker.phase.name().to_owned(),
                    memory_usage_mb: resident_mb(pid),
                    answers: answer.is_some(),
                    figures,
                };
                (id, stats)
            })
            .collect();
        let active_connections =
            control::total(worker_stats.values().map(|one| one.figures.connections));
        let problems = self.problems(&worker_stats);
        let reloading = self.drained_for_restart
            || self.reload.as_ref().is_some_and(|reload| reload.blue.is_some());
        let health = match (reloading, problems.is_empty()) {
            (true, _) => "reloading",
            (false, true) => "healthy",
            (false, false) => "degraded",
        };
        let gateways = worker_stats.values().filter_map(|one| one.figures.gateway.as_deref());
        let buffered_requests = control::total(gateways.map(|gateway| gateway.held_requests));
        let migration = if self.settings.migrate_connections { health } else { "disabled" };
        Status {
            status: health.to_owned(),
            problems,
            components: Components {
                connection_migration: MigrationComponent {
                    status: migration.to_owned(),
                    active_connections,
                },
                request_buffering: BufferingComponent {
                    status: if buffered_requests > 0 { "holding" } else { "idle" }.to_owned(),
                    buffered_requests,
                },
            },
            reload_in_progress: reloading,
            reload: self.reload.as_ref().filter(|_| reloading).map(|reload| reload.progress()),
            strategy: self.settings.strategy.name().to_owned(),
            active_connections,
            buffered_requests,
            parked_sessions: self.parked_sessions() as u64,
            memory_usage_mb: resident_mb(std::process::id())
                + worker_stats.values().map(|one| one.memory_usage_mb).sum::<f64>(),
            worker_stats,
            socket_stats: SocketStats {
                steering: self.steer.name().to_owned(),
                addresses: self.serving().map(|of| of.listen.clone()).unwrap_or_default(),
                listeners: u32::try_from(self.listeners.iter().count()).unwrap_or(u32::MAX),
                counters: self.steer.counters(),
            },
            confinement: self.confined(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.current.unwrap_or_default(),
            generations: self.generations.values().map(|of| self.generation_stats(of)).collect(),
            totals: self.totals,
            counters: self.counters(),
            last_reload: self.last_verdict.clone(),
            applications: self.gateway.applications(),
        }
    }

    /// How everything is, as far as can be said without asking anybody, in the middle of a reload.
    pub fn last_status(&self) -> Status {
        let mut status = self.status(&BTreeMap::new());
        status.status = "reloading".to_owned();
        status.reload_in_progress = true;
        status.problems.clear();
        for worker in status.worker_stats.values_mut() {
            worker.answers = true;
        }
        status
    }

    fn generation_stats(&self, generation: &Generation) -> GenerationStats {
        let drain_ms_left = match generation.phase {
            Phase::Draining { until } => {
                let left = until.saturating_duration_since(Instant::now());
                Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
            }
            _ => None,
        };
        GenerationStats {
            number: generation.number,
            state: generation.phase_name().to_owned(),
            executable: generation.executable.path().display().to_string(),
            workers: generation.workers().collect(),
            drain_reasons: generation.drain_reasons.clone(),
            drain_ms_left,
        }
    }

    fn problems(&self, workers: &BTreeMap<u32, WorkerStats>) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(serving) = self.serving() {
            for (index, place) in serving.places.iter().enumerate() {
                if let Some(why) = &place.given_up {
                    problems.push(format!(
                        "worker {index} of generation {} is not restarted any more: it {why}; a reload \
                         starts a new one",
                        serving.number
                    ));
                } else if place.worker.is_none() {
                    problems.push(format!(
                        "worker {index} of generation {} is being restarted",
                        serving.number
                    ));
                }
            }
        }
        for (id, worker) in workers.iter().filter(|(_, worker)| worker.state == "serving") {
            if !worker.answers {
                problems
                    .push(format!("worker {id} (process {}) does not answer", worker.figures.pid));
            }
        }
        problems
    }
}

/// Resident memory of a process; 0 if it cannot be read.
fn resident_mb(pid: u32) -> f64 {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/statm")) else { return 0.0 };
    let pages: f64 =
        text.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0.0);
    pages * PAGE_BYTES / 1_048_576.0
}

/// statm counts in pages; 4 KiB on every machine that the steering program is built for.
const PAGE_BYTES: f64 = 4_096.0;
