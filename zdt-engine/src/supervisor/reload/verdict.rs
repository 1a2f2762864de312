//! The verdict of a reload: what it says, and how the figures follow from the reports.
//!
//! Must not know: where the figures come from.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::CanaryReport;
use crate::control::{self, HandoffReport, IncomingReport};
use crate::supervisor::WorkerId;

/// How a reload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Green serves.
    Committed,
    /// Nothing happened.
    FailedBeforeFlip(String),
    /// A newer reload took its place; nothing happened.
    Superseded,
    /// The supervisor stopped first; nothing happened.
    Stopped,
    /// Blue serves, and has back what could go back.
    RolledBack(String),
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::FailedBeforeFlip(_) => "failed_before_flip",
            Outcome::Superseded => "superseded",
            Outcome::Stopped => "stopped",
            Outcome::RolledBack(_) => "rolled_back",
        }
    }

    fn error(&self) -> Option<String> {
        match self {
            Outcome::Committed => None,
            Outcome::FailedBeforeFlip(why) | Outcome::RolledBack(why) => Some(why.clone()),
            Outcome::Superseded => Some("a newer reload took its place".to_owned()),
            Outcome::Stopped => Some("the supervisor was told to stop".to_owned()),
        }
    }
}

/// What became known during a reload.
#[derive(Debug, Clone, Default)]
pub(in crate::supervisor) struct Facts {
    /// The latest report of each worker's outgoing side.
    pub reports: BTreeMap<WorkerId, HandoffReport>,
    /// The last report of each worker's incoming side.
    pub incoming: BTreeMap<WorkerId, IncomingReport>,
    /// Blue workers that said nothing during the whole handoff.
    pub silent_blue: BTreeSet<WorkerId>,
    /// Green cannot write what blue reads.
    pub rollback_impossible: bool,
    /// What went wrong without changing the outcome.
    pub warnings: Vec<String>,
    /// What a canary has shown.
    pub canary: Option<CanaryReport>,
}

/// One worker's line of the scoreboard: how it changed since the flip, and, if it died, how it
/// stood then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Open connections, at its death or now.
    pub connections: u64,
    /// Connections that it knows to have been started elsewhere, since the reload began.
    pub moved_out: u64,
    /// Connections that it has started, since the reload began.
    pub adopted_in: u64,
    /// Its process is gone.
    pub dead: bool,
}

/// Connections that died with their process.
///
/// What the dead had open is lost, but for those that others started without the dead having lived
/// to count them as moved; and what others count as moved is lost, too, where the dead did not live to
/// count it as adopted.
pub fn lost_connections(tallies: &[Tally]) -> u64 {
    if !tallies.iter().any(|tally| tally.dead) {
        return 0;
    }
    let sum = |figure: fn(&Tally) -> u64| {
        tallies.iter().map(|tally| i128::from(figure(tally))).sum::<i128>()
    };
    let open_in_dead = sum(|tally| if tally.dead { tally.connections } else { 0 });
    let lost = open_in_dead + sum(|tally| tally.moved_out) - sum(|tally| tally.adopted_in);
    u64::try_from(lost).unwrap_or(0)
}

/// Percentiles of the time that moved connections were not served, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blackout {
    /// Half of them were shorter.
    pub p50: u64,
    /// 99 of 100 were shorter.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Blackout {
    /// From pairs of microseconds and count.
    pub fn from_counts<'a>(counts: impl IntoIterator<Item = &'a (u64, u64)>) -> Self {
        let mut sorted: Vec<(u64, u64)> = counts.into_iter().copied().collect();
        sorted.sort_unstable();
        sorted.retain(|&(_, count)| count > 0);
        let total: u64 = sorted.iter().fold(0, |total, &(_, count)| total.saturating_add(count));
        let at = |percent: u64| {
            // The smallest value that at least this share does not exceed.
            let rank = u64::try_from((u128::from(total) * u128::from(percent)).div_ceil(100))
                .unwrap_or(u64::MAX)
                .max(1);
            let mut seen = 0u64;
            for &(value, count) in &sorted {
                seen = seen.saturating_add(count);
                if seen >= rank {
                    return value;
                }
            }
            0
        };
        let max = sorted.last().map_or(0, |&(value, _)| value);
        Self { p50: at(50), p99: at(99), max }
    }
}

