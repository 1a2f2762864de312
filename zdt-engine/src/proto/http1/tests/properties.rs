//! Properties over random exchanges: cuts do not matter, saving does not matter, garbage is
//! harmless.
//!
//! Must not know: single vectors.

use proptest::prelude::*;

use super::super::*;
use super::driver::{Driver, Restart};

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("Accept: */*\r\n".to_owned()),
        Just("X-Empty:\r\n".to_owned()),
        Just("connection: keep-alive, foo\r\n".to_owned()),
        "[A-Za-z!#$%&'*+.^_`|~-]{0,20}x: ?[ -~\t\u{e9}]{0,40}\r\n".prop_filter(
            "keeps its meaning to itself",
            |line| {
                let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
                !["host", "expect", "upgrade", "connection"].contains(&name.as_str())
            }
        ),
    ]
}

fn body() -> impl Strategy<Value = (String, Vec<u8>)> {
    let data = || proptest::collection::vec(any::<u8>(), 0..60);
    let chunk = (
        proptest::collection::vec(any::<u8>(), 1..40),
        prop_oneof![Just(""), Just(";a"), Just(" ; a = \"q\\\"x\";b=c")],
        0..3usize,
    );
    let trailers = proptest::collection::vec("[a-z]{1,8}: [ -~]{0,9}\r\n", 0..3)
        .prop_map(|lines| lines.concat().replace("host:", "most:"));
    prop_oneof![
        2 => Just((String::new(), Vec::new())),
        2 => data().prop_map(|data| (format!("Content-Length: {}\r\n", data.len()), data)),
        1 => data().prop_map(|data| {
            (format!("Expect: 100-continue\r\nContent-Length: {}\r\n", data.len()), data)
        }),
        2 => (proptest::collection::vec(chunk, 0..4), trailers).prop_map(|(chunks, trailers)| {
            let mut bytes = Vec::new();
            for (data, extension, zeros) in chunks {
                let zeros = &"000"[..zeros];
                bytes.extend_from_slice(format!("{zeros}{:X}{extension}\r\n", data.len()).as_bytes());
                bytes.extend_from_slice(&data);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
            ("Transfer-Encoding: chunked\r\n".to_owned(), bytes)
        }),
    ]
}

/// One valid request, often followed by another on the same connection.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = prop_oneof![Just("GET"), Just("POST"), Just("HEAD"), Just("PURGE")];
    let target = prop_oneof![
        Just("/"),
        Just("/early"),
        Just("/copy?x=1&y"),
        Just("/chunks"),
        Just("http://example.org/early?")
    ];
    let version = prop_oneof![6 => Just("1.1"), 1 => Just("1.0")];
    let last = prop_oneof![12 => Just(""), 1 => Just("Connection: close\r\n")];
    let before = prop_oneof![8 => Just(""), 1 => Just("\r\n")];
    let fields = proptest::collection::vec(field(), 0..6);
    (before, method, target, version, last, fields, body()).prop_map(
        |(before, method, target, version, last, fields, (framing, body))| {
            let is_http10 = version == "1.0";
            let framing =
                if is_http10 && framing.contains("chunked") { "" } else { framing.as_str() };
            let keep = if is_http10 { "Connection: Keep-Alive\r\n" } else { "" };
            let fields = fields.concat();
            let mut bytes = format!(
                "{before}{method} {target} HTTP/{version}\r\n{fields}{keep}Host: example.org\r\n{last}{framing}\r\n"
            )
            .into_bytes();
            if !framing.is_empty() {
                bytes.extend_from_slice(&body);
            }
            bytes
        },
    )
}

fn exchange() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(request(), 1..5).prop_map(|requests| requests.concat())
}

/// A valid exchange with a few things done to its bytes.
fn damaged_exchange() -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![proptest::sample::select(b"\r\n\t :;,/?0a\x00\x7f\xff".to_vec()), any::<u8>()];
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), 0..3u8, byte), 1..4);
    (exchange(), damage).prop_map(|(mut bytes, damage)| {
        for (place, kind, byte) in damage {
            if bytes.is_empty() {
                break;
            }
            let place = place.index(bytes.len());
            match kind {
                0 => bytes[place] = byte,
                1 => bytes.insert(place, byte),
                _ => drop(bytes.remove(place)),
            }
        }
        bytes
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let small =
        (20..200u32, 5..60u32, 0..6u16, 0..60u64).prop_map(|(head, target, count, body)| Limits {
            max_head_bytes: head,
            max_target_bytes: target,
            max_header_count: count,
            max_body_bytes: body,
        });
    prop_oneof![2 => Just(Limits::default()), 1 => small]
}

fn cuts(bytes: &[u8], places: &[prop::sample::Index]) -> Vec<usize> {
    let mut cuts: Vec<usize> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts
}

fn places() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    proptest::collection::vec(any::<prop::sample::Index>(), 0..12)
}

fn compare(one: &Driver, other: &Driver) -> Result<(), TestCaseError> {
    prop_assert_eq!(&one.seen, &other.seen);
    let text = |driver: &Driver| driver.output.escape_ascii().to_string();
    prop_assert_eq!(text(one), text(other));
    prop_assert_eq!(one.http.must_close(), other.http.must_close());
    prop_assert_eq!(one.http.wants_input(), other.http.wants_input());
    prop_assert_eq!(one.http.response_state(), other.http.response_state());
    if one.http.wants_input() {
        prop_assert_eq!(&one.leftover, &other.leftover);
    }
    Ok(())
}

/// In one piece, cut at random, byte by byte; each with and without a restart after every call.
fn check_all_ways(
    bytes: &[u8],
    limits: Limits,
    places: &[prop::sample::Index],
) -> Result<Driver, TestCaseError> {
    let whole = Driver::run(limits, Restart::Never, bytes, &[]);
    let every_byte: Vec<usize> = (0..bytes.len()).collect();
    let random = cuts(bytes, places);
    for cuts in [&[][..], &random, &every_byte] {
        for restart in [Restart::Never, Restart::Always] {
            compare(&Driver::run(limits, restart, bytes, cuts), &whole)?;
        }
    }
    Ok(whole)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn valid_exchanges_are_accepted_however_cut(bytes in exchange(), places in places()) {
        let driver = check_all_ways(&bytes, Limits::default(), &places)?;
        let refused = driver.seen.iter().any(|seen| matches!(seen, super::driver::Seen::Refused(_)));
        prop_assert!(!refused, "{:?}", driver.seen);
        prop_assert!(driver.http.is_idle() || driver.http.must_close());
    }

    #[test]
    fn limits_apply_however_cut(bytes in exchange(), limits in limits(), places in places()) {
        check_all_ways(&bytes, limits, &places)?;
    }

    #[test]
    fn damage_is_judged_alike_however_cut(
        bytes in damaged_exchange(),
        limits in limits(),
        places in places(),
    ) {
        check_all_ways(&bytes, limits, &places)?;
    }

    #[test]
    fn garbage_is_harmless(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        prefix in proptest::sample::select(vec![
            "",
            "GET /",
            "GET / HTTP/1.1\r\nHost: x\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        ]),
        places in places(),
    ) {
        let bytes = [prefix.as_bytes(), &bytes].concat();
        check_all_ways(&bytes, Limits::default(), &places)?;
    }
}
