//! Resume tokens: what a client shows to get its parked session back.
//!
//! `v1.` id and expiry `.` signature, the last two in base64 for URLs without padding: 16 random
//! bytes and seconds since the epoch (u64, big-endian); HMAC-SHA256 over everything before the second
//! full stop. A token that is not ours, or whose time is over, names nothing. That it is good for
//! one return only is the business of whoever keeps the sessions.
//!
//! Must not know: what is parked, where.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::service::ParkId;
use crate::state::Secret;

const PREFIX: &str = "v1.";
const PAYLOAD_BYTES: usize = 24;
const SIGNATURE_BYTES: usize = 32;
/// Of a whole token: 3 + 32 + 1 + 43.
const TOKEN_BYTES: usize = 79;

/// Makes and checks tokens.
pub struct TokenKey(hmac::Key);

impl TokenKey {
    /// The same secret in every worker that is to take the others' tokens.
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.bytes()))
    }

    /// A token for that session, good until then.
    pub fn sign(&self, id: ParkId, expires_unix_s: u64) -> String {
        let mut payload = [0; PAYLOAD_BYTES];
        payload[..16].copy_from_slice(&id.0);
        payload[16..].copy_from_slice(&expires_unix_s.to_be_bytes());
        let mut token = String::with_capacity(TOKEN_BYTES);
        token.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(payload, &mut token);
        let signature = hmac::sign(&self.0, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }

    /// What a token names, if it is one of ours and its time is not over.
    pub fn check(&self, token: &[u8], now_unix_s: u64) -> Option<ParkId> {
        if token.len() != TOKEN_BYTES || !token.starts_with(PREFIX.as_bytes()) {
            return None;
        }
        let (signed, signature) = token.split_at(token.len() - 44);
        let mut claimed = [0; SIGNATURE_BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(signature.strip_prefix(b".")?, &mut claimed);
        if length != Ok(SIGNATURE_BYTES) {
            return None;
        }
        // In constant time. Nothing in the token is believed before.
        hmac::verify(&self.0, signed, &claimed).ok()?;
        let mut payload = [0; PAYLOAD_BYTES];
        let length = URL_SAFE_NO_PAD.decode_slice(&signed[PREFIX.len()..], &mut payload);
        if length != Ok(PAYLOAD_BYTES) {
            return None;
        }
        let (id, expires) = payload.split_first_chunk::<16>()?;
        let expires_unix_s = u64::from_be_bytes(expires.try_into().ok()?);
        (now_unix_s < expires_unix_s).then_some(ParkId(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> TokenKey {
        TokenKey::new(&Secret::new([byte; 32]))
    }

    const ID: ParkId = ParkId(*b"sixteen bytes id");

    #[test]
    fn tokens_name_their_session_until_their_time_is_over() {
        let token = key(1).sign(ID, 1_000);
        assert_eq!(token.len(), TOKEN_BYTES);
        assert_eq!(
            token,
            "v1.c2l4dGVlbiBieXRlcyBpZAAAAAAAAAPo.sbp3F1grqhAgVDnxbu3r6ZtEGuDJP_0roeYRdnhletc"
        );
        assert_eq!(key(1).check(token.as_bytes(), 999), Some(ID));
        assert_eq!(key(1).check(token.as_bytes(), 1_000), None);
        assert_eq!(key(2).check(token.as_bytes(), 0), None, "another key");
    }

    #[test]
    fn no_changed_token_is_taken() {
        let token = key(1).sign(ID, u64::MAX).into_bytes();
        for index in 0..token.len() {
            for bit in 0..8 {
                let mut bad = token.clone();
                bad[index] ^= 1 << bit;
                assert_eq!(key(1).check(&bad, 0), None, "byte {index}, bit {bit}");
            }
        }
        for len in 0..token.len() {
            assert_eq!(key(1).check(&token[..len], 0), None);
        }
        let longer = [&token[..], b"A"].concat();
        assert_eq!(key(1).check(&longer, 0), None);
    }
}
