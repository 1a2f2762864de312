//! System bench `ring`: bytes per second of 512-byte records from one process to another through the
//! shared-memory ring, beside a memcpy of the same records in one process, in interleaved pairs.
//!
//! The second process is this same program, started again with an environment variable.
//!
//! Must not know: the ring's layout.

use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use zdt_engine::shm::ChannelMemory;
use zdt_engine::shm::ring::{Consumer, Producer, PushError};
use zdt_engine::sys::process::pin_to_cpu;

use crate::bench::Settings;
use crate::figures::{Figure, Report, Target};
use crate::process::{Pinned, server_and_client_cpus};

const RECORD_BYTES: usize = 512;
/// Records are copied from and to pools of this size, as in the floor program: larger than the L2
/// cache, as states of many connections are.
const POOL_BYTES: usize = 4 << 20;
/// No answer after this long means that the other process is gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// Published in batches: a consumer that sees every record at once fights for its cache lines.
const PUBLISH_EVERY: u32 = 64;
const CHILD: &str = "ZDT_BENCH_RING_CHILD";

const KIND_DATA: u32 = 0;
const KIND_END: u32 = 1;

/// The other process: reads until it is told to stop.
fn run_child(path: &str) -> Result<()> {
    // One CPU would make both take turns; that is then what is measured.
    let _ = pin_to_cpu(1);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut end = ChannelMemory::map(file.as_fd())?.split(false);
    let mut pool = vec![1u8; POOL_BYTES];
    let mut place = 0;
    let mut record = Vec::with_capacity(64 << 10);
    let mut idle = 0u32;
    loop {
        let Some(head) = end.consumer.next(&mut record)? else {
            idle += 1;
            wait_a_little(idle);
            continue;
        };
        idle = 0;
        match head.kind {
            KIND_DATA => {
                // What was copied out is looked at where it is; the pool only ages the cache as the
                // floor program does.
                pool[place] ^= record[0];
                place = (place + RECORD_BYTES) % POOL_BYTES;
            }
            // The answer says that all of it was read.
            _ if head.sequence == u64::MAX => return Ok(()),
            _ => {
                end.producer.push(&[&[pool[0]]], KIND_END, head.sequence)?;
                end.producer.publish();
            }
        }
    }
}

/// Spins for some tens of microseconds; if the other side has not come by then, it has lost its CPU.
fn wait_a_little(tries: u32) {
    if tries < 20_000 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

fn push(producer: &mut Producer, bytes: &[u8], kind: u32, sequence: u64) -> Result<()> {
    let mut tries = 0u32;
    loop {
        match producer.push(&[bytes], kind, sequence) {
            Ok(()) => return Ok(()),
            Err(PushError::Full) => {
                producer.publish();
                tries += 1;
                wait_a_little(tries);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends records for the length of a slice; bytes per second until the child has read the last.
fn through_ring(
    producer: &mut Producer,
    consumer: &mut Consumer,
    pool: &[u8],
    round: u64,
    slice: Duration,
) -> Result<f64> {
    let start = Instant::now();
    let mut records = 0u64;
    let mut place = 0;
    loop {
        for _ in 0..1024 / PUBLISH_EVERY {
            for _ in 0..PUBLISH_EVERY {
                push(producer, &pool[place..place + RECORD_BYTES], KIND_DATA, records)?;
                place = (place + RECORD_BYTES) % POOL_BYTES;
                records += 1;
            }
            producer.publish();
        }
        if start.elapsed() >= slice {
            break;
        }
    }
    push(producer, &[], KIND_END, round)?;
    producer.publish();
    let mut answer = Vec::new();
    while consumer.next(&mut answer)?.is_none() {
        ensure!(start.elapsed() < PATIENCE, "the other process does not answer");
        std::hint::spin_loop();
    }
    Ok((records * RECORD_BYTES as u64) as f64 / start.elapsed().as_secs_f64())
}

fn through_memcpy(from: &[u8], to: &mut [u8], slice: Duration) -> f64 {
    let start = Instant::now();
    let mut records = 0u64;
    let mut place = 0;
    loop {
        for _ in 0..256 {
            let range = place..place + RECORD_BYTES;
            to[range.clone()].copy_from_slice(&from[range]);
            std::hint::black_box(&mut *to);
            place = (place + RECORD_BYTES) % POOL_BYTES;
            records += 1;
        }
        if start.elapsed() >= slice {
            return (records * RECORD_BYTES as u64) as f64 / start.elapsed().as_secs_f64();
        }
    }
}

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the second process if this is one; to be called first thing in `main`.
///
/// # Errors
/// If the ring breaks.
pub fn run_child_if_asked() -> Result<bool> {
    match std::env::var(CHILD) {
        Ok(path) => run_child(&path).map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Runs the bench.
///
/// # Errors
/// If the other process cannot be started or does not answer.
pub fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let slice = Duration::from_millis(if settings.quick { 50 } else { 250 });
    let _pinned = Pinned::to(server_and_client_cpus().0)?;
    let file = ChannelMemory::create()?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let child = Command::new(std::env::current_exe()?)
        .env(CHILD, path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("the bench could not start itself as the second process")?;
    let _peer = Peer(child);
    let mut end = ChannelMemory::map(file.as_fd())?.split(true);
    let from: Vec<u8> = (0..POOL_BYTES).map(|index| ((index * 31) >> 3) as u8).collect();
    let mut to = vec![1u8; POOL_BYTES];
    // Once to warm up, and to be sure that the child is there.
    through_ring(&mut end.producer, &mut end.consumer, &from, 0, slice)?;
    let mut pairs = Vec::new();
    for round in 0..settings.pairs() + 2 {
        let copy = through_memcpy(&from, &mut to, slice);
        let ring =
            through_ring(&mut end.producer, &mut end.consumer, &from, 1 + round as u64, slice)?;
        pairs.push((ring, copy));
    }
    push(&mut end.producer, &[], KIND_END, u64::MAX)?;
    end.producer.publish();
    let name = "memcpy in one process";
    let figure = Figure::paired("ring", "bytes_per_s", "B/s", name, &pairs, Target::Ratio(0.5));
    report.add(figure.case(format!("records of {RECORD_BYTES} B, two processes")));
    Ok(())
}
