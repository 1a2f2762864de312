//! The saved form of [`Http1`]: what another process, perhaps of another build, needs to go on.
//!
//! An incomplete unit (half a head, half a chunk line) is not in here: it is in the input that the
//! caller keeps, and offers again. Nor are limits: what was accepted under the old ones goes on,
//! what is accepted later obeys the new ones. Every value of a record that restores is safe; a
//! record whose parts contradict each other is refused.
//!
//! Must not know: envelopes, sections, rings.

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use super::body::{Chunked, Trailers, Used};
use super::head::Progress;
use super::{DISCARD_LIMIT_BYTES, Flags, Http1, Incoming, Outgoing};

/// The state of one HTTP/1.1 connection, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http1State {
    /// The request that is arriving.
    pub request: RequestStage,
    /// Its response.
    pub response: ResponseStage,
    /// Data bytes announced by the chunks of the body so far.
    pub chunked_bytes: u64,
    /// Bytes of chunk extensions so far.
    pub extension_bytes: u32,
    /// An empty line before the request has been dropped.
    pub empty_line_skipped: bool,
    /// The request came as HTTP/1.0.
    pub http10: bool,
    /// The request's method is HEAD.
    pub head: bool,
    /// The client waits for 100 (Continue).
    pub continue_awaited: bool,
    /// The client offers an upgrade.
    pub upgrade: bool,
    /// The connection outlives the exchange.
    pub keep_alive: bool,
    /// The next response is the last.
    pub close_requested: bool,
}

/// See [`Http1State::request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RequestStage {
    /// Before a request, or in its head.
    Head,
    /// In a body with a Content-Length.
    Sized {
        /// Bytes to come, not 0.
        remaining: u64,
    },
    /// Before a chunk size.
    ChunkSize,
    /// In the data of a chunk.
    ChunkData {
        /// Bytes to come, not 0.
        remaining: u64,
    },
    /// Before the CRLF after the data of a chunk.
    ChunkEnd,
    /// Behind the last chunk.
    Trailers {
        /// Bytes consumed.
        bytes: u32,
        /// Lines consumed.
        lines: u16,
    },
    /// Complete, not yet reported as such.
    End,
    /// Complete.
    Complete,
    /// Nothing more will be read.
    Closed,
}

/// See [`Http1State::response`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseStage {
    /// There is no request to answer.
    Idle,
    /// Not begun.
    Pending,
    /// In a body with a Content-Length (0 without a body).
    Sized {
        /// Bytes owed.
        remaining: u64,
    },
    /// In a chunked body.
    Chunked,
    /// In a body that ends with the connection.
    UntilClose,
    /// In the unsent body of a response to HEAD.
    Omitted {
        /// Bytes announced and not yet accounted for, if a length was announced.
        remaining: Option<u64>,
    },
    /// Finished, while the rest of the request is discarded.
    Finished {
        /// Bytes that may still be discarded.
        discard_left: u32,
    },
}

/// Why a saved state is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Fewer bytes than the oldest form has.
    #[error("HTTP/1.1 state is truncated")]
    Truncated,
    /// A number that names no stage.
    #[error("HTTP/1.1 state names an unknown stage")]
    UnknownStage,
    /// A flag that this build does not know, so cannot honour.
    #[error("HTTP/1.1 state has unknown flags")]
    UnknownFlags,
    /// A count that no machine can have.
    #[error("HTTP/1.1 state has a count out of range")]
    OutOfRange,
    /// Stages, flags and counts that cannot be together.
    #[error("HTTP/1.1 state contradicts itself")]
    Contradiction,
}

