//! The saved form, honest and hostile.

use proptest::prelude::*;

use super::super::record::content::*;
use super::super::*;
use super::driver::*;

#[test]
#[should_panic(expected = "before its connection belongs to this process")]
fn a_restored_connection_cannot_seal() {
    let (server, _) = ends(Version::Tls13, Suite::Aes128Gcm);
    let mut restored = Tls::restore(&server.save().head, &[], &[]).unwrap();
    let _ = restored.seal(&mut b"a nonce used twice".to_vec(), u64::MAX);
}

#[test]
fn nothing_secret_is_shown() {
    let (server, _) = ends(Version::Tls12, Suite::Aes256Gcm);
    let shown = format!("{server:?} {:?}", server.save());
    assert!(!shown.contains("secret") && !shown.contains("[1, 1"), "{shown}");
}

#[test]
fn saved_secrets_are_overwritten() {
    let (server, _) = ends(Version::Tls13, Suite::Aes256Gcm);
    let mut head = server.save().head;
    let has_secret =
        |head: &TlsHead| bytemuck::bytes_of(head).windows(8).any(|part| part == [1; 8]);
    assert!(has_secret(&head));
    head.wipe();
    assert!(!has_secret(&head));
}

fn any_action() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (0..8u8, prop::collection::vec(any::<u8>(), 0..60))
}

proptest! {
    /// Whatever has happened, what is restored saves the same again and goes on the same way.
    #[test]
    fn every_reachable_state_survives(
        tls13: bool,
        suite in 0..3usize,
        actions in prop::collection::vec(any_action(), 0..40),
        cut in 0..2_000usize,
    ) {
        let version = if tls13 { Version::Tls13 } else { Version::Tls12 };
        let (mut server, mut client) = ends(version, Suite::ALL[suite]);
        let mut wire = Vec::new();
        for (action, bytes) in actions {
            match action {
                0..4 => wire.extend(sealed(&mut client, APPLICATION_DATA, &bytes)),
                4 if tls13 => {
                    wire.extend(sealed(&mut client, HANDSHAKE, &[24, 0, 0]));
                    wire.extend(sealed(&mut client, HANDSHAKE, &[1, bytes.len() as u8 & 1]));
                    client.send.ratchet();
                }
                5 => wire.extend(sealed(&mut client, ALERT, &[1, 90])),
                6 => wire.extend(bytes),
                7 => client.close(&mut wire),
                _ => {}
            }
        }
        let (now, later) = wire.split_at(cut.min(wire.len()));
        let mut served = Served { side: Side::Open(Box::new(server)), wire: vec![], plaintext: vec![], end: None };
        served.receive(now);
        let tls = served.tls();
        let saved = tls.save();
        let tail = saved.tail.concat();
        let restored = Tls::restore(&saved.head, &tail, tls.incoming()).unwrap();
        prop_assert!(bytemuck::bytes_of(&restored.save().head) == bytemuck::bytes_of(&saved.head));
        let head = saved.head;
        drop(saved);
        let mut other = Tls::restore(&head, &tail, tls.incoming()).unwrap();
        other.start();
        let mut other = Served { side: Side::Open(Box::new(other)), wire: vec![], plaintext: vec![], end: None };
        served.plaintext.clear();
        served.wire.clear();
        served.end = None;
        served.receive(later);
        other.receive(later);
        prop_assert!(served.plaintext == other.plaintext && served.wire == other.wire);
        prop_assert_eq!(served.end, other.end);
        server = Tls::restore(&head, &tail, &[]).unwrap();
        prop_assert!(!server.receive.has_key());
    }

    /// Any bytes are a state or refused, and a state that is taken bears any input.
    #[test]
    fn hostile_states_are_harmless(
        head in prop::collection::vec(any::<u8>(), size_of::<TlsHead>()),
        plausible: bool,
        tail in prop::collection::vec(any::<u8>(), 0..40),
        wire in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut head: TlsHead = bytemuck::pod_read_unaligned(&head);
        if plausible {
            let (server, _) = ends(Version::Tls12, Suite::ChaCha20Poly1305);
            let sound = server.save().head;
            let (from, into) = (bytemuck::bytes_of(&sound), bytemuck::bytes_of_mut(&mut head));
            into[..144].copy_from_slice(&from[..144]);
        }
        if let Ok(mut tls) = Tls::restore(&head, &tail, &[]) {
            tls.start();
            let mut served = Served { side: Side::Open(Box::new(tls)), wire: vec![], plaintext: vec![], end: None };
            served.receive(&wire);
            if !served.tls().is_mute() {
                served.send(b"answer", u64::MAX);
            }
        }
    }
}
