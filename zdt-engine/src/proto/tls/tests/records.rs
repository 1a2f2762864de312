//! Records: whole, cut, changed, too long, of the wrong kind.

use super::super::record::content::*;
use super::super::*;
use super::driver::*;

fn all() -> impl Iterator<Item = (Tls, Tls)> {
    VERSIONS.into_iter().flat_map(|version| Suite::ALL.map(|suite| ends(version, suite)))
}

#[test]
fn many_records_open_into_one_piece() {
    for (mut server, mut client) in all() {
        let mut wire = sealed(&mut client, APPLICATION_DATA, b"one ");
        wire.extend(sealed(&mut client, APPLICATION_DATA, &[b'x'; 40_000]));
        wire.extend(sealed(&mut client, APPLICATION_DATA, b" end"));
        let whole = wire.len();
        wire.extend_from_slice(&[23, 3]);
        let mut output = Vec::new();
        let opened = server.open(&mut wire, &mut output);
        assert_eq!(opened.consumed, whole);
        let plain = &wire[opened.plaintext];
        assert!(plain.starts_with(b"one x") && plain.ends_with(b"x end") && plain.len() == 40_008);
        assert!(output.is_empty());
    }
}

#[test]
fn output_of_any_length_becomes_records() {
    for (mut server, mut client) in all() {
        for len in [1, 2, 16_383, 16_384, 16_385, 32_768, 50_000] {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut wire = bytes.clone();
            server.seal(&mut wire, u64::MAX).unwrap();
            let mut rest = &wire[..];
            while !rest.is_empty() {
                let total = super::super::record::record_bytes(rest).unwrap().unwrap();
                assert!(total <= 5 + 16_384 + 24);
                rest = &rest[total..];
            }
            assert_eq!(open(&mut client, &wire).0, bytes);
        }
    }
}

#[test]
fn a_changed_bit_anywhere_is_noticed() {
    for version in VERSIONS {
        for suite in Suite::ALL {
            let wire = sealed(&mut ends(version, suite).1, APPLICATION_DATA, b"content");
            for at in 0..wire.len() {
                let (mut server, mut client) = ends(version, suite);
                let mut changed = wire.clone();
                changed[at] ^= 1;
                changed.extend_from_slice(&[0; 300]); // also for a length that has grown
                let (plain, end, output) = open(&mut server, &changed);
                // In TLS 1.2 the explicit nonce is not what counts; the tag is.
                assert!(matches!(end, Some(End::Failed(_))), "byte {at}: {end:?}");
                assert!(plain.is_empty());
                let (_, alert, _) = open(&mut client, &output);
                assert!(matches!(alert, Some(End::Failed(Error::PeerAlert(_)))), "byte {at}");
            }
        }
    }
}

#[test]
fn what_came_before_a_bad_record_is_delivered() {
    let (mut server, mut client) = ends(Version::Tls13, Suite::Aes128Gcm);
    let mut wire = sealed(&mut client, APPLICATION_DATA, b"good");
    let mut bad = sealed(&mut client, APPLICATION_DATA, b"bad");
    bad[8] ^= 1;
    wire.extend(bad);
    let (plain, end, _) = open(&mut server, &wire);
    assert_eq!((&plain[..], end), (&b"good"[..], Some(End::Failed(Error::BadRecord))));
}

#[test]
fn a_replay_does_not_open() {
    for (mut server, mut client) in all() {
        let wire = sealed(&mut client, APPLICATION_DATA, b"once");
        assert_eq!(open(&mut server, &wire).0, b"once");
        assert_eq!(error_of(&mut server, &wire), Error::BadRecord);
    }
}

#[test]
fn records_that_may_not_come_are_refused() {
    for (mut server, mut client) in all() {
        let is_13 = server.version() == Version::Tls13;
        let save = |tls: &Tls| {
            let saved = tls.save();
            let mut copy = Tls::restore(&saved.head, &[], &[]).unwrap();
            copy.start();
            copy
        };
        // A late change_cipher_spec (RFC 8446 §5), in clear and sealed.
        let error = error_of(&mut save(&server), &[20, 3, 3, 0, 1, 1]);
        assert!(matches!(error, Error::Unexpected(_) | Error::BadRecord), "{error}");
        let wire = sealed(&mut save(&client), CHANGE_CIPHER_SPEC, &[1]);
        assert!(matches!(error_of(&mut save(&server), &wire), Error::Unexpected(_)));
        // An alert in clear: anybody could send it.
        let error = error_of(&mut save(&server), &[21, 3, 3, 0, 2, 1, 0]);
        assert!(matches!(error, Error::Unexpected(_) | Error::BadRecord), "{error}");
        // Shorter than its tag.
        assert_eq!(error_of(&mut save(&server), &[23, 3, 3, 0, 3, 1, 2, 3]), Error::BadRecord);
        assert_eq!(error_of(&mut save(&server), &[23, 3, 3, 0, 0]), Error::BadRecord);
        // Longer than any, which is found in the header.
        assert_eq!(error_of(&mut save(&server), &[23, 3, 3, 0x42, 0]), Error::RecordOverflow);
        assert_eq!(error_of(&mut save(&server), &[23, 9, 3, 0, 20]), Error::WrongVersion);
        assert!(matches!(error_of(&mut save(&server), &[99, 3, 3, 0, 20]), Error::Unexpected(_)));
        let wire = sealed(&mut save(&client), HANDSHAKE, &[20, 0, 0, 1, 0]);
        assert!(matches!(error_of(&mut save(&server), &wire), Error::Unexpected(_)));
        let wire = sealed(&mut save(&client), HANDSHAKE, &[]);
        assert!(matches!(error_of(&mut save(&server), &wire), Error::Unexpected(_)));
        if is_13 {
            for (content, kind) in [
                (&[24, 0, 0, 2, 0][..], "length"),
                (&[24, 0, 0, 1, 2], "value"),
                (&[24, 0, 0, 1, 0, 24], "bytes behind it"),
                (&[1, 0, 0, 1], "a ClientHello"),
            ] {
                let wire = sealed(&mut save(&client), HANDSHAKE, content);
                error_of(&mut save(&server), &wire);
                assert!(!kind.is_empty());
            }
            // Between the parts of a message nothing else may come.
            let mut wire = sealed(&mut client, HANDSHAKE, &[24, 0]);
            wire.extend(sealed(&mut client, APPLICATION_DATA, b"x"));
            assert!(matches!(error_of(&mut server, &wire), Error::Unexpected(_)));
        }
    }
}

