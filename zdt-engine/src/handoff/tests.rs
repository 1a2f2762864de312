//! Two ends of one channel in one process, and somebody who meddles with what lies between them.

use std::os::fd::{AsFd, OwnedFd};

use super::incoming::Arrival;
use super::*;
use crate::control::{Identity, OpenChannel};
use crate::shm::ChannelMemory;
use crate::state::{FreezeInstant, Record, Secret, StateError, Writer};
use crate::sys;

/// Where blue's ring begins in the memory, and a record's bytes behind their header.
const RING: i64 = 24_576;
const RING_HEADER: i64 = 16;

struct Bench {
    memory: OwnedFd,
    blue: Channel,
    green: Channel,
}

fn bench(sealed: bool) -> Bench {
    let memory = ChannelMemory::create().unwrap();
    let (blue_socket, green_socket) = sys::socket::seqpacket_pair().unwrap();
    let wakes: Vec<sys::EventFd> = (0..4).map(|_| sys::EventFd::new().unwrap()).collect();
    let mut wakes = wakes.into_iter();
    let secret = || sealed.then(|| Secret::new(sys::random_bytes().unwrap()));
    let (forward, back) = (secret(), secret());
    let mut open = |is_blue: bool, socket| {
        let info = OpenChannel {
            reload: 3,
            channel: 1,
            is_blue,
            peer: Identity { worker: 1, generation: 1, index: 0, slot: 0 },
            write_format: Some(2),
            outgoing_secret: if is_blue { forward.clone() } else { back.clone() },
            incoming_secret: if is_blue { back.clone() } else { forward.clone() },
        };
        let descriptors = Descriptors {
            socket,
            wake: wakes.next().unwrap(),
            wake_peer: wakes.next().unwrap(),
            peer_pidfd: sys::pidfd_open(std::process::id()).unwrap(),
        };
        let end = ChannelMemory::map(memory.as_fd()).unwrap().split(is_blue);
        Channel::open(info, end, descriptors, 128).unwrap()
    };
    let (mut blue, mut green) = (open(true, blue_socket), open(false, green_socket));
    for end in [&mut blue, &mut green] {
        assert!(matches!(end.receive(&mut Vec::new()), Ok(Received::Greeted)));
        let shown = format!("{:?} {}", end.info, serde_json::to_string(&end.info).unwrap());
        assert!(!shown.contains("secret\":"), "a channel has no secrets to tell: {shown}");
    }
    Bench { memory, blue, green }
}

fn record(tail: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, FreezeInstant { boot_hash: 1, boottime_ns: 2 });
    writer.section(1, 1, false, &7u64, &[tail]);
    writer.finish_unchecked(2);
    bytes
}

fn socket() -> OwnedFd {
    sys::socket::seqpacket_pair().unwrap().0
}

fn offer(channel: &mut Channel, key: u64, tail: &[u8]) {
    channel.offer(key, &mut record(tail), socket(), Vec::new(), 0).unwrap();
    channel.flush().unwrap();
}

fn arrivals(channel: &mut Channel) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    while matches!(channel.receive(&mut arrivals).unwrap(), Received::Offers) {}
    arrivals
}

fn tail_of(channel: &mut Channel, arrival: &mut Arrival) -> Result<Vec<u8>, StateError> {
    let integrity = channel.unseal(arrival.sequence, &mut arrival.record)?;
    let record = Record::parse_checked(&arrival.record, integrity)?;
    Ok(record.required(1)?.tail().to_vec())
}

#[test]
fn records_cross_sealed_and_plain_in_both_directions() {
    for sealed in [false, true] {
        let mut bench = bench(sealed);
        let large = vec![5; MAX_INLINE_RECORD];
        for tail in [&b"small"[..], &large, b"", b"again"] {
            for forward in [true, false] {
                let Bench { blue, green, .. } = &mut bench;
                let (from, to) = if forward { (blue, green) } else { (green, blue) };
                offer(from, 1, tail);
                let mut arrived = arrivals(to);
                assert_eq!(arrived.len(), 1);
                assert!(tail_of(to, &mut arrived[0]).unwrap() == tail);
                to.refuse(arrived[0].sequence);
                let mut answers = Vec::new();
                from.collect(None, &mut answers);
                assert!(matches!(answers[..], [Answer::TakenBack { refused: true, .. }]));
            }
        }
    }
}

