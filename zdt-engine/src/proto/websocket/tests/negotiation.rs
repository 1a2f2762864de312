//! The opening handshake and the negotiation of permessage-deflate.

use crate::proto::websocket::handshake::{
    Accept, DeflateOptions, MAX_SUBPROTOCOLS, Refusal, accept_key, check, negotiate_deflate,
};

const VALID: [(&str, &str); 5] = [
    ("Host", "server.example.com"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
];

fn check_list<'h>(headers: &[(&'h str, &'h str)]) -> Result<Accept<'h>, Refusal> {
    check("GET", true, headers.iter().map(|(name, value)| (*name, value.as_bytes())))
}

/// The valid request with one field replaced, or left out.
fn changed<'h>(name: &str, value: Option<&'h str>) -> Result<Accept<'h>, Refusal> {
    let headers: Vec<(&str, &str)> = VALID
        .into_iter()
        .filter_map(|(known, old)| match known == name {
            true => value.map(|value| (known, value)),
            false => Some((known, old)),
        })
        .collect();
    check_list(&headers)
}

fn with<'h>(name: &'h str, value: &'h str) -> Result<Accept<'h>, Refusal> {
    check_list(&[&VALID[..], &[(name, value)]].concat())
}

fn status<T>(result: Result<T, Refusal>) -> u16 {
    result.err().map_or(101, |refusal| refusal.status)
}

#[test]
fn the_example_of_rfc_6455() {
    assert_eq!(&accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let accept = check_list(&VALID).expect("valid");
    assert_eq!(&accept.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert!(accept.subprotocols.is_empty() && accept.extensions.is_empty());
    assert_eq!(accept.origin, None);
}

#[test]
fn what_must_be_there() {
    let headers = VALID.map(|(name, value)| (name, value.as_bytes()));
    assert_eq!(status(check("POST", true, headers)), 405);
    assert_eq!(status(check("GET", false, headers)), 426);
    for (name, value, expected) in [
        ("Upgrade", None, 426),
        ("Upgrade", Some("h2c"), 426),
        ("Upgrade", Some("h2c, WebSocket"), 101),
        ("Upgrade", Some("websockets"), 426),
        ("Connection", None, 426),
        ("Connection", Some("keep-alive, upgrade"), 101),
        ("Connection", Some("close"), 426),
        ("Sec-WebSocket-Key", None, 400),
        ("Sec-WebSocket-Key", Some(""), 400),
        ("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25jZQ="), 400),
        ("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25jZTEy"), 400),
        ("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25j!Q=="), 400),
        ("Sec-WebSocket-Key", Some(" dGhlIHNhbXBsZSBub25jZQ== "), 101),
        ("Sec-WebSocket-Version", None, 400),
        ("Sec-WebSocket-Version", Some("8"), 426),
        ("Sec-WebSocket-Version", Some("013"), 426),
    ] {
        assert_eq!(status(changed(name, value)), expected, "{name}: {value:?}");
    }
    let refusal = changed("Sec-WebSocket-Version", Some("8")).expect_err("version");
    assert!(refusal.headers.contains(&("Sec-WebSocket-Version", b"13")));
    for (name, value, expected) in [
        ("sec-websocket-KEY", "dGhlIHNhbXBsZSBub25jZQ==", 400),
        ("Sec-WebSocket-Version", "13", 400),
        ("Content-Length", "0", 101),
        ("Content-Length", "1", 400),
        ("Transfer-Encoding", "chunked", 400),
        ("Sec-WebSocket-Protocol", "a b", 400),
        ("Sec-WebSocket-Protocol", "chat;", 400),
        ("Sec-WebSocket-Extensions", "a; b=", 400),
        ("Sec-WebSocket-Extensions", "a; =1", 400),
        ("Sec-WebSocket-Extensions", "a;", 400),
        ("Sec-WebSocket-Extensions", "a; b=\"c d\"", 400),
        ("Sec-WebSocket-Extensions", "a b", 400),
        ("Sec-WebSocket-Extensions", "a, , b;c=\"d\"", 101),
    ] {
        assert_eq!(status(with(name, value)), expected, "{name}: {value}");
    }
}

#[test]
fn what_may_be_there() {
    let accept = with("Sec-WebSocket-Protocol", "chat, superchat ,v2.x").expect("valid");
    assert_eq!(accept.subprotocols.as_slice(), ["chat", "superchat", "v2.x"]);
    let accept = with("Origin", "https://example.com").expect("valid");
    assert_eq!(accept.origin, Some(&b"https://example.com"[..]));
    let many: Vec<String> = (0..100).map(|index| format!("p{index}")).collect();
    let many = many.join(",");
    let accept = with("Sec-WebSocket-Protocol", &many).expect("valid");
    assert_eq!(accept.subprotocols.len(), MAX_SUBPROTOCOLS);
}