/// RFC 8446 §5.4: padding is zeroes behind the type, and without a type there is no record.
#[test]
fn padding_is_taken_off() {
    let (mut server, mut client) = ends(Version::Tls13, Suite::Aes256Gcm);
    // "data" and its type as content, then zeroes, then a type byte of zero: all padding.
    let mut content = b"data".to_vec();
    content.push(APPLICATION_DATA);
    content.resize(2_000, 0);
    let wire = sealed(&mut client, 0, &content);
    assert_eq!(open(&mut server, &wire).0, b"data");
    let wire = sealed(&mut client, 0, &[0; 100]);
    assert!(matches!(error_of(&mut server, &wire), Error::Unexpected(_)));
}

#[test]
fn a_key_update_may_come_in_parts_over_several_moves() {
    let (mut server, mut client) = ends(Version::Tls13, Suite::ChaCha20Poly1305);
    for byte in [24, 0, 0, 1] {
        let wire = sealed(&mut client, HANDSHAKE, &[byte]);
        let (plain, end, output) = open(&mut server, &wire);
        assert!(plain.is_empty() && end.is_none() && output.is_empty());
        let saved = server.save();
        let mut restored = Tls::restore(&saved.head, &[], &[]).unwrap();
        restored.start();
        drop(saved);
        server = restored;
    }
    let mut wire = sealed(&mut client, HANDSHAKE, &[1]);
    client.send.ratchet();
    wire.extend(sealed(&mut client, APPLICATION_DATA, b"under the next key"));
    let (plain, end, mut output) = open(&mut server, &wire);
    assert_eq!((&plain[..], end), (&b"under the next key"[..], None));
    server.seal(&mut { std::mem::take(&mut output) }, 0).unwrap_or(());
}

#[test]
fn closing_is_said_once_and_heard_once() {
    for (mut server, mut client) in all() {
        let mut wire = Vec::new();
        client.close(&mut wire);
        wire.extend_from_slice(b"whatever follows is ignored");
        let (_, end, output) = open(&mut server, &wire);
        assert_eq!((end, output.len()), (Some(End::Closed), 0));
        assert!(server.is_deaf() && !server.is_mute(), "the other direction is still open");
        let mut answer = b"last words".to_vec();
        server.seal(&mut answer, u64::MAX).unwrap();
        server.close(&mut answer);
        let len = answer.len();
        server.close(&mut answer);
        assert_eq!(answer.len(), len);
        let mut nothing = b"too late".to_vec();
        server.seal(&mut nothing, u64::MAX).unwrap();
        assert!(nothing.is_empty());
        let (plain, end, _) = open(&mut client, &answer);
        assert_eq!((&plain[..], end), (&b"last words"[..], Some(End::Closed)));
    }
}

/// RFC 8446 §5.5: a key is changed before it is worn out; TLS 1.2 has no other way than to close.
#[test]
fn a_key_is_not_used_beyond_its_limit() {
    const LAST: u64 = MOST_GCM_RECORDS - GCM_RESERVE;
    for (mut server, mut client) in all() {
        for end in [&mut server.send, &mut client.receive] {
            end.sequence = LAST - 1;
        }
        for (number, word) in [b"last one", b"next one"].into_iter().enumerate() {
            let mut wire = word.to_vec();
            let sealed = server.seal(&mut wire, u64::MAX);
            let is_gcm12 =
                server.version() == Version::Tls12 && server.suite() != Suite::ChaCha20Poly1305;
            if is_gcm12 && number == 1 {
                assert_eq!(sealed, Err(Error::KeyUsedUp));
                assert!(wire.is_empty());
                server.close(&mut wire);
                assert_eq!(open(&mut client, &wire).1, Some(End::Closed));
                continue;
            }
            assert_eq!(open(&mut client, &wire).0, word);
            if server.version() == Version::Tls13 && number == 1 {
                assert_eq!(server.send.sequence, 1, "a new key counts from 0");
            }
        }
    }
}
