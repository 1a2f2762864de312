//! Any bytes on a channel's socket.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(reason) = zdt_engine::handoff::decode(bytes) {
        assert!(!reason.is_empty());
    }
});
