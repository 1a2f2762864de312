//! Any bytes as the state record of a whole connection: refused, or restored.
//!
//! A flipped bit is nearly always stopped by the checksum, so the input is also tried with a
//! checksum that fits.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut bench = zdt_engine::worker::bench_roundtrip(0);
    bench.try_restore(bytes);
    if let Some(sealed) = zdt_engine::state::with_valid_checksum(bytes)
        && bench.try_restore(&sealed)
    {
        bench.run(&mut Vec::new());
    }
});
