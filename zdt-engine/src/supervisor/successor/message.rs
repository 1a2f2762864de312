//! The messages of the handoff socket.
//!
//! One `SOCK_SEQPACKET` message each, JSON, with the descriptors that its documentation lists. Both
//! sides ignore unknown fields.
//!
//! Must not know: how either side reacts.

use serde::{Deserialize, Serialize};

use crate::control::VersionRange;

/// Versions of this protocol that this build speaks.
pub const VERSIONS: VersionRange = VersionRange { oldest: 1, newest: 1 };

/// First message in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions of this protocol.
    pub versions: VersionRange,
    /// Version of the durable state ([`crate::supervisor::takeover::store::VERSION`]): each must understand what
    /// the other writes down.
    pub state: u32,
    /// Version of the build, for people.
    pub build: String,
}

impl Hello {
    /// This build's.
    pub fn own() -> Hello {
        Hello {
            versions: VERSIONS,
            state: crate::supervisor::takeover::store::VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Whether the two can deal with each other.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        let own = Hello::own();
        if own.versions.newest_common(self.versions).is_none() || own.state != self.state {
            return Err(format!(
                "build {} speaks handoff protocols {:?} and writes state {}, build {} speaks {:?} \
                 and writes {}",
                self.build, self.versions, self.state, own.build, own.versions, own.state
            ));
        }
        Ok(())
    }
}

/// From the running supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToSuccessor {
    /// Answers the successor's.
    Hello(Hello),
    /// Descriptors: the [`super::Will`] (sealed memory), the lock of the run directory, the
    /// scoreboard, the control socket, the admin endpoint's listener if there is one, and the parked
    /// sessions (sealed memory) if any are kept.
    Estate {
        /// Whether the listener is there.
        has_admin: bool,
        /// Whether the parked sessions are.
        #[serde(default)]
        has_parked: bool,
        /// So many listening sockets follow, in the order of the will.
        listeners: usize,
    },
    /// Descriptors: the next listening sockets.
    Listeners,
    /// The sender has ceased to be the supervisor.
    TakeOver,
    /// Somebody on the control socket whom the sender has not answered. Descriptor: the connection.
    Client {
        /// Bytes that were read from it, and are to be served.
        unread: String,
        /// It waits for the verdict of this very reload.
        waits: bool,
    },
    /// All that there were.
    NoMoreClients,
}

/// From the successor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromSuccessor {
    /// Opens the connection.
    Hello(Hello),
    /// It could begin.
    Prepared,
    /// It has everything, and all that is to be its own answers.
    Proven,
    /// It is the supervisor.
    Done,
    /// The reload that it began with is over.
    Settled,
    /// It gives up, and exits.
    Failed {
        /// What, where, what to do.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused_with_both_named() {
        Hello::own().check().unwrap();
        let versions = VersionRange { oldest: 7, newest: 9 };
        let message = Hello { versions, ..Hello::own() }.check().unwrap_err();
        assert!(message.contains('7') && message.contains(env!("CARGO_PKG_VERSION")), "{message}");
        assert!(Hello { state: 99, ..Hello::own() }.check().unwrap_err().contains("99"));
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let text = r#"{"type":"estate","has_admin":true,"listeners":2,"later":[1]}"#;
        let message: ToSuccessor = serde_json::from_str(text).unwrap();
        assert_eq!(
            message,
            ToSuccessor::Estate { has_admin: true, has_parked: false, listeners: 2 }
        );
    }
}
