//! Settings of TLS: the table `[tls]` of `zdt.toml`, and the part of it that a worker is told.
//!
//! Must not know: what is in the files, how TLS works.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// See [`super::Settings::tls`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsOptions {
    /// Those of the public addresses on which TLS is spoken; empty is all of them, once there is a
    /// certificate.
    pub listen: Vec<SocketAddr>,
    /// PEM files. The names are those in the certificates; the first is for clients that ask for none
    /// of them.
    pub certificates: Vec<CertificateFiles>,
    /// PEM file with the roots of client certificates; empty asks for none.
    pub client_ca: PathBuf,
    /// What becomes of clients without a certificate.
    pub client_certificates: ClientCertificateRule,
    /// The oldest version that is spoken.
    pub min_version: MinimumVersion,
    /// How long a session can be resumed without a full handshake; 0 is never.
    pub ticket_lifetime_ms: u64,
    /// How often the key of new tickets changes.
    pub ticket_rotation_ms: u64,
    /// Records sent under one key before it is changed (TLS 1.3).
    pub rekey_after_records: u64,
}

/// One of [`TlsOptions::certificates`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The certificate, and behind it those that lead to its root.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// See [`TlsOptions::client_certificates`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificateRule {
    /// They are refused.
    #[default]
    Required,
    /// They are served; the service sees that there is none.
    Optional,
}

/// See [`TlsOptions::min_version`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MinimumVersion {
    /// RFC 5246, AEAD suites with forward secrecy only.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    Tls13,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            certificates: Vec::new(),
            client_ca: PathBuf::new(),
            client_certificates: ClientCertificateRule::default(),
            min_version: MinimumVersion::default(),
            ticket_lifetime_ms: 12 * 3_600_000,
            ticket_rotation_ms: 4 * 3_600_000,
            rekey_after_records: 1 << 23,
        }
    }
}

/// What a worker is told: no paths, no secrets. Certificates and keys come beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsConfig {
    /// See [`TlsOptions::listen`].
    pub listen: Vec<SocketAddr>,
    /// `None` asks for no client certificate.
    pub client_certificates: Option<ClientCertificateRule>,
    /// See [`TlsOptions::min_version`].
    pub min_version: MinimumVersion,
    /// See [`TlsOptions::ticket_lifetime_ms`].
    pub ticket_lifetime_ms: u64,
    /// See [`TlsOptions::ticket_rotation_ms`]; its supervisor sees to that.
    pub ticket_rotation_ms: u64,
    /// See [`TlsOptions::rekey_after_records`].
    pub rekey_after_records: u64,
}

impl TlsConfig {
    /// Whether TLS is spoken at that address.
    pub fn speaks_tls(&self, address: SocketAddr) -> bool {
        self.listen.is_empty() || self.listen.contains(&address)
    }
}

impl TlsOptions {
    /// The part that a worker is told; `None` without certificates.
    pub fn for_worker(&self) -> Option<TlsConfig> {
        let has_clients = !self.client_ca.as_os_str().is_empty();
        (!self.certificates.is_empty()).then(|| TlsConfig {
            listen: self.listen.clone(),
            client_certificates: has_clients.then_some(self.client_certificates),
            min_version: self.min_version,
            ticket_lifetime_ms: self.ticket_lifetime_ms,
            ticket_rotation_ms: self.ticket_rotation_ms,
            rekey_after_records: self.rekey_after_records,
        })
    }

    /// What is wrong with the values themselves.
    ///
    /// # Errors
    /// The name of the setting, and why.
    pub fn check(&self, listen: &[SocketAddr]) -> Result<(), (&'static str, String)> {
        if self.certificates.is_empty() {
            if !self.listen.is_empty() {
                return Err((
                    "tls.listen",
                    "TLS needs a certificate: --tls-cert and --tls-key, or [[tls.certificates]]"
                        .into(),
                ));
            }
            if !self.client_ca.as_os_str().is_empty() {
                return Err((
                    "tls.client_ca",
                    "client certificates are for TLS, which needs a certificate of its own first"
                        .into(),
                ));
            }
        }
        for address in &self.listen {
            if !listen.contains(address) {
                return Err(("tls.listen", format!("{address} is not among `listen`")));
            }
            if address.port() == 0 {
                let why = "port 0 names no address; leave tls.listen empty for TLS on all of them";
                return Err(("tls.listen", why.into()));
            }
        }
        if self.certificates.len() > MAX_CERTIFICATES {
            return Err(("tls.certificates", format!("at most {MAX_CERTIFICATES}")));
        }
        if self.ticket_lifetime_ms > 7 * 86_400_000 {
            return Err(("tls.ticket_lifetime_ms", "at most seven days (RFC 8446 §4.6.1)".into()));
        }
        if self.ticket_rotation_ms < 1_000 {
            return Err(("tls.ticket_rotation_ms", "must be at least 1000".into()));
        }
        if !(1_000..=1 << 23).contains(&self.rekey_after_records) {
            return Err(("tls.rekey_after_records", "must be between 1000 and 8388608".into()));
        }
        Ok(())
    }
}

/// Most certificates: all of them go to every worker.
const MAX_CERTIFICATES: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: fn(&mut TlsOptions)) -> &'static str {
        let certificates =
            vec![CertificateFiles { certificate: "c.pem".into(), key: "k.pem".into() }];
        let mut options = TlsOptions { certificates, ..TlsOptions::default() };
        change(&mut options);
        options.check(&["127.0.0.1:443".parse().unwrap()]).err().map_or("", |(name, _)| name)
    }

    #[test]
    fn bad_values_name_the_setting() {
        assert_eq!(wrong(|_| {}), "");
        assert_eq!(wrong(|o| o.listen = vec!["127.0.0.1:443".parse().unwrap()]), "");
        assert_eq!(wrong(|o| o.listen = vec!["127.0.0.1:444".parse().unwrap()]), "tls.listen");
        assert_eq!(
            wrong(|o| {
                o.listen = vec!["127.0.0.1:443".parse().unwrap()];
                o.certificates.clear();
            }),
            "tls.listen"
        );
        assert_eq!(
            wrong(|o| {
                o.client_ca = "ca.pem".into();
                o.certificates.clear();
            }),
            "tls.client_ca"
        );
        assert_eq!(wrong(|o| o.ticket_rotation_ms = 1), "tls.ticket_rotation_ms");
        assert_eq!(wrong(|o| o.ticket_lifetime_ms = u64::MAX), "tls.ticket_lifetime_ms");
        assert_eq!(wrong(|o| o.rekey_after_records = 1 << 24), "tls.rekey_after_records");
    }

    #[test]
    fn a_table_of_certificates_is_read() {
        let options: TlsOptions = toml::from_str(
            "min_version = \"1.3\"\nclient_certificates = \"optional\"\n\
             [[certificates]]\ncertificate = \"a.pem\"\nkey = \"a.key\"\n\
             [[certificates]]\ncertificate = \"b.pem\"\nkey = \"b.key\"\n",
        )
        .unwrap();
        assert_eq!(options.certificates.len(), 2);
        assert_eq!(options.min_version, MinimumVersion::Tls13);
        assert_eq!(options.for_worker().unwrap().client_certificates, None, "without roots");
    }
}
