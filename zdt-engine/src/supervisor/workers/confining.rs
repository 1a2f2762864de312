//! What a worker is born with: user, priority, CPU, and the limits of `worker_limits`, by whatever means this
//! machine offers.
//!
//! | limit | with a control group | without |
//! |---|---|---|
//! | memory | `memory.max`, no swap; the kernel kills the worker | RLIMIT_DATA; its allocation fails, and it ends |
//! | CPU | `cpu.max`; the kernel holds it back | the worker's loop holds itself back |
//! | descriptors | RLIMIT_NOFILE: there is no controller for them | the same |
//!
//! Must not know: what a worker does with what it is left.

use super::generations::{Generation, Phase};
use crate::config::{RING_ENTRIES, WorkerConfig, WorkerLimits};
use crate::supervisor::WorkerId;
use crate::supervisor::core::Core;
use crate::supervisor::handle::Confined;
use crate::sys;
use crate::sys::birth::{self, Birth, Priority};
use crate::sys::cgroup::{Delegation, Group};
use crate::sys::ring::{Bequest, Shape};

/// Microseconds over which `cpu.max` counts.
const CPU_PERIOD_US: u64 = 100_000;

/// Whether groups can be made, asked once for a set of controllers.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Groups {
    known: Option<(Vec<&'static str>, Result<Delegation, String>)>,
}

impl Groups {
    /// Where groups with these controllers can be made. Why not is logged once.
    fn delegation(&mut self, needed: &[&'static str], others: &[u32]) -> Option<&Delegation> {
        if self.known.as_ref().is_none_or(|(known, _)| *known != needed) {
            let found =
                Delegation::find(needed).and_then(|delegation| delegation.prepare(needed, others));
            if let Err(why) = &found {
                tracing::warn!("no control groups for workers: {why}; worker_limits otherwise");
            }
            self.known = Some((needed.to_vec(), found));
        }
        self.known.as_ref().and_then(|(_, found)| found.as_ref().ok())
    }

    fn why_not(&self) -> Option<String> {
        self.known.as_ref().and_then(|(_, found)| found.as_ref().err().cloned())
    }
}

fn controllers(limits: &WorkerLimits) -> Vec<&'static str> {
    let mut needed = Vec::new();
    if limits.memory_bytes > 0 {
        needed.push("memory");
    }
    if limits.cpu_percent > 0 {
        needed.push("cpu");
    }
    needed
}

fn values(limits: &WorkerLimits) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    if limits.memory_bytes > 0 {
        values.push(("memory.max", limits.memory_bytes.to_string()));
        values.push(("memory.swap.max?", "0".to_owned()));
        values.push(("memory.oom.group?", "1".to_owned()));
    }
    if limits.cpu_percent > 0 {
        let quota = u64::from(limits.cpu_percent) * CPU_PERIOD_US / 100;
        values.push(("cpu.max", format!("{quota} {CPU_PERIOD_US}")));
    }
    values
}

/// The ring that a worker finds made, so that its memory is not counted as locked; `None` where it would be all the same.
fn ring_for(config: &WorkerConfig) -> Option<Bequest> {
    if !sys::kernel::may_lock_memory() {
        return None;
    }
    match Bequest::new(ring_shape(config)) {
        Ok(bequest) => Some(bequest),
        Err(error) => {
            tracing::warn!(%error, "a worker has to make its ring itself");
            None
        }
    }
}

/// How large the ring of a worker with this configuration is.
fn ring_shape(config: &WorkerConfig) -> Shape {
    Shape::new(RING_ENTRIES, config.receive_buffers.count)
}

impl Core {
    /// What a worker of this generation is born with, and the group that it is born into. A green one starts
    /// at a lower priority: while it runs up, blue serves every client.
    pub fn birth(&mut self, number: u32, index: u32, id: WorkerId) -> (Birth, Option<Group>) {
        let Some(of) = self.generations.get(&number) else { return (Birth::default(), None) };
        let limits = of.config.confinement.limits.clone();
        let mut birth = Birth {
            user: of.user,
            priority: Some(self.starting_priority(of)),
            cpu: of.config.confinement.pin_cpus.then(|| cpu_of(index)).flatten(),
            open_files: (limits.open_files > 0).then_some(limits.open_files),
            data_bytes: None,
            group: None,
            ring: ring_for(&of.config),
        };
        let group = self.group_of(&limits, id);
        match &group {
            Some((_, entrance)) => birth.group = entrance.try_clone().ok(),
            None => birth.data_bytes = (limits.memory_bytes > 0).then_some(limits.memory_bytes),
        }
        (birth, group.map(|(group, _)| group))
    }

