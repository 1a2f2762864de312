//! Tests of the ring: a model, loom, two processes, and a peer that breaks the rules.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::shm::{ChannelMemory, SharedMemory};

mod loom_model;

/// Memory in which the tests can look and write.
#[derive(Clone)]
struct TestMemory(Rc<RefCell<Contents>>);

struct Contents {
    head: u64,
    tail: u64,
    data: Vec<u8>,
}

impl TestMemory {
    fn new(capacity: usize) -> Self {
        Self(Rc::new(RefCell::new(Contents { head: 0, tail: 0, data: vec![0; capacity] })))
    }

    fn ends(&self) -> (Producer<TestMemory>, Consumer<TestMemory>) {
        (Producer::new(self.clone()), Consumer::new(self.clone()))
    }
}

impl Memory for TestMemory {
    fn capacity(&self) -> u64 {
        self.0.borrow().data.len() as u64
    }
    fn load_head(&self) -> u64 {
        self.0.borrow().head
    }
    fn store_head(&self, head: u64) {
        self.0.borrow_mut().head = head;
    }
    fn load_tail(&self) -> u64 {
        self.0.borrow().tail
    }
    fn store_tail(&self, tail: u64) {
        self.0.borrow_mut().tail = tail;
    }
    fn write_header(&self, offset: u64, header: [u64; 2]) {
        self.write(offset, &[header[0].to_ne_bytes(), header[1].to_ne_bytes()].concat());
    }
    fn read_header(&self, offset: u64) -> [u64; 2] {
        let mut bytes = Vec::new();
        self.read(offset, 16, &mut bytes);
        [0, 8].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()))
    }
    fn write(&self, offset: u64, bytes: &[u8]) {
        let offset = offset as usize;
        self.0.borrow_mut().data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    fn read(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        into.clear();
        into.extend_from_slice(&self.0.borrow().data[offset as usize..offset as usize + len]);
    }
}

