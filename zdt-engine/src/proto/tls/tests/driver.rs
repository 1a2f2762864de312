//! Certificates made on the spot, a server that is moved at will, and a rustls client beside it.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::super::record::Direction;
use super::super::*;

/// A certificate with its key.
pub struct Made {
    pub certificate: String,
    pub key: String,
    pub der: CertificateDer<'static>,
    pub key_der: Vec<u8>,
}

/// Makes one for these names, by an authority or by itself.
pub fn certificate(names: &[&str], is_rsa: bool) -> Made {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let key = if is_rsa { rsa_key() } else { rcgen::KeyPair::generate().unwrap() };
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    Made {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        der: certificate.der().clone(),
        key_der: key.serialize_der(),
    }
}

/// ring makes no RSA keys, so the one program that is everywhere does.
fn rsa_key() -> rcgen::KeyPair {
    static PEM: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let pem = PEM.get_or_init(|| {
        let made = std::process::Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
            .output()
            .expect("openssl, for an RSA key");
        String::from_utf8(made.stdout).unwrap()
    });
    rcgen::KeyPair::from_pem_and_sign_algo(pem, &rcgen::PKCS_RSA_SHA256).expect("a key of OpenSSL")
}

/// Keys for tickets, numbered.
pub fn ticket_key(number: u8) -> TicketKey {
    TicketKey { name: [number; 16], secret: [number; 32] }
}

/// Without keys, but able to make tickets once it has some.
pub fn able_tickets() -> Tickets {
    Tickets::new(|| 1_000, || Some(rand::random()))
}

/// A server with these certificates, tickets and protocols.
pub fn server(
    made: &[&Made],
    clients: Option<ClientCertificates<'_>>,
    tickets: &Tickets,
) -> Server {
    let certificates: Vec<CertificateAndKey<'_>> = made
        .iter()
        .map(|made| CertificateAndKey {
            certificate: made.certificate.as_bytes(),
            key: made.key.as_bytes(),
        })
        .collect();
    let options = ServerOptions {
        certificates: &certificates,
        clients,
        protocols: &[Protocol::H2, Protocol::Http11],
        only_tls13: false,
        ticket_lifetime: Duration::from_secs(3_600),
    };
    Server::new(&options, tickets).expect("a server")
}

/// What a client wants.
pub struct Wishes<'a> {
    pub version: Version,
    pub suite: Option<Suite>,
    pub name: &'a str,
    pub protocols: &'a [&'a [u8]],
    pub identity: Option<&'a Made>,
    pub trusts: &'a [&'a Made],
    pub fragment: Option<usize>,
}

impl<'a> Wishes<'a> {
    pub fn new(trusts: &'a [&'a Made]) -> Self {
        Self {
            version: Version::Tls13,
            suite: None,
            name: "localhost",
            protocols: &[],
            identity: None,
            trusts,
            fragment: None,
        }
    }
}

