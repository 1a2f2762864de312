//! Certificates, their keys and the keys of session tickets, as bytes: read and checked by the
//! supervisor, which may read the files, and carried to its workers, which may not.
//!
//! They travel in a sealed memfd, never in a message, and are overwritten when they are dropped.
//!
//! Must not know: processes, connections.

mod tickets;
mod validity;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::{ClientCertificateRule, MinimumVersion, TlsConfig, TlsOptions};
use crate::proto::tls::{
    CertificateAndKey, ClientCertificates, Protocol, Server, ServerError, ServerOptions, Tickets,
};
use crate::shm;

pub use tickets::{TicketKeyBytes, TicketRing};
pub use validity::{Validity, validity};

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Largest memfd that a worker reads.
const MAX_BYTES: usize = 64 << 20;

const MAGIC: [u8; 4] = *b"ZTC1";

/// See the module.
#[derive(Default)]
pub struct Credentials {
    certificates: Vec<Pair>,
    client_roots: Vec<u8>,
    /// The next key, the current one, and earlier ones; of a process that received them.
    pub ticket_keys: Vec<TicketKeyBytes>,
}

/// A certificate and its key, both PEM.
struct Pair {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    /// Where they were read; empty in a worker.
    paths: (PathBuf, PathBuf),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Credentials({} certificates)", self.certificates.len())
    }
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let explain = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(explain)?;
    let metadata = file.metadata().map_err(explain)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(format!(
            "{}: not a file of at most {MAX_FILE_BYTES} bytes, as PEM files are",
            path.display()
        ));
    }
    // Never longer, so that no piece of a key is left behind where a vector has grown.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(explain)?;
    Ok(bytes)
}

impl Credentials {
    /// Reads the files that the settings name, and checks that a server can be made of them; `None`
    /// where they name none.
    ///
    /// # Errors
    /// Which file, and what is wrong with it.
    pub fn read(options: &TlsOptions) -> Result<Option<Self>, String> {
        let Some(config) = options.for_worker() else { return Ok(None) };
        let mut credentials = Self::default();
        for files in &options.certificates {
            credentials.certificates.push(Pair {
                certificate: read_file(&files.certificate)?.to_vec(),
                key: read_file(&files.key)?,
                paths: (files.certificate.clone(), files.key.clone()),
            });
        }
        if config.client_certificates.is_some() {
            credentials.client_roots = read_file(&options.client_ca)?.to_vec();
        }
        credentials.server(&config, true, &Tickets::default()).map_err(|reason| {
            match config.client_certificates {
                Some(_) if reason.starts_with("client certificates") => {
                    format!("{}: {reason}", options.client_ca.display())
                }
                _ => reason,
            }
        })?;
        Ok(Some(credentials))
    }

    /// When each certificate becomes and ceases to be valid, with its file.
    pub fn validities(&self) -> impl Iterator<Item = (&Path, Option<Validity>)> {
        self.certificates.iter().map(|pair| (pair.paths.0.as_path(), validity(&pair.certificate)))
    }

    /// What handshakes are made with; `http2` says whether it is offered.
    ///
    /// # Errors
    /// Which certificate, and what is wrong with it.
    pub fn server(
        &self,
        config: &TlsConfig,
        http2: bool,
        tickets: &Tickets,
    ) -> Result<Server, String> {
        let certificates: Vec<CertificateAndKey<'_>> = self
            .certificates
            .iter()
            .map(|pair| CertificateAndKey { certificate: &pair.certificate, key: &pair.key })
            .collect();
        let clients = config.client_certificates.map(|rule| ClientCertificates {
            roots: &self.client_roots,
            required: rule == ClientCertificateRule::Required,
        });
        let options = ServerOptions {
            certificates: &certificates,
            clients,
            protocols: if http2 { WITH_HTTP2 } else { WITHOUT_HTTP2 },
            only_tls13: config.min_version == MinimumVersion::Tls13,
            ticket_lifetime: Duration::from_millis(config.ticket_lifetime_ms),
        };
        Server::new(&options, tickets).map_err(|error| match error {
            ServerError::Certificate { index, reason } => {
                let (certificate, key) = &self.certificates[index].paths;
                format!("{} with {}: {reason}", certificate.display(), key.display())
            }
            error => error.to_string(),
        })
    }

    /// Puts them into a sealed memfd, with the keys of tickets.
    ///
    /// # Errors
    /// When out of memory or descriptors.
    pub fn seal(&self, ring: &TicketRing) -> std::io::Result<OwnedFd> {
        let mut numbers = Vec::new();
        let mut parts: Vec<&[u8]> = Vec::new();
        for pair in &self.certificates {
            parts.extend([&pair.certificate[..], &pair.key[..]]);
        }
        parts.push(&self.client_roots);
        for key in ring.keys() {
            parts.extend([&key.name[..], &key.secret[..]]);
        }
        numbers.extend_from_slice(&MAGIC);
        numbers.extend_from_slice(&(self.certificates.len() as u32).to_le_bytes());
        numbers.extend_from_slice(&(ring.keys().len() as u32).to_le_bytes());
        for part in &parts {
            numbers.extend_from_slice(&(part.len() as u32).to_le_bytes());
        }
        parts.insert(0, &numbers);
        shm::memory::sealed_copy("zdt-credentials", &parts)
    }

