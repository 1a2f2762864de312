//! Handshakes: cut anywhere, interleaved, with the first data behind them, with tickets.

use super::super::handshake::Step;
use super::super::*;
use super::driver::*;

/// The trap of a handshake library: what comes with Finished must not enter it.
#[test]
fn data_behind_finished_is_ours_even_if_its_last_record_is_cut() {
    let made = certificate(&["localhost"], false);
    let server = server(&[&made], None, &Tickets::default());
    let trusts = [&made];
    for version in VERSIONS {
        let wishes = Wishes { version, ..Wishes::new(&trusts) };
        for cut in [1, 3, 5, 6, 20, 300] {
            let mut client = client(&client_config(&wishes), "localhost");
            let mut served = Served::new(&server);
            let first = from_client(&mut client);
            served.receive(&first);
            to_client(&mut client, &mut served.wire);
            if version == Version::Tls12 {
                // The client may not send before the server's Finished.
                let wire = from_client(&mut client);
                served.receive(&wire);
                to_client(&mut client, &mut served.wire);
            }
            write(&mut client, b"whole");
            let mut wire = from_client(&mut client);
            write(&mut client, &[7; 400]);
            let second = from_client(&mut client);
            wire.extend_from_slice(&second[..second.len() - cut]);
            served.receive(&wire);
            assert_eq!(served.plaintext, b"whole");
            assert_eq!(served.tls().incoming().len(), second.len() - cut);
            served.move_on();
            served.receive(&second[second.len() - cut..]);
            assert_eq!(served.plaintext[5..], [7; 400]);
        }
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte_or_in_fragments() {
    let made = certificate(&["localhost"], true);
    let server = server(&[&made], None, &Tickets::default());
    let trusts = [&made];
    for version in VERSIONS {
        for fragment in [None, Some(64)] {
            let wishes = Wishes { version, fragment, ..Wishes::new(&trusts) };
            let mut client = client(&client_config(&wishes), "localhost");
            let mut served = Served::new(&server);
            while client.is_handshaking() || client.wants_write() {
                for byte in from_client(&mut client) {
                    served.receive(&[byte]);
                }
                to_client(&mut client, &mut served.wire);
            }
            write(&mut client, b"hello");
            let wire = from_client(&mut client);
            served.receive(&wire);
            assert_eq!(served.plaintext, b"hello");
        }
    }
}

/// Secrets go through a place that all handshakes of a thread share.
#[test]
fn handshakes_that_take_turns_do_not_mix() {
    let made = certificate(&["localhost"], false);
    let server = server(&[&made], None, &Tickets::default());
    let trusts = [&made];
    let config = client_config(&Wishes::new(&trusts));
    let mut clients: Vec<_> = (0..5).map(|_| client(&config, "localhost")).collect();
    let mut served: Vec<_> = (0..5).map(|_| Served::new(&server)).collect();
    for _ in 0..3 {
        for (client, served) in clients.iter_mut().zip(&mut served) {
            let wire = from_client(client);
            served.receive(&wire);
        }
        for (client, served) in clients.iter_mut().zip(&mut served) {
            to_client(client, &mut served.wire);
        }
    }
    for (number, (client, served)) in clients.iter_mut().zip(&mut served).enumerate() {
        write(client, &[number as u8]);
        let wire = from_client(client);
        served.receive(&wire);
        assert_eq!(served.plaintext, [number as u8]);
    }
}

#[test]
fn a_session_is_resumed_in_another_process_and_moved_again() {
    let made = certificate(&["localhost"], false);
    let trusts = [&made];
    for version in VERSIONS {
        let config = client_config(&Wishes { version, ..Wishes::new(&trusts) });
        let tickets = able_tickets();
        tickets.set(vec![ticket_key(1)], 0);
        let blue = server(&[&made], None, &tickets);
        let mut first = client(&config, "localhost");
        let mut served = Served::new(&blue);
        shake_hands(&mut first, &mut served);
        assert_eq!(first.handshake_kind(), Some(rustls::HandshakeKind::Full));
        // A fresh process with a ring that has been rotated once.
        let tickets = able_tickets();
        tickets.set(vec![ticket_key(2), ticket_key(1)], 0);
        let green = server(&[&made], None, &tickets);
        let mut second = client(&config, "localhost");
        let mut served = Served::new(&green);
        shake_hands(&mut second, &mut served);
        assert_eq!(second.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "{version:?}");
        served.move_on();
        served.send(b"after", u64::MAX);
        assert_eq!(to_client(&mut second, &mut served.wire), b"after");
        // And twice: nothing is left of the key, so a full handshake it is.
        let tickets = able_tickets();
        tickets.set(vec![ticket_key(4), ticket_key(3)], 0);
        let later = server(&[&made], None, &tickets);
        let mut third = client(&config, "localhost");
        shake_hands(&mut third, &mut Served::new(&later));
        assert_eq!(third.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn what_is_no_handshake_gets_an_alert() {
    let made = certificate(&["localhost"], false);
    let server = server(&[&made], None, &Tickets::default());
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        &[22, 3, 1, 0xff, 0xff, 0, 0],
        &[23, 3, 3, 0, 5, 1, 2, 3, 4, 5],
        &[22, 3, 1, 0, 4, 9, 0, 0, 0],
        &[22, 2, 1, 0, 4, 1, 0, 0, 0],
        &[0x80, 0x2e, 1, 3, 1, 0, 0],
    ] {
        let mut output = Vec::new();
        match server.handshake().unwrap().handle_input(bytes, &mut output) {
            Step::Failed(_) => {}
            step => panic!("{bytes:?}: {step:?}"),
        }
        assert_eq!(output.first(), Some(&21), "{bytes:?} led to {output:?}");
    }
}

#[test]
fn a_handshake_without_end_is_bounded() {
    let made = certificate(&["localhost"], false);
    let server = server(&[&made], None, &Tickets::default());
    let mut handshake = server.handshake().unwrap();
    // A ClientHello that goes on and on, in records of 64 bytes.
    let mut record = vec![22, 3, 1, 0, 64];
    record.extend_from_slice(&[0; 64]);
    record[5..9].copy_from_slice(&[1, 0, 0xff, 0xff]);
    let mut output = Vec::new();
    for _ in 0..100_000 {
        handshake = match handshake.handle_input(&record, &mut output) {
            Step::GoesOn(handshake) => handshake,
            Step::Failed(_) => return,
            Step::Done(_) => panic!("done?"),
        };
        record[5..9].fill(0);
    }
    panic!("nothing ended it");
}

/// The proof that secret and key belong together is a real one.
#[test]
fn a_secret_of_another_connection_is_noticed() {
    use super::super::keys::Material;
    for suite in Suite::ALL {
        let secret = vec![1; suite.secret_bytes()];
        let material = Material::new(Version::Tls13, suite, &secret, &[]).unwrap();
        let derived = material.key_and_nonce(Version::Tls13, suite);
        let check = |secret: &[u8]| {
            super::super::handshake::tied(
                Version::Tls13,
                suite,
                secret,
                &[],
                derived.key(),
                derived.nonce(),
            )
        };
        assert!(check(&secret).is_ok());
        assert_eq!(check(&vec![2; suite.secret_bytes()]).unwrap_err(), Error::Mismatch);
    }
}
