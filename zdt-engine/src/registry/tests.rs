//! The registry against a model, and packs against everybody.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq)]
struct Fake {
    text: Vec<u8>,
    busy: bool,
}

impl Connection for Fake {
    fn protocol(&self) -> &str {
        "fake"
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        if self.busy {
            return Err(Busy("asked-to"));
        }
        bytes.extend_from_slice(&self.text);
        Ok(())
    }
}

fn fake(id: u64) -> Fake {
    Fake { text: vec![b'x'; (id % 100) as usize], busy: false }
}

#[derive(Debug, Clone)]
enum Step {
    Register(u64, u32),
    Unregister(u64),
    Mark(u64, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..20, 0u32..4).prop_map(|(id, worker)| Step::Register(id, worker)),
        (0u64..20).prop_map(Step::Unregister),
        (0u64..20, 0u8..3).prop_map(|(id, mark)| Step::Mark(id, mark)),
    ]
}

proptest! {
    #[test]
    fn the_registry_is_a_map_with_marks(steps in proptest::collection::vec(step(), 0..200)) {
        let mut registry = ConnectionRegistry::new();
        let mut model: BTreeMap<u64, (u32, u8)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Register(id, worker) => {
                    let earlier = registry.register(id, worker, fake(id));
                    prop_assert_eq!(earlier.is_some(), model.insert(id, (worker, 1)).is_some());
                }
                Step::Unregister(id) => {
                    prop_assert_eq!(registry.unregister(id).is_some(), model.remove(&id).is_some());
                }
                Step::Mark(id, mark) => {
                    let known = match mark {
                        0 => registry.mark_active(id),
                        1 => registry.mark_idle(id),
                        _ => registry.mark_closing(id),
                    };
                    prop_assert_eq!(known, model.contains_key(&id));
                    model.entry(id).and_modify(|entry| entry.1 = mark);
                }
            }
            let count = |mark: u8| model.values().filter(|entry| entry.1 == mark).count();
            prop_assert_eq!(registry.active_count(), count(0));
            prop_assert_eq!(registry.total_count(), model.len());
            let stats = registry.stats();
            prop_assert_eq!((stats.idle, stats.closing), (count(1), count(2)));
            // The lists hold whom they should, whole and once.
            let all = registry.serialize_all().states;
            prop_assert_eq!(all.len(), count(0) + count(1));
            prop_assert!(all.is_sorted_by_key(|state| !state.is_active), "active ones first");
            for state in &all {
                let (worker, mark) = model[&state.id];
                prop_assert_eq!((state.worker, state.is_active), (worker, mark == 0));
                prop_assert_eq!(registry.is_active(state.id), mark == 0);
            }
            let of_two = registry.serialize_worker(2).states.len();
            prop_assert_eq!(of_two, model.values().filter(|one| one.0 == 2 && one.1 != 2).count());
        }
    }

    #[test]
    fn packs_come_back(states in proptest::collection::vec(
        (any::<u64>(), any::<u32>(), any::<bool>(), "[a-z0-9]{1,20}", proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(id, worker, is_active, protocol, bytes)| ConnectionState { id, worker, is_active, protocol, bytes }),
        0..20,
    )) {
        prop_assert_eq!(decompress_states(&compress_states(&states)), Ok(states));
    }

    #[test]
    fn damaged_packs_are_refused(at in 0usize..200, with in 1u8..) {
        let states: Vec<_> = (0u32..5)
            .map(|id| ConnectionState {
                id: id.into(), worker: id, is_active: true, protocol: "p".into(), bytes: (0..40).collect(),
            })
            .collect();
        let mut pack = compress_states(&states);
        let at = at % pack.len();
        pack[at] ^= with;
        // Ids and workers have no checksum of their own: what comes back is refused, or as long.
        if let Ok(other) = decompress_states(&pack) {
            prop_assert!(other.iter().all(|state| state.bytes.len() <= 40));
        }
        let _ = decompress_states(&pack[..at]);
    }
}

#[test]
fn a_pack_that_grows_without_end_is_bounded() {
    let mut pack = b"ZDTR\x01".to_vec();
    let plain = vec![0u8; 4 << 20];
    pack.extend(zstd::bulk::compress(&plain, 1).unwrap());
    assert!(matches!(decompress_states(&pack), Err(StatesError::Damaged { index: 0, .. })));
    assert_eq!(decompress_states(b"ZDTR\x02"), Err(StatesError::NotAPack));
    assert_eq!(decompress_states(b""), Err(StatesError::NotAPack));
}

#[test]
fn what_cannot_move_stays_and_says_why() {
    let mut registry = ConnectionRegistry::new();
    for id in 0..6 {
        registry.register(id, 1, fake(id));
    }
    registry.mark_active(4);
    registry.mark_closing(5);
    registry.get_mut(0).unwrap().busy = true;
    let saved = registry.serialize_all();
    let ids: Vec<u64> = saved.states.iter().map(|state| state.id).collect();
    assert_eq!((ids, &saved.busy), (vec![4, 1, 2, 3], &vec![(0, "asked-to")]));
    registry.unregister(3);
    let moved = registry.migrate(&saved.states, &[7, 8], |worker, state| {
        if state.id == 1 { Err(format!("worker {worker} is full")) } else { Ok(()) }
    });
    assert_eq!(moved.migrated, [(4, 7), (2, 8)]);
    assert_eq!(moved.failed, [(1, "worker 8 is full".to_owned()), (3, "it has ended".to_owned())]);
    assert_eq!((registry.worker_of(4), registry.worker_of(1)), (Some(7), Some(1)));
    assert_eq!(registry.migrate(&saved.states, &[], |_, _| Ok(())).migrated, []);
    let all = registry.migrate_worker(1, 9, |_, _| Ok(()));
    assert_eq!(all.migrated, [(1, 9)]);
    assert_eq!(all.failed, [(0, "asked-to".to_owned())]);
    let twice = [saved.states[0].clone(), saved.states[0].clone(), ConnectionState::default()];
    let invalid = registry.validate_states(&twice);
    assert_eq!(invalid.iter().map(|one| one.index).collect::<Vec<_>>(), [1, 2]);
}
