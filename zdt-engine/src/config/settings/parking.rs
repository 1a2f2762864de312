//! Section `parking`: sessions whose clients are away.
//!
//! Must not know: where they are kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fault, Settings};
use crate::config::{ParkingOptions, Secret};

/// See [`Settings::parking`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParkingSettings {
    /// Keep the sessions of clients whose connection breaks, if the service asks for it.
    pub enabled: bool,
    /// How long a client may take to come back.
    pub ttl_ms: u64,
    /// How long a token is good, from when it was handed out: the connection's time counts, too.
    pub token_ttl_ms: u64,
    /// Sessions kept; those that would be over first make room.
    pub max_sessions: u32,
    /// Bytes kept.
    pub max_bytes: u64,
    /// Where they are written; the run directory by default.
    pub path: Option<PathBuf>,
    /// 32 bytes, in hexadecimal or base64, that encrypt them there and sign resume tokens. From the
    /// environment only. Without, nothing is written.
    pub key: Option<Secret>,
    /// The file that holds the key.
    pub key_file: Option<PathBuf>,
}

impl Default for ParkingSettings {
    fn default() -> Self {
        let ParkingOptions { enabled, ttl_ms, token_ttl_ms } = ParkingOptions::default();
        Self {
            enabled,
            ttl_ms,
            token_ttl_ms,
            max_sessions: 100_000,
            max_bytes: 64 << 20,
            path: None,
            key: None,
            key_file: None,
        }
    }
}

impl Settings {
    pub(super) fn check_parking(&self) -> Result<(), Fault> {
        let parking = &self.parking;
        if parking.enabled && (parking.ttl_ms == 0 || parking.token_ttl_ms == 0) {
            return Err((
                "parking.ttl_ms",
                "must be at least 1; `enabled = false` for none".into(),
            ));
        }
        if parking.key.is_some() && parking.key_file.is_some() {
            let why =
                "there is a key in the environment, too (CONNECTION_STATE_KEY); which one counts?";
            return Err(("parking.key_file", why.into()));
        }
        parking.key.as_ref().map_or(Ok(()), |key| check_key("parking.key", key))
    }
}

pub(super) fn check_key(name: &'static str, key: &Secret) -> Result<(), Fault> {
    match key.key_bytes() {
        Some(_) => Ok(()),
        None => Err((
            name,
            "is not a key: 32 bytes as 64 hexadecimal digits, or as base64, are expected; \
             `openssl rand -hex 32` makes one"
                .into(),
        )),
    }
}
