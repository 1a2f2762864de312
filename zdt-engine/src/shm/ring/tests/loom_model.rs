//! Every interleaving, and every reordering that the memory model allows, of a few records.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};

use super::super::{Consumer, Memory, Producer, PushError};

const CAPACITY: usize = 128;

/// Cells of one grain each: loom reports any access that races with another.
struct Cells {
    head: AtomicU64,
    tail: AtomicU64,
    data: Vec<UnsafeCell<[u8; 16]>>,
}

#[derive(Clone)]
struct LoomMemory(Arc<Cells>);

// SAFETY: the cells are checked by loom for races, which is what these tests are about.
unsafe impl Send for LoomMemory {}

impl LoomMemory {
    fn new() -> Self {
        Self(Arc::new(Cells {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            data: (0..CAPACITY / 16).map(|_| UnsafeCell::new([0; 16])).collect(),
        }))
    }
}

impl Memory for LoomMemory {
    fn capacity(&self) -> u64 {
        CAPACITY as u64
    }
    fn load_head(&self) -> u64 {
        self.0.head.load(Ordering::Acquire)
    }
    fn store_head(&self, head: u64) {
        self.0.head.store(head, Ordering::Release);
    }
    fn load_tail(&self) -> u64 {
        self.0.tail.load(Ordering::Acquire)
    }
    fn store_tail(&self, tail: u64) {
        self.0.tail.store(tail, Ordering::Release);
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
        assert!(offset.is_multiple_of(16), "records start at grains, and have one part here");
        for (index, chunk) in bytes.chunks(16).enumerate() {
            self.0.data[offset as usize / 16 + index].with_mut(|cell| {
                // SAFETY: loom has checked that nobody else accesses the cell.
                unsafe { (&mut *cell)[..chunk.len()].copy_from_slice(chunk) }
            });
        }
    }
    fn read(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        assert!(offset.is_multiple_of(16));
        into.clear();
        for index in 0..len.div_ceil(16) {
            self.0.data[offset as usize / 16 + index].with(|cell| {
                // SAFETY: loom has checked that nobody writes the cell.
                into.extend_from_slice(unsafe { &*cell });
            });
        }
        into.truncate(len);
    }
}

/// `lens` with the records after which the producer publishes.
fn check(lens: &'static [usize], publish_every: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let memory = LoomMemory::new();
        let mut producer = Producer::new(memory.clone());
        let mut consumer = Consumer::new(memory);
        let writer = loom::thread::spawn(move || {
            for (index, len) in lens.iter().enumerate() {
                let record = vec![index as u8 + 1; *len];
                loop {
                    match producer.push(&[&record], index as u32, index as u64) {
                        Ok(()) => break,
                        Err(PushError::Full) => {
                            producer.publish();
                            loom::thread::yield_now();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                if index % publish_every == 0 {
                    producer.publish();
                }
            }
            producer.publish();
        });
        let mut bytes = Vec::new();
        for (index, len) in lens.iter().enumerate() {
            let head = loop {
                match consumer.next(&mut bytes).unwrap() {
                    Some(head) => break head,
                    None => loom::thread::yield_now(),
                }
            };
            assert_eq!((head.kind, head.sequence), (index as u32, index as u64));
            assert_eq!(bytes, vec![index as u8 + 1; *len]);
        }
        assert!(consumer.next(&mut bytes).unwrap().is_none());
        writer.join().unwrap();
    });
}

#[test]
fn records_arrive_whole_and_in_order() {
    check(&[0, 16, 5], 1);
}

#[test]
fn a_full_ring_is_waited_for() {
    // Five records of 32 bytes in 128: the last waits until there is room again.
    check(&[16, 16, 16, 16, 16], 2);
}

#[test]
fn records_go_round_the_end() {
    // 16 + 32 + 32 + 32: the fifth does not fit the 16 that are left, and goes to the start.
    check(&[0, 16, 16, 16, 16, 0], 3);
}
