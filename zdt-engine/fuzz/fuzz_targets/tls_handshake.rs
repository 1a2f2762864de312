//! A client's handshake, whole or with bytes changed, and any bytes: it ends in a connection that can be saved, in
//! an alert, or waits for more; never in a panic, and what a sound client sends always leads to a connection.
//!
//! Must not know: what a changed byte means.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use zdt_engine::proto::tls::{
    CertificateAndKey, Hello, Protocol, Server, ServerOptions, Step, Tickets, Tls,
};

fn both_sides() -> &'static (Server, Arc<ClientConfig>) {
    static SIDES: OnceLock<(Server, Arc<ClientConfig>)> = OnceLock::new();
    SIDES.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let pair = CertificateAndKey { certificate: certificate.as_bytes(), key: key.as_bytes() };
        let options = ServerOptions {
            certificates: &[pair],
            clients: None,
            protocols: &[Protocol::H2, Protocol::Http11],
            only_tls13: false,
            ticket_lifetime: std::time::Duration::ZERO,
        };
        let server = Server::new(&options, &Tickets::default()).expect("a server");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        (server, Arc::new(client))
    })
}

fuzz_target!(|data: &[u8]| {
    // The size of the pieces; how many changes; each a place and a value; bytes behind the handshake.
    let Some((&[piece, changes], rest)) = data.split_first_chunk::<2>() else { return };
    let changes = usize::from(changes % 8);
    let Some((changes, raw)) = rest.split_at_checked(changes * 3) else { return };
    let (server, client) = both_sides();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut hello = Some(Hello::default());
    let mut handshake = server.handshake().expect("a handshake");
    let (mut sent, mut output) = (0, Vec::new());
    let done: Option<Box<Tls>> = 'handshake: loop {
        let mut flight = Vec::new();
        if piece == 0 {
            flight.extend_from_slice(raw); // no client at all
        }
        while piece != 0 && client.wants_write() {
            client.write_tls(&mut flight).expect("a vector takes everything");
        }
        for change in changes.chunks_exact(3) {
            let place = usize::from(change[0]) << 8 | usize::from(change[1]);
            if let Some(byte) = place.checked_sub(sent).and_then(|at| flight.get_mut(at)) {
                *byte ^= change[2];
            }
        }
        if flight.is_empty() {
            break None;
        }
        sent += flight.len();
        if !client.is_handshaking() {
            flight.extend_from_slice(raw);
        }
        for bytes in flight.chunks(usize::from(piece).max(1) * 3) {
            let mut bytes = bytes.to_vec();
            if let Some(mut waiting) = hello.take() {
                waiting.keep(&bytes);
                if !waiting.is_due() {
                    hello = Some(Hello::restore(waiting.bytes()).expect("just saved"));
                    continue;
                }
                bytes = waiting.bytes().to_vec();
            }
            handshake = match handshake.handle_input(&bytes, &mut output) {
                Step::GoesOn(handshake) => handshake,
                Step::Done(tls) => break 'handshake Some(tls),
                Step::Failed(_) => {
                    assert!(
                        piece == 0 || changes.iter().skip(2).step_by(3).any(|value| *value != 0)
                    );
                    return;
                }
            };
        }
        if piece == 0 {
            return;
        }
        let mut answer = &std::mem::take(&mut output)[..];
        while !answer.is_empty() {
            client.read_tls(&mut answer).expect("bytes");
            if client.process_new_packets().is_err() {
                return; // what was changed was its hello
            }
        }
    };
    let Some(tls) = done else { return };
    let saved = tls.save();
    Tls::restore(&saved.head, &saved.tail.concat(), tls.incoming()).expect("just saved");
});
