//! Saved states that nobody saved: hostile, truncated, from a later build.
//!
//! Must not know: how records travel.

use proptest::prelude::*;

use super::super::persist::*;
use super::super::*;
use super::driver::{Driver, Restart};

/// The state in the middle of a chunk, with a chunked response begun.
fn busy_state() -> Http1State {
    let mut http = Http1::new();
    let mut bytes =
        b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9;e\r\nabc".to_vec();
    let mut input = Input::new(&mut bytes);
    let mut output = Vec::new();
    while let Some(event) = http.next_event(&mut input, &Limits::default()).expect("valid") {
        if let Event::Request(_) = event {
            http.start_response(&mut output, 200, &[], BodyLength::Unknown, b"").expect("waits");
        }
    }
    http.save()
}

#[test]
fn binary_form_is_stable() {
    let state = busy_state();
    let mut encoded = Vec::new();
    state.encode(&mut encoded);
    let mut expected = Vec::new();
    expected.extend_from_slice(&6u64.to_ne_bytes()); // of the chunk to come
    expected.extend_from_slice(&0u64.to_ne_bytes());
    expected.extend_from_slice(&9u64.to_ne_bytes()); // announced
    expected.extend_from_slice(&2u32.to_ne_bytes()); // ";e"
    expected.extend_from_slice(&0u16.to_ne_bytes());
    expected.extend_from_slice(&(1u16 << 5).to_ne_bytes()); // keep-alive
    expected.extend_from_slice(&[3, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(encoded, expected);
    // A later build may have appended to it.
    encoded.extend_from_slice(b"more");
    assert_eq!(Http1State::decode(&encoded), Ok(state));
    assert_eq!(Http1State::decode(&encoded[..39]), Err(RestoreError::Truncated));
}

#[test]
fn json_form_is_readable() {
    let json = serde_json::to_value(busy_state()).expect("plain data");
    assert_eq!(json["request"]["chunk_data"]["remaining"], 6);
    assert_eq!(json["response"], "chunked");
}

#[test]
fn impossible_states_are_refused() {
    let refused = |change: fn(&mut Http1State)| {
        let mut state = busy_state();
        assert!(Http1::restore(&state).is_ok());
        change(&mut state);
        Http1::restore(&state).expect_err("impossible")
    };
    use RestoreError::{Contradiction, OutOfRange};
    let chunk = |remaining| RequestStage::ChunkData { remaining };
    assert_eq!(chunk(6), busy_state().request);
    assert_eq!(refused(|state| state.request = RequestStage::Sized { remaining: 0 }), OutOfRange);
    assert_eq!(
        refused(|state| state.request = RequestStage::ChunkData { remaining: 10 }),
        OutOfRange
    );
    assert_eq!(
        refused(|state| state.response = ResponseStage::Finished { discard_left: u32::MAX }),
        OutOfRange
    );
    assert_eq!(refused(|state| state.response = ResponseStage::Idle), Contradiction);
    assert_eq!(refused(|state| state.request = RequestStage::Head), Contradiction);
    assert_eq!(refused(|state| state.request = RequestStage::Closed), Contradiction);
    assert_eq!(refused(|state| state.http10 = true), Contradiction);
    assert_eq!(refused(|state| state.head = true), Contradiction);
    assert_eq!(refused(|state| state.response = ResponseStage::UntilClose), Contradiction);
}

#[test]
fn unknown_stages_and_flags_are_refused() {
    let head = busy_state().to_head();
    let decode = |head: Http1Head| Http1State::from_head(&head);
    assert_eq!(decode(Http1Head { request_stage: 9, ..head }), Err(RestoreError::UnknownStage));
    assert_eq!(decode(Http1Head { response_stage: 8, ..head }), Err(RestoreError::UnknownStage));
    assert_eq!(decode(Http1Head { flags: 1 << 7, ..head }), Err(RestoreError::UnknownFlags));
    let trailers = Http1Head { request_stage: 5, request_count: 1 << 32, ..head };
    assert_eq!(decode(trailers), Err(RestoreError::OutOfRange));
}

/// Any numbers in a record, but stages and flags that exist.
fn hostile_head() -> impl Strategy<Value = Http1Head> {
    let count = || prop_oneof![0..20u64, Just(u64::MAX), Just(u64::from(u32::MAX)), any::<u64>()];
    (count(), count(), count(), any::<u32>(), any::<u16>(), 0..128u16, 0..9u8, 0..8u8).prop_map(
        |(
            request_count,
            response_count,
            chunked_bytes,
            extension_bytes,
            lines,
            flags,
            one,
            two,
        )| {
            Http1Head {
                request_count,
                response_count,
                chunked_bytes,
                extension_bytes,
                trailer_lines: lines,
                flags,
                request_stage: one,
                response_stage: two,
                padding: [0; 6],
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    /// What restores is safe to use: it takes any input and any calls without a panic, and saves
    /// what it was restored from.
    #[test]
    fn hostile_states_are_refused_or_harmless(
        head in hostile_head(),
        bytes in prop_oneof![
            Just(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
            Just(b"5;a\r\nabcde\r\n0\r\nA: b\r\n\r\n".to_vec()),
            Just(b"\r\n5\r\nabcde\r\n0\r\n\r\n\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..40),
        ],
    ) {
        let Ok(state) = Http1State::from_head(&head) else { return Ok(()) };
        let Ok(http) = Http1::restore(&state) else { return Ok(()) };
        prop_assert_eq!(http.save(), state);
        let mut driver = Driver::new(Limits::default(), Restart::Always);
        driver.http = http;
        let mut output = Vec::new();
        if driver.http.write_body(&mut output, b"some").is_ok() {
            // Too short where a length was announced: an error, never bytes.
            let _ = driver.http.finish_response(&mut output);
        }
        driver.http.send_continue(&mut output);
        if driver.http.response_state() == ResponseState::Pending {
            driver.http.respond(&mut output, 200, &[], b"x", b"").expect("a request waits");
        }
        let mut buffer = bytes;
        let mut input = Input::new(&mut buffer);
        while let Ok(Some(_)) = driver.http.next_event(&mut input, &Limits::default()) {}
        prop_assert!(Http1::restore(&driver.http.save()).is_ok(), "{:?}", driver.http);
    }
}
