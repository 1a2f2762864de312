//! The queue against a model that is too simple to be wrong, and the cases that a model hides.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn settings(overflow: Overflow) -> Settings {
    Settings {
        max_bytes: 8 << 10,
        max_requests_per_buffer: 40,
        max_age_ms: 560,
        overflow,
        ..Settings::default()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Hold { upstream: Option<u64>, level: u64, bytes: usize, seed: u8 },
    Adopt { upstream: Option<u64>, level: u64, bytes: usize, age_ms: u64 },
    Take(u8),
    Cancel(prop::sample::Index),
    Extract(prop::sample::Index),
    Pass(u64),
    Expire,
    Flush,
    FlushBuffer(u8),
    Switch { upstream: u8, on: bool },
}

fn scope(number: u8) -> Scope {
    match number % 4 {
        0 => Scope::Global,
        3 => Scope::All,
        upstream => Scope::Upstream(u64::from(upstream)),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let upstream = || prop::option::of(1u64..4);
    prop_oneof![
        8 => (upstream(), 0u64..9, 0usize..900, any::<u8>()).prop_map(
            |(upstream, level, bytes, seed)| Step::Hold { upstream, level, bytes, seed }),
        1 => (upstream(), 0u64..9, 0usize..900, 0u64..700).prop_map(
            |(upstream, level, bytes, age_ms)| Step::Adopt { upstream, level, bytes, age_ms }),
        3 => any::<u8>().prop_map(Step::Take),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => any::<prop::sample::Index>().prop_map(Step::Extract),
        3 => (0u64..120).prop_map(Step::Pass),
        2 => Just(Step::Expire),
        1 => any::<u8>().prop_map(Step::FlushBuffer),
        1 => (0u8..4, any::<bool>()).prop_map(|(upstream, on)| Step::Switch { upstream, on }),
        1 => prop::bool::weighted(0.1).prop_map(|now| if now { Step::Flush } else { Step::Expire }),
    ]
}

#[derive(Debug, Clone)]
struct Known {
    id: RequestId,
    buffer: Option<u64>,
    level: u64,
    since_ms: u64,
    bytes: Vec<u8>,
}

/// All requests by the order of their arrival.
#[derive(Default)]
struct Model {
    requests: BTreeMap<u64, Known>,
    open: BTreeMap<Option<u64>, bool>,
    created: Vec<u64>,
}

impl Model {
    fn is_in(buffer: Option<u64>, scope: Scope) -> bool {
        match scope {
            Scope::All => true,
            Scope::Global => buffer.is_none(),
            Scope::Upstream(upstream) => buffer == Some(upstream),
        }
    }

    fn first(&self, scope: Scope) -> Option<u64> {
        self.requests
            .iter()
            .filter(|(_, known)| Self::is_in(known.buffer, scope))
            .min_by_key(|(sequence, known)| (std::cmp::Reverse(known.level), **sequence))
            .map(|(sequence, _)| *sequence)
    }

    fn memory(&self) -> usize {
        self.requests.values().map(|known| footprint(known.bytes.len()) + NODE_BYTES).sum()
    }

    fn remove(&mut self, id: RequestId) -> Known {
        self.requests.remove(&id.sequence).expect("the queue gave out what the model does not have")
    }
}

fn run(overflow: Overflow, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let settings = settings(overflow);
    let mut queue = RequestQueue::new(settings.clone());
    let mut model = Model::default();
    let mut ids: Vec<(RequestId, bool)> = Vec::new();
    let mut now_ms = 10_000;
    queue.start_buffering();
    model.open.insert(None, true);
    for step in steps {
        match step {
            Step::Hold { upstream, level, bytes, seed } => {
                let bytes =
                    (0..bytes).map(|at| seed.wrapping_add((at / 7) as u8)).collect::<Vec<_>>();
                let (head, tail) = bytes.split_at(bytes.len() / 3);
                let own = upstream.filter(|_| model.open.get(&upstream) == Some(&true));
                let is_open = own.is_some() || model.open[&None];
                let priority = Priority::new(level);
                let request = Request {
                    parts: [head, tail],
                    upstream,
                    priority,
                    tag: 7,
                    may_have_been_sent: false,
                };
                match queue.hold(now_ms, request) {
                    Ok(id) => {
                        prop_assert!(is_open);
                        while let Some(displaced) = queue.pop_displaced() {
                            prop_assert_eq!(overflow, Overflow::Oldest);
                            let gone = model.remove(displaced.id);
                            // The oldest of all, or of its buffer, within a slot's width.
                            let oldest = model
                                .requests
                                .values()
                                .filter(|other| other.buffer == gone.buffer)
                                .map(|other| other.since_ms)
                                .min();
                            prop_assert!(oldest.is_none_or(
                                |oldest| gone.since_ms < oldest + 10 + settings.max_age_ms
                            ));
                        }
                        let known =
                            Known { id, buffer: own, level: level.min(7), since_ms: now_ms, bytes };
                        model.requests.insert(id.sequence, known);
                        ids.push((id, true));
                        model.created.push(id.sequence);
                    }
                    Err(HoldError::NotBuffering) => prop_assert!(!is_open),
                    Err(HoldError::TooLarge { .. }) => prop_assert!(bytes.len() > 7_000),
                    Err(HoldError::Full) => {
                        prop_assert!(overflow != Overflow::Oldest);
                        let count =
                            model.requests.values().filter(|known| known.buffer == own).count();
                        let memory = model.memory() + footprint(bytes.len()) + NODE_BYTES;
                        prop_assert!(
                            count >= settings.max_requests_per_buffer
                                || memory > settings.max_bytes
                        );
                    }
                }
            }
            Step::Adopt { upstream, level, bytes, age_ms } => {
                let bytes = vec![b'a'; bytes];
                let priority = Priority::new(level);
                let id = queue.adopt(
                    now_ms,
                    Request { upstream, priority, ..Request::new(&bytes) },
                    age_ms,
                );
                model.open.entry(upstream).or_insert(false);
                let known = Known {
                    id,
                    buffer: upstream,
                    level: level.min(7),
                    since_ms: now_ms - age_ms,
                    bytes,
                };
                model.requests.insert(id.sequence, known);
                ids.push((id, true));
            }
            Step::Take(number) => {
                let scope = scope(number);
                let mut bytes = b"before".to_vec();
                let held = queue.take(now_ms, scope, &mut bytes);
                prop_assert_eq!(held.map(|held| held.id.sequence), model.first(scope));
                if let Some(held) = held {
                    let known = model.remove(held.id);
                    prop_assert_eq!(&bytes[6..], &known.bytes[..]);
                    prop_assert_eq!(held.age_ms, now_ms - known.since_ms);
                    prop_assert_eq!((held.upstream, held.bytes), (known.buffer, known.bytes.len()));
                }
            }
            Step::Cancel(which) if !ids.is_empty() => {
                let (id, _) = ids[which.index(ids.len())];
                prop_assert_eq!(queue.cancel(id), model.requests.remove(&id.sequence).is_some());
            }
            Step::Extract(which) if !ids.is_empty() => {
                let (id, _) = ids[which.index(ids.len())];
                let mut bytes = Vec::new();
                let held = queue.extract(now_ms, id, &mut bytes);
                let known = model.requests.remove(&id.sequence);
                prop_assert_eq!(held.is_some(), known.is_some());
                if let Some(known) = known {
                    prop_assert_eq!(bytes, known.bytes);
                }
            }
            Step::Cancel(_) | Step::Extract(_) => {}
            Step::Pass(ms) => now_ms += ms,
            Step::Expire => {
                let mut listed: Vec<u64> =
                    queue.expired(now_ms).iter().map(|held| held.id.sequence).collect();
                let mut taken = Vec::new();
                while let Some(held) = queue.pop_expired(now_ms) {
                    let known = model.remove(held.id);
                    let age_ms = now_ms - known.since_ms;
                    prop_assert!(age_ms + 10 >= settings.max_age_ms, "expired after {} ms", age_ms);
                    taken.push(held.id.sequence);
                }
                listed.sort_unstable();
                taken.sort_unstable();
                prop_assert_eq!(listed, taken);
                for known in model.requests.values() {
                    prop_assert!(
                        now_ms - known.since_ms < settings.max_age_ms,
                        "held for too long"
                    );
                }
            }
            Step::Flush => {
                prop_assert_eq!(queue.flush(), model.requests.len());
                model.requests.clear();
            }
            Step::FlushBuffer(number) => {
                let scope = scope(number);
                for (held, bytes) in queue.flush_buffer(now_ms, scope) {
                    prop_assert_eq!(model.first(scope), Some(held.id.sequence));
                    prop_assert_eq!(model.remove(held.id).bytes, bytes);
                }
                prop_assert_eq!(model.first(scope), None);
            }
            Step::Switch { upstream, on } => {
                let upstream = Some(u64::from(upstream)).filter(|&number| number > 0);
                match (upstream, on) {
                    (None, true) => queue.start_buffering(),
                    (None, false) => queue.stop_buffering(),
                    (Some(upstream), true) => {
                        prop_assert!(queue.start_upstream_buffering(upstream))
                    }
                    (Some(upstream), false) => queue.stop_upstream_buffering(upstream),
                }
                if on || model.open.contains_key(&upstream) {
                    model.open.insert(upstream, on);
                }
                prop_assert_eq!(queue.is_buffering(upstream), on || model.open[&None]);
            }
        }
        prop_assert_eq!(queue.len(), model.requests.len());
        let listed: Vec<u64> =
            queue.requests(now_ms, Scope::All).map(|held| held.id.sequence).collect();
        let mut expected: Vec<&Known> = model.requests.values().collect();
        expected.sort_by_key(|known| (std::cmp::Reverse(known.level), known.id.sequence));
        prop_assert_eq!(listed, expected.iter().map(|known| known.id.sequence).collect::<Vec<_>>());
        for number in 0..4 {
            let count = model
                .requests
                .values()
                .filter(|known| Model::is_in(known.buffer, scope(number)))
                .count();
            prop_assert_eq!(queue.count(scope(number)), count);
        }
        let stats = queue.stats(now_ms);
        prop_assert_eq!(stats.total.requests, model.requests.len() as u64);
        prop_assert_eq!(stats.by_priority.iter().sum::<u64>(), model.requests.len() as u64);
        if overflow != Overflow::Compress {
            prop_assert_eq!(queue.memory(), model.memory());
            let bytes: usize = model.requests.values().map(|known| known.bytes.len()).sum();
            prop_assert_eq!(stats.total.size_bytes, bytes as u64);
        }
    }
    // All that is left can be had, intact.
    let mut last = Vec::new();
    queue.replay(now_ms, Scope::All, |held, bytes| {
        last.push((held.id, bytes.to_vec()));
        true
    });
    for (id, bytes) in last {
        prop_assert_eq!(model.remove(id).bytes, bytes);
    }
    prop_assert!(queue.is_empty() && model.requests.is_empty());
    prop_assert_eq!(queue.memory(), 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn it_is_the_model_when_it_rejects(steps in prop::collection::vec(step(), 1..120)) {
        run(Overflow::Reject, steps)?;
    }

    #[test]
    fn it_is_the_model_when_it_displaces(steps in prop::collection::vec(step(), 1..120)) {
        run(Overflow::Oldest, steps)?;
    }

    #[test]
    fn it_is_the_model_when_it_compresses(steps in prop::collection::vec(step(), 1..120)) {
        run(Overflow::Compress, steps)?;
    }
}

fn fill(queue: &mut RequestQueue, bytes: &[u8]) -> u64 {
    queue.start_buffering();
    let mut count = 0;
    while queue.hold(0, Request::new(bytes)).is_ok() {
        count += 1;
        assert!(count < 1_000_000, "no bound");
    }
    count
}

#[test]
fn compression_makes_room_that_rejection_does_not_have() {
    let request =
        b"GET /api/items?page=1&page_size=100 HTTP/1.1\r\nHost: example.org\r\n".repeat(10);
    let plain = fill(&mut RequestQueue::new(settings(Overflow::Reject)), &request);
    let mut settings = settings(Overflow::Compress);
    settings.max_requests_per_buffer = 1_000;
    let mut queue = RequestQueue::new(settings);
    let packed = fill(&mut queue, &request);
    assert!(packed >= 2 * plain, "{packed} requests compressed, {plain} as they are");
    let metrics = queue.metrics();
    assert!(metrics.compressed > 0 && metrics.compression_saved_bytes > 0);
    let mut out = Vec::new();
    while queue.take(0, Scope::All, &mut out).is_some() {
        assert_eq!(out, request);
        out.clear();
    }
}

#[test]
fn a_request_larger_than_the_queue_is_refused_and_displaces_nobody() {
    let mut queue = RequestQueue::new(settings(Overflow::Oldest));
    queue.start_buffering();
    queue.hold(0, Request::new(b"small")).unwrap();
    let bytes = 9 << 10;
    let refused = queue.hold(0, Request::new(&vec![0; bytes]));
    assert_eq!(refused, Err(HoldError::TooLarge { bytes }));
    assert_eq!((queue.len(), queue.metrics().rejected), (1, 1));
}

#[test]
fn memory_returns_when_asked_for() {
    let mut queue = RequestQueue::new(Settings::default());
    fill(&mut queue, &[1; 4_000]);
    assert!(queue.allocated_bytes() > 9 << 20);
    while queue.take(0, Scope::All, &mut Vec::new()).is_some() {}
    queue.shrink();
    assert_eq!(queue.allocated_bytes(), 0);
}

#[test]
fn a_request_that_waited_beyond_the_reach_of_the_wheel_does_not_drag_others_along() {
    let mut queue = RequestQueue::new(settings(Overflow::Reject));
    queue.start_buffering();
    let first = queue.hold(0, Request::new(b"first")).unwrap();
    // Nobody has asked for expired ones for a hundred times the greatest age.
    let second = queue.hold(56_000, Request::new(b"second")).unwrap();
    assert_eq!(queue.pop_expired(56_000).map(|held| held.id), Some(first));
    assert_eq!(queue.pop_expired(56_500), None);
    assert_eq!(queue.pop_expired(56_560).map(|held| held.id), Some(second));
}

#[test]
fn a_name_never_names_a_later_request() {
    let mut queue = RequestQueue::new(Settings::default());
    queue.start_buffering();
    let first = queue.hold(0, Request::new(b"first")).unwrap();
    assert!(queue.cancel(first));
    let second = queue.hold(0, Request::new(b"second")).unwrap();
    assert!(!queue.cancel(first));
    assert!(queue.cancel(second));
}

#[test]
fn buffers_are_bounded_in_number() {
    let mut queue = RequestQueue::new(Settings::default());
    let opened = (0..2 * MAX_BUFFERS as u64).filter(|&one| queue.start_upstream_buffering(one));
    assert_eq!(opened.count(), MAX_BUFFERS - 1);
}
