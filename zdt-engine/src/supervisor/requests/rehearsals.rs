//! Rehearsals of a handoff: asked of every worker that serves, put together from their answers.
//!
//! Must not know: what a worker does for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::control::{self, RehearsalReport, ToWorker};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::{TestMigration, UnmovableConnection};

/// A worker with many large states takes a while, since it serves meanwhile; the admin endpoint's connections
/// last 15 s.
const PATIENCE: Duration = Duration::from_secs(12);
/// Rehearsals at once.
const MAX_REQUESTS: usize = 4;

/// The rehearsals that are going on.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Rehearsals {
    next: u64,
    open: BTreeMap<u64, Rehearsal>,
}

#[derive(Debug)]
struct Rehearsal {
    reply: oneshot::Sender<Result<TestMigration, String>>,
    missing: BTreeSet<WorkerId>,
    silent: BTreeSet<WorkerId>,
    answers: BTreeMap<WorkerId, RehearsalReport>,
    begun: Instant,
}

impl Rehearsal {
    fn is_over(&self, now: Instant) -> bool {
        self.missing.is_empty() || now >= self.begun + PATIENCE
    }
}

impl Rehearsals {
    pub fn deadline(&self) -> Option<Instant> {
        let ends = self.open.values().map(|one| match one.missing.is_empty() {
            true => one.begun,
            false => one.begun + PATIENCE,
        });
        ends.min()
    }

    pub fn forget_worker(&mut self, worker: WorkerId) {
        for one in self.open.values_mut() {
            if one.missing.remove(&worker) {
                one.silent.insert(worker);
            }
        }
    }
}

impl Core {
    pub fn begin_rehearsal(&mut self, reply: oneshot::Sender<Result<TestMigration, String>>) {
        if self.rehearsals.open.len() >= MAX_REQUESTS {
            let _ =
                reply.send(Err("other tests are going on; try again when they are over".into()));
            return;
        }
        self.rehearsals.next += 1;
        let request = self.rehearsals.next;
        let workers: BTreeSet<WorkerId> =
            self.serving_workers().into_iter().map(|(id, ..)| id).collect();
        for &worker in &workers {
            self.send(worker, &ToWorker::Rehearse { request });
        }
        let one = Rehearsal {
            reply,
            missing: workers,
            silent: BTreeSet::new(),
            answers: BTreeMap::new(),
            begun: Instant::now(),
        };
        self.rehearsals.open.insert(request, one);
    }

    pub fn on_rehearsed(&mut self, worker: WorkerId, request: u64, report: RehearsalReport) {
        if let Some(one) = self.rehearsals.open.get_mut(&request)
            && one.missing.remove(&worker)
        {
            one.answers.insert(worker, report);
        }
    }

    pub fn rehearse_on_time(&mut self, now: Instant) {
        let over: Vec<u64> = self
            .rehearsals
            .open
            .iter()
            .filter(|(_, one)| one.is_over(now))
            .map(|(&request, _)| request)
            .collect();
        for request in over {
            let Some(one) = self.rehearsals.open.remove(&request) else { continue };
            let result = self.test_migration(&one);
            tracing::info!(
                tested = result.tested_connections,
                movable = result.movable_connections,
                "test of the migration: {:?}",
                result.drain_reasons
            );
            let _ = one.reply.send(Ok(result));
        }
    }

    fn test_migration(&self, one: &Rehearsal) -> TestMigration {
        let mut result = TestMigration {
            migration_enabled: self.settings.migrate_connections,
            workers: u32::try_from(one.answers.len()).unwrap_or(u32::MAX),
            silent_workers: one.missing.union(&one.silent).copied().collect(),
            duration_ms: one.begun.elapsed().as_secs_f64() * 1_000.0,
            ..TestMigration::default()
        };
        for (&worker, report) in &one.answers {
            control::add(&mut result.tested_connections, report.tested);
            control::add(&mut result.bytes, report.bytes);
            result.largest_bytes = result.largest_bytes.max(report.largest_bytes);
            result.longest_busy_ms = result.longest_busy_ms.max(report.busy_us as f64 / 1_000.0);
            for (reason, count) in &report.reasons {
                control::add(result.drain_reasons.entry(reason.clone()).or_default(), *count);
            }
            result.would_drain.extend(
                report
                    .unmovable
                    .iter()
                    .map(|one| UnmovableConnection { worker, connection: one.clone() }),
            );
        }
        let staying = control::total(result.drain_reasons.values().copied());
        result.movable_connections = result.tested_connections.saturating_sub(staying);
        result.unnamed = staying.saturating_sub(result.would_drain.len() as u64);
        result.test_successful = staying == 0 && result.silent_workers.is_empty();
        result
    }
}
