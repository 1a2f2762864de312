//! Both sides' SETTINGS (RFC 9113 §6.5).
//!
//! Ours hold from the moment that the peer has acknowledged them; until then they wait in a queue.
//!
//! Must not know: streams.

use serde::{Deserialize, Serialize};

use super::frame::{self, ErrorCode};
use super::{Error, MAX_WINDOW};

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// RFC 8441 §3.
const ENABLE_CONNECT_PROTOCOL: u16 = 8;
/// RFC 9218 §2.1: we ignore priorities, and say so.
const NO_RFC7540_PRIORITIES: u16 = 9;

/// What we tell the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_streams: u32,
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub initial_window: u32,
    /// SETTINGS_MAX_HEADER_LIST_SIZE.
    pub max_list_bytes: u32,
}

impl Local {
    /// What holds before the first acknowledgement, as far as it matters to us.
    pub(super) const INITIAL: Self =
        Self { max_streams: u32::MAX, initial_window: 65_535, max_list_bytes: u32::MAX };

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut payload: arrayvec::ArrayVec<u8, 30> = arrayvec::ArrayVec::new();
        let mut add = |id: u16, value: u32| {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        };
        add(MAX_CONCURRENT_STREAMS, self.max_streams);
        add(INITIAL_WINDOW_SIZE, self.initial_window);
        add(MAX_HEADER_LIST_SIZE, self.max_list_bytes);
        add(ENABLE_CONNECT_PROTOCOL, 1);
        add(NO_RFC7540_PRIORITIES, 1);
        frame::write(out, frame::SETTINGS, 0, 0, &payload);
    }
}

/// What the peer told us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    pub initial_window: u32,
    /// SETTINGS_MAX_FRAME_SIZE.
    pub max_frame_bytes: u32,
}

/// What a SETTINGS frame changes beyond [`Peer`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// To be added to every stream's send window.
    pub window_delta: i64,
    pub header_table_bytes: Option<u32>,
}

impl Peer {
    pub(super) const INITIAL: Self = Self { initial_window: 65_535, max_frame_bytes: 16_384 };

    /// §6.5.2, §6.5.3: values in order.
    pub(super) fn apply(&mut self, payload: &[u8]) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        let window_before = i64::from(self.initial_window);
        for setting in payload.chunks_exact(6) {
            let value = frame::word(&setting[2..]);
            match u16::from_be_bytes([setting[0], setting[1]]) {
                HEADER_TABLE_SIZE => {
                    let least = changes.header_table_bytes.unwrap_or(u32::MAX).min(value);
                    changes.header_table_bytes = Some(least);
                }
                ENABLE_PUSH if value > 1 => {
                    return Err(Error::protocol("SETTINGS_ENABLE_PUSH is neither 0 nor 1"));
                }
                ENABLE_CONNECT_PROTOCOL if value > 1 => {
                    return Err(Error::protocol("SETTINGS_ENABLE_CONNECT_PROTOCOL is not 0 or 1"));
                }
                INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                    let reason = "SETTINGS_INITIAL_WINDOW_SIZE is above 2^31-1";
                    return Err(Error { code: ErrorCode::FlowControl, reason });
                }
                INITIAL_WINDOW_SIZE => self.initial_window = value,
                MAX_FRAME_SIZE if !(16_384..1 << 24).contains(&value) => {
                    return Err(Error::protocol("SETTINGS_MAX_FRAME_SIZE is out of range"));
                }
                MAX_FRAME_SIZE => self.max_frame_bytes = value,
                _ => {}
            }
        }
        changes.window_delta = i64::from(self.initial_window) - window_before;
        Ok(changes)
    }
}
