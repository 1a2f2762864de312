//! Versions and cipher suites, as far as a record layer has to tell them apart.
//!
//! Must not know: how a suite is negotiated, records.

use ring::{aead, hkdf};

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// RFC 5246, with the AEAD suites of RFC 5289 and RFC 7905.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Version {
    /// For status and logs.
    pub fn name(self) -> &'static str {
        match self {
            Version::Tls12 => "tls1.2",
            Version::Tls13 => "tls1.3",
        }
    }
}

/// The AEAD of a connection, and the hash that its keys are derived with (TLS 1.3 only).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// AES-128-GCM, SHA-256.
    Aes128Gcm,
    /// AES-256-GCM, SHA-384.
    Aes256Gcm,
    /// ChaCha20-Poly1305, SHA-256.
    ChaCha20Poly1305,
}

impl Suite {
    /// All of them; the index is the saved form.
    pub const ALL: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    /// For logs.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Aes128Gcm => "aes-128-gcm",
            Suite::Aes256Gcm => "aes-256-gcm",
            Suite::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    pub(super) fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Suite::Aes128Gcm => &aead::AES_128_GCM,
            Suite::Aes256Gcm => &aead::AES_256_GCM,
            Suite::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    pub(super) fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Suite::Aes128Gcm | Suite::ChaCha20Poly1305 => hkdf::HKDF_SHA256,
            Suite::Aes256Gcm => hkdf::HKDF_SHA384,
        }
    }

    /// Bytes of the AEAD key.
    pub(super) fn key_bytes(self) -> usize {
        match self {
            Suite::Aes128Gcm => 16,
            Suite::Aes256Gcm | Suite::ChaCha20Poly1305 => 32,
        }
    }

    /// Bytes of a traffic secret.
    pub(super) fn secret_bytes(self) -> usize {
        match self {
            Suite::Aes128Gcm | Suite::ChaCha20Poly1305 => 32,
            Suite::Aes256Gcm => 48,
        }
    }

    /// Bytes of the nonce that TLS 1.2 puts before the ciphertext (RFC 5288 §3; RFC 7905 §2 has
    /// none).
    pub(super) fn explicit_nonce_bytes(self, version: Version) -> usize {
        match (version, self) {
            (Version::Tls12, Suite::Aes128Gcm | Suite::Aes256Gcm) => 8,
            _ => 0,
        }
    }
}
