//! Tests of the state format: round trips, growth in both directions, corruption, golden files.

use std::path::PathBuf;

use bytemuck::{Pod, Zeroable};
use proptest::prelude::*;

use super::*;

mod json;
mod wrapped;

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Small {
    id: u64,
    flags: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Grown {
    small: Small,
    deadline_ms: u64,
}

const FREEZE: FreezeInstant =
    FreezeInstant { boot_hash: 0x0123_4567_89ab_cdef, boottime_ns: 42_000_000_007 };
const SMALL: Small = Small { id: 77, flags: 5, reserved: 0 };
const GROWN: Grown = Grown { small: SMALL, deadline_ms: 1234 };

/// The record whose form is laid down in `tests/golden`. Never change it: add another.
fn golden_record(format: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, FREEZE);
    writer.section(1, 1, false, &SMALL, &[b"left over ", b"bytes"]);
    writer.section(2, 3, true, &(), &[]);
    writer.section(2, 3, true, &0x1122_3344u32, &[]);
    writer.section(0x0301, 1, false, &GROWN, &[&[0xa5; 33]]);
    writer.finish(format);
    bytes
}

fn check_golden(record: &Record<'_>) {
    assert_eq!(record.freeze(), FREEZE);
    record.refuse_unknown(&[1, 0x0301]).unwrap();
    assert_eq!(record.refuse_unknown(&[1]), Err(StateError::UnknownSection { tag: 0x0301 }));
    let first = record.required(1).unwrap();
    assert_eq!((first.tag(), first.version(), first.optional()), (1, 1, false));
    assert_eq!((first.head::<Small>(), first.tail()), (SMALL, &b"left over bytes"[..]));
    let twice: Vec<_> = record.sections().filter(|section| section.tag() == 2).collect();
    assert_eq!(twice.len(), 2);
    assert!(twice[0].optional() && twice[0].head_bytes().is_empty() && twice[0].tail().is_empty());
    assert_eq!(twice[1].head::<u32>(), 0x1122_3344);
    let last = record.section(0x0301).unwrap();
    assert_eq!((last.head::<Grown>(), last.tail()), (GROWN, &[0xa5u8; 33][..]));
    assert_eq!(record.section(4), None);
    assert_eq!(record.required(4).unwrap_err(), StateError::MissingSection { tag: 4 });
}

#[test]
fn sections_come_back() {
    for format in FORMAT_WRITES.oldest..=FORMAT_WRITES.newest {
        let bytes = golden_record(format);
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record.format(), format);
        check_golden(&record);
    }
}

#[test]
fn records_follow_each_other_in_one_vector() {
    let mut bytes = b"odd".to_vec();
    let mut ends = vec![bytes.len()];
    for id in 0..3u64 {
        let mut writer = Writer::new(&mut bytes, FREEZE);
        writer.section(1, 1, false, &id, &[&[7; 5][..id as usize]]);
        writer.finish(1);
        ends.push(bytes.len());
    }
    for (id, range) in ends.windows(2).enumerate() {
        let record = Record::parse(&bytes[range[0]..range[1]]).unwrap();
        let section = record.section(1).unwrap();
        assert_eq!((section.head::<u64>(), section.tail().len()), (id as u64, id));
    }
}

/// A golden file; with `ZDT_WRITE_GOLDEN` made first, if it is not there yet.
pub(crate) fn golden_file(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("ZDT_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, make()).unwrap();
    }
    std::fs::read(&path).unwrap()
}

/// The formats as they were released must be read for as long as [`FORMAT_READS`] says so.
#[test]
fn golden_files_are_read_and_written() {
    for format in [1, 2] {
        let golden = golden_file(&format!("state-format-{format}.bin"), || golden_record(format));
        let record = Record::parse(&golden).unwrap();
        assert_eq!(record.format(), format);
        check_golden(&record);
        if cfg!(not(feature = "state-format-next")) {
            assert!(golden == golden_record(format), "what is written is what was laid down");
        }
    }
}

