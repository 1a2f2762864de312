//! The saved form of [`Http1Client`].
//!
//! An incomplete head or chunk line is in the input that the caller keeps, and offers again.
//!
//! Must not know: envelopes, sections.

use bytemuck::{Pod, Zeroable};

use super::super::body::{Chunked, Trailers, Used};
use super::{Http1Client, MAX_INTERIM, Stage};

/// Plain old data in the machine's byte order, which may grow at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ClientHead {
    /// Operand of the stage: bytes to come, or trailer bytes consumed.
    pub count: u64,
    /// Data bytes announced by chunks so far.
    pub chunked_bytes: u64,
    /// Bytes of chunk extensions so far.
    pub extension_bytes: u32,
    /// Trailer lines consumed.
    pub trailer_lines: u16,
    /// Idle, head, sized, chunk size, chunk data, chunk end, trailers, until close, end, closed.
    pub stage: u8,
    /// Bits, from the lowest: HEAD, upgrade offered, keep-alive.
    pub flags: u8,
    /// Interim responses so far.
    pub interim: u8,
    /// Zero.
    pub padding: [u8; 7],
}

const _: () = assert!(size_of::<ClientHead>() == 32);

const HEAD: u8 = 1;
const UPGRADE: u8 = 2;
const KEEP_ALIVE: u8 = 4;

/// Why a saved state is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientRestoreError {
    /// A number that names no stage.
    #[error("HTTP/1.1 client state names an unknown stage")]
    UnknownStage,
    /// A flag that this build does not know, so cannot honour.
    #[error("HTTP/1.1 client state has unknown flags")]
    UnknownFlags,
    /// A count that no machine can have.
    #[error("HTTP/1.1 client state has a count out of range")]
    OutOfRange,
}

impl Http1Client {
    /// The state at this moment; any moment between two calls is a legal one.
    pub fn save(&self) -> ClientHead {
        let (stage, count, trailer_lines) = match self.stage {
            Stage::Idle => (0, 0, 0),
            Stage::Head { .. } => (1, 0, 0),
            Stage::Sized { remaining } => (2, remaining, 0),
            Stage::Chunked(Chunked::Size) => (3, 0, 0),
            Stage::Chunked(Chunked::Data { remaining }) => (4, remaining, 0),
            Stage::Chunked(Chunked::DataEnd) => (5, 0, 0),
            Stage::Chunked(Chunked::Trailers(Trailers { bytes, lines, .. })) => {
                (6, u64::from(bytes), lines)
            }
            Stage::UntilClose => (7, 0, 0),
            Stage::End => (8, 0, 0),
            Stage::Closed => (9, 0, 0),
        };
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        ClientHead {
            count,
            chunked_bytes: self.used.data_bytes,
            extension_bytes: self.used.extension_bytes,
            trailer_lines,
            stage,
            flags: flag(self.is_head, HEAD)
                | flag(self.upgrade_offered, UPGRADE)
                | flag(self.keep_alive, KEEP_ALIVE),
            interim: self.interim,
            padding: [0; 7],
        }
    }

    /// The machine that was saved.
    ///
    /// # Errors
    /// No machine can have saved this.
    pub fn restore(head: &ClientHead) -> Result<Self, ClientRestoreError> {
        if head.flags & !(HEAD | UPGRADE | KEEP_ALIVE) != 0 {
            return Err(ClientRestoreError::UnknownFlags);
        }
        let remaining = head.count;
        let stage = match head.stage {
            0 => Stage::Idle,
            1 => Stage::Head { scanned: 0 },
            2 | 4 if remaining == 0 || remaining == u64::MAX => {
                return Err(ClientRestoreError::OutOfRange);
            }
            2 => Stage::Sized { remaining },
            3 => Stage::Chunked(Chunked::Size),
            4 if remaining > head.chunked_bytes => return Err(ClientRestoreError::OutOfRange),
            4 => Stage::Chunked(Chunked::Data { remaining }),
            5 => Stage::Chunked(Chunked::DataEnd),
            6 => Stage::Chunked(Chunked::Trailers(Trailers {
                bytes: u32::try_from(remaining).map_err(|_| ClientRestoreError::OutOfRange)?,
                lines: head.trailer_lines,
                scanned: 0,
            })),
            7 => Stage::UntilClose,
            8 => Stage::End,
            9 => Stage::Closed,
            _ => return Err(ClientRestoreError::UnknownStage),
        };
        if head.interim > MAX_INTERIM {
            return Err(ClientRestoreError::OutOfRange);
        }
        Ok(Self {
            stage,
            used: Used { data_bytes: head.chunked_bytes, extension_bytes: head.extension_bytes },
            is_head: head.flags & HEAD != 0,
            upgrade_offered: head.flags & UPGRADE != 0,
            keep_alive: head.flags & KEEP_ALIVE != 0,
            interim: head.interim,
        })
    }
}