/// What a reload did. The first eight fields are the stable ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// The new generation serves.
    pub reload_successful: bool,
    /// Connections that the new generation has taken over and keeps.
    pub migrated_connections: u64,
    /// Connections that stay in the generation that no longer accepts, until they end or the
    /// deadline comes.
    pub drained_connections: u64,
    /// Connections that died with a process during the reload.
    pub lost_connections: u64,
    /// Held requests that were sent during the reload.
    pub replayed_requests: u64,
    /// The strategy.
    pub strategy: String,
    /// From the request to the verdict.
    pub duration_ms: f64,
    /// How long moved connections were not served.
    pub blackout_us: Blackout,
    /// From the first freeze to the last answer, over all outgoing workers.
    pub handoff_ms: f64,
    /// Number of the reload.
    pub reload: u64,
    /// `committed`, `failed_before_flip`, `superseded`, `stopped` or `rolled_back`.
    pub outcome: String,
    /// Why it is not `committed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What went wrong without changing the outcome.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Settings that have changed and cannot be in force before a restart of the supervisor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restart_required: Vec<String>,
    /// The generation that serves now.
    pub generation: u32,
    /// The generation that was to be replaced.
    pub previous_generation: u32,
    /// Workers of the generation that serves now.
    pub workers: u32,
    /// Connections that had moved and went back.
    pub returned_connections: u64,
    /// Offers refused by the incoming side, all told.
    pub refused_offers: u64,
    /// Offers taken back by the outgoing side, all told.
    pub reclaimed_offers: u64,
    /// Why connections stay, by reason code.
    pub drain_reasons: BTreeMap<String, u64>,
    /// What the canary has shown, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryReport>,
    /// This was a reload to the build that served before.
    pub rollback: bool,
    /// The earlier generation had not ended: it serves again, with the connections that it had kept.
    pub revived: bool,
    /// Whether connections could have been handed back.
    pub rollback_possible: bool,
    /// `ebpf` or `plain`.
    pub steering: String,
    /// Process of the supervisor.
    pub supervisor: u32,
    /// Process of the supervisor that it has replaced in this reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_supervisor: Option<u32>,
}

/// What [`Verdict::new`] needs besides the facts.
pub(in crate::supervisor) struct Circumstances<'a> {
    pub outcome: &'a Outcome,
    pub facts: &'a Facts,
    /// By worker, both sides; empty if the flip was not reached.
    pub tallies: &'a BTreeMap<WorkerId, Tally>,
    pub blue: &'a BTreeSet<WorkerId>,
    pub migrate: bool,
    /// Held requests that were sent meanwhile.
    pub replayed: u64,
}

impl Verdict {
    /// True if what served before serves again: a reload was undone, or one to the earlier build has
    /// succeeded.
    pub fn rolled_back(&self) -> bool {
        if self.rollback { self.reload_successful } else { self.outcome != "committed" }
    }

