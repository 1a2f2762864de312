//! Any bytes as the file of parked sessions, and any records in a sound one: refused, or sessions within
//! their bounds.
//!
//! Must not know: what a session is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::state::parked::{ParkedHead, ParkedSessionHead, TAG_PARKED, TAG_PARKED_SESSION};
use zdt_engine::state::{FreezeInstant, Packer, Secret, Writer, set_checksum, with_valid_checksum};
use zdt_engine::supervisor::{parked_file, try_parked_file};

/// A record with the sections of a session, in which anything may be.
fn session(piece: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = piece.split_first_chunk::<32>()?;
    let (session, rest) = rest.split_first_chunk::<4>()?;
    let head: ParkedHead = bytemuck::pod_read_unaligned(head);
    let session: ParkedSessionHead = bytemuck::pod_read_unaligned(session);
    let mut record = Vec::new();
    let mut writer = Writer::new(&mut record, FreezeInstant { boot_hash: 0, boottime_ns: 0 });
    writer.section(TAG_PARKED, 1, false, &head, &[]);
    writer.section(TAG_PARKED_SESSION, 1, false, &session, &[rest]);
    writer.finish_unchecked(2);
    if rest.len() % 2 == 0 {
        Packer::default().pack(&mut record, 0);
    }
    set_checksum(&mut record);
    Some(record)
}

fuzz_target!(|data: &[u8]| {
    let key = Secret::new([7; 32]);
    let _ = try_parked_file(data, &key);
    let mut records = Vec::new();
    let mut rest = data;
    while let Some((&[kind, len], behind)) = rest.split_first_chunk() {
        let (piece, behind) = behind.split_at(usize::from(len).min(behind.len()));
        rest = behind;
        let record = match kind % 2 {
            0 => session(piece),
            _ => with_valid_checksum(piece),
        };
        records.extend(record);
    }
    let Some(mut file) = parked_file(&key, &records) else { return };
    assert_eq!(try_parked_file(&file, &key), Some((records.len(), true)));
    if records.is_empty() {
        return; // nothing is sealed, and nothing can be had from it
    }
    let at = data.first().copied().map_or(0, usize::from) * 31 % file.len();
    file[at] ^= 1;
    assert!(!matches!(try_parked_file(&file, &key), Some((_, true))), "byte {at}");
});
