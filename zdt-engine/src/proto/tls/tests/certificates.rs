//! Certificates by name and kind, client certificates, application protocols.

use super::super::*;
use super::driver::*;

fn shown(server: &Server, wishes: &Wishes<'_>) -> Vec<u8> {
    let mut client = client(&client_config(wishes), wishes.name);
    let mut served = Served::new(server);
    shake_hands(&mut client, &mut served);
    served.move_on();
    let about = served.tls().about().unwrap_or_default();
    assert_eq!(about.server_name.as_deref(), Some(wishes.name));
    client.peer_certificates().unwrap()[0].as_ref().to_vec()
}

#[test]
fn each_name_has_its_certificate() {
    let first = certificate(&["first.test"], false);
    let second = certificate(&["Second.test", "*.wild.test"], false);
    let rsa = certificate(&["both.test"], true);
    let ecdsa = certificate(&["both.test"], false);
    let server = server(&[&first, &second, &rsa, &ecdsa], None, &Tickets::default());
    let trusts = [&first, &second, &rsa, &ecdsa];
    let name = |name| Wishes { name, ..Wishes::new(&trusts) };
    assert_eq!(shown(&server, &name("first.test")), first.der.as_ref());
    assert_eq!(shown(&server, &name("second.test")), second.der.as_ref());
    assert_eq!(shown(&server, &name("a.wild.test")), second.der.as_ref());
    assert_eq!(shown(&server, &name("both.test")), rsa.der.as_ref(), "the first that fits");
    let mut only_ecdsa = client_config(&name("both.test"));
    let config = std::sync::Arc::get_mut(&mut only_ecdsa).unwrap();
    let mut provider = (**config.crypto_provider()).clone();
    provider.cipher_suites.retain(|suite| format!("{suite:?}").contains("ECDSA"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ecdsa.der.clone()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = client(&std::sync::Arc::new(config), "both.test");
    shake_hands(&mut client, &mut Served::new(&server));
    assert_eq!(client.peer_certificates().unwrap()[0], ecdsa.der);
}

#[test]
fn a_name_that_nobody_has_gets_the_first() {
    let first = certificate(&["first.test"], false);
    let second = certificate(&["second.test"], false);
    let server = server(&[&first, &second], None, &Tickets::default());
    let trusts = [&first, &second];
    for name in ["third.test", "a.b.first.test"] {
        let config = client_config(&Wishes { name, ..Wishes::new(&trusts) });
        let mut client = client(&config, name);
        let mut served = Served::new(&server);
        let wire = from_client(&mut client);
        served.receive(&wire);
        let error = loop {
            let mut rest = &served.wire[..];
            client.read_tls(&mut rest).unwrap();
            match client.process_new_packets() {
                Ok(_) => {
                    let read = served.wire.len() - rest.len();
                    served.wire.drain(..read);
                }
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("not valid for name"), "{error}");
        // The client says so, and that is the end.
        let wire = from_client(&mut client);
        served.receive(&wire);
        assert!(matches!(served.side, Side::Failed(Error::PeerAlert(_))));
    }
}

#[test]
fn client_certificates_are_required_or_optional_and_move() {
    let made = certificate(&["localhost"], false);
    let known = certificate(&["known.client"], false);
    let stranger = certificate(&["strange.client"], false);
    let trusts = [&made];
    for version in VERSIONS {
        for required in [true, false] {
            let roots = known.certificate.as_bytes();
            let rules = Some(ClientCertificates { roots, required });
            let server = server(&[&made], rules, &Tickets::default());
            let with = |identity| Wishes { version, identity, ..Wishes::new(&trusts) };
            let mut good = client(&client_config(&with(Some(&known))), "localhost");
            let mut served = Served::new(&server);
            shake_hands(&mut good, &mut served);
            served.move_on();
            served.move_on();
            let about = served.tls().about().unwrap();
            assert_eq!(about.client_certificate.as_deref(), Some(known.der.as_ref()));
            for (identity, is_let_in) in [(None, !required), (Some(&stranger), false)] {
                let mut client = client(&client_config(&with(identity)), "localhost");
                let mut served = Served::new(&server);
                for _ in 0..3 {
                    let wire = from_client(&mut client);
                    served.receive(&wire);
                    let mut rest = &served.wire[..];
                    while !rest.is_empty() {
                        client.read_tls(&mut rest).unwrap();
                        let _ = client.process_new_packets();
                    }
                    served.wire.clear();
                }
                match served.side {
                    Side::Open(_) => assert!(is_let_in),
                    Side::Failed(error) => assert!(!is_let_in, "{error}"),
                    Side::Handshake(_) => panic!("undecided"),
                }
            }
        }
    }
}

/// Who was let in under other rules must show its certificate again.
#[test]
fn a_ticket_is_worth_nothing_under_other_rules() {
    let made = certificate(&["localhost"], false);
    let (old, new) = (certificate(&["old.client"], false), certificate(&["new.client"], false));
    let trusts = [&made];
    let wishes = Wishes { identity: Some(&old), ..Wishes::new(&trusts) };
    let config = client_config(&wishes);
    let tickets = able_tickets();
    tickets.set(vec![ticket_key(1)], 0);
    let rules = |made: &Made| made.certificate.clone().into_bytes();
    let (old_roots, new_roots) = (rules(&old), rules(&new));
    let require = |roots| Some(ClientCertificates { roots, required: true });
    let before = server(&[&made], require(&old_roots), &tickets);
    let mut client_one = client(&config, "localhost");
    shake_hands(&mut client_one, &mut Served::new(&before));
    let after = server(&[&made], require(&new_roots), &tickets);
    let mut client_two = client(&config, "localhost");
    let mut served = Served::new(&after);
    for _ in 0..2 {
        let wire = from_client(&mut client_two);
        served.receive(&wire);
        let mut rest = &served.wire[..];
        while !rest.is_empty() && client_two.read_tls(&mut rest).is_ok() {
            let _ = client_two.process_new_packets();
        }
        served.wire.clear();
    }
    assert!(matches!(served.side, Side::Failed(_)), "the old identity was taken from a ticket");
}

#[test]
fn the_application_protocol_is_agreed_and_moves() {
    let made = certificate(&["localhost"], false);
    let server = server(&[&made], None, &Tickets::default());
    let trusts = [&made];
    for (offered, agreed) in [
        (&[&b"http/1.1"[..]][..], Some(Protocol::Http11)),
        (&[b"http/1.1", b"h2"], Some(Protocol::H2)),
        (&[], None),
    ] {
        let wishes = Wishes { protocols: offered, ..Wishes::new(&trusts) };
        let mut client = client(&client_config(&wishes), "localhost");
        let mut served = Served::new(&server);
        shake_hands(&mut client, &mut served);
        served.move_on();
        assert_eq!(served.tls().about().and_then(|about| about.protocol), agreed);
    }
}

#[test]
fn what_the_operator_got_wrong_is_named() {
    let (one, other) = (certificate(&["a.test"], false), certificate(&["b.test"], true));
    let make = |certificate: &str, key: &str| {
        let certificates =
            [CertificateAndKey { certificate: certificate.as_bytes(), key: key.as_bytes() }];
        let options = ServerOptions {
            certificates: &certificates,
            clients: None,
            protocols: &[],
            only_tls13: true,
            ticket_lifetime: std::time::Duration::ZERO,
        };
        Server::new(&options, &Tickets::default()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(make(&one.certificate, &one.key), Ok(()));
    for (certificate, key, words) in [
        (&one.certificate, &other.key, "not that of the certificate"),
        (&one.key, &one.key, "no CERTIFICATE"),
        (&one.certificate, &one.certificate, "no PEM private key"),
    ] {
        let error = make(certificate, key).unwrap_err();
        assert!(error.contains(words) && error.contains("certificate 0"), "{error}");
        assert!(!error.contains("PRIVATE"), "keys are not shown");
    }
}
