//! States of connections as values: checked, packed, unpacked.
//!
//! A pack is the magic, a version, and zstd over the states one by one, each with its length and checksum.
//! Whoever unpacks one trusts nothing in it.
//!
//! Must not know: what a state means.

use std::collections::BTreeSet;
use std::io::Read;

use serde::{Deserialize, Serialize};

/// Largest state of one connection.
pub const MAX_STATE_BYTES: usize = 64 << 20;
/// Largest pack when unpacked.
const MAX_PACK_BYTES: u64 = 1 << 30;
const MAX_PROTOCOL_BYTES: usize = 255;

const MAGIC: [u8; 4] = *b"ZDTR";
const VERSION: u8 = 1;
/// Fast, and small enough.
const LEVEL: i32 = 1;
const FLAG_ACTIVE: u8 = 1;
/// Id, worker, flags, bytes of the protocol's name, bytes of the state, checksum.
const HEAD_BYTES: usize = 8 + 4 + 1 + 1 + 4 + 4;

/// The state of one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    /// Its id.
    pub id: u64,
    /// The worker that had it.
    pub worker: u32,
    /// It was active: it moves first.
    pub is_active: bool,
    /// What it speaks.
    pub protocol: String,
    /// What it saved.
    pub bytes: Vec<u8>,
}

/// A state that is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidState {
    /// Its place in the list.
    pub index: usize,
    /// Its id.
    pub id: u64,
    /// What is wrong.
    pub reason: &'static str,
}

/// A pack that cannot be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatesError {
    /// Something else, or of a version that this build does not know.
    #[error("not a pack of connection states of version {VERSION}")]
    NotAPack,
    /// It was cut off, or changed.
    #[error("the pack is damaged at state {index}: {reason}")]
    Damaged {
        /// Which state.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

pub(super) fn validate(states: &[ConnectionState]) -> Vec<InvalidState> {
    let mut ids = BTreeSet::new();
    let mut invalid = Vec::new();
    for (index, state) in states.iter().enumerate() {
        let reason = if state.protocol.is_empty() {
            "no protocol"
        } else if state.protocol.len() > MAX_PROTOCOL_BYTES {
            "the protocol's name is too long"
        } else if state.bytes.len() > MAX_STATE_BYTES {
            "the state is too large"
        } else if !ids.insert(state.id) {
            "another state has the same id"
        } else {
            continue;
        };
        invalid.push(InvalidState { index, id: state.id, reason });
    }
    invalid
}

/// Packs states. Those that [`ConnectionRegistry::validate_states`](super::ConnectionRegistry::validate_states)
/// refuses for their size or name are left out.
pub fn compress_states(states: &[ConnectionState]) -> Vec<u8> {
    let mut plain = Vec::new();
    for state in states {
        let (Ok(name), Ok(len)) =
            (u8::try_from(state.protocol.len()), u32::try_from(state.bytes.len()))
        else {
            continue;
        };
        if state.bytes.len() > MAX_STATE_BYTES || name == 0 {
            continue;
        }
        plain.extend_from_slice(&state.id.to_le_bytes());
        plain.extend_from_slice(&state.worker.to_le_bytes());
        plain.push(if state.is_active { FLAG_ACTIVE } else { 0 });
        plain.push(name);
        plain.extend_from_slice(&len.to_le_bytes());
        plain.extend_from_slice(&crc_fast::crc32_iscsi(&state.bytes).to_le_bytes());
        plain.extend_from_slice(state.protocol.as_bytes());
        plain.extend_from_slice(&state.bytes);
    }
    let mut pack = MAGIC.to_vec();
    pack.push(VERSION);
    let packed = zstd::bulk::compress(&plain, LEVEL);
    pack.extend_from_slice(&packed.expect("a buffer that grows takes it"));
    pack
}

/// Unpacks what [`compress_states`] has packed.
///
/// # Errors
/// If it is something else, or damaged. What is read is bounded whatever it says.
pub fn decompress_states(pack: &[u8]) -> Result<Vec<ConnectionState>, StatesError> {
    let packed = pack
        .strip_prefix(&MAGIC)
        .and_then(|rest| rest.strip_prefix(&[VERSION]))
        .ok_or(StatesError::NotAPack)?;
    let damaged = |index, reason| StatesError::Damaged { index, reason };
    let decoder = zstd::stream::read::Decoder::new(packed)
        .map_err(|_| damaged(0, "it cannot be inflated"))?;
    let mut input = decoder.take(MAX_PACK_BYTES);
    let mut states = Vec::new();
    loop {
        let index = states.len();
        let mut head = [0; HEAD_BYTES];
        match read_full(&mut input, &mut head) {
            Ok(0) if input.limit() > 0 => return Ok(states),
            Ok(HEAD_BYTES) => {}
            Ok(_) => return Err(damaged(index, "its head is cut off")),
            Err(()) => return Err(damaged(index, "it cannot be inflated")),
        }
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let (name, len) = (usize::from(head[13]), word(14) as usize);
        if name == 0 || len > MAX_STATE_BYTES || head[12] & !FLAG_ACTIVE != 0 {
            return Err(damaged(index, "its head is none"));
        }
        let mut protocol = vec![0; name];
        // Grows with what really comes, not with what is announced.
        let mut bytes = Vec::new();
        let whole = read_full(&mut input, &mut protocol) == Ok(name)
            && input.by_ref().take(len as u64).read_to_end(&mut bytes).is_ok()
            && bytes.len() == len;
        if !whole {
            return Err(damaged(index, "it is cut off"));
        }
        if crc_fast::crc32_iscsi(&bytes) != word(18) {
            return Err(damaged(index, "its checksum is another"));
        }
        states.push(ConnectionState {
            id: u64::from_le_bytes(head[..8].try_into().expect("8 bytes")),
            worker: word(8),
            is_active: head[12] & FLAG_ACTIVE != 0,
            protocol: String::from_utf8(protocol)
                .map_err(|_| damaged(index, "its protocol is not text"))?,
            bytes,
        });
    }
}

/// Reads until the buffer is full or the input ends; how much there was.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ()> {
    let mut at = 0;
    while at < buffer.len() {
        match input.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(_) => return Err(()),
        }
    }
    Ok(at)
}
