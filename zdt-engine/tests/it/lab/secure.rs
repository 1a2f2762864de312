//! TLS for tests: certificates made on the spot, rustls clients, and the record of all nonces.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::WebSocket;
use zdt_engine::config::{CertificateFiles, TlsOptions};
use zdt_engine::credentials::{Credentials, TicketRing};

use super::client;

/// A rustls client over TCP.
pub type Stream = StreamOwned<ClientConnection, client::Steady>;
/// A WebSocket client over that.
pub type Client = WebSocket<Stream>;

/// A certificate for `localhost` in files of its own, and who trusts it.
pub struct Authority {
    directory: tempfile::TempDir,
    der: CertificateDer<'static>,
    /// Shared by all workers that it is given to.
    ring: TicketRing,
}

impl Authority {
    #[track_caller]
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("tempdir");
        let (der, _) = write_pair(directory.path(), "server", "localhost");
        std::fs::write(directory.path().join("nonces"), "").expect("write");
        // Workers that run as somebody else write there.
        for (path, mode) in
            [(directory.path().into(), 0o755), (directory.path().join("nonces"), 0o666)]
        {
            let path: PathBuf = path;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        }
        Self { directory, der, ring: TicketRing::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another pair of files.
    #[track_caller]
    pub fn write(&self, name: &str, host: &str) -> (CertificateDer<'static>, Vec<u8>) {
        write_pair(self.directory.path(), name, host)
    }

    pub fn options(&self) -> TlsOptions {
        let files =
            CertificateFiles { certificate: self.path("server.pem"), key: self.path("server.key") };
        TlsOptions { certificates: vec![files], ..TlsOptions::default() }
    }

    /// The same as text for a configuration file.
    pub fn config(&self) -> String {
        format!(
            "[[tls.certificates]]\ncertificate = {:?}\nkey = {:?}\n",
            self.path("server.pem"),
            self.path("server.key")
        )
    }

    /// For a worker.
    #[track_caller]
    pub fn sealed(&self) -> OwnedFd {
        let credentials = Credentials::read(&self.options()).expect("credentials");
        credentials.expect("certificates").seal(&self.ring).expect("memory")
    }

    /// The file that every nonce is written to.
    pub fn nonces(&self) -> PathBuf {
        self.path("nonces")
    }

    /// Every (key, sequence number) that any process has sealed with; fails if one was used twice.
    #[track_caller]
    pub fn check_nonces(&self) -> usize {
        let text = std::fs::read_to_string(self.nonces()).expect("nonces");
        let mut seen = std::collections::HashMap::new();
        for line in text.lines() {
            let (nonce, process) = line.rsplit_once(' ').expect("three words");
            if let Some(other) = seen.insert(nonce, process) {
                panic!("key and number {nonce} were used by process {other} and by {process}");
            }
        }
        seen.len()
    }

    /// A client that trusts it.
    pub fn client_config(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> ClientConfig {
        self.builder(version).with_no_client_auth()
    }

    /// A client that also shows a certificate.
    #[track_caller]
    pub fn client_config_as(&self, (der, key): (CertificateDer<'static>, Vec<u8>)) -> ClientConfig {
        let key = PrivateKeyDer::try_from(key).expect("key");
        self.builder(&rustls::version::TLS13).with_client_auth_cert(vec![der], key).expect("client")
    }

    fn builder(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("root");
        ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("version")
            .with_root_certificates(roots)
    }

    /// A TLS 1.3 connection, the handshake done.
    #[track_caller]
    pub fn connect(&self, address: SocketAddr) -> Stream {
        connect(address, &Arc::new(self.client_config(&rustls::version::TLS13)))
    }

    /// A WebSocket over TLS 1.3.
    #[track_caller]
    pub fn websocket(&self, address: SocketAddr, path: &str) -> Client {
        websocket(self.connect(address), path)
    }
}

/// Connects and shakes hands.
#[track_caller]
pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Stream {
    let name = ServerName::try_from("localhost").expect("name");
    let mut connection = ClientConnection::new(Arc::clone(config), name).expect("client");
    let mut stream = client::Steady(client::connect(address));
    connection.complete_io(&mut stream).expect("TLS handshake");
    StreamOwned::new(connection, stream)
}

/// Opens a WebSocket on it.
#[track_caller]
pub fn websocket(stream: Stream, path: &str) -> Client {
    tungstenite::client(format!("wss://localhost{path}"), stream).expect("handshake").0
}

#[track_caller]
fn write_pair(directory: &Path, name: &str, host: &str) -> (CertificateDer<'static>, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).expect("certificate");
    std::fs::write(directory.join(format!("{name}.pem")), made.cert.pem()).expect("write");
    let key = made.signing_key.serialize_pem();
    std::fs::write(directory.join(format!("{name}.key")), key).expect("write");
    (made.cert.der().clone(), made.signing_key.serialize_der())
}
