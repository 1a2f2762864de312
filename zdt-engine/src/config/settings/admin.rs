//! Where the admin endpoint is, and who may ask there.
//!
//! Must not know: sockets.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Fault, Settings};
use crate::config::Secret;

/// Shorter tokens can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdminAddress(pub Option<SocketAddr>);

impl TryFrom<String> for AdminAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_| {
            format!("{text:?} is neither an address such as 127.0.0.1:9180 nor \"off\"")
        })?;
        Ok(Self(Some(address)))
    }
}

impl From<AdminAddress> for String {
    fn from(address: AdminAddress) -> String {
        address.0.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }
}

impl Settings {
    pub(super) fn check_admin(&self) -> Result<(), Fault> {
        let has_token = self.admin_token.is_some() || self.admin_token_file.is_some();
        if let Some(address) = self.admin.0
            && !address.ip().is_loopback()
            && !has_token
        {
            let why = format!(
                "{address} is not a loopback address, so whoever asks there must show a token: name \
                 its file with admin_token_file, or set ZERO_DOWNTIME_ADMIN_TOKEN"
            );
            return Err(("admin", why));
        }
        if self.admin_token.is_some() && self.admin_token_file.is_some() {
            let why = "there is a token in the environment, too (ZERO_DOWNTIME_ADMIN_TOKEN); \
                       which one counts?";
            return Err(("admin_token_file", why.into()));
        }
        self.admin_token.as_ref().map_or(Ok(()), |token| check_token("admin_token", token))
    }
}

pub(super) fn check_token(name: &'static str, token: &Secret) -> Result<(), Fault> {
    let token = token.expose();
    if token.len() < MIN_TOKEN_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let why = format!(
            "a token has at least {MIN_TOKEN_BYTES} characters, all of them visible ASCII; \
             `openssl rand -hex 32` makes one"
        );
        return Err((name, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_endpoint_can_be_off() {
        assert_eq!("off".parse(), Ok(AdminAddress(None)));
        assert!("9180".parse::<AdminAddress>().is_err());
    }
}
