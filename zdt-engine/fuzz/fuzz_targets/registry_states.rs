//! Any bytes as a pack of connection states: refused, or states that come back from their own pack.
//!
//! Must not know: what the states mean.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::registry::{compress_states, decompress_states};

fuzz_target!(|data: &[u8]| {
    if let Ok(states) = decompress_states(data) {
        assert_eq!(decompress_states(&compress_states(&states)), Ok(states));
    }
});