/// Bytes that tell which record they belong to.
fn contents(sequence: u64, len: usize) -> Vec<u8> {
    (0..len).map(|index| (sequence as usize * 31 + index) as u8).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Publish,
    Next,
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..80).prop_map(Step::Push),
        2 => Just(Step::Publish),
        4 => Just(Step::Next),
        1 => Just(Step::Release),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #[test]
    fn behaves_like_a_queue(steps in steps(), capacity in prop_oneof![Just(64usize), Just(256), Just(512)]) {
        let memory = TestMemory::new(capacity);
        let (mut producer, mut consumer) = memory.ends();
        let most = producer.max_record_bytes();
        // The queue, and how many of its last entries are not yet published.
        let mut model: VecDeque<(u64, usize)> = VecDeque::new();
        let mut unpublished = 0;
        let mut sequence = 0;
        let mut bytes = Vec::new();
        for step in steps {
            match step {
                Step::Push(len) => {
                    let record = contents(sequence, len);
                    let (first, second) = record.split_at(len / 3);
                    let reserved = producer.try_reserve(len);
                    let result = producer.push(&[first, second], sequence as u32 % 7, sequence);
                    prop_assert_eq!(result, reserved, "try_reserve tells what push does");
                    match result {
                        Ok(()) => {
                            model.push_back((sequence, len));
                            unpublished += 1;
                            sequence += 1;
                        }
                        Err(PushError::TooLarge) => prop_assert!(len > most),
                        Err(PushError::Full) => {
                            prop_assert!(len <= most);
                            // A quarter is free again once the consumer has caught up.
                            prop_assert!(!model.is_empty() || memory.load_head() != memory.load_tail());
                        }
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                Step::Publish => {
                    prop_assert_eq!(producer.publish(), unpublished > 0);
                    unpublished = 0;
                }
                Step::Next => match consumer.next(&mut bytes).unwrap() {
                    Some(head) => {
                        let (sequence, len) = model.pop_front().unwrap();
                        prop_assert!(model.len() >= unpublished);
                        prop_assert_eq!(head, RecordHead { kind: sequence as u32 % 7, sequence });
                        prop_assert_eq!(&bytes, &contents(sequence, len));
                    }
                    None => prop_assert_eq!(model.len(), unpublished),
                },
                Step::Release => {
                    consumer.publish();
                }
            }
            let used: u64 = model.iter().map(|(_, len)| record_bytes(*len as u64)).sum();
            prop_assert!(used + producer.free_bytes().unwrap() as u64 <= capacity as u64);
        }
        producer.publish();
        while consumer.next(&mut bytes).unwrap().is_some() {
            model.pop_front();
        }
        prop_assert!(model.is_empty() && producer.is_drained().unwrap());
    }
}

#[test]
fn the_largest_record_fits_an_empty_ring_at_any_place() {
    let memory = TestMemory::new(1024);
    let (mut producer, mut consumer) = memory.ends();
    let most = producer.max_record_bytes();
    assert_eq!(most, 240);
    assert_eq!(producer.try_reserve(most + 1), Err(PushError::TooLarge));
    let mut bytes = Vec::new();
    for sequence in 0..1000 {
        let small = contents(sequence, sequence as usize % 50);
        producer.push(&[&small], 1, sequence).unwrap();
        producer.push(&[&contents(sequence, most)], 2, sequence).unwrap();
        producer.publish();
        assert_eq!(consumer.next(&mut bytes).unwrap().unwrap().kind, 1);
        assert_eq!(consumer.next(&mut bytes).unwrap().unwrap(), RecordHead { kind: 2, sequence });
        assert_eq!(bytes, contents(sequence, most));
        assert!(consumer.next(&mut bytes).unwrap().is_none());
    }
}

#[test]
fn an_impossible_head_stops_the_producer() {
    for head in [16, 1 << 40, u64::MAX, u64::MAX - 15] {
        let memory = TestMemory::new(256);
        let (mut producer, _) = memory.ends();
        memory.store_head(head);
        assert!(producer.free_bytes().is_err());
        memory.store_head(0);
        assert!(producer.free_bytes().is_err(), "for ever");
        assert!(matches!(producer.is_drained(), Err(Corrupt(_))));
    }
    // Backwards, after it had moved.
    let memory = TestMemory::new(256);
    let (mut producer, mut consumer) = memory.ends();
    producer.push(&[b"a"], 0, 0).unwrap();
    producer.publish();
    consumer.next(&mut Vec::new()).unwrap();
    consumer.publish();
    producer.free_bytes().unwrap();
    memory.store_head(16);
    assert!(producer.free_bytes().is_err());
}

#[test]
fn an_impossible_tail_stops_the_consumer() {
    for tail in [1, 8, 257, 272, 1 << 40, u64::MAX] {
        let memory = TestMemory::new(256);
        let (_, mut consumer) = memory.ends();
        memory.store_tail(tail);
        let mut bytes = Vec::new();
        assert!(consumer.next(&mut bytes).is_err(), "{tail}");
        memory.store_tail(0);
        assert!(consumer.next(&mut bytes).is_err(), "for ever");
    }
}

#[test]
fn an_impossible_header_stops_the_consumer() {
    let pad = u64::from(PADDING) << 32;
    let cases = [
        // Longer than what was published, than the ring, than any record.
        (0, 17, 32),
        (0, 240, 256),
        (0, u64::from(u32::MAX), 256),
        // A padding at the start, or of another length than to the end, or with nothing after it.
        (0, pad | 256, 256),
        (0, pad | 16, 32),
        (240, pad | 32, 272),
        (240, pad, 272),
        (240, pad | 16, 256),
        // Over the end.
        (240, 16, 272),
    ];
    for (start, word, tail) in cases {
        let memory = TestMemory::new(256);
        let (_, mut consumer) = memory.ends();
        consumer.head = start;
        consumer.published_head = start;
        consumer.cached_tail = start;
        memory.write_header(start, [word, 0]);
        memory.store_tail(tail);
        assert!(consumer.next(&mut Vec::new()).is_err(), "{start} {word:x} {tail}");
        assert!(consumer.next(&mut Vec::new()).is_err(), "for ever");
    }
}

#[test]
#[should_panic(expected = "taken")]
fn the_padding_kind_is_taken() {
    let _ = TestMemory::new(256).ends().0.push(&[], PADDING, 0);
}

fn seed() -> u64 {
    let seed = match std::env::var("ZDT_SEED") {
        Ok(seed) => seed.parse().expect("ZDT_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("ZDT_SEED={seed}");
    seed
}

#[test]
fn garbage_never_panics() {
    let mut random = StdRng::seed_from_u64(seed());
    let mut bytes = Vec::new();
    let (mut corrupt, mut records) = (0, 0);
    for _ in 0..20_000 {
        let memory = TestMemory::new(512);
        let (mut producer, mut consumer) = memory.ends();
        for sequence in 0..random.random_range(0..8) {
            let _ = producer.push(&[&contents(sequence, random.random_range(0..112))], 1, sequence);
        }
        producer.publish();
        for _ in 0..random.random_range(1..6) {
            let word: u64 = match random.random_range(0..3) {
                0 => random.random_range(0..1024),
                1 => random.random(),
                _ => u64::from(PADDING) << 32 | random.random_range(0..1024),
            };
            let place = random.random_range(0..32u64) * 16;
            match random.random_range(0..8) {
                0 => memory.store_head(word),
                1 => memory.store_tail(word),
                2 => memory.store_tail(word & !15),
                _ => memory.write_header(place, [word, 0]),
            }
            for _ in 0..40 {
                match consumer.next(&mut bytes) {
                    Ok(Some(_)) => {
                        assert!(bytes.len() <= producer.max_record_bytes());
                        records += 1;
                    }
                    Ok(None) => break,
                    Err(_) => {
                        corrupt += 1;
                        assert!(consumer.next(&mut bytes).is_err());
                        break;
                    }
                }
            }
            let _ = producer.push(&[b"after"], 1, 0);
            producer.publish();
        }
    }
    assert!(corrupt > 0 && records > 0);
}

/// A thread that writes anywhere while the other end reads: whatever comes out is bounded, and
/// nothing panics.
#[test]
fn memory_that_changes_under_our_feet() {
    let mut random = StdRng::seed_from_u64(seed());
    let file = ChannelMemory::create().unwrap();
    let bytes = nix::sys::stat::fstat(&file).unwrap().st_size as usize;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let attacker = {
        let (file, stop) = (file.try_clone().unwrap(), stop.clone());
        let mut random = StdRng::seed_from_u64(random.random());
        std::thread::spawn(move || {
            let memory = SharedMemory::map(file.as_fd(), bytes).unwrap();
            while !stop.load(Ordering::Relaxed) {
                // Mostly the first page of green's ring and the indices.
                let offset = match random.random_range(0..4) {
                    0 => 4096 + random.random_range(0..64usize) * 8,
                    1 => random.random_range(512..bytes / 8) * 8,
                    _ => 8192 + 16384 + random.random_range(0..512usize) * 8,
                };
                let value = match random.random_range(0..3) {
                    0 => random.random(),
                    1 => random.random_range(0..1u64 << 20) & !15,
                    _ => u64::from(PADDING) << 32 | random.random_range(0..1u64 << 20),
                };
                // SAFETY: within the mapping, as an atomic.
                unsafe { memory.at::<AtomicU64>(offset, 1).as_ref() }
                    .store(value, Ordering::Relaxed);
            }
        })
    };
    let start = std::time::Instant::now();
    let (mut rounds, mut records, mut corrupt) = (0u32, 0u64, 0u64);
    let mut read = Vec::new();
    while start.elapsed() < std::time::Duration::from_millis(500) || rounds < 20 {
        rounds += 1;
        // The header may be destroyed, too: only fresh mappings made before that would do, so the
        // ends are built directly.
        let memory = Arc::new(SharedMemory::map(file.as_fd(), bytes).unwrap());
        let ring = || Mapped::new(&memory, 4096, 8192 + 16384, 1 << 20);
        let (mut producer, mut consumer) = (Producer::new(ring()), Consumer::new(ring()));
        producer.memory.store_head(0);
        for sequence in 0..200 {
            let _ = producer.push(&[&contents(sequence, 100)], 1, sequence);
            producer.publish();
            match consumer.next(&mut read) {
                Ok(Some(_)) => {
                    assert!(read.len() <= producer.max_record_bytes());
                    records += 1;
                }
                Ok(None) => {}
                Err(_) => {
                    corrupt += 1;
                    break;
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    assert!(records + corrupt > 0);
}

const CHILD: &str = "ZDT_TEST_RING_CHILD";
const RECORDS: u64 = 100_000;

fn record_len(sequence: u64) -> usize {
    let hash = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    (hash % if sequence.is_multiple_of(50) { 200_000 } else { 700 }) as usize
}

/// Echoes every record until one of kind 9.
fn child(path: &str) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut end = ChannelMemory::map(file.as_fd()).unwrap().split(false);
    let mut bytes = Vec::new();
    let start = std::time::Instant::now();
    loop {
        let Some(head) = end.consumer.next(&mut bytes).unwrap() else {
            assert!(start.elapsed() < std::time::Duration::from_secs(60), "the parent is gone");
            std::thread::yield_now();
            continue;
        };
        while end.producer.push(&[&bytes], head.kind + 1, head.sequence).is_err() {
            end.producer.publish();
            std::thread::yield_now();
        }
        end.producer.publish();
        assert!(end.incoming.adopt(head.sequence));
        if head.kind == 9 {
            return;
        }
    }
}

#[test]
fn two_processes() {
    if let Ok(path) = std::env::var(CHILD) {
        return child(&path);
    }
    let file = ChannelMemory::create().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut peer = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shm::ring::tests::two_processes"])
        .env(CHILD, path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut end = ChannelMemory::map(file.as_fd()).unwrap().split(true);
    // Sequences start at 1.
    let (mut sent, mut received) = (1, 1);
    let mut bytes = Vec::new();
    while received < RECORDS {
        let mut idle = true;
        while sent < RECORDS && sent < received + 1000 {
            let record = contents(sent, record_len(sent));
            let kind = if sent + 1 == RECORDS { 9 } else { 3 };
            match end.producer.push(&[&record], kind, sent) {
                Ok(()) => {
                    assert!(end.outgoing.offer(sent));
                    sent += 1;
                    idle = false;
                }
                Err(PushError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        end.producer.publish();
        while let Some(head) = end.consumer.next(&mut bytes).unwrap() {
            assert_eq!(head.sequence, received);
            assert_eq!(head.kind, if received + 1 == RECORDS { 10 } else { 4 });
            assert!(bytes == contents(received, record_len(received)));
            // The answer and the word are independent: the word may come a moment later.
            while !end.outgoing.start(received) {
                assert!(end.outgoing.state(received).is_some());
                std::hint::spin_loop();
            }
            assert!(end.outgoing.release(received));
            received += 1;
            idle = false;
        }
        if idle {
            assert!(peer.try_wait().unwrap().is_none(), "the child lives");
            std::thread::yield_now();
        }
    }
    assert!(peer.wait().unwrap().success());
    assert!(end.producer.is_drained().is_ok());
}
