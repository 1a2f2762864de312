//! Any record that says it is compressed: refused, or one within its bounds. And whatever is packed
//! comes back.
//!
//! Must not know: what is in a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::state::{
    ENVELOPE_BYTES, Integrity, MAX_RECORD_BYTES, Packer, Unpacker, set_checksum,
    with_valid_checksum,
};

/// Flags of the envelope: only zstd. And the length that the body had.
fn claims_to_be_packed(bytes: &[u8], plain_bytes: u32) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    bytes.get(..ENVELOPE_BYTES)?;
    bytes[8..12].copy_from_slice(&[2, 0, 1, 0]);
    bytes[36..40].copy_from_slice(&plain_bytes.to_le_bytes());
    with_valid_checksum(&bytes)
}

fuzz_target!(|data: &[u8]| {
    let Some((plain, data)) = data.split_first_chunk() else { return };
    // Usually one that fits, to get at what is behind the check.
    let plain = u32::from_le_bytes(*plain) & if data.len() % 8 == 0 { u32::MAX } else { 0xffff };
    let mut unpacker = Unpacker::default();
    if let Some(record) = claims_to_be_packed(data, plain) {
        for most in [1 << 10, MAX_RECORD_BYTES] {
            let mut unpacked = record.clone();
            if unpacker.unpack_within(&mut unpacked, Integrity::Unknown, most).is_ok() {
                assert_eq!(unpacked.len(), ENVELOPE_BYTES + plain as usize);
                assert!(unpacked.len() <= most);
            }
        }
    }
    let Some(mut record) = with_valid_checksum(data) else { return };
    // A plain record has no other length; one that claims it is refused when it is read.
    record[36..40].fill(0);
    set_checksum(&mut record);
    let mut packed = record.clone();
    Packer::default().pack(&mut packed, 0);
    if packed != record {
        assert!(packed.len() < record.len());
        set_checksum(&mut packed);
        unpacker.unpack(&mut packed, Integrity::Unknown).expect("it was packed here");
        set_checksum(&mut packed);
        assert_eq!(packed, record);
    }
});
