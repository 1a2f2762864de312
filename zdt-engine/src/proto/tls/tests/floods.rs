//! Harmless things, too many of them; the counts move with the connection.

use super::super::record::content::*;
use super::super::*;
use super::driver::*;

/// Sends records until one is refused, moving the connection after each; returns how many were not.
fn borne(version: Version, mut next: impl FnMut(&mut Tls, u32) -> Vec<u8>) -> (u32, Error) {
    let (mut server, mut client) = ends(version, Suite::Aes128Gcm);
    for count in 0..1_000 {
        let wire = next(&mut client, count);
        if let Some(End::Failed(error)) = open(&mut server, &wire).1 {
            return (count, error);
        }
        let saved = server.save();
        let mut restored = Tls::restore(&saved.head, &[], &[]).unwrap();
        restored.start();
        drop(saved);
        server = restored;
    }
    panic!("a thousand were borne");
}

#[test]
fn empty_records() {
    for version in VERSIONS {
        let (count, error) = borne(version, |client, _| sealed(client, APPLICATION_DATA, &[]));
        assert_eq!((count, error), (32, Error::Flood("empty records")));
        let mut sent = 0;
        let (count, _) = borne(version, |client, count| {
            sent = count;
            let content: &[u8] = if count % 32 == 31 && count < 100 { b"x" } else { &[] };
            sealed(client, APPLICATION_DATA, content)
        });
        assert_eq!(count, 96 + 32, "data in between forgives");
    }
}

#[test]
fn key_updates() {
    for requested in [0, 1] {
        let (count, error) = borne(Version::Tls13, |client, _| {
            let wire = sealed(client, HANDSHAKE, &[24, 0, 0, 1, requested]);
            client.send.ratchet();
            wire
        });
        assert_eq!((count, error), (32, Error::Flood("key updates")));
    }
}

#[test]
fn warnings() {
    let user_canceled = [1, 90];
    let (count, error) = borne(Version::Tls13, |client, _| sealed(client, ALERT, &user_canceled));
    assert_eq!((count, error), (4, Error::Flood("warnings")));
    let (count, error) = borne(Version::Tls12, |client, _| sealed(client, ALERT, &[1, 41]));
    assert_eq!((count, error), (4, Error::Flood("warnings")));
}

#[test]
fn alerts_that_end_it() {
    for (version, content, wanted) in [
        (Version::Tls13, &[1, 41][..], Error::PeerAlert(41)),
        (Version::Tls13, &[2, 20], Error::PeerAlert(20)),
        (Version::Tls12, &[2, 20], Error::PeerAlert(20)),
    ] {
        assert_eq!(borne(version, |client, _| sealed(client, ALERT, content)), (0, wanted));
    }
    for content in [&[1][..], &[1, 0, 1], &[1, 0, 1, 0]] {
        let (_, error) = borne(Version::Tls13, |client, _| sealed(client, ALERT, content));
        assert!(matches!(error, Error::Malformed(_)));
    }
    let (_, error) = borne(Version::Tls12, |client, _| sealed(client, ALERT, &[7, 41]));
    assert!(matches!(error, Error::Illegal(_)));
}

/// RFC 5746: a warning, once; who insists is at fault.
#[test]
fn renegotiation_is_refused_once() {
    let (mut server, mut client) = ends(Version::Tls12, Suite::Aes256Gcm);
    let mut hello = vec![1, 0, 0, 200];
    hello.resize(204, 9);
    // In three parts, with a move between them; then data, which is served.
    let mut answers = Vec::new();
    for part in [&hello[..2], &hello[2..100], &hello[100..]] {
        let wire = sealed(&mut client, HANDSHAKE, part);
        let (_, end, output) = open(&mut server, &wire);
        assert_eq!(end, None);
        answers.extend(output);
        let saved = server.save();
        let mut restored = Tls::restore(&saved.head, &[], &[]).unwrap();
        restored.start();
        drop(saved);
        server = restored;
    }
    let wire = sealed(&mut client, APPLICATION_DATA, b"served");
    assert_eq!(open(&mut server, &wire).0, b"served");
    let mut opened = answers.clone();
    let (kind, plain) = client.receive.open(&mut opened, 0..answers.len(), None).unwrap();
    assert_eq!((kind, &opened[plain]), (ALERT, &[1, 100][..]), "no_renegotiation, a warning");
    let wire = sealed(&mut client, HANDSHAKE, &hello);
    assert_eq!(error_of(&mut server, &wire), Error::Flood("attempts to renegotiate"));
}
