//! What a new supervisor makes of a reload that its predecessor had begun: arithmetic only.
//!
//! Must not know: processes, descriptors, maps.

use std::collections::BTreeSet;

use crate::supervisor::WorkerId;
use crate::supervisor::reload::{Mark, Resume};
use crate::supervisor::sockets::plan;

/// Whether new connections go to green.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flip {
    /// None has.
    No,
    /// Some may have, without eBPF and with only some workers told.
    Partly,
    /// All do.
    Yes,
}

/// The reload as it is found.
#[derive(Debug, Clone)]
pub struct Found {
    /// As written down.
    pub mark: Mark,
    /// Whether connections are handed off.
    pub migrate: bool,
    /// In steps, of which only some may have been done.
    pub rolling: bool,
    /// As the maps or the workers tell.
    pub flip: Flip,
    /// Workers at the flip, as written down.
    pub blue: Vec<WorkerId>,
    /// Workers at the flip, as written down.
    pub green: Vec<WorkerId>,
    /// Those that live and answer.
    pub alive: BTreeSet<WorkerId>,
    /// Ends of this reload's channels that workers report to be open.
    pub ends: BTreeSet<(WorkerId, u32)>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nobody depends on green: end it, and it is as if it had never been.
    Discard,
    /// Go on from there.
    Resume(Resume),
}

/// Before the flip a reload is dropped, after it it is finished where all is in place for that, and
/// undone where not; what was decided stays so.
pub fn decide(found: &Found) -> Decision {
    let alive = |side: &[WorkerId]| side.iter().any(|worker| found.alive.contains(worker));
    let (blue_alive, green_alive) = (alive(&found.blue), alive(&found.green));
    match found.mark {
        Mark::Preparing => Decision::Discard,
        Mark::RollingBack => Decision::Resume(back(found)),
        Mark::Committed => Decision::Resume(Resume::Committed),
        Mark::Flipped => match found.flip {
            Flip::No => Decision::Discard,
            // Whatever is left of the service is in green.
            Flip::Partly | Flip::Yes if !blue_alive && green_alive => {
                Decision::Resume(Resume::Committed)
            }
            Flip::Partly => Decision::Resume(back(found)),
            // Which steps have been done is not known.
            Flip::Yes if found.rolling => Decision::Resume(back(found)),
            Flip::Yes => Decision::Resume(after_flip(found)),
        },
    }
}

fn back(found: &Found) -> Resume {
    Resume::RollingBack { channels: !found.ends.is_empty() }
}

fn after_flip(found: &Found) -> Resume {
    if found.green.iter().any(|worker| !found.alive.contains(worker)) {
        return back(found);
    }
    if !found.migrate {
        return Resume::Flipped;
    }
    // Channels of a dead blue worker carry nothing any more.
    let expected: BTreeSet<(WorkerId, u32)> = plan::channels(&found.blue, &found.green)
        .iter()
        .filter(|planned| found.alive.contains(&planned.blue))
        .flat_map(|planned| [(planned.blue, planned.channel), (planned.green, planned.channel)])
        .collect();
    if expected.is_subset(&found.ends) {
        Resume::HandingOff
    } else if expected.is_disjoint(&found.ends) {
        Resume::Flipped
    } else {
        // An end without its peer: its descriptors died with the predecessor.
        back(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found() -> Found {
        Found {
            mark: Mark::Flipped,
            migrate: true,
            rolling: false,
            flip: Flip::Yes,
            blue: vec![1, 2],
            green: vec![3],
            alive: BTreeSet::from([1, 2, 3]),
            ends: BTreeSet::new(),
        }
    }

    #[test]
    fn nothing_depends_on_green_before_the_flip() {
        let decision = |change: fn(&mut Found)| {
            let mut found = found();
            change(&mut found);
            decide(&found)
        };
        assert_eq!(decision(|f| f.mark = Mark::Preparing), Decision::Discard);
        assert_eq!(decision(|f| f.flip = Flip::No), Decision::Discard);
    }

    #[test]
    fn after_the_flip_the_channels_decide() {
        let mut found = found();
        assert_eq!(decide(&found), Decision::Resume(Resume::Flipped));
        found.ends = BTreeSet::from([(1, 0), (3, 0), (2, 1)]);
        let undone = Decision::Resume(Resume::RollingBack { channels: true });
        assert_eq!(decide(&found), undone);
        found.ends.insert((3, 1));
        assert_eq!(decide(&found), Decision::Resume(Resume::HandingOff));
        let rolling = Found { rolling: true, ..found.clone() };
        assert_eq!(decide(&rolling), undone, "which steps are done is not known");
        found.alive.remove(&2);
        found.ends = BTreeSet::from([(1, 0), (3, 0), (3, 1)]);
        assert_eq!(decide(&found), Decision::Resume(Resume::HandingOff), "blue 2 is dead");
        found.migrate = false;
        assert_eq!(decide(&found), Decision::Resume(Resume::Flipped));
    }

    #[test]
    fn a_missing_green_worker_means_back() {
        let mut found = found();
        found.alive.remove(&3);
        let undone = Decision::Resume(Resume::RollingBack { channels: false });
        assert_eq!(decide(&found), undone);
        found.green.push(4);
        found.alive = BTreeSet::from([4]);
        assert_eq!(decide(&found), Decision::Resume(Resume::Committed), "blue is gone altogether");
    }

    proptest! {
        #[test]
        fn what_was_written_down_as_decided_stays_so(
            alive in prop::collection::btree_set(1u32..5, 0..4),
            flip in prop_oneof![Just(Flip::No), Just(Flip::Partly), Just(Flip::Yes)],
        ) {
            for (mark, resume) in
                [
                    (Mark::Committed, Resume::Committed),
                    (Mark::RollingBack, Resume::RollingBack { channels: false }),
                ]
            {
                let found = Found { mark, flip, alive: alive.clone(), ..found() };
                prop_assert_eq!(decide(&found), Decision::Resume(resume));
            }
        }
    }
}