    /// Reads what [`Credentials::seal`] has written. Whoever has the descriptor closes it then.
    ///
    /// # Errors
    /// If it is something else.
    pub fn receive(memory: &OwnedFd) -> Result<Self, String> {
        let bytes = shm::memory::read_sealed(memory.as_fd(), MAX_BYTES)
            .map_err(|error| format!("credentials: {error}"))?;
        let bytes = Zeroizing::new(bytes);
        Self::decode(&bytes).ok_or_else(|| "credentials: they do not decode".to_owned())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
        };
        if bytes.get(..4)? != MAGIC {
            return None;
        }
        let (certificates, keys) = (number(4)?, number(8)?);
        let count =
            certificates.checked_mul(2)?.checked_add(keys.checked_mul(2)?)?.checked_add(1)?;
        let mut at = count.checked_mul(4)?.checked_add(12)?;
        if at > bytes.len() {
            return None;
        }
        let mut parts = Vec::with_capacity(count);
        for index in 0..count {
            let len = number(12 + 4 * index)?;
            parts.push(bytes.get(at..at.checked_add(len)?)?);
            at += len;
        }
        let mut parts = parts.into_iter();
        let mut credentials = Self::default();
        for _ in 0..certificates {
            credentials.certificates.push(Pair {
                certificate: parts.next()?.to_vec(),
                key: Zeroizing::new(parts.next()?.to_vec()),
                paths: Default::default(),
            });
        }
        credentials.client_roots = parts.next()?.to_vec();
        for _ in 0..keys {
            credentials.ticket_keys.push(TicketKeyBytes {
                name: parts.next()?.try_into().ok()?,
                secret: parts.next()?.try_into().ok()?,
            });
        }
        (at == bytes.len()).then_some(credentials)
    }
}

/// What is spoken over TLS, the favourite first.
const WITH_HTTP2: &[Protocol] = &[Protocol::H2, Protocol::Http11];
const WITHOUT_HTTP2: &[Protocol] = &[Protocol::Http11];

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::config::CertificateFiles;

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            path
        }

        fn pair(&self, name: &str) -> CertificateFiles {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            CertificateFiles {
                certificate: self.put(&format!("{name}.pem"), &made.cert.pem()),
                key: self.put(&format!("{name}.key"), &made.signing_key.serialize_pem()),
            }
        }
    }

    #[test]
    fn they_reach_a_worker() {
        let files = Files::new();
        let certificates = vec![files.pair("a.test"), files.pair("b.test")];
        let client_ca = certificates[0].certificate.clone();
        let options = TlsOptions { certificates, client_ca, ..TlsOptions::default() };
        let credentials = Credentials::read(&options).unwrap().unwrap();
        let ring = TicketRing::new();
        let sealed = credentials.seal(&ring).unwrap();
        let received = Credentials::receive(&sealed).unwrap();
        assert_eq!(received.certificates.len(), 2);
        assert!(*received.certificates[1].key == *credentials.certificates[1].key);
        assert_eq!(received.ticket_keys.len(), ring.keys().len());
        received.server(&options.for_worker().unwrap(), true, &Tickets::default()).unwrap();
        let shown = format!("{received:?} {:?}", received.ticket_keys);
        assert!(!shown.contains("PRIVATE"), "{shown}");
        assert!(credentials.validities().all(|(_, validity)| validity.is_some()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_file() {
        let files = Files::new();
        let (a, b) = (files.pair("a.test"), files.pair("b.test"));
        let error = |certificate: &Path, key: &Path, client_ca: &Path| {
            let pair = CertificateFiles { certificate: certificate.into(), key: key.into() };
            let options = TlsOptions {
                certificates: vec![pair],
                client_ca: client_ca.into(),
                ..TlsOptions::default()
            };
            Credentials::read(&options).unwrap_err()
        };
        let none = Path::new("");
        assert!(error(&a.certificate, &b.key, none).contains("not that of the certificate"));
        assert!(error(&a.certificate, &b.key, none).contains("b.test.key"));
        let missing = files.directory.path().join("missing.pem");
        assert!(error(&missing, &a.key, none).contains("missing.pem"));
        let text = files.put("text", "hello");
        assert!(error(&text, &a.key, none).contains("no CERTIFICATE"));
        assert!(error(&a.certificate, &a.key, &text).contains("text: client certificates"));
        assert!(error(files.directory.path(), &a.key, none).contains("not a file"));
        assert!(Credentials::read(&TlsOptions::default()).unwrap().is_none());
    }

    #[test]
    fn other_bytes_are_refused() {
        let files = Files::new();
        let options =
            TlsOptions { certificates: vec![files.pair("a.test")], ..TlsOptions::default() };
        let credentials = Credentials::read(&options).unwrap().unwrap();
        let sealed = credentials.seal(&TicketRing::new()).unwrap();
        let bytes = shm::memory::read_sealed(sealed.as_fd(), MAX_BYTES).unwrap();
        assert!(Credentials::decode(&bytes).is_some());
        for len in 0..bytes.len() {
            assert!(Credentials::decode(&bytes[..len]).is_none(), "cut at {len}");
        }
        for at in 0..12 {
            let mut changed = bytes.clone();
            changed[at] = 0xff;
            assert!(Credentials::decode(&changed).is_none(), "byte {at}");
        }
    }
}
