//! What a proxy in front says of a client before the client's first byte (PROXY protocol). Until it is there,
//! the connection's peer is the proxy, and no protocol gets a byte.
//!
//! Must not know: what is spoken behind it.

use std::net::SocketAddr;

use crate::proto::proxy_protocol::{self, Header, Progress};

use super::Worker;
use super::record::RestoreError;
use crate::state::{Record, Writer};

/// Peers that were refused lately and are remembered.
const MAX_REFUSED: usize = 1_024;

/// A header that has not come whole.
#[derive(Debug, Default)]
pub struct Preface {
    /// What has come, and, of a connection that was just being frozen, what came behind it.
    pub bytes: Vec<u8>,
    /// When it must have come.
    pub deadline_ms: u64,
}

/// A header that has not come whole: the time left for it, then what has come.
pub const TAG_PREFACE: u16 = 40;

/// Most bytes of a header, and of what came behind it, that are taken over.
const MAX_KEPT_BYTES: usize = 4 << 20;

impl Preface {
    /// Writes it down.
    pub fn save(&self, now_ms: u64, writer: &mut Writer<'_>) {
        let remaining_ms = self.deadline_ms.saturating_sub(now_ms);
        writer.section(TAG_PREFACE, 1, false, &[remaining_ms], &[&self.bytes]);
    }

    /// Reads it again, if the record has one.
    pub fn restore(
        record: &Record<'_>,
        now_ms: u64,
        transit_ms: u64,
    ) -> Result<Option<Preface>, RestoreError> {
        let Some(section) = record.section(TAG_PREFACE) else { return Ok(None) };
        if section.tail().len() > MAX_KEPT_BYTES {
            return Err(RestoreError::OutOfRange("the header of a proxy"));
        }
        let [remaining_ms]: [u64; 1] = section.head();
        let deadline_ms = now_ms.saturating_add(remaining_ms.saturating_sub(transit_ms));
        Ok(Some(Preface { bytes: section.tail().to_vec(), deadline_ms }))
    }
}

impl Worker {
    /// Whether a connection begins with a header; `None` if it may not be accepted at all: who is not trusted
    /// must not tell what its address is, nor pass by the proxy.
    pub(super) fn wants_preface(&self, listener: SocketAddr, peer: SocketAddr) -> Option<bool> {
        let options = &self.configure.config.proxy_protocol;
        let is_proxied = options.listeners.iter().any(|one| {
            one.ip() == listener.ip() && (one.port() == 0 || one.port() == listener.port())
        });
        if !is_proxied {
            return Some(false);
        }
        options.trusted.iter().any(|network| network.contains(peer.ip())).then_some(true)
    }

    /// Remembers who was refused: the supervisor proves a worker with a connection of its own, which it may
    /// announce only after it was accepted, and which no proxy passes on.
    pub(super) fn note_refused(&mut self, peer: SocketAddr) {
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(peer);
    }

    /// Whether this one was.
    pub(super) fn was_refused(&mut self, peer: SocketAddr) -> bool {
        let at = self.refused.iter().position(|refused| *refused == peer);
        at.is_some_and(|at| self.refused.remove(at).is_some())
    }

    /// The header that is awaited from now on.
    pub(super) fn new_preface(&self) -> Box<Preface> {
        let timeout_ms = self.configure.config.proxy_protocol.header_timeout_ms;
        Box::new(Preface { bytes: Vec::new(), deadline_ms: self.now_ms + timeout_ms })
    }

    /// Bytes of a connection whose header has not come whole. Returns what is behind the header, once it has.
    pub(super) fn take_preface(
        &mut self,
        key: usize,
        bytes: &[u8],
        parse: bool,
    ) -> Option<Vec<u8>> {
        let entry = &mut self.entries[key];
        let preface = entry.preface.as_mut()?;
        preface.bytes.extend_from_slice(bytes);
        if !parse {
            return None;
        }
        match proxy_protocol::parse(&preface.bytes) {
            Ok(Progress::Incomplete) => None,
            Ok(Progress::Complete(Header { len, source })) => {
                let rest = preface.bytes.split_off(len);
                entry.preface = None;
                entry.peer = source.unwrap_or(entry.peer);
                let ip = entry.peer.ip();
                if self.is_over_limit(ip) {
                    self.status.rejected += 1;
                    // It was in no table of addresses yet, and leaves one.
                    self.join_address(ip);
                    self.drop_connection(key);
                    return None;
                }
                self.join_address(ip);
                Some(rest)
            }
            Err(error) => {
                tracing::debug!(connection = entry.id, peer = %entry.peer, "{error}");
                self.status.rejected += 1;
                self.drop_connection(key);
                None
            }
        }
    }
}