    fn starting_priority(&self, of: &Generation) -> Priority {
        let lower = self.settings.supervision.green_nice;
        let beside_blue = of.phase == Phase::Green && self.current.is_some();
        let normal = birth::own_nice();
        // Where priority cannot be given back, it is not taken.
        if beside_blue && lower > 0 && birth::may_set_nice(normal) {
            Priority { nice: normal + i32::from(lower) }
        } else {
            Priority { nice: normal }
        }
    }

    fn group_of(
        &mut self,
        limits: &WorkerLimits,
        id: WorkerId,
    ) -> Option<(Group, std::os::fd::OwnedFd)> {
        let needed = controllers(limits);
        if needed.is_empty() {
            return None;
        }
        let others: Vec<u32> = self.workers.values().map(|worker| worker.process.pid()).collect();
        let delegation = self.groups.delegation(&needed, &others)?;
        let made = delegation.group(&group_name(id), &values(limits)).and_then(|group| {
            let entrance = group.entrance().map_err(|error| error.to_string())?;
            Ok((group, entrance))
        });
        made.map_err(|why| tracing::error!(worker = id, "no control group: {why}")).ok()
    }

    /// How the limits of the serving generation are enforced.
    pub fn confined(&self) -> Confined {
        let Some(of) = self.serving() else { return Confined::default() };
        let confinement = &of.config.confinement;
        let limits = &confinement.limits;
        let grouped = of
            .workers()
            .any(|id| self.workers.get(&id).is_some_and(|worker| worker.group.is_some()));
        let means = |limited: bool, otherwise: &str| match (limited, grouped) {
            (false, _) => "none".to_owned(),
            (true, true) => "cgroup".to_owned(),
            (true, false) => otherwise.to_owned(),
        };
        Confined {
            memory: means(limits.memory_bytes > 0, "rlimit"),
            cpu: means(limits.cpu_percent > 0, "pacing"),
            open_files: if limits.open_files > 0 { "rlimit" } else { "none" }.to_owned(),
            no_cgroup_because: self.groups.why_not(),
            seccomp: confinement.seccomp.name().to_owned(),
            pinned_cpus: confinement.pin_cpus,
        }
    }

    /// Gives workers the priority of the supervisor: those that started with less have, from now on,
    /// clients to serve.
    pub fn restore_priority(&self, workers: impl IntoIterator<Item = WorkerId>) {
        let normal = Priority { nice: birth::own_nice() };
        for (id, worker) in workers.into_iter().filter_map(|id| Some((id, self.workers.get(&id)?)))
        {
            if let Err(error) = birth::set_priority(worker.process.pid(), normal) {
                tracing::warn!(worker = id, %error, "cannot restore its CPU priority");
            }
        }
    }
}

/// The name of a worker's group, by which a later supervisor finds it.
pub(in crate::supervisor) fn group_name(worker: WorkerId) -> String {
    format!("worker-{worker}")
}

/// One of the CPUs that this process may use, by turns.
fn cpu_of(index: u32) -> Option<usize> {
    let allowed = sys::process::allowed_cpus().ok()?;
    let at = (index as usize).checked_rem(allowed.len())?;
    Some(allowed[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_values_of_a_group() {
        let limits = WorkerLimits { memory_bytes: 1 << 20, cpu_percent: 150, open_files: 9 };
        assert_eq!(controllers(&limits), ["memory", "cpu"]);
        let values = values(&limits);
        assert!(values.contains(&("memory.max", "1048576".to_owned())));
        assert!(values.contains(&("cpu.max", "150000 100000".to_owned())));
        let only_files = WorkerLimits { open_files: 9, ..WorkerLimits::default() };
        assert!(controllers(&only_files).is_empty());
    }
}
