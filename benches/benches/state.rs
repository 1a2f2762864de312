//! Criterion benches of the state format alone: envelope, sections and checksum of an idle
//! connection's record (about 200 bytes), and of one with 4 KiB of buffered bytes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use zdt_engine::state::{FreezeInstant, Record, Writer};

fn build(bytes: &mut Vec<u8>, head: &[u64; 8], tail: &[u8]) {
    bytes.clear();
    let mut writer = Writer::new(bytes, FreezeInstant { boot_hash: 1, boottime_ns: 2 });
    writer.section(1, 1, false, head, &[tail]);
    writer.section(2, 1, false, &[3u64; 4], &[b"session"]);
    writer.finish(1);
}

fn parse(bytes: &[u8]) -> ([u64; 8], [u64; 4], usize) {
    let record = Record::parse(bytes).expect("what was just written");
    record.refuse_unknown(&[1, 2]).expect("only known sections");
    let first = record.required(1).expect("written");
    let second = record.required(2).expect("written");
    (first.head(), second.head(), first.tail().len() + second.tail().len())
}

fn state(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("state");
    for buffered in [24usize, 4096] {
        let tail = vec![9u8; buffered];
        let head = [5u64; 8];
        let mut bytes = Vec::with_capacity(8192);
        build(&mut bytes, &head, &tail);
        let len = bytes.len();
        group.bench_with_input(BenchmarkId::new("build", len), &len, |bencher, _| {
            bencher.iter(|| build(black_box(&mut bytes), black_box(&head), black_box(&tail)));
        });
        group.bench_with_input(BenchmarkId::new("parse", len), &len, |bencher, _| {
            bencher.iter(|| parse(black_box(&bytes)));
        });
        group.bench_with_input(BenchmarkId::new("round_trip", len), &len, |bencher, _| {
            bencher.iter(|| {
                build(&mut bytes, black_box(&head), black_box(&tail));
                parse(black_box(&bytes))
            });
        });
        let (mut once, mut twice) = (vec![0u8; len], vec![0u8; len]);
        group.bench_with_input(BenchmarkId::new("memcpy_twice", len), &len, |bencher, _| {
            bencher.iter(|| {
                once.copy_from_slice(black_box(&bytes));
                twice.copy_from_slice(black_box(&once));
                black_box(&mut twice);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, state);
criterion_main!(benches);