/// The binary form: plain old data in the machine's byte order, which may grow at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Http1Head {
    /// Operand of the request's stage: bytes to come, or trailer bytes consumed.
    pub request_count: u64,
    /// Operand of the response's stage: bytes owed, or bytes that may be discarded.
    pub response_count: u64,
    /// See [`Http1State::chunked_bytes`].
    pub chunked_bytes: u64,
    /// See [`Http1State::extension_bytes`].
    pub extension_bytes: u32,
    /// Trailer lines consumed.
    pub trailer_lines: u16,
    /// Bits, from the lowest: empty line skipped, HTTP/1.0, HEAD, continue awaited, upgrade,
    /// keep-alive, close requested.
    pub flags: u16,
    /// In the order of [`RequestStage`], from 0.
    pub request_stage: u8,
    /// In the order of [`ResponseStage`], from 0; 7 is `Omitted` without a length.
    pub response_stage: u8,
    /// Zero.
    pub padding: [u8; 6],
}

const _: () = assert!(size_of::<Http1Head>() == 40);

const EMPTY_LINE_SKIPPED: u16 = 1;
const HTTP10: u16 = 1 << 1;
const HEAD: u16 = 1 << 2;
const CONTINUE_AWAITED: u16 = 1 << 3;
const UPGRADE: u16 = 1 << 4;
const KEEP_ALIVE: u16 = 1 << 5;
const CLOSE_REQUESTED: u16 = 1 << 6;
const ALL_FLAGS: u16 = (1 << 7) - 1;

impl Http1 {
    /// The state at this moment. Any moment between two calls is a legal one.
    pub fn save(&self) -> Http1State {
        let request = match self.incoming {
            // Whatever has been scanned will be scanned again, from the caller's input.
            Incoming::Head(_) => RequestStage::Head,
            Incoming::Sized { remaining } => RequestStage::Sized { remaining },
            Incoming::Chunked(Chunked::Size) => RequestStage::ChunkSize,
            Incoming::Chunked(Chunked::Data { remaining }) => RequestStage::ChunkData { remaining },
            Incoming::Chunked(Chunked::DataEnd) => RequestStage::ChunkEnd,
            Incoming::Chunked(Chunked::Trailers(Trailers { bytes, lines, scanned: _ })) => {
                RequestStage::Trailers { bytes, lines }
            }
            Incoming::End => RequestStage::End,
            Incoming::Complete => RequestStage::Complete,
            Incoming::Closed => RequestStage::Closed,
        };
        let response = match self.outgoing {
            Outgoing::Idle => ResponseStage::Idle,
            Outgoing::Pending => ResponseStage::Pending,
            Outgoing::Sized { remaining } => ResponseStage::Sized { remaining },
            Outgoing::Chunked => ResponseStage::Chunked,
            Outgoing::UntilClose => ResponseStage::UntilClose,
            Outgoing::Omitted { remaining } => ResponseStage::Omitted { remaining },
            Outgoing::Finished { discard_left } => ResponseStage::Finished { discard_left },
        };
        let flags = self.flags;
        Http1State {
            request,
            response,
            chunked_bytes: self.used.data_bytes,
            extension_bytes: self.used.extension_bytes,
            empty_line_skipped: flags.empty_line_skipped,
            http10: flags.is_http10,
            head: flags.is_head,
            continue_awaited: flags.continue_awaited,
            upgrade: flags.upgrade,
            keep_alive: flags.keep_alive,
            close_requested: flags.close_requested,
        }
    }

