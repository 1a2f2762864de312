//! TLS of the generator: which addresses speak it, one certificate for all of them, and the client's end of
//! a connection.
//!
//! Must not know: what is said over it, which server answers.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, bail};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use crate::peers::TemporaryFile;

/// Addresses of servers that speak TLS.
static ADDRESSES: Mutex<Option<HashSet<SocketAddrV4>>> = Mutex::new(None);

/// From now on connections to this address are encrypted.
pub fn register(address: SocketAddrV4) {
    let mut addresses = ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner);
    addresses.get_or_insert_default().insert(address);
}

/// Whether connections to this address are encrypted.
pub fn is_registered(address: SocketAddrV4) -> bool {
    let addresses = ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner);
    addresses.as_ref().is_some_and(|addresses| addresses.contains(&address))
}

/// Of the address, in a URL.
pub fn scheme(address: SocketAddrV4) -> &'static str {
    if is_registered(address) { "https" } else { "http" }
}

/// A certificate for `localhost`, made for this run, and its files.
pub struct Identity {
    certificate: TemporaryFile,
    key: TemporaryFile,
    root: CertificateDer<'static>,
}

impl Identity {
    /// That of this process.
    pub fn own() -> Result<&'static Self> {
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let identity = Self {
            certificate: TemporaryFile::new("certificate.pem", Some(&made.cert.pem()))?,
            key: TemporaryFile::new("key.pem", Some(&made.signing_key.serialize_pem()))?,
            root: made.cert.der().clone(),
        };
        Ok(OWN.get_or_init(|| identity))
    }

    /// Of the certificate and of the key, for a server's command line.
    pub fn paths(&self) -> (PathBuf, PathBuf) {
        (self.certificate.path().to_owned(), self.key.path().to_owned())
    }
}

static OWN: OnceLock<Identity> = OnceLock::new();

/// For the end of the process: what is static is not dropped.
pub fn remove_files() {
    if let Some(own) = OWN.get() {
        for file in [&own.certificate, &own.key] {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// A client that trusts the certificate of this process, and offers these protocols.
pub fn client_config(protocols: &[&[u8]]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(Identity::own()?.root.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every connection shakes hands in full, and nothing is remembered.
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A server with the certificate in these files, for the peers.
pub fn server_config(
    certificate: &std::path::Path,
    key: &std::path::Path,
) -> Result<Arc<ServerConfig>> {
    use rustls::pki_types::pem::PemObject as _;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)?.collect();
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain?, key)?;
    Ok(Arc::new(config))
}

/// The client's end of one connection.
pub struct Secure {
    connection: ClientConnection,
}

impl Secure {
    /// Begins a handshake; appends what must be sent.
    pub fn new(config: &Arc<ClientConfig>, wire: &mut Vec<u8>) -> Result<Self, rustls::Error> {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut connection = ClientConnection::new(Arc::clone(config), name)?;
        connection.set_buffer_limit(None);
        let mut secure = Self { connection };
        secure.flush(wire);
        Ok(secure)
    }

    /// True once something can be said.
    pub fn is_ready(&self) -> bool {
        !self.connection.is_handshaking()
    }

    fn flush(&mut self, wire: &mut Vec<u8>) {
        while self.connection.wants_write() {
            // A vector takes everything.
            let _ = self.connection.write_tls(wire);
        }
    }

    /// Takes received bytes; appends what they say, and what must be sent.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        plain: &mut Vec<u8>,
        wire: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        while !bytes.is_empty() {
            if self.connection.read_tls(&mut bytes).is_err() {
                break; // after the end
            }
            let result = self.connection.process_new_packets();
            // Until nothing more is there, or the end.
            let _ = self.connection.reader().read_to_end(plain);
            self.flush(wire);
            result?;
        }
        Ok(())
    }

    /// Appends bytes, encrypted.
    pub fn send(&mut self, bytes: &[u8], wire: &mut Vec<u8>) {
        let _ = self.connection.writer().write_all(bytes);
        self.flush(wire);
    }
}

/// A stream to an address, encrypted where that is registered.
pub fn stream(
    address: SocketAddrV4,
    mut socket: std::net::TcpStream,
) -> Result<Box<dyn ReadWrite>> {
    if !is_registered(address) {
        return Ok(Box::new(socket));
    }
    let name = ServerName::try_from("localhost").expect("a name");
    let mut connection = ClientConnection::new(client_config(&[])?, name)?;
    while connection.is_handshaking() {
        match connection.complete_io(&mut socket) {
            Ok(_) => {}
            // A ring of this thread may interrupt its system calls.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => bail!("TLS handshake: {error}"),
        }
    }
    Ok(Box::new(rustls::StreamOwned::new(connection, socket)))
}

/// Both directions of a stream.
pub trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}
