//! Keys of one direction: the secret that moves with a connection, and the AEAD key that is made
//! from it when the first record needs it.
//!
//! A direction of TLS 1.3 is its traffic secret (RFC 8446 §7.2, §7.3): key and nonce come from it, and
//! so does the next one. A direction of TLS 1.2 is its key and nonce; there is no next one.
//!
//! Secrets are overwritten when they are dropped and have no `Debug` that shows them.
//!
//! Must not know: records, sequence numbers.

use ring::{aead, hkdf};
use zeroize::Zeroize;

use super::suite::{Suite, Version};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;

/// Bytes of the longest secret.
pub const MAX_SECRET_BYTES: usize = 48;

/// What the keys of a direction are made from.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// The traffic secret, or the AEAD key in TLS 1.2; zeroes behind it.
    secret: [u8; MAX_SECRET_BYTES],
    /// In TLS 1.2 only; otherwise zeroes.
    nonce: [u8; NONCE_BYTES],
    len: u8,
}

impl Drop for Material {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.nonce.zeroize();
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Material(..)")
    }
}

impl Material {
    /// From a traffic secret, or an AEAD key with its nonce. `None` if the lengths are wrong.
    pub fn new(version: Version, suite: Suite, secret: &[u8], nonce: &[u8]) -> Option<Self> {
        let (secret_bytes, nonce_bytes) = match version {
            Version::Tls12 => (suite.key_bytes(), NONCE_BYTES),
            Version::Tls13 => (suite.secret_bytes(), 0),
        };
        if secret.len() != secret_bytes || nonce.len() != nonce_bytes {
            return None;
        }
        let mut material = Self {
            secret: [0; MAX_SECRET_BYTES],
            nonce: [0; NONCE_BYTES],
            len: secret_bytes as u8,
        };
        material.secret[..secret_bytes].copy_from_slice(secret);
        material.nonce[..nonce_bytes].copy_from_slice(nonce);
        Some(material)
    }

    /// The secret or key, for a saved state.
    pub fn secret(&self) -> &[u8] {
        &self.secret[..usize::from(self.len)]
    }

    /// The nonce of TLS 1.2, for a saved state.
    pub fn nonce(&self) -> &[u8; NONCE_BYTES] {
        &self.nonce
    }

    /// The next generation (RFC 8446 §7.2).
    pub fn ratchet(&mut self, suite: Suite) {
        let mut next = [0; MAX_SECRET_BYTES];
        let next_secret = &mut next[..suite.secret_bytes()];
        expand_label(suite, self.secret(), b"traffic upd", next_secret);
        self.secret.copy_from_slice(&next);
        next.zeroize();
    }

    /// Key and nonce, as rustls hands them out, for a comparison.
    pub fn key_and_nonce(&self, version: Version, suite: Suite) -> KeyAndNonce {
        let mut derived =
            KeyAndNonce { key: [0; 32], len: suite.key_bytes() as u8, nonce: self.nonce };
        let key = &mut derived.key[..suite.key_bytes()];
        match version {
            Version::Tls12 => key.copy_from_slice(self.secret()),
            Version::Tls13 => {
                expand_label(suite, self.secret(), b"key", key);
                expand_label(suite, self.secret(), b"iv", &mut derived.nonce);
            }
        }
        derived
    }
}

/// An AEAD key as bytes, with its nonce.
pub struct KeyAndNonce {
    key: [u8; 32],
    nonce: [u8; NONCE_BYTES],
    len: u8,
}

impl Drop for KeyAndNonce {
    fn drop(&mut self) {
        self.key.zeroize();
        self.nonce.zeroize();
    }
}

