//! What a server needs for handshakes: certificates, chosen by the name that a client asks for; the
//! rules for client certificates; tickets.
//!
//! Must not know: files, where keys come from.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;

use super::Protocol;
use super::handshake::{self, Handshake};
use super::tickets::Tickets;

/// A chain of certificates and its key, both PEM.
pub struct CertificateAndKey<'a> {
    /// The server's certificate, then those that lead to its root.
    pub certificate: &'a [u8],
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: &'a [u8],
}

/// Rules for client certificates.
pub struct ClientCertificates<'a> {
    /// PEM of the roots that they must lead to.
    pub roots: &'a [u8],
    /// Refuse clients without one.
    pub required: bool,
}

/// Options of a [`Server`].
pub struct ServerOptions<'a> {
    /// At least one; the first is for clients that ask for no name, or for one that nobody has.
    pub certificates: &'a [CertificateAndKey<'a>],
    /// Without, no client is asked for a certificate.
    pub clients: Option<ClientCertificates<'a>>,
    /// What is spoken, the favourite first.
    pub protocols: &'a [Protocol],
    /// Refuse TLS 1.2.
    pub only_tls13: bool,
    /// How long a session can be resumed; 0 is never.
    pub ticket_lifetime: Duration,
}

/// Why a server cannot be made. Whoever wrote the configuration can mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// A certificate or its key; counted from 0.
    #[error("certificate {index}: {reason}")]
    Certificate {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The roots of client certificates.
    #[error("client certificates: {0}")]
    Clients(String),
    /// Anything else.
    #[error("TLS: {0}")]
    Other(String),
}

/// Makes handshakes.
#[derive(Clone)]
pub struct Server {
    config: Arc<ServerConfig>,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Server(..)")
    }
}

impl Server {
    /// Checks everything and makes it ready.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn new(options: &ServerOptions<'_>, tickets: &Tickets) -> Result<Self, ServerError> {
        let other = |error: rustls::Error| ServerError::Other(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut resolver = Resolver::default();
        for (index, one) in options.certificates.iter().enumerate() {
            let certified =
                certified(one).map_err(|reason| ServerError::Certificate { index, reason })?;
            resolver.add(certified);
        }
        if resolver.certificates.is_empty() {
            return Err(ServerError::Other("no certificate".to_owned()));
        }
        let versions: &[&rustls::SupportedProtocolVersion] = if options.only_tls13 {
            &[&rustls::version::TLS13]
        } else {
            &[&rustls::version::TLS13, &rustls::version::TLS12]
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(other)?;
        let builder = match &options.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(clients.roots).map_err(ServerError::Clients)? {
                    roots.add(root).map_err(|e| ServerError::Clients(e.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier =
                    if clients.required { verifier } else { verifier.allow_unauthenticated() };
                let verifier = verifier.build().map_err(|e| ServerError::Clients(e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols =
            options.protocols.iter().map(|protocol| protocol.name().to_vec()).collect();
        config.key_log = Arc::new(handshake::Sink);
        config.enable_secret_extraction = true;
        // A cache of sessions would stay behind with its process; tickets do not.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let rules = options.clients.as_ref().map_or([0; 32], rules_digest);
        config.ticketer = Arc::new(tickets.producer(options.ticket_lifetime, rules));
        Ok(Self { config: Arc::new(config) })
    }

    /// For a connection that was just accepted; `None` only if the library refuses its own
    /// configuration.
    pub fn handshake(&self) -> Option<Box<Handshake>> {
        Handshake::new(Arc::clone(&self.config)).ok().map(Box::new)
    }
}

fn rules_digest(clients: &ClientCertificates<'_>) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(&[u8::from(clients.required)]);
    context.update(clients.roots);
    context.finish().as_ref().try_into().expect("32 bytes")
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| format!("not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("no CERTIFICATE section in it".to_owned());
    }
    Ok(chain)
}

fn certified(one: &CertificateAndKey<'_>) -> Result<CertifiedKey, String> {
    let chain = certificates(one.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(one.key)
        .map_err(|error| format!("the key is no PEM private key: {error}"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|error| format!("the key: {error}"))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => "the key is not that of the certificate".to_owned(),
        error => format!("the certificate: {error}"),
    })?;
    Ok(certified)
}

/// Chooses a certificate by name, and among those of one name by what the client can verify.
#[derive(Default)]
struct Resolver {
    certificates: Vec<Arc<CertifiedKey>>,
    /// Names in lower case; a wildcard without its `*`.
    by_name: HashMap<String, Vec<usize>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Resolver").field(&self.by_name).finish()
    }
}

impl Resolver {
    fn add(&mut self, certified: CertifiedKey) {
        let index = self.certificates.len();
        let names: Vec<String> = certified
            .end_entity_cert()
            .ok()
            .and_then(|leaf| {
                webpki::EndEntityCert::try_from(leaf).ok().map(|leaf| {
                    leaf.valid_dns_names()
                        .map(|name| name.trim_start_matches('*').to_ascii_lowercase())
                        .collect()
                })
            })
            .unwrap_or_default();
        for name in names {
            self.by_name.entry(name).or_default().push(index);
        }
        self.certificates.push(Arc::new(certified));
    }

    fn candidates(&self, name: &str) -> Option<&Vec<usize>> {
        let name = name.to_ascii_lowercase();
        self.by_name.get(&name).or_else(|| {
            // RFC 6125 §6.4.3: a wildcard is the whole of the leftmost label.
            let parent = &name[name.find('.')?..];
            self.by_name.get(parent)
        })
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        handshake::on_server_name(hello.server_name());
        let named = hello.server_name().and_then(|name| self.candidates(name));
        let schemes = hello.signature_schemes();
        let fits = |index: &&usize| self.certificates[**index].key.choose_scheme(schemes).is_some();
        match named {
            Some(indices) => indices.iter().find(fits).or(indices.first()),
            // The first, or another one for the same names with a key of another kind.
            None => {
                let all: Vec<usize> = self.same_names_as_first();
                let index = all.iter().find(fits).copied().unwrap_or(0);
                return self.certificates.get(index).cloned();
            }
        }
        .and_then(|&index| self.certificates.get(index).cloned())
    }
}

impl Resolver {
    fn same_names_as_first(&self) -> Vec<usize> {
        let mut all = vec![0];
        for indices in self.by_name.values().filter(|indices| indices.contains(&0)) {
            all.extend(indices.iter().filter(|index| **index != 0));
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}
