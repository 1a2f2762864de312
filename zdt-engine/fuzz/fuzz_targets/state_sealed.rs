//! Any record, sealed and not: it opens once, with its key, its sequence and its direction, and not if
//! a bit of it was changed.
//!
//! Must not know: what is in a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::state::{Opener, Sealer, Secret, is_sealed, set_checksum, with_valid_checksum};

const DIRECTION: u8 = 1;

fn opens(record: &[u8], secret: &Secret, sequence: u64, direction: u8) -> bool {
    Opener::new(secret, direction).open(&mut record.to_vec(), sequence).is_ok()
}

fuzz_target!(|data: &[u8]| {
    let secret = Secret::new([7; 32]);
    assert!(!opens(data, &secret, 1, DIRECTION), "nobody has the key");
    let Some((&[where_low, where_high, bit], data)) = data.split_first_chunk() else { return };
    let Some(mut record) = with_valid_checksum(data) else { return };
    let mut sealed = record.clone();
    let mut sealer = Sealer::new(&secret, DIRECTION);
    if !sealer.seal(&mut sealed, 5) {
        assert_eq!(sealed, record, "it is as it was");
        return;
    }
    assert!(is_sealed(&sealed));
    assert!(!sealer.seal(&mut record.clone(), 5), "a sequence is used once");
    assert!(!opens(&sealed, &secret, 4, DIRECTION));
    assert!(!opens(&sealed, &secret, 5, DIRECTION + 1));
    assert!(!opens(&sealed, &Secret::new([8; 32]), 5, DIRECTION));
    assert!(!opens(&sealed[..sealed.len() - 1], &secret, 5, DIRECTION));
    let at = usize::from(u16::from_le_bytes([where_low, where_high])) % sealed.len();
    let mut changed = sealed.clone();
    changed[at] ^= 1 << (bit % 8);
    assert!(!opens(&changed, &secret, 5, DIRECTION), "byte {at}");
    let mut opener = Opener::new(&secret, DIRECTION);
    let mut opened = sealed.clone();
    opener.open(&mut opened, 5).expect("it is sound");
    assert!(opener.open(&mut sealed, 5).is_err(), "it was here before");
    set_checksum(&mut opened);
    set_checksum(&mut record);
    assert_eq!(opened, record);
});