impl KeyAndNonce {
    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key[..usize::from(self.len)]
    }

    /// The nonce that sequence numbers are combined with.
    pub fn nonce(&self) -> &[u8; NONCE_BYTES] {
        &self.nonce
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
fn expand_label(suite: Suite, secret: &[u8], label: &[u8], into: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = (into.len() as u16).to_be_bytes();
    let label_length = [6 + label.len() as u8];
    let info: [&[u8]; 5] = [&length, &label_length, b"tls13 ", label, &[0]];
    hkdf::Prk::new_less_safe(suite.hkdf(), secret)
        .expand(&info, Length(into.len()))
        .and_then(|output| output.fill(into))
        .expect("far shorter than 255 blocks");
}

/// A key ready for use. ring keeps more than 500 bytes for it in place, so that it lives in a box of
/// its own and only once something is sent or received.
pub struct Keys {
    pub(super) aead: aead::LessSafeKey,
    pub(super) nonce: [u8; NONCE_BYTES],
    /// Tells keys apart in the record of used nonces.
    #[cfg(any(test, feature = "fault-points"))]
    pub(super) id: u64,
}

impl Keys {
    /// Derives them.
    pub fn derive(version: Version, suite: Suite, material: &Material) -> Box<Self> {
        let derived = material.key_and_nonce(version, suite);
        Box::new(Self {
            aead: unbound(suite, derived.key()),
            nonce: derived.nonce,
            #[cfg(any(test, feature = "fault-points"))]
            id: {
                let mut all = derived.key().to_vec();
                all.extend_from_slice(&derived.nonce);
                let digest = ring::digest::digest(&ring::digest::SHA256, &all);
                all.zeroize();
                u64::from_le_bytes(digest.as_ref()[..8].try_into().expect("eight bytes"))
            },
        })
    }
}

fn unbound(suite: Suite, key: &[u8]) -> aead::LessSafeKey {
    let key = aead::UnboundKey::new(suite.algorithm(), key).expect("of the algorithm's length");
    aead::LessSafeKey::new(key)
}

impl Drop for Keys {
    fn drop(&mut self) {
        // ring does not overwrite its key schedules. Another one in their place does; black_box keeps
        // the compiler from seeing that nobody will read it.
        self.nonce.zeroize();
        let zeroes = [0; 32];
        let suite = Suite::ALL
            .into_iter()
            .find(|suite| suite.algorithm() == self.aead.algorithm())
            .unwrap_or(Suite::ChaCha20Poly1305);
        self.aead = unbound(suite, &zeroes[..suite.key_bytes()]);
        std::hint::black_box(&self.aead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8448 §3: "derive write traffic keys for application data".
    #[test]
    fn keys_are_those_of_the_published_trace() {
        let secret = hex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
        let material = Material::new(Version::Tls13, Suite::Aes128Gcm, &secret, &[]).unwrap();
        let derived = material.key_and_nonce(Version::Tls13, Suite::Aes128Gcm);
        assert_eq!(derived.key(), hex("9f02283b6c9c07efc26bb9f2ac92e356"));
        assert_eq!(derived.nonce()[..], hex("cf782b88dd83549aadf1e984"));
    }

    #[test]
    fn each_generation_has_other_keys_and_all_derive_the_same_way() {
        for suite in Suite::ALL {
            let secret = vec![7; suite.secret_bytes()];
            let mut here = Material::new(Version::Tls13, suite, &secret, &[]).unwrap();
            let before = here.secret().to_vec();
            here.ratchet(suite);
            assert_eq!(here.secret().len(), before.len());
            assert_ne!(here.secret(), before);
            let mut there = Material::new(Version::Tls13, suite, &before, &[]).unwrap();
            there.ratchet(suite);
            assert!(here == there);
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let new = Material::new;
        assert!(new(Version::Tls13, Suite::Aes256Gcm, &[0; 32], &[]).is_none());
        assert!(new(Version::Tls13, Suite::Aes128Gcm, &[0; 32], &[0; 12]).is_none());
        assert!(new(Version::Tls12, Suite::Aes128Gcm, &[0; 32], &[0; 12]).is_none());
        assert!(new(Version::Tls12, Suite::Aes256Gcm, &[0; 32], &[0; 12]).is_some());
    }

    #[test]
    fn secrets_are_not_shown() {
        let material = Material::new(Version::Tls13, Suite::Aes128Gcm, &[0xab; 32], &[]).unwrap();
        assert_eq!(format!("{material:?}"), "Material(..)");
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }
}
