//! The capabilities that a supervisor keeps; the others it gives up before it does anything else.
//!
//! Must not know: what each is used for, beyond the words here.

use caps::{CapSet, Capability, CapsHashSet};

/// What is kept, where it is there at all, and what for.
const KEPT: &[(Capability, &str)] = &[
    (Capability::CAP_BPF, "the steering program and its maps"),
    (Capability::CAP_PERFMON, "the verifier's leave for them"),
    (Capability::CAP_NET_ADMIN, "attaching them to sockets"),
    (Capability::CAP_SYS_ADMIN, "a bpffs of its own; the same on older kernels"),
    (Capability::CAP_NET_BIND_SERVICE, "ports below 1024"),
    (Capability::CAP_SETUID, "workers become another user"),
    (Capability::CAP_SETGID, "and its group"),
    (Capability::CAP_SETPCAP, "and lose their bounding set"),
    (Capability::CAP_KILL, "signals to workers, who are somebody else"),
    (Capability::CAP_SYS_NICE, "their priority and CPU"),
    (Capability::CAP_SYS_PTRACE, "which program a worker runs, when taking it over"),
    (Capability::CAP_IPC_LOCK, "workers' rings that do not count as locked memory"),
    (Capability::CAP_SYS_RESOURCE, "limits above the inherited ones"),
    (Capability::CAP_DAC_OVERRIDE, "control groups, certificates, a log of another owner"),
    (Capability::CAP_DAC_READ_SEARCH, "the same"),
    (Capability::CAP_CHOWN, "the directory for held bodies, which is the workers'"),
];

/// Gives up all others, for this thread and those that it will start, and for whatever it executes.
pub(super) fn give_up_others() {
    let kept: CapsHashSet = KEPT.iter().map(|(capability, _)| *capability).collect();
    if let Err(error) = reduce_to(&kept) {
        // As it was before; nothing depends on it.
        tracing::debug!(%error, "cannot give up capabilities");
    }
}

fn reduce_to(kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    // The bounding set while there is still the right to.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)?.difference(kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let have = caps::read(None, set)?;
        let reduced: CapsHashSet = have.intersection(kept).copied().collect();
        if reduced != have {
            caps::set(None, set, &reduced)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_left() {
        // They belong to the thread.
        std::thread::spawn(|| {
            give_up_others();
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
                let left = caps::read(None, set).unwrap();
                assert!(
                    left.iter().all(|one| KEPT.iter().any(|(kept, _)| kept == one)),
                    "{left:?}"
                );
            }
        })
        .join()
        .unwrap();
    }
}
