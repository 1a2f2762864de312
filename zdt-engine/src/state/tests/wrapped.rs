//! Tests of compressed and sealed records: round trips, every changed byte, nonces, bombs.

use proptest::prelude::*;

use super::*;

fn secret(byte: u8) -> Secret {
    Secret::new([byte; SECRET_BYTES])
}

/// Sealer and opener of one direction.
fn pair(byte: u8) -> (Sealer, Opener) {
    (Sealer::new(&secret(byte), 0), Opener::new(&secret(byte), 0))
}

fn record(format: u16, tail: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, FREEZE);
    writer.section(1, 1, false, &SMALL, &[tail]);
    writer.finish_unchecked(format);
    bytes
}

fn tail_of(bytes: &[u8], integrity: Integrity) -> Result<Vec<u8>, StateError> {
    Ok(Record::parse_checked(bytes, integrity)?.required(1)?.tail().to_vec())
}

#[test]
fn sealed_records_come_back() {
    let (mut sealer, mut opener) = pair(1);
    for sequence in [1, 2, 7, 1 << 40] {
        let plain = record(2, b"secret words");
        let mut bytes = plain.clone();
        assert!(sealer.seal(&mut bytes, sequence));
        assert_eq!(bytes.len(), plain.len() + SEAL_BYTES);
        assert!(!bytes.windows(6).any(|window| window == b"secret"), "it travels encrypted");
        assert!(matches!(Record::parse(&bytes), Err(StateError::UnsupportedFlags { flags: 2 })));
        let integrity = opener.open(&mut bytes, sequence).unwrap();
        assert_eq!(tail_of(&bytes, integrity).unwrap(), b"secret words");
    }
}

#[test]
fn every_change_breaks_a_seal() {
    let mut good = record(2, b"some bytes");
    assert!(pair(1).0.seal(&mut good, 5));
    let opens = |bytes: &[u8], sequence: u64, mut opener: Opener| {
        let mut bytes = bytes.to_vec();
        opener.open(&mut bytes, sequence).is_ok()
    };
    assert!(opens(&good, 5, pair(1).1));
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] ^= 1 << (index % 8);
        assert!(!opens(&bad, 5, pair(1).1), "byte {index}");
    }
    for len in 0..good.len() {
        assert!(!opens(&good[..len], 5, pair(1).1), "cut at {len}");
        // Also when the envelope was made to agree.
        let mut cut = good[..len].to_vec();
        if len >= ENVELOPE_BYTES {
            cut[12..16].copy_from_slice(&(len as u32).to_le_bytes());
            assert!(!opens(&cut, 5, pair(1).1), "cut at {len} with the right length");
        }
    }
    assert!(!opens(&good, 6, pair(1).1), "another sequence");
    assert!(!opens(&good, 5, pair(2).1), "another key");
    assert!(!opens(&good, 5, Opener::new(&secret(1), 1)), "the other direction");
}

#[test]
fn no_nonce_is_used_twice() {
    let (mut sealer, mut opener) = pair(1);
    let mut first = record(2, b"one");
    assert!(sealer.seal(&mut first, 9));
    // The same offer again, with other contents: not under that sequence, and it is untouched.
    let again = record(2, b"two");
    for sequence in [9, 8, 0] {
        let mut bytes = again.clone();
        assert!(!sealer.seal(&mut bytes, sequence));
        assert_eq!(bytes, again);
    }
    let mut later = again.clone();
    assert!(sealer.seal(&mut later, 10));
    let mut sealed_twice = later.clone();
    assert!(!sealer.seal(&mut sealed_twice, 11), "nor is a sealed record sealed again");
    // Records that were taken back are skipped; one that was opened is not opened again.
    assert!(opener.open(&mut later, 10).is_ok());
    let replayed = opener.open(&mut first, 9).unwrap_err();
    assert_eq!(replayed, StateError::Replayed { sequence: 9 });
}

#[test]
fn plain_records_are_refused_where_seals_are_due() {
    let mut bytes = golden_record(2);
    assert_eq!(pair(1).1.open(&mut bytes, 1), Err(StateError::NotSealed));
    let mut old = record(1, b"x");
    assert!(!pair(1).0.seal(&mut old, 1), "format 1 has no seals");
}