fn negotiate(offers: &str, options: &DeflateOptions) -> Option<String> {
    negotiate_deflate([offers.as_bytes()], options).map(|(params, value)| {
        assert!(params.is_valid());
        // The response says what the machine will do.
        let says = |text: &str| value.contains(text);
        assert_eq!(says("server_no_context_takeover"), params.server_no_context_takeover);
        assert_eq!(says("client_no_context_takeover"), params.client_no_context_takeover);
        let bits = format!("server_max_window_bits={}", params.server_window_bits);
        assert!(says(&bits) || params.server_window_bits == 15);
        let bits = format!("client_max_window_bits={}", params.client_window_bits);
        assert!(says(&bits) || params.client_window_bits == 15);
        value.trim_start_matches("permessage-deflate").trim_start_matches("; ").to_owned()
    })
}

#[test]
fn offers_of_rfc_7692() {
    let accepts = |offer: &str| negotiate(offer, &DeflateOptions::default());
    for (offer, response) in [
        ("permessage-deflate", Some("")),
        ("Permessage-Deflate", Some("")),
        ("permessage-deflate; client_max_window_bits", Some("")),
        ("permessage-deflate; client_max_window_bits=15", Some("")),
        ("permessage-deflate; client_max_window_bits=10", Some("client_max_window_bits=10")),
        ("permessage-deflate; client_max_window_bits=8", Some("client_max_window_bits=8")),
        ("permessage-deflate; server_max_window_bits=10", Some("server_max_window_bits=10")),
        ("permessage-deflate; server_max_window_bits=15", Some("server_max_window_bits=15")),
        ("permessage-deflate; server_max_window_bits=\"10\"", Some("server_max_window_bits=10")),
        ("permessage-deflate;server_no_context_takeover", Some("server_no_context_takeover")),
        ("permessage-deflate ; client_no_context_takeover", Some("client_no_context_takeover")),
        (
            "permessage-deflate; client_max_window_bits=9; server_max_window_bits=9; \
             client_no_context_takeover; server_no_context_takeover",
            Some(
                "server_no_context_takeover; client_no_context_takeover; \
                 server_max_window_bits=9; client_max_window_bits=9",
            ),
        ),
        // What zlib's raw deflate cannot do.
        ("permessage-deflate; server_max_window_bits=8", None),
        // §7.1: unknown, repeated, badly valued.
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits=10", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover=true", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; server_max_window_bits=09", None),
        ("permessage-deflate; server_max_window_bits=+9", None),
        ("permessage-deflate; client_max_window_bits=0", None),
        ("permessage-deflate; client_max_window_bits=99999999999", None),
        // Others, and several.
        ("", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate-2", None),
        ("permessage-bzip2, permessage-deflate", Some("")),
        (
            "permessage-deflate; server_max_window_bits=8, permessage-deflate; \
             server_max_window_bits=10, permessage-deflate",
            Some("server_max_window_bits=10"),
        ),
        ("permessage-deflate; unknown=1, permessage-deflate", Some("")),
    ] {
        assert_eq!(accepts(offer).as_deref(), response, "{offer}");
    }
}

#[test]
fn the_first_acceptable_offer_wins_over_several_lines() {
    let lines = [
        &b"permessage-deflate; unknown"[..],
        b"foo, permessage-deflate; server_max_window_bits=11",
    ];
    let (params, _) = negotiate_deflate(lines, &DeflateOptions::default()).expect("second");
    assert_eq!(params.server_window_bits, 11);
}

#[test]
fn the_servers_own_wishes() {
    let options = DeflateOptions {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        server_max_window_bits: 11,
        client_max_window_bits: 10,
    };
    let takeover = "server_no_context_takeover; client_no_context_takeover; ";
    for (offer, response) in [
        // The client's window cannot be bounded unless it offers that.
        ("permessage-deflate", "server_max_window_bits=11"),
        (
            "permessage-deflate; client_max_window_bits",
            "server_max_window_bits=11; client_max_window_bits=10",
        ),
        (
            "permessage-deflate; client_max_window_bits=9; server_max_window_bits=10",
            "server_max_window_bits=10; client_max_window_bits=9",
        ),
    ] {
        assert_eq!(negotiate(offer, &options), Some(format!("{takeover}{response}")), "{offer}");
    }
    // The longest response there is.
    let options =
        DeflateOptions { server_max_window_bits: 15, client_max_window_bits: 14, ..options };
    let offer = "permessage-deflate; client_max_window_bits; server_max_window_bits=15";
    let response = "server_max_window_bits=15; client_max_window_bits=14";
    assert_eq!(negotiate(offer, &options), Some(format!("{takeover}{response}")));
}