/// The same record, compressed and sealed, sequence 77 of a direction numbered 1.
#[test]
fn a_wrapped_golden_file_is_read() {
    let key = Secret::new(*b"a key of thirty-two bytes, yes!!");
    let wrapped = || {
        let mut bytes = golden_record(2);
        Packer::default().pack(&mut bytes, 0);
        assert!(Sealer::new(&key, 1).seal(&mut bytes, 77));
        bytes
    };
    // Another release of zstd may write it otherwise; it must be read.
    let mut golden = golden_file("state-format-2-sealed.bin", wrapped);
    let integrity = Opener::new(&key, 1).open(&mut golden, 77).unwrap();
    let integrity = Unpacker::default().unpack(&mut golden, integrity).unwrap();
    check_golden(&Record::parse_checked(&golden, integrity).unwrap());
}

#[test]
fn the_next_format_is_told_apart() {
    let mut bytes = golden_record(1);
    let next = FORMAT_READS.newest + 1;
    bytes[8..10].copy_from_slice(&next.to_le_bytes());
    let refused = Record::parse(&bytes).unwrap_err();
    assert_eq!(refused, StateError::UnknownFormat { format: next });
    let bytes = golden_record(FORMAT_WRITES.newest);
    let extra = Record::parse(&bytes).unwrap().section(TEST_NEXT_TAG);
    assert_eq!(extra.is_some(), cfg!(feature = "state-format-next"));
    assert!(extra.is_none_or(|section| section.optional()), "an older reader skips it");
}

#[test]
fn heads_grow_in_both_directions() {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, FREEZE);
    writer.section(1, 1, false, &SMALL, &[b"tail"]);
    writer.section(2, 2, false, &GROWN, &[b"tail"]);
    writer.finish(1);
    let record = Record::parse(&bytes).unwrap();
    let old = record.section(1).unwrap();
    assert_eq!(old.head::<Grown>(), Grown { small: SMALL, deadline_ms: 0 });
    assert_eq!(old.tail(), b"tail");
    let new = record.section(2).unwrap();
    assert_eq!(new.head::<Small>(), SMALL);
    assert_eq!(new.tail(), b"tail");
}

#[test]
fn every_changed_byte_is_detected() {
    let good = golden_record(1);
    for index in 0..good.len() {
        for change in 1..=255u8 {
            let mut bad = good.clone();
            bad[index] ^= change;
            assert!(Record::parse(&bad).is_err(), "byte {index} ^ {change:#x}");
        }
    }
    for len in 0..good.len() {
        assert!(Record::parse(&good[..len]).is_err(), "cut at {len}");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(Record::parse(&longer), Err(StateError::WrongLength { .. })));
}

/// Changes something and makes the checksum right again, as a hostile or buggy writer would.
fn forge(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = golden_record(1);
    change(&mut bytes);
    let len = bytes.len() as u32;
    bytes[12..16].copy_from_slice(&len.to_le_bytes());
    let sum = checksum(&bytes);
    bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn a_right_checksum_is_not_enough() {
    let error = |bytes: Vec<u8>| Record::parse(&bytes).unwrap_err();
    assert_eq!(error(vec![]), StateError::NotARecord);
    assert_eq!(error(forge(|bytes| bytes[0] = b'z')), StateError::NotARecord);
    for (format, flags) in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (2, 8)] {
        let refused = error(forge(|bytes| {
            bytes[8] = format;
            bytes[10] = flags;
        }));
        assert_eq!(refused, StateError::UnsupportedFlags { flags: u16::from(flags) });
    }
    let malformed = |index| StateError::MalformedSection { index };
    let sections = u16::from(golden_record(1)[32]);
    // One section too many, one too few, reserved bytes.
    assert_eq!(error(forge(|bytes| bytes[32] += 1)), malformed(usize::from(sections)));
    assert_eq!(error(forge(|bytes| bytes[32] -= 1)), malformed(usize::from(sections) - 1));
    assert_eq!(error(forge(|bytes| bytes[33] = 0xff)), malformed(0));
    assert_eq!(error(forge(|bytes| bytes[34] = 1)), malformed(0));
    assert_eq!(error(forge(|bytes| bytes[39] = 1)), malformed(0));
    // The first section: its length, its head's length, unknown flags, reserved bytes.
    assert_eq!(error(forge(|bytes| bytes[ENVELOPE_BYTES + 7] = 0xff)), malformed(0));
    assert_eq!(error(forge(|bytes| bytes[ENVELOPE_BYTES + 8] = 0xff)), malformed(0));
    assert_eq!(error(forge(|bytes| bytes[ENVELOPE_BYTES + 12] = 2)), malformed(0));
    assert_eq!(error(forge(|bytes| bytes[ENVELOPE_BYTES + 15] = 1)), malformed(0));
    // The padding of the last section is missing.
    assert!(matches!(
        error(forge(|bytes| {
            bytes.pop();
        })),
        StateError::MalformedSection { .. }
    ));
}

