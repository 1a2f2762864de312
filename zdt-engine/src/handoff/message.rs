//! Messages on a channel's seqpacket socket.
//!
//! One byte names the kind; what follows is fixed by it. Descriptors travel only with a batch, which
//! lists `{sequence, role}` for each of them in order.
//!
//! Must not know: who sends them when.

use serde::{Deserialize, Serialize};

use crate::control::VersionRange;

/// Descriptors in one batch, unless one connection alone has more: small enough that green starts while
/// blue still freezes.
pub const MAX_BATCH_FDS: usize = 64;

/// Most descriptors of one connection beside its socket and its record: a batch is never split between
/// a connection's descriptors, and the kernel takes no more with one message.
pub const MAX_UPSTREAMS: usize = crate::fdpass::MAX_FDS - 2;

/// Largest message: a batch, a hello or a pushed message.
pub const MAX_MESSAGE_BYTES: usize = 96 << 10;

const KIND_HELLO: u8 = b'H';
const KIND_BATCH: u8 = b'B';
const KIND_PUSH: u8 = b'P';
const KIND_STREAM_PUSH: u8 = b'S';
const ENTRY_BYTES: usize = 9;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The client's socket.
    Client,
    /// An upstream's socket of the client before it, in the order that its record expects.
    Upstream,
    /// A sealed memfd that holds a state record too large for the ring.
    Record,
}

impl Role {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Role::Client),
            1 => Some(Role::Record),
            2 => Some(Role::Upstream),
            _ => None,
        }
    }

    fn to_byte(self) -> u8 {
        match self {
            Role::Client => 0,
            Role::Record => 1,
            Role::Upstream => 2,
        }
    }
}

/// First message of both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// Versions of the handoff protocol.
    pub protocol: VersionRange,
    /// State formats that the sender reads.
    pub state_reads: VersionRange,
    /// State formats that the sender writes.
    pub state_writes: VersionRange,
    /// The reload and the number of the channel: both ends must mean the same.
    pub reload: u64,
    /// See `reload`.
    pub channel: u32,
}

/// One descriptor of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchEntry {
    /// Sequence of the offer.
    pub sequence: u64,
    /// What the descriptor is for.
    pub role: Role,
}

/// A decoded message.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// See [`PeerHello`].
    Hello(PeerHello),
    /// Entries, one for each descriptor.
    Batch(Vec<BatchEntry>),
    /// A message that an application pushed to a connection which has moved.
    Push {
        /// Id of the connection.
        connection: u64,
        /// The stream on it.
        stream: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
}

/// Encodes a hello.
pub fn encode_hello(hello: &PeerHello) -> Vec<u8> {
    let mut bytes = vec![KIND_HELLO];
    serde_json::to_writer(&mut bytes, hello).expect("a hello has no map and no writer that fails");
    bytes
}

/// Encodes a batch into `bytes`, which it clears first.
pub fn encode_batch(entries: &[BatchEntry], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.push(KIND_BATCH);
    for entry in entries {
        bytes.extend_from_slice(&entry.sequence.to_le_bytes());
        bytes.push(entry.role.to_byte());
    }
}

/// Encodes a pushed message. For stream 0 that is what builds without streams understand, too.
pub fn encode_push(connection: u64, stream: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(17 + payload.len());
    bytes.push(if stream == 0 { KIND_PUSH } else { KIND_STREAM_PUSH });
    bytes.extend_from_slice(&connection.to_le_bytes());
    if stream != 0 {
        bytes.extend_from_slice(&stream.to_le_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Decodes one message; an error says what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, String> {
    let (&kind, rest) = bytes.split_first().ok_or("an empty message")?;
    match kind {
        KIND_HELLO => serde_json::from_slice(rest)
            .map(Decoded::Hello)
            .map_err(|error| format!("a hello that does not parse: {error}")),
        KIND_BATCH => {
            if rest.is_empty() || rest.len() % ENTRY_BYTES != 0 {
                return Err(format!("a batch of {} bytes", rest.len()));
            }
            rest.chunks_exact(ENTRY_BYTES)
                .map(|entry| {
                    let (sequence, role) = entry.split_at(8);
                    Ok(BatchEntry {
                        sequence: u64::from_le_bytes(sequence.try_into().expect("split at 8")),
                        role: Role::from_byte(role[0])
                            .ok_or_else(|| format!("an unknown role {}", role[0]))?,
                    })
                })
                .collect::<Result<_, String>>()
                .map(Decoded::Batch)
        }
        KIND_PUSH => {
            let (connection, bytes) = rest.split_first_chunk().ok_or("a push without an id")?;
            Ok(Decoded::Push { connection: u64::from_le_bytes(*connection), stream: 0, bytes })
        }
        KIND_STREAM_PUSH => {
            let (connection, rest) = rest.split_first_chunk().ok_or("a push without an id")?;
            let (stream, bytes) = rest.split_first_chunk().ok_or("a push without a stream")?;
            let (connection, stream) =
                (u64::from_le_bytes(*connection), u64::from_le_bytes(*stream));
            Ok(Decoded::Push { connection, stream, bytes })
        }
        other => Err(format!("a message of unknown kind {other:#04x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_encoding() {
        let versions = VersionRange { oldest: 1, newest: 3 };
        let hello = PeerHello {
            protocol: versions,
            state_reads: versions,
            state_writes: versions,
            reload: 7,
            channel: 2,
        };
        assert_eq!(decode(&encode_hello(&hello)), Ok(Decoded::Hello(hello)));

        let entries = vec![
            BatchEntry { sequence: 1, role: Role::Client },
            BatchEntry { sequence: 1, role: Role::Upstream },
            BatchEntry { sequence: 1, role: Role::Record },
        ];
        let mut bytes = Vec::new();
        encode_batch(&entries, &mut bytes);
        assert_eq!(decode(&bytes), Ok(Decoded::Batch(entries)));

        for stream in [0, 5] {
            assert_eq!(
                decode(&encode_push(9, stream, b"tick")),
                Ok(Decoded::Push { connection: 9, stream, bytes: b"tick" })
            );
        }
    }

    #[test]
    fn malformed_messages_are_named() {
        for bytes in
            [&b""[..], b"B", b"B123", b"B12345678\x09", b"P123", b"S12345678123", b"H{", b"?"]
        {
            assert!(decode(bytes).is_err(), "{bytes:?} was taken");
        }
    }
}