#[test]
fn meddling_with_the_ring_is_noticed() {
    for sealed in [false, true] {
        let mut bench = bench(sealed);
        offer(&mut bench.blue, 1, b"some words");
        // One bit of the body, behind the ring's header and the envelope.
        let place = RING + RING_HEADER + 50;
        let mut byte = [0];
        nix::sys::uio::pread(&bench.memory, &mut byte, place).unwrap();
        nix::sys::uio::pwrite(&bench.memory, &[byte[0] ^ 4], place).unwrap();
        let mut arrived = arrivals(&mut bench.green);
        let error = tail_of(&mut bench.green, &mut arrived[0]).unwrap_err();
        let expected = if sealed { StateError::BrokenSeal } else { StateError::WrongChecksum };
        assert_eq!(error, expected);
    }
}

#[test]
fn a_record_in_the_place_of_another_is_noticed() {
    let mut bench = bench(true);
    let length = record(b"one").len() + crate::state::SEAL_BYTES;
    offer(&mut bench.blue, 1, b"one");
    offer(&mut bench.blue, 2, b"two");
    // The first record's bytes once more, where the second one is: as valid as they ever were.
    let mut first = vec![0; length];
    nix::sys::uio::pread(&bench.memory, &mut first, RING + RING_HEADER).unwrap();
    let stride = 16 + length.next_multiple_of(16) as i64;
    nix::sys::uio::pwrite(&bench.memory, &first, RING + stride + RING_HEADER).unwrap();
    let mut arrived = arrivals(&mut bench.green);
    assert_eq!(tail_of(&mut bench.green, &mut arrived[0]).unwrap(), b"one");
    assert_eq!(tail_of(&mut bench.green, &mut arrived[1]).unwrap_err(), StateError::BrokenSeal);
}

#[test]
fn a_record_of_the_other_direction_is_noticed() {
    let mut bench = bench(true);
    offer(&mut bench.green, 1, b"back");
    let mut arrived = arrivals(&mut bench.blue);
    // Green's own record, shown to green.
    let error = tail_of(&mut bench.green, &mut arrived[0]).unwrap_err();
    assert_eq!(error, StateError::BrokenSeal);
}

#[test]
fn an_offer_that_failed_leaves_its_sequence_unused() {
    let mut bench = bench(true);
    // Until the ring is full: nothing more is sealed, and no sequence is spent on trying.
    let tail = vec![1; 100_000];
    let mut offered = 0;
    while bench.blue.offer(offered, &mut record(&tail), socket(), Vec::new(), 0).is_ok() {
        offered += 1;
    }
    let mut untouched = record(&tail);
    assert!(bench.blue.offer(99, &mut untouched, socket(), Vec::new(), 0).is_err());
    assert!(untouched == record(&tail));
    bench.blue.flush().unwrap();
    let mut arrived = arrivals(&mut bench.green);
    assert_eq!(arrived.len() as u64, offered);
    for arrival in &mut arrived {
        assert!(tail_of(&mut bench.green, arrival).unwrap() == tail);
        bench.green.refuse(arrival.sequence);
    }
    // An offer that was taken back is made again under another sequence, and arrives.
    let mut answers = Vec::new();
    bench.blue.collect(None, &mut answers);
    offer(&mut bench.blue, 1, b"first");
    bench.blue.collect(Some(u64::MAX), &mut answers);
    assert!(matches!(answers.last(), Some(Answer::TakenBack { refused: false, .. })));
    offer(&mut bench.blue, 1, b"second");
    let mut arrived = arrivals(&mut bench.green);
    assert_eq!(arrived.len(), 2);
    assert!(arrived[1].sequence > arrived[0].sequence);
    assert_eq!(tail_of(&mut bench.green, &mut arrived[0]).unwrap(), b"first");
    assert!(!bench.green.adopt(arrived[0].sequence));
    assert_eq!(tail_of(&mut bench.green, &mut arrived[1]).unwrap(), b"second");
    assert!(bench.green.adopt(arrived[1].sequence));
}