    /// The machine that was saved. The bytes that were left in its input have to be offered again;
    /// until then [`is_idle`](Self::is_idle) knows nothing of the beginning of a head in them.
    ///
    /// # Errors
    /// `OutOfRange` and `Contradiction`: no machine can have saved this.
    pub fn restore(state: &Http1State) -> Result<Self, RestoreError> {
        state.validate()?;
        let incoming = match state.request {
            RequestStage::Head => Incoming::Head(Progress::START),
            RequestStage::Sized { remaining } => Incoming::Sized { remaining },
            RequestStage::ChunkSize => Incoming::Chunked(Chunked::Size),
            RequestStage::ChunkData { remaining } => Incoming::Chunked(Chunked::Data { remaining }),
            RequestStage::ChunkEnd => Incoming::Chunked(Chunked::DataEnd),
            RequestStage::Trailers { bytes, lines } => {
                Incoming::Chunked(Chunked::Trailers(Trailers { bytes, lines, scanned: 0 }))
            }
            RequestStage::End => Incoming::End,
            RequestStage::Complete => Incoming::Complete,
            RequestStage::Closed => Incoming::Closed,
        };
        let outgoing = match state.response {
            ResponseStage::Idle => Outgoing::Idle,
            ResponseStage::Pending => Outgoing::Pending,
            ResponseStage::Sized { remaining } => Outgoing::Sized { remaining },
            ResponseStage::Chunked => Outgoing::Chunked,
            ResponseStage::UntilClose => Outgoing::UntilClose,
            ResponseStage::Omitted { remaining } => Outgoing::Omitted { remaining },
            ResponseStage::Finished { discard_left } => Outgoing::Finished { discard_left },
        };
        Ok(Self {
            incoming,
            outgoing,
            used: Used { data_bytes: state.chunked_bytes, extension_bytes: state.extension_bytes },
            flags: Flags {
                empty_line_skipped: state.empty_line_skipped,
                is_http10: state.http10,
                is_head: state.head,
                continue_awaited: state.continue_awaited,
                upgrade: state.upgrade,
                keep_alive: state.keep_alive,
                close_requested: state.close_requested,
            },
        })
    }
}

impl Http1State {
    fn validate(&self) -> Result<(), RestoreError> {
        use {RequestStage as Request, ResponseStage as Response};
        match (self.request, self.response) {
            (Request::Sized { remaining: 0 } | Request::ChunkData { remaining: 0 }, _)
            | (Request::Sized { remaining: u64::MAX }, _) => return Err(RestoreError::OutOfRange),
            (Request::ChunkData { remaining }, _) if remaining > self.chunked_bytes => {
                return Err(RestoreError::OutOfRange);
            }
            (_, Response::Finished { discard_left }) if discard_left > DISCARD_LIMIT_BYTES => {
                return Err(RestoreError::OutOfRange);
            }
            _ => {}
        }
        let in_body = matches!(
            self.request,
            Request::Sized { .. }
                | Request::ChunkSize
                | Request::ChunkData { .. }
                | Request::ChunkEnd
                | Request::Trailers { .. }
        );
        let in_chunked = in_body && !matches!(self.request, Request::Sized { .. });
        let is_possible = match self.response {
            Response::Idle => matches!(self.request, Request::Head | Request::Closed),
            Response::Finished { .. } => in_body && self.keep_alive,
            Response::Omitted { .. } => self.request != Request::Head && self.head,
            Response::UntilClose => {
                self.request != Request::Head && self.http10 && !self.keep_alive
            }
            Response::Chunked => self.request != Request::Head && !self.http10 && !self.head,
            Response::Pending | Response::Sized { .. } => self.request != Request::Head,
        };
        let contradicts = !is_possible
            || (in_chunked && self.http10)
            || (self.continue_awaited && self.http10)
            // An answer to a client that waits is the last one.
            || (self.continue_awaited && self.keep_alive && self.response != Response::Pending)
            || (self.upgrade && self.http10)
            || (self.request == Request::Closed && self.keep_alive);
        if contradicts { Err(RestoreError::Contradiction) } else { Ok(()) }
    }

