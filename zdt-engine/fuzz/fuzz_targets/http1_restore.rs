//! Any saved state: refused, or harmless whatever comes then.
//!
//! Must not know: what a machine would really save.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::Input;
use zdt_engine::proto::http1::{BodyLength, Http1, Http1Head, Http1State, Limits};

fuzz_target!(|data: &[u8]| {
    let Ok(state) = Http1State::decode(data) else { return };
    let Ok(mut http) = Http1::restore(&state) else { return };
    assert_eq!(http.save(), state);
    let mut bytes = data[size_of::<Http1Head>()..].to_vec();
    let mut calls = bytes.clone().into_iter();
    let mut output = Vec::new();
    let mut input = Input::new(&mut bytes);
    let limits = Limits::default();
    // The bytes are both: what the client sends, and what the service does meanwhile.
    while let Some(call) = calls.next() {
        let before = output.len();
        let result = match call % 8 {
            0 => http.respond(&mut output, 200, &[], b"body", b""),
            1 => http.start_response(&mut output, 200, &[], BodyLength::Known(4), b""),
            2 => http.start_response(&mut output, 200, &[], BodyLength::Unknown, b""),
            3 => http.write_body(&mut output, b"bo"),
            4 => http.finish_response(&mut output),
            5 => http.upgrade(&mut output, "websocket", &[]),
            6 => {
                http.send_continue(&mut output);
                Ok(())
            }
            _ => {
                if let Err(error) = http.next_event(&mut input, &limits) {
                    http.error_response(&mut output, &error, b"");
                    assert!(http.must_close());
                }
                Ok(())
            }
        };
        if result.is_err() {
            assert_eq!(output.len(), before, "a refused call has written something");
        }
        let restored = Http1::restore(&http.save()).expect("what a machine saves can be restored");
        assert_eq!(restored.save(), http.save());
    }
});
