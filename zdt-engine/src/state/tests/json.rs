//! Tests of the JSON encoding: nothing is lost, secrets never appear, junk is refused.

use serde_json::Value;

use super::super::json::*;
use super::*;

#[repr(C)]
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable, serde::Serialize, serde::Deserialize,
)]
struct Shown {
    count: u64,
}

const CODECS: [JsonCodec; 1] = [JsonCodec {
    tag: 7,
    name: "shown",
    to_json: head_to_json::<Shown>,
    from_json: head_from_json::<Shown>,
}];

fn record(tag: u16, tail: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, FREEZE);
    writer.section(tag, 3, false, &Shown { count: 12 }, &[tail]);
    writer.section(8, 1, true, &SMALL, &[b"bytes"]);
    writer.finish_unchecked(2);
    bytes
}

fn document(record: &[u8]) -> Value {
    serde_json::from_slice(&record[ENVELOPE_BYTES..]).unwrap()
}

/// The same sections, as far as they were written.
fn same(one: &[u8], other: &[u8]) {
    let parse = |bytes| Record::parse_checked(bytes, Integrity::Verified).unwrap();
    let (one, other) = (parse(one), parse(other));
    assert_eq!(one.freeze(), other.freeze());
    let written = |record: Record<'_>| -> Vec<_> {
        record
            .sections()
            .take(2)
            .map(|s| {
                (s.tag(), s.version(), s.optional(), s.head_bytes().to_vec(), s.tail().to_vec())
            })
            .collect()
    };
    assert_eq!(written(one), written(other));
}

#[test]
fn records_go_through_json_and_back() {
    for tail in [&b""[..], b"a tail that the codec does not know"] {
        let binary = record(7, tail);
        let mut bytes = binary.clone();
        assert!(to_json(&mut bytes, &CODECS));
        let shown = &document(&bytes)["sections"][0];
        // Shown only if nothing gets lost.
        assert_eq!(shown["state"]["count"] == 12, tail.is_empty(), "{shown}");
        assert_eq!(shown["name"], "shown");
        set_checksum(&mut bytes);
        assert!(Record::parse(&bytes).is_err(), "a reader that expects sections says so");
        let integrity = from_json(&mut bytes, Integrity::Unknown, &CODECS).unwrap();
        assert_eq!(integrity, Integrity::Verified);
        same(&bytes, &binary);
    }
}

#[test]
fn json_is_compressed_and_sealed_as_well() {
    let key = Secret::new([1; 32]);
    let binary = record(7, &b"again and ".repeat(1_000));
    let mut bytes = binary.clone();
    assert!(to_json(&mut bytes, &CODECS));
    Packer::default().pack(&mut bytes, 100);
    assert!(Sealer::new(&key, 0).seal(&mut bytes, 1));
    assert!(bytes.len() < 2_000);
    let integrity = Opener::new(&key, 0).open(&mut bytes, 1).unwrap();
    let integrity = Unpacker::default().unpack(&mut bytes, integrity).unwrap();
    from_json(&mut bytes, integrity, &CODECS).unwrap();
    same(&bytes, &binary);
}

#[test]
fn secrets_never_become_json() {
    for tag in SECRET_TAGS {
        let binary = record(tag, b"traffic secret");
        let mut bytes = binary.clone();
        assert!(!to_json(&mut bytes, &CODECS));
        assert!(bytes == binary);
    }
    let mut old = Vec::new();
    Writer::new(&mut old, FREEZE).finish_unchecked(1);
    assert!(!to_json(&mut old, &CODECS), "nor does format 1");
}

#[test]
fn what_json_may_claim_is_bounded() {
    let with = |text: &str| {
        let mut bytes = record(7, b"")[..ENVELOPE_BYTES].to_vec();
        bytes[10..12].copy_from_slice(&4u16.to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        let length = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        from_json(&mut bytes, Integrity::Verified, &CODECS)
    };
    let sections = |count: usize| {
        let section = "{\"tag\":9,\"version\":1}";
        with(&format!("{{\"sections\":[{}]}}", vec![section; count].join(",")))
    };
    assert_eq!(sections(MAX_SECTIONS), Ok(Integrity::Verified));
    assert!(matches!(sections(MAX_SECTIONS + 1), Err(StateError::Json(_))));
    let spaces = format!("{{\"sections\":[{}]}}", " ".repeat(MAX_JSON_BYTES));
    assert!(matches!(with(&spaces), Err(StateError::Json(_))));
    // What would be longer stays binary.
    let mut large = record(7, &vec![7; MAX_JSON_BYTES]);
    assert!(!to_json(&mut large, &CODECS));
}

#[test]
fn junk_is_refused() {
    let mut good = record(7, b"");
    assert!(to_json(&mut good, &CODECS));
    for text in [
        "",
        "{}",
        "[]",
        "{\"sections\":[{}]}",
        "{\"sections\":[{\"tag\":7,\"version\":1,\"state\":{\"count\":-1}}]}",
        "{\"sections\":[{\"tag\":9,\"version\":1,\"state\":{}}]}",
        "{\"sections\":[{\"tag\":10,\"version\":1,\"head\":\"\"}]}",
        "{\"sections\":[{\"tag\":9,\"version\":1,\"head\":\"***\"}]}",
    ] {
        let mut bytes = good[..ENVELOPE_BYTES].to_vec();
        bytes.extend_from_slice(text.as_bytes());
        let len = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        let refused = from_json(&mut bytes, Integrity::Verified, &CODECS);
        assert!(matches!(refused, Err(StateError::Json(_))), "{text}: {refused:?}");
    }
    set_checksum(&mut good);
    let last = good.len() - 1;
    good[last] ^= 1;
    let refused = from_json(&mut good, Integrity::Unknown, &CODECS);
    assert_eq!(refused, Err(StateError::WrongChecksum));
}