    /// The plain-old-data form.
    pub fn to_head(&self) -> Http1Head {
        let (request_stage, request_count, trailer_lines) = match self.request {
            RequestStage::Head => (0, 0, 0),
            RequestStage::Sized { remaining } => (1, remaining, 0),
            RequestStage::ChunkSize => (2, 0, 0),
            RequestStage::ChunkData { remaining } => (3, remaining, 0),
            RequestStage::ChunkEnd => (4, 0, 0),
            RequestStage::Trailers { bytes, lines } => (5, u64::from(bytes), lines),
            RequestStage::End => (6, 0, 0),
            RequestStage::Complete => (7, 0, 0),
            RequestStage::Closed => (8, 0, 0),
        };
        let (response_stage, response_count) = match self.response {
            ResponseStage::Idle => (0, 0),
            ResponseStage::Pending => (1, 0),
            ResponseStage::Sized { remaining } => (2, remaining),
            ResponseStage::Chunked => (3, 0),
            ResponseStage::UntilClose => (4, 0),
            ResponseStage::Omitted { remaining: Some(remaining) } => (5, remaining),
            ResponseStage::Finished { discard_left } => (6, u64::from(discard_left)),
            ResponseStage::Omitted { remaining: None } => (7, 0),
        };
        let flag = |is_set, bit| if is_set { bit } else { 0 };
        Http1Head {
            request_count,
            response_count,
            chunked_bytes: self.chunked_bytes,
            extension_bytes: self.extension_bytes,
            trailer_lines,
            flags: flag(self.empty_line_skipped, EMPTY_LINE_SKIPPED)
                | flag(self.http10, HTTP10)
                | flag(self.head, HEAD)
                | flag(self.continue_awaited, CONTINUE_AWAITED)
                | flag(self.upgrade, UPGRADE)
                | flag(self.keep_alive, KEEP_ALIVE)
                | flag(self.close_requested, CLOSE_REQUESTED),
            request_stage,
            response_stage,
            padding: [0; 6],
        }
    }

    /// The decoded form of a head, which may come from anywhere. Whether its parts fit together is
    /// for [`Http1::restore`] to say.
    ///
    /// # Errors
    /// `UnknownStage`, `UnknownFlags`, `OutOfRange`.
    pub fn from_head(head: &Http1Head) -> Result<Self, RestoreError> {
        if head.flags & !ALL_FLAGS != 0 {
            return Err(RestoreError::UnknownFlags);
        }
        let narrow = |count| u32::try_from(count).map_err(|_| RestoreError::OutOfRange);
        let request = match head.request_stage {
            0 => RequestStage::Head,
            1 => RequestStage::Sized { remaining: head.request_count },
            2 => RequestStage::ChunkSize,
            3 => RequestStage::ChunkData { remaining: head.request_count },
            4 => RequestStage::ChunkEnd,
            5 => RequestStage::Trailers {
                bytes: narrow(head.request_count)?,
                lines: head.trailer_lines,
            },
            6 => RequestStage::End,
            7 => RequestStage::Complete,
            8 => RequestStage::Closed,
            _ => return Err(RestoreError::UnknownStage),
        };
        let response = match head.response_stage {
            0 => ResponseStage::Idle,
            1 => ResponseStage::Pending,
            2 => ResponseStage::Sized { remaining: head.response_count },
            3 => ResponseStage::Chunked,
            4 => ResponseStage::UntilClose,
            5 => ResponseStage::Omitted { remaining: Some(head.response_count) },
            6 => ResponseStage::Finished { discard_left: narrow(head.response_count)? },
            7 => ResponseStage::Omitted { remaining: None },
            _ => return Err(RestoreError::UnknownStage),
        };
        let flag = |bit| head.flags & bit != 0;
        Ok(Self {
            request,
            response,
            chunked_bytes: head.chunked_bytes,
            extension_bytes: head.extension_bytes,
            empty_line_skipped: flag(EMPTY_LINE_SKIPPED),
            http10: flag(HTTP10),
            head: flag(HEAD),
            continue_awaited: flag(CONTINUE_AWAITED),
            upgrade: flag(UPGRADE),
            keep_alive: flag(KEEP_ALIVE),
            close_requested: flag(CLOSE_REQUESTED),
        })
    }

    /// Appends the binary form, [`Http1Head`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(bytemuck::bytes_of(&self.to_head()));
    }

    /// Reads the binary form. Bytes that a later build has added at its end are ignored.
    ///
    /// # Errors
    /// `Truncated`, and those of [`from_head`](Self::from_head).
    pub fn decode(bytes: &[u8]) -> Result<Self, RestoreError> {
        let bytes = bytes.get(..size_of::<Http1Head>()).ok_or(RestoreError::Truncated)?;
        Self::from_head(&bytemuck::pod_read_unaligned(bytes))
    }
}
