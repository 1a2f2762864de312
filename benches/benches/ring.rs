//! Criterion benches of the shared-memory ring within one process: what one record costs on each
//! side when nobody waits, beside a memcpy of the same bytes.

use std::hint::black_box;
use std::os::fd::AsFd;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use zdt_engine::shm::ChannelMemory;
use zdt_engine::shm::ownership::State;

fn ring(criterion: &mut Criterion) {
    let file = ChannelMemory::create().expect("shared memory");
    let map = || ChannelMemory::map(file.as_fd()).expect("the memory just made");
    let mut blue = map().split(true);
    let mut green = map().split(false);
    let mut group = criterion.benchmark_group("ring");
    for size in [64usize, 200, 512, 4096, 40960] {
        let record = vec![7u8; size];
        let mut out = Vec::with_capacity(size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("push_and_next", size), &size, |bencher, _| {
            bencher.iter(|| {
                blue.producer.push(&[black_box(&record)], 1, 2).expect("the ring is empty");
                blue.producer.publish();
                let head = green.consumer.next(&mut out).expect("an honest producer");
                black_box(head).expect("a record")
            });
        });
        let mut to = vec![0u8; size];
        group.bench_with_input(BenchmarkId::new("memcpy_twice", size), &size, |bencher, _| {
            bencher.iter(|| {
                out.clear();
                out.extend_from_slice(black_box(&record));
                to.copy_from_slice(black_box(&out));
                black_box(&mut to);
            });
        });
    }
    group.finish();
}

fn ownership(criterion: &mut Criterion) {
    let file = ChannelMemory::create().expect("shared memory");
    let map = || ChannelMemory::map(file.as_fd()).expect("the memory just made");
    let blue = map().split(true);
    let green = map().split(false);
    let mut sequence = 0;
    criterion.bench_function("ownership/offer_to_release", |bencher| {
        bencher.iter(|| {
            sequence += 1;
            assert!(blue.outgoing.offer(sequence));
            assert!(green.incoming.adopt(sequence) && green.incoming.start(sequence));
            assert_eq!(blue.outgoing.state(sequence), Some(State::Started));
            assert!(blue.outgoing.release(sequence));
        });
    });
}

criterion_group!(benches, ring, ownership);
criterion_main!(benches);