    /// Fills in everything that follows from the facts.
    pub(in crate::supervisor) fn new(given: &Circumstances<'_>) -> Verdict {
        let Circumstances { outcome, facts, tallies, blue, migrate, replayed } = given;
        let committed = **outcome == Outcome::Committed;
        // Outgoing is the side that no longer serves.
        let outgoing = |worker: &WorkerId| blue.contains(worker) == committed;
        let tally = |worker: &WorkerId| tallies.get(worker).copied().unwrap_or_default();
        let mut drain_reasons = BTreeMap::new();
        for (_, report) in facts.reports.iter().filter(|(worker, _)| outgoing(worker)) {
            for (reason, count) in &report.staying {
                control::add(drain_reasons.entry(reason.clone()).or_default(), *count);
            }
        }
        let mut drain = |reason: &str, count: u64| {
            if count > 0 {
                control::add(drain_reasons.entry(reason.to_owned()).or_default(), count);
            }
        };
        for worker in tallies.keys().filter(|worker| outgoing(worker) && !tally(worker).dead) {
            if facts.silent_blue.contains(worker) {
                drain("worker_hangs", tally(worker).connections);
            } else if !migrate {
                drain("migration_disabled", tally(worker).connections);
            }
        }
        // A worker's own report is exact; of one that could not give it the scoreboard tells.
        let serving = tallies.keys().filter(|worker| !outgoing(worker));
        let taken_by_serving =
            control::total(serving.map(|worker| match facts.incoming.get(worker) {
                Some(report) if !tally(worker).dead => report.adopted,
                _ if tally(worker).dead => 0,
                _ => tally(worker).adopted_in,
            }));
        let all_tallies: Vec<Tally> = tallies.values().copied().collect();
        let reports = facts.reports.values();
        let moving = || facts.reports.values().filter(|report| report.moved > 0);
        let began_ns = moving().map(|report| report.began_ns).min().unwrap_or(0);
        let ended_ns = moving().map(|report| report.ended_ns).max().unwrap_or(0);
        Verdict {
            handoff_ms: ended_ns.saturating_sub(began_ns) as f64 / 1e6,
            reload_successful: committed,
            migrated_connections: if committed { taken_by_serving } else { 0 },
            drained_connections: control::total(drain_reasons.values().copied()),
            lost_connections: lost_connections(&all_tallies),
            replayed_requests: *replayed,
            blackout_us: Blackout::from_counts(
                facts.incoming.values().flat_map(|report| &report.blackout_us),
            ),
            outcome: outcome.name().to_owned(),
            error: outcome.error(),
            warnings: facts.warnings.clone(),
            returned_connections: if committed { 0 } else { taken_by_serving },
            refused_offers: control::total(reports.clone().map(|report| report.refused)),
            reclaimed_offers: control::total(reports.map(|report| report.reclaimed)),
            drain_reasons,
            canary: facts.canary.clone(),
            rollback_possible: !facts.rollback_impossible,
            ..Verdict::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally(connections: u64, moved_out: u64, adopted_in: u64, dead: bool) -> Tally {
        Tally { connections, moved_out, adopted_in, dead }
    }

    #[test]
    fn a_dead_blue_loses_only_what_nobody_started() {
        // 100 connections; 60 counted as moved; 10 more were adopted when it died with 40 open.
        let tallies = [tally(40, 60, 0, true), tally(70, 0, 70, false)];
        assert_eq!(lost_connections(&tallies), 30);
    }

    #[test]
    fn a_dead_green_loses_what_it_had() {
        let tallies = [tally(80, 20, 0, false), tally(25, 0, 20, true)];
        assert_eq!(lost_connections(&tallies), 25);
        assert_eq!(lost_connections(&[tally(80, 20, 0, false), tally(20, 0, 20, false)]), 0);
        // It died between the start of its tenth connection and the counting of it.
        assert_eq!(lost_connections(&[tally(30, 10, 0, false), tally(9, 0, 9, true)]), 10);
    }

    #[test]
    fn percentiles_of_counts() {
        assert_eq!(Blackout::from_counts(&[]), Blackout::default());
        let counts = [(500, 1), (10, 50), (20, 49)];
        assert_eq!(Blackout::from_counts(&counts), Blackout { p50: 10, p99: 20, max: 500 });
        assert_eq!(Blackout::from_counts(&[(7, 1)]), Blackout { p50: 7, p99: 7, max: 7 });
    }

    #[test]
    fn a_verdict_has_every_field_of_the_design() {
        let outcome = Outcome::RolledBack("green died".into());
        let verdict = Verdict::new(&Circumstances {
            outcome: &outcome,
            facts: &Facts::default(),
            tallies: &BTreeMap::new(),
            blue: &BTreeSet::new(),
            migrate: true,
            replayed: 0,
        });
        let json = serde_json::to_value(&verdict).unwrap();
        for field in [
            "reload_successful",
            "migrated_connections",
            "drained_connections",
            "lost_connections",
            "replayed_requests",
            "strategy",
            "duration_ms",
            "blackout_us",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["error"], "green died");
        assert_eq!(serde_json::from_value::<Verdict>(json).unwrap(), verdict);
    }

    #[test]
    fn a_rollback_counts_from_the_other_side() {
        let staying = BTreeMap::from([("busy".to_owned(), 3)]);
        let green = HandoffReport { reload: 1, moved: 7, staying, ..HandoffReport::default() };
        let blue = IncomingReport { adopted: 7, ..IncomingReport::default() };
        let facts = Facts {
            reports: BTreeMap::from([(2, green)]),
            incoming: BTreeMap::from([(1, blue)]),
            ..Facts::default()
        };
        let tallies = BTreeMap::from([(1, tally(7, 10, 7, false)), (2, tally(3, 7, 10, false))]);
        let verdict = Verdict::new(&Circumstances {
            outcome: &Outcome::RolledBack("x".into()),
            facts: &facts,
            tallies: &tallies,
            blue: &BTreeSet::from([1]),
            migrate: true,
            replayed: 0,
        });
        assert_eq!(verdict.returned_connections, 7);
        assert_eq!((verdict.drained_connections, verdict.lost_connections), (3, 0));
        assert_eq!(verdict.migrated_connections, 0);
    }

    proptest! {
        #[test]
        fn percentiles_agree_with_a_sorted_list(counts in prop::collection::vec((0u64..50, 0u64..9), 0..30)) {
            let mut all: Vec<u64> = counts
                .iter()
                .flat_map(|&(value, count)| std::iter::repeat_n(value, count as usize))
                .collect();
            all.sort_unstable();
            let at = |percent: usize| match all.len() {
                0 => 0,
                len => all[(len * percent).div_ceil(100).max(1) - 1],
            };
            let blackout = Blackout::from_counts(&counts);
            prop_assert_eq!(blackout.p50, at(50));
            prop_assert_eq!(blackout.p99, at(99));
            prop_assert_eq!(blackout.max, all.last().copied().unwrap_or(0));
        }
    }
}
