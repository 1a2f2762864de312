//! A rehearsal of a handoff: every connection's state is taken, restored aside, saved again and compared.
//! Nobody is frozen, nothing travels, no client notices: it is done in slices of a millisecond, between which
//! everybody is served.
//!
//! Must not know: why it is asked for.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::conn::Environment;
use crate::control::{FromWorker, RehearsalReport, Unmovable};
use crate::service::Busy;
use crate::{state, sys};

use super::Worker;
use super::entry::Moving;
use super::record;

/// How long a slice lasts; one connection is never interrupted.
const SLICE: Duration = Duration::from_millis(1);
/// Connections that a report names.
const MAX_NAMED: usize = 64;
/// Rehearsals that may wait; more are answered with nothing tested.
const MAX_WAITING: usize = 4;

/// One rehearsal.
pub struct Rehearsal {
    request: u64,
    /// Connections that were not looked at yet: key and tag.
    waiting: VecDeque<(usize, u32)>,
    report: RehearsalReport,
}

impl Worker {
    /// Begins a rehearsal; answered by [`FromWorker::Rehearsed`].
    pub(super) fn begin_rehearsal(&mut self, request: u64) {
        let report = RehearsalReport::default();
        if self.rehearsals.len() >= MAX_WAITING {
            return self.tell(&FromWorker::Rehearsed { request, report: Box::new(report) });
        }
        let waiting = self.entries.iter().map(|(key, entry)| (key, entry.tag())).collect();
        self.rehearsals.push_back(Rehearsal { request, waiting, report });
    }

    /// One slice.
    pub(super) fn advance_rehearsal(&mut self) {
        let Some(mut rehearsal) = self.rehearsals.pop_front() else { return };
        let begun = Instant::now();
        while begun.elapsed() < SLICE {
            let Some((key, tag)) = rehearsal.waiting.pop_front() else {
                let Rehearsal { request, mut report, .. } = rehearsal;
                report.busy_us += micros(begun.elapsed());
                return self.tell(&FromWorker::Rehearsed { request, report: Box::new(report) });
            };
            self.rehearse(key, tag, &mut rehearsal.report);
        }
        rehearsal.report.busy_us += micros(begun.elapsed());
        self.rehearsals.push_front(rehearsal);
    }

    fn rehearse(&mut self, key: usize, tag: u32, report: &mut RehearsalReport) {
        let known = self.entries.get(key).filter(|entry| entry.tag() == tag && !entry.closing);
        let Some(entry) = known else {
            report.ended += 1;
            return;
        };
        if matches!(entry.moving, Moving::Freezing | Moving::Offered { .. }) {
            report.moving += 1; // this is no rehearsal any more
            return;
        }
        let (id, peer, protocol) = (entry.id, entry.peer, entry.connection.protocol());
        report.tested += 1;
        match self.round_trip(key) {
            Ok(bytes) => {
                report.bytes += bytes;
                report.largest_bytes = report.largest_bytes.max(bytes);
            }
            Err(reason) => {
                *report.reasons.entry(reason.to_owned()).or_default() += 1;
                if report.unmovable.len() < MAX_NAMED {
                    report.unmovable.push(Unmovable {
                        connection: id,
                        peer,
                        protocol: protocol.to_owned(),
                        reason: reason.to_owned(),
                    });
                }
            }
        }
    }

    /// The size of the record, or why the connection would stay behind.
    fn round_trip(&mut self, key: usize) -> Result<u64, &'static str> {
        let (mut first, mut second) = (self.buffers.take(), self.buffers.take());
        let result = self.compare(key, &mut first, &mut second);
        if self.entries[key].transport.is_secret() {
            record::wipe(&mut first);
            record::wipe(&mut second);
        }
        self.buffers.give(first);
        self.buffers.give(second);
        result
    }

    fn compare(
        &mut self,
        key: usize,
        first: &mut Vec<u8>,
        second: &mut Vec<u8>,
    ) -> Result<u64, &'static str> {
        let (format, now_ms) = (state::FORMAT_WRITES.newest, self.now_ms);
        let boottime_ns = sys::boottime_ns();
        // As if it were frozen now.
        let entry = &mut self.entries[key];
        let was = std::mem::replace(&mut entry.frozen_ns, boottime_ns);
        let saved = record::save(entry, format, now_ms, first);
        entry.frozen_ns = was;
        saved.map_err(|Busy(reason)| reason)?;
        if self.entries[key].transport.is_secret() && !self.configure.config.state.encryption {
            return Err("ring-not-encrypted");
        }
        let environment = Environment::new(&self.configure.config, now_ms, &[]);
        let service = self.service.as_mut();
        let restored =
            record::restore(first, state::Integrity::Verified, &environment, service, boottime_ns);
        let restored = restored.map_err(|error| {
            tracing::warn!(connection = self.entries[key].id, "could not be restored: {error}");
            error.code()
        })?;
        restored.save(format, now_ms, second).map_err(|Busy(reason)| reason)?;
        if first != second {
            tracing::error!(connection = self.entries[key].id, "restored, it is another");
            return Err("restored-differently");
        }
        Ok(first.len() as u64)
    }

    /// Without delay while there is something left to rehearse.
    pub(super) fn rehearsal_due_ms(&self) -> Option<u64> {
        (!self.rehearsals.is_empty()).then_some(self.now_ms)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
