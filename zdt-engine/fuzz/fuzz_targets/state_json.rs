//! Any text as the JSON of a record, and any binary record: refused, or a record that goes through JSON
//! and back unchanged.
//!
//! Must not know: what the sections mean.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::state::json::{from_json, to_json};
use zdt_engine::state::{ENVELOPE_BYTES, Integrity, Record, set_checksum, with_valid_checksum};
use zdt_engine::worker::JSON_CODECS;

/// A plain record: there and back.
fn goes_round(binary: &[u8]) {
    let mut text = binary.to_vec();
    if !to_json(&mut text, &JSON_CODECS) {
        assert_eq!(text, binary, "it is as it was");
        return;
    }
    set_checksum(&mut text);
    from_json(&mut text, Integrity::Unknown, &JSON_CODECS).expect("it was made here");
    let (mut again, mut binary) = (text, binary.to_vec());
    set_checksum(&mut again);
    set_checksum(&mut binary);
    assert_eq!(again, binary);
}

fuzz_target!(|data: &[u8]| {
    let mut envelope = [0; ENVELOPE_BYTES];
    envelope[8..12].copy_from_slice(&[2, 0, 4, 0]);
    if let Some(mut record) = with_valid_checksum(&[&envelope, data].concat())
        && from_json(&mut record, Integrity::Unknown, &JSON_CODECS).is_ok()
    {
        Record::parse_checked(&record, Integrity::Verified).expect("it was written here");
        goes_round(&record);
    }
    if let Some(record) = with_valid_checksum(data)
        && Record::parse_checked(&record, Integrity::Verified).is_ok()
    {
        goes_round(&record);
    }
});