#[test]
fn keys_differ_by_salt_and_purpose() {
    let base = derive(&secret(1), b"salt", &[b"reload 1", b"forward"]);
    assert_eq!(base, derive(&secret(1), b"salt", &[b"reload 1", b"forward"]));
    for other in [
        derive(&secret(2), b"salt", &[b"reload 1", b"forward"]),
        derive(&secret(1), b"tlas", &[b"reload 1", b"forward"]),
        derive(&secret(1), b"salt", &[b"reload 1", b"back"]),
        derive(&secret(1), b"salt", &[b"reload 2", b"forward"]),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn secrets_show_nothing_and_survive_messages() {
    let secret = secret(0xab);
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    let text = serde_json::to_string(&secret).unwrap();
    assert_eq!(text, format!("\"{}\"", "ab".repeat(SECRET_BYTES)));
    assert_eq!(serde_json::from_str::<Secret>(&text).unwrap(), secret);
    for bad in ["\"\"", "\"ab\"", "7", &format!("\"{}\"", "zz".repeat(SECRET_BYTES))] {
        assert!(serde_json::from_str::<Secret>(bad).is_err());
    }
}

#[test]
fn large_bodies_are_compressed_and_come_back() {
    let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
    let tail = b"the same words again. ".repeat(1_000);
    let plain = record(2, &tail);
    let mut bytes = plain.clone();
    packer.pack(&mut bytes, 1_000);
    assert!(bytes.len() < plain.len() / 10);
    set_checksum(&mut bytes);
    assert!(matches!(Record::parse(&bytes), Err(StateError::UnsupportedFlags { flags: 1 })));
    let packed = bytes.clone();
    let integrity = unpacker.unpack(&mut bytes, Integrity::Unknown).unwrap();
    assert_eq!(integrity, Integrity::Verified);
    assert_eq!(tail_of(&bytes, integrity).unwrap(), tail);
    // Not small ones, not what does not shrink, not an old format's.
    for (format, tail, above) in
        [(2, tail.clone(), 1 << 20), (2, (0..4_096u32).flat_map(noise).collect(), 0), (1, tail, 0)]
    {
        let plain = record(format, &tail);
        let mut bytes = plain.clone();
        packer.pack(&mut bytes, above);
        assert!(bytes == plain);
    }
    // A changed byte is found before zstd sees it.
    for index in 16..packed.len() {
        let mut bad = packed.clone();
        bad[index] ^= 0x10;
        assert!(unpacker.unpack(&mut bad, Integrity::Unknown).is_err(), "byte {index}");
    }
}

/// Four bytes that do not compress.
fn noise(n: u32) -> [u8; 4] {
    let mut x = n.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
    x ^= x >> 15;
    x = x.wrapping_mul(0x85eb_ca6b);
    (x ^ x >> 13).wrapping_mul(0xc2b2_ae35).to_le_bytes()
}

#[test]
fn a_bomb_has_no_effect() {
    // 900 KB of zeroes in a few bytes, with envelopes that announce less, more, and far too much.
    let mut bomb = record(2, &vec![0; 900_000]);
    Packer::default().pack(&mut bomb, 0);
    assert!(bomb.len() < 1_000);
    let unpack = |announced: u32| {
        let mut bytes = bomb.clone();
        bytes[36..40].copy_from_slice(&announced.to_le_bytes());
        Unpacker::default().unpack(&mut bytes, Integrity::Verified)
    };
    let right = u32::from_le_bytes(bomb[36..40].try_into().unwrap());
    assert!(unpack(right).is_ok());
    let within = |most: usize| {
        Unpacker::default().unpack_within(&mut bomb.clone(), Integrity::Verified, most)
    };
    assert!(within(right as usize + ENVELOPE_BYTES).is_ok());
    assert!(within(right as usize + ENVELOPE_BYTES - 1).is_err());
    for wrong in [0, 1, right - 1, right + 1, MAX_RECORD_BYTES as u32, u32::MAX] {
        assert!(matches!(unpack(wrong), Err(StateError::Compression(_))), "{wrong}");
    }
}

#[test]
fn compressed_records_are_sealed_as_well() {
    let (mut sealer, mut opener) = pair(3);
    let tail = b"words ".repeat(10_000);
    let mut bytes = record(2, &tail);
    Packer::default().pack(&mut bytes, 0);
    assert!(sealer.seal(&mut bytes, 1));
    assert!(Unpacker::default().unpack(&mut bytes.clone(), Integrity::Unknown).is_err());
    let integrity = opener.open(&mut bytes, 1).unwrap();
    let integrity = Unpacker::default().unpack(&mut bytes, integrity).unwrap();
    assert_eq!(tail_of(&bytes, integrity).unwrap(), tail);
}

proptest! {
    #[test]
    fn anything_survives_being_wrapped(
        tail in prop::collection::vec(any::<u8>(), 0..3_000),
        repeat in 1usize..20,
        above in 0usize..4_000,
        sequence in 1u64..,
    ) {
        let tail = tail.repeat(repeat);
        let (mut sealer, mut opener) = pair(4);
        let mut bytes = record(2, &tail);
        Packer::default().pack(&mut bytes, above);
        prop_assert!(sealer.seal(&mut bytes, sequence));
        let integrity = opener.open(&mut bytes, sequence).unwrap();
        let integrity = Unpacker::default().unpack(&mut bytes, integrity).unwrap();
        prop_assert_eq!(tail_of(&bytes, integrity).unwrap(), tail);
    }

    #[test]
    fn any_bytes_are_unwrapped_or_refused(
        body in prop::collection::vec(any::<u8>(), 0..300),
        flags in 0u16..4,
        plain: u32,
        verified: bool,
    ) {
        let mut bytes = vec![0; ENVELOPE_BYTES];
        bytes.extend_from_slice(&body);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&2u16.to_le_bytes());
        bytes[10..12].copy_from_slice(&flags.to_le_bytes());
        let len = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        bytes[36..40].copy_from_slice(&plain.to_le_bytes());
        set_checksum(&mut bytes);
        let _ = pair(1).1.open(&mut bytes.clone(), 1);
        let integrity = if verified { Integrity::Verified } else { Integrity::Unknown };
        if let Ok(integrity) = Unpacker::default().unpack(&mut bytes, integrity) {
            let _ = Record::parse_checked(&bytes, integrity);
        }
    }
}
