//! Any bytes as a PROXY protocol header: incomplete, refused, or a header that stands by itself.
//!
//! Must not know: what follows a header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::proxy_protocol::{MAX_HEADER_BYTES, Progress, parse};

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(Progress::Complete(header)) => {
            assert!(header.len <= data.len().min(MAX_HEADER_BYTES));
            assert_eq!(parse(&data[..header.len]), Ok(Progress::Complete(header)));
            // Every beginning of it is the beginning of a header.
            for cut in 0..header.len {
                assert_eq!(parse(&data[..cut]), Ok(Progress::Incomplete));
            }
        }
        Ok(Progress::Incomplete) => assert!(data.len() < MAX_HEADER_BYTES),
        Err(_) => {}
    }
});