#[test]
fn freezes_of_another_boot_have_no_age() {
    let now = FreezeInstant { boottime_ns: FREEZE.boottime_ns + 1500, ..FREEZE };
    assert_eq!(FREEZE.elapsed(now), Some(Duration::from_nanos(1500)));
    assert_eq!(now.elapsed(FREEZE), Some(Duration::ZERO));
    assert_eq!(FREEZE.elapsed(FreezeInstant { boot_hash: 1, ..now }), None);
    let mut id = [0u8; 16];
    let zero = boot_hash(id);
    id[9] = 1;
    assert_ne!(boot_hash(id), zero);
}

#[test]
#[should_panic(expected = "cannot write")]
fn unknown_formats_are_not_written() {
    Writer::new(&mut Vec::new(), FREEZE).finish(FORMAT_WRITES.newest + 1);
}

proptest! {
    #[test]
    fn any_sections_come_back(
        sections in prop::collection::vec(
            (any::<u16>(), any::<u16>(), any::<bool>(), any::<[u64; 3]>(),
             prop::collection::vec(any::<u8>(), 0..200)),
            0..20,
        ),
        boot_hash: u64,
        boottime_ns: u64,
        split in 0usize..200,
    ) {
        let freeze = FreezeInstant { boot_hash, boottime_ns };
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, freeze);
        for (tag, version, optional, head, tail) in &sections {
            let (first, second) = tail.split_at(split.min(tail.len()));
            writer.section(*tag, *version, *optional, head, &[first, second]);
        }
        writer.finish(1);
        let record = Record::parse(&bytes).unwrap();
        prop_assert_eq!(record.freeze(), freeze);
        let mut read: Vec<_> = record.sections().collect();
        if cfg!(feature = "state-format-next") {
            prop_assert_eq!(read.pop().unwrap().tag(), TEST_NEXT_TAG);
        }
        prop_assert_eq!(read.len(), sections.len());
        for (section, (tag, version, optional, head, tail)) in read.iter().zip(&sections) {
            prop_assert_eq!(
                (section.tag(), section.version(), section.optional()),
                (*tag, *version, *optional)
            );
            prop_assert_eq!(section.head::<[u64; 3]>(), *head);
            prop_assert_eq!(section.tail(), &tail[..]);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        sections in 0u16..6,
        forged: bool,
    ) {
        let _ = Record::parse(&bytes);
        if forged && bytes.len() >= ENVELOPE_BYTES {
            let mut bytes = bytes;
            let len = bytes.len() as u32;
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&[1, 0, 0, 0]);
            bytes[12..16].copy_from_slice(&len.to_le_bytes());
            bytes[32..34].copy_from_slice(&sections.to_le_bytes());
            bytes[34..40].fill(0);
            let sum = checksum(&bytes);
            bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&sum.to_le_bytes());
            if let Ok(record) = Record::parse(&bytes) {
                prop_assert_eq!(record.sections().count(), usize::from(sections));
                for section in record.sections() {
                    let _ = section.head::<[u64; 8]>();
                }
            }
        }
    }
}
