//! A rustls client, random sizes, key updates, and a move after every read.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::{Suite, Tickets, Version};
use super::driver::*;

fn exchange(seed: u64, version: Version, suite: Suite, is_rsa: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let made = certificate(&["localhost"], is_rsa);
    let tickets = able_tickets();
    tickets.set(vec![ticket_key(1)], 0);
    let server = server(&[&made], None, &tickets);
    let trusts = [&made];
    let wishes = Wishes { version, suite: Some(suite), ..Wishes::new(&trusts) };
    let mut client = client(&client_config(&wishes), "localhost");
    let mut served = Served::new(&server);
    shake_hands(&mut client, &mut served);
    assert_eq!((served.tls().version(), served.tls().suite()), (version, suite));
    let (mut there, mut back, mut moves) = (Vec::new(), Vec::new(), 0);
    let mut got = Vec::new();
    for _ in 0..40 {
        let size = match random.random_range(0..6) {
            0 => random.random_range(0..4),
            1 => random.random_range(16_300..16_500),
            2 => random.random_range(30_000..60_000),
            _ => random.random_range(1..2_000),
        };
        let bytes: Vec<u8> = (0..size).map(|_| random.random()).collect();
        write(&mut client, &bytes);
        there.extend_from_slice(&bytes);
        if version == Version::Tls13 && random.random_range(0..4) == 0 {
            client.refresh_traffic_keys().unwrap();
        }
        let wire = from_client(&mut client);
        let mut rest = &wire[..];
        while !rest.is_empty() {
            let most = if random.random() { 40 } else { 20_000 };
            let read = random.random_range(1..=rest.len().min(most));
            served.receive(&rest[..read]);
            rest = &rest[read..];
            served.move_on();
            moves += 1;
            if version == Version::Tls13 && random.random_range(0..50) == 0 {
                let mut update = Vec::new();
                served.tls().update_key(random.random(), &mut update);
                served.wire.extend_from_slice(&update);
            }
        }
        let echoed = std::mem::take(&mut served.plaintext);
        let rekey_after = if version == Version::Tls13 { 3 } else { u64::MAX };
        back.extend_from_slice(&echoed);
        served.send(&echoed, rekey_after);
        served.move_on();
        got.extend(to_client(&mut client, &mut served.wire));
    }
    // What the client still has to answer, and what it gets for that.
    let wire = from_client(&mut client);
    served.receive(&wire);
    assert!(served.end.is_none());
    assert!(there == back && back == got, "seed {seed}: the bytes differ after {moves} moves");
}

#[test]
fn it_moves_after_every_read() {
    let seed = rand::random();
    println!("seed {seed}");
    for (round, version) in VERSIONS.into_iter().enumerate() {
        for suite in Suite::ALL {
            exchange(seed, version, suite, round == 1 && suite == Suite::Aes128Gcm);
        }
    }
}

/// A client that asks for a key update gets its answer before anything else, whoever owns the connection by then.
#[test]
fn an_answer_that_is_due_is_given_before_and_after_a_move() {
    let made = certificate(&["localhost"], false);
    let server = server(&[&made], None, &Tickets::default());
    let trusts = [&made];
    let mut client = client(&client_config(&Wishes::new(&trusts)), "localhost");
    let mut served = Served::new(&server);
    shake_hands(&mut client, &mut served);
    for moved in [false, true, true] {
        if moved {
            served.move_on();
        }
        client.refresh_traffic_keys().unwrap();
        write(&mut client, b"ping");
        let wire = from_client(&mut client);
        served.receive(&wire);
        assert!(!served.wire.is_empty(), "the answer waits for nothing");
        served.send(b"pong", u64::MAX);
        assert_eq!(to_client(&mut client, &mut served.wire), b"pong");
        assert_eq!(std::mem::take(&mut served.plaintext), b"ping");
    }
}