/// The configuration of a rustls client.
pub fn client_config(wishes: &Wishes<'_>) -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::ring::default_provider();
    if let Some(suite) = wishes.suite {
        let wanted = match suite {
            Suite::Aes128Gcm => "AES_128_GCM",
            Suite::Aes256Gcm => "AES_256_GCM",
            Suite::ChaCha20Poly1305 => "CHACHA20_POLY1305",
        };
        provider.cipher_suites.retain(|one| format!("{one:?}").contains(wanted));
    }
    let version = match wishes.version {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    };
    let mut roots = RootCertStore::empty();
    for made in wishes.trusts {
        roots.add(made.der.clone()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match wishes.identity {
        None => builder.with_no_client_auth(),
        Some(made) => builder
            .with_client_auth_cert(
                vec![made.der.clone()],
                PrivateKeyDer::try_from(made.key_der.clone()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = wishes.protocols.iter().map(|name| name.to_vec()).collect();
    config.max_fragment_size = wishes.fragment;
    Arc::new(config)
}

pub fn client(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
    client.set_buffer_limit(None);
    client
}

/// The server's end, as a worker has it.
pub enum Side {
    Handshake(Option<Box<Handshake>>),
    Open(Box<Tls>),
    Failed(Error),
}

/// The server's end with its output.
pub struct Served {
    pub side: Side,
    pub wire: Vec<u8>,
    pub plaintext: Vec<u8>,
    pub end: Option<End>,
}

impl Served {
    pub fn new(server: &Server) -> Self {
        Self {
            side: Side::Handshake(server.handshake()),
            wire: Vec::new(),
            plaintext: Vec::new(),
            end: None,
        }
    }

    pub fn tls(&mut self) -> &mut Tls {
        match &mut self.side {
            Side::Open(tls) => tls,
            Side::Handshake(_) => panic!("still in the handshake"),
            Side::Failed(error) => panic!("failed: {error}"),
        }
    }

    /// Bytes from the client.
    pub fn receive(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        let mut rest = &mut bytes[..];
        if let Side::Handshake(handshake) = &mut self.side {
            let step = handshake.take().unwrap().handle_input(rest, &mut self.wire);
            rest = &mut [];
            self.side = match step {
                Step::GoesOn(handshake) => Side::Handshake(Some(handshake)),
                Step::Done(tls) => Side::Open(tls),
                Step::Failed(error) => Side::Failed(error),
            };
        }
        let Side::Open(tls) = &mut self.side else { return };
        loop {
            let taken = tls.complete(rest);
            rest = &mut rest[taken..];
            let mut kept;
            let is_kept = tls.has_whole_record();
            let buffer = if is_kept {
                kept = tls.take_incoming();
                &mut kept[..]
            } else if tls.incoming().is_empty() {
                &mut *rest
            } else {
                return;
            };
            let opened = tls.open(buffer, &mut self.wire);
            self.plaintext.extend_from_slice(&buffer[opened.plaintext]);
            tls.keep(&buffer[opened.consumed..]);
            self.end = opened.end.or(self.end.take());
            if !is_kept {
                return;
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8], rekey_after: u64) {
        let mut output = bytes.to_vec();
        self.tls().seal(&mut output, rekey_after).unwrap();
        self.wire.extend_from_slice(&output);
    }

    /// Saved, forgotten, restored, started.
    pub fn move_on(&mut self) {
        let tls = self.tls();
        let mut incoming = tls.incoming().to_vec();
        let saved = tls.save();
        let tail = saved.tail.concat();
        let mut restored = Tls::restore(&saved.head, &tail, &incoming).unwrap();
        assert!(!restored.receive.has_key() && !restored.send.has_key(), "keys are made lazily");
        incoming.clear();
        restored.start();
        drop(saved);
        self.side = Side::Open(Box::new(restored));
    }
}

/// Everything that the client has to send now.
pub fn from_client(client: &mut ClientConnection) -> Vec<u8> {
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).unwrap();
    }
    wire
}

/// Gives the client what the server has sent; returns what it could read.
pub fn to_client(client: &mut ClientConnection, wire: &mut Vec<u8>) -> Vec<u8> {
    let mut read = Vec::new();
    let mut rest = &wire[..];
    while !rest.is_empty() {
        client.read_tls(&mut rest).unwrap();
        client.process_new_packets().unwrap();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = client.reader().read(&mut buffer) {
            read.extend_from_slice(&buffer[..count]);
        }
    }
    wire.clear();
    read
}

/// Runs a handshake to its end.
pub fn shake_hands(client: &mut ClientConnection, served: &mut Served) {
    for _ in 0..10 {
        let wire = from_client(client);
        served.receive(&wire);
        if let Side::Failed(error) = &served.side {
            panic!("the handshake failed: {error}");
        }
        to_client(client, &mut served.wire);
        if !client.is_handshaking() && !client.wants_write() {
            assert!(matches!(served.side, Side::Open(_)));
            return;
        }
    }
    panic!("no end of the handshake");
}

pub fn write(client: &mut ClientConnection, bytes: &[u8]) {
    client.writer().write_all(bytes).unwrap();
}

/// Two ends of one connection without a handshake: the first is the server's.
pub fn ends(version: Version, suite: Suite) -> (Tls, Tls) {
    let direction = |byte: u8| {
        let len = match version {
            Version::Tls12 => suite.key_bytes(),
            Version::Tls13 => suite.secret_bytes(),
        };
        let nonce = if version == Version::Tls12 { vec![byte; 12] } else { Vec::new() };
        let material =
            super::super::keys::Material::new(version, suite, &vec![byte; len], &nonce).unwrap();
        Direction::new(version, suite, material, 0)
    };
    let server = Tls::new(direction(1), direction(2), About::default(), Vec::new());
    let client = Tls::new(direction(2), direction(1), About::default(), Vec::new());
    (server, client)
}

pub const VERSIONS: [Version; 2] = [Version::Tls13, Version::Tls12];

/// A record of that type and content, sealed by the client's end.
pub fn sealed(client: &mut Tls, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut record = content.to_vec();
    if content.is_empty() {
        client.send.seal_empty(kind, &mut record);
    } else {
        client.send.seal(kind, &mut record, 0);
    }
    record
}

/// Opens bytes at the server's end: plaintext, how it ended, and what it answers, opened by the client.
pub fn open(server: &mut Tls, bytes: &[u8]) -> (Vec<u8>, Option<End>, Vec<u8>) {
    let mut buffer = bytes.to_vec();
    let mut output = Vec::new();
    let opened = server.open(&mut buffer, &mut output);
    (buffer[opened.plaintext].to_vec(), opened.end, output)
}

/// The error that bytes lead to.
#[track_caller]
pub fn error_of(server: &mut Tls, bytes: &[u8]) -> Error {
    match open(server, bytes).1 {
        Some(End::Failed(error)) => error,
        other => panic!("an error was expected, not {other:?}"),
    }
}
