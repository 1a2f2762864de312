//! Tests of the ownership words: a model, loom, and garbage.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

#[derive(Clone)]
struct TestWords(Rc<RefCell<Vec<u64>>>);

impl Words for TestWords {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }
    fn load(&self, index: usize) -> u64 {
        self.0.borrow()[index]
    }
    fn swap_if(&self, index: usize, old: u64, new: u64) -> bool {
        let word = &mut self.0.borrow_mut()[index];
        let won = *word == old;
        if won {
            *word = new;
        }
        won
    }
}

const ARROWS: [(&str, State, State); 6] = [
    ("adopt", State::Offered, State::Adopted),
    ("start", State::Adopted, State::Started),
    ("refuse", State::Offered, State::Refused),
    ("reclaim_offered", State::Offered, State::Reclaimed),
    ("reclaim_adopted_from_dead", State::Adopted, State::Reclaimed),
    ("release", State::Free, State::Free),
];

fn go<W: Words>(table: &Table<W>, arrow: usize, sequence: u64) -> bool {
    match arrow {
        0 => table.adopt(sequence),
        1 => table.start(sequence),
        2 => table.refuse(sequence),
        3 => table.reclaim_offered(sequence),
        4 => table.reclaim_adopted_from_dead(sequence),
        _ => table.release(sequence),
    }
}

proptest! {
    #[test]
    fn only_the_arrows_exist(steps in prop::collection::vec((0usize..8, 0u64..12), 1..300)) {
        let words = TestWords(Rc::new(RefCell::new(vec![0; 4])));
        let table = Table::new(words.clone());
        // What each place holds, and the latest sequence that it was used for.
        let mut model: HashMap<u64, (u64, State)> = HashMap::new();
        for (arrow, sequence) in steps {
            let place = sequence % 4;
            let now = model.get(&place).copied();
            if arrow >= 6 {
                let expected = match now {
                    None => sequence > 0,
                    Some((latest, state)) => state == State::Free && latest < sequence,
                };
                prop_assert_eq!(table.offer(sequence), expected, "offer");
                if expected {
                    model.insert(place, (sequence, State::Offered));
                }
                continue;
            }
            let (name, from, to) = ARROWS[arrow];
            let expected = now.is_some_and(|(latest, state)| {
                latest == sequence
                    && match name {
                        "release" => matches!(
                            state,
                            State::Started | State::Refused | State::Reclaimed
                        ),
                        _ => state == from,
                    }
            });
            prop_assert_eq!(go(&table, arrow, sequence), expected, "{}", name);
            if expected {
                model.insert(place, (sequence, to));
            }
            if let Some((latest, state)) = model.get(&place) {
                prop_assert_eq!(table.state(*latest), Some(*state));
            }
        }
    }

    #[test]
    fn garbage_makes_no_owner(word: u64, sequence in 0u64..1 << 57, arrow in 0usize..7) {
        let words = TestWords(Rc::new(RefCell::new(vec![word; 3])));
        let table = Table::new(words.clone());
        let state = table.state(sequence);
        if word >> 8 != sequence || word & 0xff > 5 {
            prop_assert_eq!(state, None);
        }
        let won = if arrow == 6 { table.offer(sequence) } else { go(&table, arrow, sequence) };
        if !won {
            prop_assert!(words.0.borrow().iter().all(|now| *now == word), "a loser writes nothing");
        } else {
            prop_assert!(sequence <= MAX_SEQUENCE && word & 0xff <= 5);
            prop_assert!(arrow == 6 || word >> 8 == sequence);
        }
    }
}

#[test]
fn a_sequence_is_never_offered_twice() {
    let table = Table::new(TestWords(Rc::new(RefCell::new(vec![0; 2]))));
    assert!(!table.offer(0), "zero is what an unused place has");
    assert!(table.offer(2) && table.refuse(2) && table.release(2));
    assert!(!table.offer(0) && !table.offer(2));
    assert!(!table.adopt(2), "an answer after the release");
    assert!(table.offer(MAX_SEQUENCE - 1));
    assert!(!table.offer(MAX_SEQUENCE + 1) && !table.adopt(MAX_SEQUENCE + 1));
}

mod loom_model {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::super::*;

    #[derive(Clone)]
    struct LoomWords(Arc<Vec<AtomicU64>>);

    impl Words for LoomWords {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn load(&self, index: usize) -> u64 {
            self.0[index].load(Ordering::Acquire)
        }
        fn swap_if(&self, index: usize, old: u64, new: u64) -> bool {
            self.0[index].compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
        }
    }

    fn tables() -> (Table<LoomWords>, Table<LoomWords>) {
        let words = LoomWords(Arc::new(vec![AtomicU64::new(0)]));
        (Table::new(words.clone()), Table::new(words))
    }

    /// Blue's answer is overdue just when green adopts: exactly one has the connection.
    #[test]
    fn one_owner() {
        loom::model(|| {
            let (blue, green) = tables();
            let owners = Arc::new(AtomicUsize::new(0));
            assert!(blue.offer(7));
            let green_owners = owners.clone();
            let late = loom::thread::spawn(move || {
                if green.adopt(7) {
                    assert!(green.start(7), "nobody takes from a living green what it adopted");
                    green_owners.fetch_add(1, Ordering::Relaxed);
                }
            });
            if blue.reclaim_offered(7) {
                owners.fetch_add(1, Ordering::Relaxed);
            }
            late.join().unwrap();
            assert_eq!(owners.load(Ordering::Relaxed), 1);
            assert!(blue.release(7));
        });
    }

    /// A green that wakes up late must not adopt the next connection in the same place in the name
    /// of the one that it was offered.
    #[test]
    fn a_late_answer_concerns_nobody_else() {
        loom::model(|| {
            let (blue, green) = tables();
            assert!(blue.offer(1));
            let late = loom::thread::spawn(move || green.adopt(1));
            let reclaimed = blue.reclaim_offered(1);
            if reclaimed {
                assert!(blue.release(1) && blue.offer(2));
            }
            let adopted = late.join().unwrap();
            assert!(adopted != reclaimed);
            if reclaimed {
                assert_eq!(blue.state(2), Some(State::Offered));
            } else {
                assert_eq!(blue.state(1), Some(State::Adopted));
            }
        });
    }

    /// Green's death is told by its pidfd; whatever it had not started is blue's.
    #[test]
    fn the_dead_keep_only_what_they_started() {
        loom::model(|| {
            let (blue, green) = tables();
            assert!(blue.offer(3));
            let dying = loom::thread::spawn(move || {
                let _ = green.adopt(3) && green.start(3);
            });
            let early = blue.reclaim_offered(3);
            dying.join().unwrap();
            let back = early || blue.reclaim_offered(3) || blue.reclaim_adopted_from_dead(3);
            assert!(back != (blue.state(3) == Some(State::Started)));
        });
    }
}
