//! Who is joined to whom, and who accepts from what: arithmetic only.
//!
//! Must not know: processes, descriptors, time.

use std::ops::Range;

use crate::supervisor::WorkerId;

/// The places of both generations that one step of a reload replaces, and is replaced by. A
/// blue-green reload is one step, a rolling one has several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Outgoing places; may be empty where green has more.
    pub blue: Range<u32>,
    /// Incoming places; never empty.
    pub green: Range<u32>,
    /// Nothing is left of blue after it.
    pub is_last: bool,
}

impl Batch {
    /// Everything at once.
    pub fn all(green: u32) -> Batch {
        // Blue places are counted by nobody: all that there are.
        Batch { blue: 0..u32::MAX, green: 0..green, is_last: true }
    }
}

/// Steps of at most `size` green places each, and the blue places that go with them: every place of
/// either side is in exactly one step.
pub fn batches(blue: u32, green: u32, size: u32) -> Vec<Batch> {
    let size = size.clamp(1, green.max(1));
    let count = green.div_ceil(size).max(1);
    if count == 1 {
        return vec![Batch::all(green)];
    }
    let share = |k: u32| {
        let at = u64::from(blue) * u64::from(k) / u64::from(count);
        u32::try_from(at).unwrap_or(blue)
    };
    (0..count)
        .map(|k| {
            let is_last = k + 1 == count;
            Batch {
                blue: share(k)..if is_last { u32::MAX } else { share(k + 1) },
                green: k * size..green.min((k + 1) * size),
                is_last,
            }
        })
        .collect()
}

/// One channel of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelPlan {
    /// Its number.
    pub channel: u32,
    /// The outgoing end.
    pub blue: WorkerId,
    /// The incoming end.
    pub green: WorkerId,
}

/// max(N, M) channels; channel k joins blue k mod N and green k mod M. None if a side is empty.
pub fn channels(blue: &[WorkerId], green: &[WorkerId]) -> Vec<ChannelPlan> {
    channels_from(0, blue, green)
}

/// The same with numbers from `first` on, for a later step of the same reload.
pub fn channels_from(first: u32, blue: &[WorkerId], green: &[WorkerId]) -> Vec<ChannelPlan> {
    if blue.is_empty() || green.is_empty() {
        return Vec::new();
    }
    (first..)
        .zip(0..blue.len().max(green.len()))
        .map(|(channel, k)| ChannelPlan {
            channel,
            blue: blue[k % blue.len()],
            green: green[k % green.len()],
        })
        .collect()
}

/// Which of `sockets` shared listening sockets each of `workers` workers accepts from: every socket
/// has at least one worker and every worker at least one socket.
pub fn shared_sockets(sockets: usize, workers: usize) -> Vec<Vec<usize>> {
    let mut share = vec![Vec::new(); workers];
    if sockets == 0 || workers == 0 {
        return share;
    }
    for k in 0..sockets.max(workers) {
        share[k % workers].push(k % sockets);
    }
    share
}

/// Deals `items` out to `workers` workers in turn.
pub fn deal<T>(items: impl IntoIterator<Item = T>, workers: usize) -> Vec<Vec<T>> {
    let mut share: Vec<Vec<T>> = (0..workers).map(|_| Vec::new()).collect();
    if workers > 0 {
        for (k, item) in items.into_iter().enumerate() {
            share[k % workers].push(item);
        }
    }
    share
}

/// A bank of slots that no living generation uses: `preferred` if it is free.
pub fn free_bank(preferred: u32, banks: u32, used: &[u32]) -> Option<u32> {
    (0..banks).map(|offset| (preferred + offset) % banks).find(|bank| !used.contains(bank))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_blue_and_three_green_share_three_channels() {
        let plan = channels(&[10, 11], &[20, 21, 22]);
        let pairs: Vec<_> = plan.iter().map(|c| (c.channel, c.blue, c.green)).collect();
        assert_eq!(pairs, [(0, 10, 20), (1, 11, 21), (2, 10, 22)]);
        assert!(channels(&[], &[1]).is_empty());
    }

    #[test]
    fn banks_are_not_shared() {
        assert_eq!(free_bank(2, 4, &[1]), Some(2));
        assert_eq!(free_bank(1, 4, &[1, 2]), Some(3));
        assert_eq!(free_bank(3, 4, &[3]), Some(0));
        assert_eq!(free_bank(0, 4, &[0, 1, 2, 3]), None);
    }

    #[test]
    fn steps_take_the_places_in_turn() {
        let steps = |blue, green, size| -> Vec<_> {
            let steps = batches(blue, green, size);
            steps.into_iter().map(|step| (step.blue, step.green, step.is_last)).collect()
        };
        assert_eq!(steps(2, 2, 1), [(0..1, 0..1, false), (1..u32::MAX, 1..2, true)]);
        assert_eq!(steps(1, 3, 2), [(0..0, 0..2, false), (0..u32::MAX, 2..3, true)]);
        assert_eq!(steps(4, 2, 9), [(0..u32::MAX, 0..2, true)]);
    }

    proptest! {
        #[test]
        fn every_place_is_in_one_step(blues in 0u32..40, greens in 1u32..40, size in 0u32..50) {
            let steps = batches(blues, greens, size);
            for (side, places) in [
                (steps.iter().map(|step| step.blue.clone()).collect::<Vec<_>>(), blues),
                (steps.iter().map(|step| step.green.clone()).collect(), greens),
            ] {
                for place in 0..places {
                    prop_assert_eq!(side.iter().filter(|step| step.contains(&place)).count(), 1);
                }
            }
            prop_assert!(steps.iter().all(|step| (1..=size.max(1)).contains(&(step.green.len() as u32))));
            prop_assert_eq!(steps.iter().filter(|step| step.is_last).count(), 1);
            prop_assert!(steps.last().unwrap().is_last);
        }

        #[test]
        fn every_worker_has_a_channel(blues in 1u32..40, greens in 1u32..40) {
            let blue: Vec<u32> = (0..blues).collect();
            let green: Vec<u32> = (100..100 + greens).collect();
            let plan = channels(&blue, &green);
            prop_assert_eq!(plan.len(), blue.len().max(green.len()));
            let seen: BTreeSet<_> = plan.iter().flat_map(|c| [c.blue, c.green]).collect();
            prop_assert_eq!(seen.len(), blue.len() + green.len());
        }

        #[test]
        fn no_socket_and_no_worker_is_left_over(sockets in 1usize..40, workers in 1usize..40) {
            let share = shared_sockets(sockets, workers);
            prop_assert!(share.iter().all(|own| !own.is_empty()));
            let seen: BTreeSet<_> = share.iter().flatten().collect();
            prop_assert_eq!(seen.len(), sockets);
            // Two workers share a socket only where there are fewer sockets than workers.
            let dealt = share.iter().map(Vec::len).sum::<usize>();
            prop_assert_eq!(dealt, sockets.max(workers));
        }

        #[test]
        fn dealing_loses_nothing(items in 0usize..100, workers in 1usize..10) {
            let share = deal(0..items, workers);
            let mut all: Vec<_> = share.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..items).collect::<Vec<_>>());
        }
    }
}
