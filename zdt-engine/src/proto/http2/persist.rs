//! The saved form of an [`Http2`], at any moment of its life: the connection in one part, each stream
//! in another.
//!
//! What the machine holds is little: windows, the peer's header table, a header block in progress, and
//! what waits for windows. The bytes of an incomplete frame are not here: they are in the caller's
//! input. Windows may be negative, and bodies half-way.
//!
//! A record may be hostile: what no machine could have saved is refused.
//!
//! Must not know: the envelope and section tags around it.

use std::collections::VecDeque;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Serialize};

use super::guard::{Guard, GuardState};
use super::settings::{Local, Peer};
use super::stream::{Outgoing, Stream, Streams};
use super::{
    Block, Farewell, Http2, Incoming, MAX_CONTINUATIONS, MAX_PENDING_SETTINGS, MAX_REMEMBERED,
    MAX_WINDOW, PREFACE, frame, hpack, syntax,
};

/// The saved form of an [`Http2`], without its streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http2State {
    /// The fixed part.
    #[serde(skip)]
    pub head: Http2Head,
    /// The client's header table.
    pub decoder: hpack::DecoderState,
    /// What has arrived of the header block in progress.
    pub block: Vec<u8>,
    /// Settings of ours that are not acknowledged.
    pub pending_settings: Vec<Local>,
    /// Ids of streams that were reset by us, the latest last.
    pub remembered: Vec<u32>,
}

/// The saved form of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamState {
    /// The fixed part.
    pub head: StreamHead,
    /// What waits for the windows.
    pub buffer: Vec<u8>,
}

/// The fixed part of [`Http2State`]; the tail behind it is the header table, the block in progress, the
/// pending settings (12 bytes each) and the remembered ids (4 bytes each). May grow at its end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Http2Head {
    /// Level of the bucket for resets, in thousandths of one.
    pub resets_level: u64,
    /// Level of the bucket for control frames.
    pub control_level: u64,
    /// Operand of the stage: the stream of DATA or END.
    pub stage_stream: u32,
    /// Operand of the stage: bytes that are left, or that have been seen of the preface.
    pub stage_left: u32,
    /// Connection's windows.
    pub send_window: i32,
    /// See `send_window`.
    pub receive_window: i32,
    /// Taken, and not yet given back by WINDOW_UPDATE.
    pub receive_credit: u32,
    /// Highest id that the client has used.
    pub last_stream: u32,
    /// Where the next flush begins.
    pub next_flush: u32,
    /// In the last GOAWAY.
    pub farewell_stream: u32,
    /// The client's settings.
    pub peer_initial_window: u32,
    /// See `peer_initial_window`.
    pub peer_max_frame_bytes: u32,
    /// Our settings as they were acknowledged.
    pub local_max_streams: u32,
    /// See `local_max_streams`.
    pub local_initial_window: u32,
    /// See `local_max_streams`.
    pub local_max_list_bytes: u32,
    /// The client's header table: agreed size.
    pub decoder_limit_bytes: u32,
    /// The client's header table: size in use.
    pub decoder_table_bytes: u32,
    /// What the client's decoder assumes of ours.
    pub encoder_table_bytes: u32,
    /// Stream of the header block in progress, 0 if there is none.
    pub block_stream: u32,
    /// Length of the table in the tail.
    pub table_bytes: u32,
    /// Length of the block in the tail.
    pub block_bytes: u32,
    /// Its CONTINUATION frames so far.
    pub block_continuations: u16,
    /// See the `FLAG` constants.
    pub flags: u16,
    /// Entries of the tail.
    pub pending_settings: u16,
    /// Entries of the tail.
    pub remembered: u16,
    /// 0 preface, 1 frame, 2 data, 3 end, 4 failed.
    pub stage: u8,
    /// Padding behind the data.
    pub stage_padding: u8,
    /// 0 none, 1 announced, 2 said.
    pub farewell: u8,
    /// Zero.
    pub padding: u8,
    /// How long the oldest of our settings has waited for its acknowledgement.
    pub settings_waited_ms: u64,
}

const _: () = assert!(size_of::<Http2Head>() == 112);

const FLAG_SETTINGS: u16 = 1 << 0;
const FLAG_BLOCK_ENDS_STREAM: u16 = 1 << 1;
const FLAG_DATA_ENDS_STREAM: u16 = 1 << 2;
const FLAG_DECODER_UPDATE: u16 = 1 << 3;
const FLAG_ENCODER_UPDATE: u16 = 1 << 4;
const KNOWN_FLAGS: u16 = (1 << 5) - 1;

/// The fixed part of [`StreamState`]; the tail is the buffer. May grow at its end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct StreamHead {
    /// Body bytes received.
    pub received: u64,
    /// Body bytes announced, if a flag says so.
    pub announced: u64,
    /// Operand of `outgoing`.
    pub remaining: u64,
    /// How long the client has been waited for.
    pub waited_ms: u64,
    /// Number of the stream.
    pub id: u32,
    /// Its windows.
    pub send_window: i32,
    /// See `send_window`.
    pub receive_window: i32,
    /// Taken, and not yet given back by WINDOW_UPDATE.
    pub receive_credit: u32,
    /// See the `STREAM` constants.
    pub flags: u16,
    /// 0 pending, 1 sized, 2 open, 3 omitted, 4 omitted without a length, 5 finished.
    pub outgoing: u8,
    /// Zero.
    pub padding: [u8; 5],
}

const _: () = assert!(size_of::<StreamHead>() == 56);

const STREAM_RECEIVING: u16 = 1 << 0;
const STREAM_HEAD: u16 = 1 << 1;
const STREAM_TUNNEL: u16 = 1 << 2;
const STREAM_LINGERING: u16 = 1 << 3;
const STREAM_ANNOUNCED: u16 = 1 << 4;
/// An older build refuses it, and the connection drains.
const STREAM_HALF_CLOSED: u16 = 1 << 5;
const KNOWN_STREAM_FLAGS: u16 = (1 << 6) - 1;

/// Why a saved state is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Fewer bytes than it says.
    #[error("HTTP/2 state is truncated")]
    Truncated,
    /// A number that names no stage, or a flag that this build does not know.
    #[error("HTTP/2 state names an unknown {0}")]
    Unknown(&'static str),
    /// A count or a window that no machine can have.
    #[error("HTTP/2 state: {0} is out of range")]
    OutOfRange(&'static str),
    /// Parts that cannot be together.
    #[error("HTTP/2 state contradicts itself: {0}")]
    Contradiction(&'static str),
    /// The header table.
    #[error(transparent)]
    Hpack(#[from] hpack::RestoreError),
}

fn flag(is_set: bool, bit: u16) -> u16 {
    if is_set { bit } else { 0 }
}

impl Http2 {
    /// Bytes of all that [`Http2::save_tail`] and [`Http2::save_stream`] give beyond the heads.
    pub fn saved_bytes(&self) -> usize {
        let of_stream = |(_, stream): (_, &Stream)| {
            stream.buffered() + stream.trailers.as_ref().map_or(0, |t| t.len())
        };
        self.tail_bytes() + self.streams.iter().map(of_stream).sum::<usize>()
    }

    fn tail_bytes(&self) -> usize {
        self.decoder.encoded_bytes()
            + self.block.as_ref().map_or(0, |block| block.bytes.len())
            + self.pending_settings.len() * 12
            + self.remembered.len() * 4
    }

    /// The fixed part of the state at this moment. Any moment between two calls is a legal one.
    pub fn save_head(&self, now_ms: u64) -> Http2Head {
        let (stage, stage_stream, stage_left, stage_padding, ends) = match self.incoming {
            Incoming::Preface(seen) => (0, 0, u32::from(seen), 0, false),
            Incoming::Frame => (1, 0, 0, 0, false),
            Incoming::Data { stream, left, padding, end_stream } => {
                (2, stream, left, padding, end_stream)
            }
            Incoming::End { stream } => (3, stream, 0, 0, false),
            Incoming::Failed => (4, 0, 0, 0, false),
        };
        let (farewell, farewell_stream) = match self.farewell {
            Farewell::No => (0, 0),
            Farewell::Announced => (1, 0),
            Farewell::Said { last_stream } => (2, last_stream),
        };
        let guard = self.guard.save();
        let (decoder_limit_bytes, decoder_table_bytes, decoder_update) = self.decoder.sizes();
        let (encoder_table_bytes, encoder_update) = self.encoder.save();
        let block = self.block.as_deref();
        Http2Head {
            resets_level: guard.resets,
            control_level: guard.control,
            stage_stream,
            stage_left,
            send_window: self.send_window,
            receive_window: self.receive_window,
            receive_credit: self.receive_credit,
            last_stream: self.last_stream,
            next_flush: self.next_flush,
            farewell_stream,
            peer_initial_window: self.peer.initial_window,
            peer_max_frame_bytes: self.peer.max_frame_bytes,
            local_max_streams: self.local.max_streams,
            local_initial_window: self.local.initial_window,
            local_max_list_bytes: self.local.max_list_bytes,
            decoder_limit_bytes,
            decoder_table_bytes,
            encoder_table_bytes,
            block_stream: block.map_or(0, |block| block.stream),
            table_bytes: self.decoder.encoded_bytes() as u32,
            block_bytes: block.map_or(0, |block| block.bytes.len()) as u32,
            block_continuations: block.map_or(0, |block| block.continuations),
            flags: flag(self.has_settings, FLAG_SETTINGS)
                | flag(block.is_some_and(|block| block.end_stream), FLAG_BLOCK_ENDS_STREAM)
                | flag(ends, FLAG_DATA_ENDS_STREAM)
                | flag(decoder_update, FLAG_DECODER_UPDATE)
                | flag(encoder_update, FLAG_ENCODER_UPDATE),
            pending_settings: self.pending_settings.len() as u16,
            remembered: self.remembered.len() as u16,
            stage,
            stage_padding,
            farewell,
            padding: 0,
            settings_waited_ms: self
                .settings_since_ms()
                .map_or(0, |since_ms| now_ms.saturating_sub(since_ms)),
        }
    }

    /// Appends what follows the head: see [`Http2Head`].
    pub fn save_tail(&self, out: &mut Vec<u8>) {
        out.reserve(self.tail_bytes());
        self.decoder.encode_entries(out);
        if let Some(block) = &self.block {
            out.extend_from_slice(&block.bytes);
        }
        for local in &self.pending_settings {
            for value in [local.max_streams, local.initial_window, local.max_list_bytes] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        for id in &self.remembered {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }

    /// The state of the stream in that slot: its head, and what waits for the windows.
    pub fn save_stream(&self, slot: usize, now_ms: u64) -> Option<(StreamHead, &[u8])> {
        let stream = self.streams.get(slot)?;
        let (outgoing, remaining) = match stream.outgoing {
            Outgoing::Pending => (0, 0),
            Outgoing::Sized { remaining } => (1, remaining),
            Outgoing::Open => (2, 0),
            Outgoing::Omitted { remaining: Some(remaining) } => (3, remaining),
            Outgoing::Omitted { remaining: None } => (4, 0),
            Outgoing::Finished => (5, 0),
        };
        let head = StreamHead {
            received: stream.received,
            announced: stream.announced.unwrap_or(0),
            remaining,
            waited_ms: now_ms.saturating_sub(stream.since_ms),
            id: stream.id,
            send_window: stream.send_window,
            receive_window: stream.receive_window,
            receive_credit: stream.receive_credit,
            flags: flag(stream.is_receiving, STREAM_RECEIVING)
                | flag(stream.is_head, STREAM_HEAD)
                | flag(stream.is_tunnel, STREAM_TUNNEL)
                | flag(stream.is_lingering, STREAM_LINGERING)
                | flag(stream.is_half_closed, STREAM_HALF_CLOSED)
                | flag(stream.announced.is_some(), STREAM_ANNOUNCED),
            outgoing,
            padding: [0; 5],
        };
        Some((head, stream.unsent()))
    }

    /// The trailers that follow what waits for the windows on that stream, as a header block.
    pub fn save_trailers(&self, slot: usize) -> Option<&[u8]> {
        self.streams.get(slot)?.trailers.as_deref()
    }

    /// The machine that was saved `transit_ms` ago, without streams: those follow by
    /// [`Http2::restore_stream`], in the order of their ids.
    ///
    /// # Errors
    /// No machine can have saved this.
    pub fn restore(state: &Http2State, now_ms: u64, transit_ms: u64) -> Result<Self, RestoreError> {
        let head = &state.head;
        if head.flags & !KNOWN_FLAGS != 0 {
            return Err(RestoreError::Unknown("flag"));
        }
        let has = |bit| head.flags & bit != 0;
        let most_payload = frame::MAX_PAYLOAD_BYTES as u32;
        if head.stage_left > most_payload {
            return Err(RestoreError::OutOfRange("what is left of a frame"));
        }
        let incoming = match head.stage {
            0 if (head.stage_left as usize) < PREFACE.len() => {
                Incoming::Preface(head.stage_left as u8)
            }
            1 => Incoming::Frame,
            2 => Incoming::Data {
                stream: head.stage_stream,
                left: head.stage_left,
                padding: head.stage_padding,
                end_stream: has(FLAG_DATA_ENDS_STREAM),
            },
            3 => Incoming::End { stream: head.stage_stream },
            4 => Incoming::Failed,
            _ => return Err(RestoreError::Unknown("stage")),
        };
        let farewell = match head.farewell {
            0 => Farewell::No,
            1 => Farewell::Announced,
            2 => Farewell::Said { last_stream: head.farewell_stream },
            _ => return Err(RestoreError::Unknown("kind of farewell")),
        };
        if head.receive_window < 0
            || head.send_window < 0
            || u64::from(head.receive_credit) + head.receive_window as u64 > u64::from(MAX_WINDOW)
        {
            return Err(RestoreError::OutOfRange("a window of the connection"));
        }
        if head.peer_initial_window > MAX_WINDOW
            || head.local_initial_window > MAX_WINDOW
            || state.pending_settings.iter().any(|local| local.initial_window > MAX_WINDOW)
            || !(16_384..1 << 24).contains(&head.peer_max_frame_bytes)
        {
            return Err(RestoreError::OutOfRange("a setting"));
        }
        if head.last_stream > MAX_WINDOW || head.stage_stream > head.last_stream {
            return Err(RestoreError::OutOfRange("a stream's number"));
        }
        if state.remembered.len() > MAX_REMEMBERED
            || state.pending_settings.len() > MAX_PENDING_SETTINGS
            || head.block_continuations > MAX_CONTINUATIONS
        {
            return Err(RestoreError::OutOfRange("a count"));
        }
        let block = match head.block_stream {
            0 if state.block.is_empty() => None,
            0 => return Err(RestoreError::Contradiction("a header block of no stream")),
            stream if stream % 2 == 0 || stream > MAX_WINDOW => {
                return Err(RestoreError::OutOfRange("a stream's number"));
            }
            stream => Some(Box::new(Block {
                stream,
                end_stream: has(FLAG_BLOCK_ENDS_STREAM),
                continuations: head.block_continuations,
                bytes: state.block.clone(),
            })),
        };
        if block.is_some() && incoming != Incoming::Frame && incoming != Incoming::Failed {
            return Err(RestoreError::Contradiction("a header block within another frame"));
        }
        let guard = GuardState { resets: head.resets_level, control: head.control_level };
        Ok(Self {
            incoming,
            has_settings: has(FLAG_SETTINGS),
            block,
            decoder: hpack::Decoder::restore(&state.decoder)?,
            encoder: hpack::Encoder::restore(head.encoder_table_bytes, has(FLAG_ENCODER_UPDATE)),
            peer: Peer {
                initial_window: head.peer_initial_window,
                max_frame_bytes: head.peer_max_frame_bytes,
            },
            local: Local {
                max_streams: head.local_max_streams,
                initial_window: head.local_initial_window,
                max_list_bytes: head.local_max_list_bytes,
            },
            pending_settings: state.pending_settings.iter().copied().collect(),
            settings_since_ms: now_ms
                .saturating_sub(head.settings_waited_ms)
                .saturating_sub(transit_ms),
            send_window: head.send_window,
            receive_window: head.receive_window,
            receive_credit: head.receive_credit,
            streams: Streams::default(),
            last_stream: head.last_stream,
            remembered: VecDeque::from(state.remembered.clone()),
            farewell,
            guard: Guard::restore(guard, now_ms),
            next_flush: head.next_flush,
            has_progress: false,
            has_lingerer: false,
        })
    }

    /// Adds a stream that was saved; `transit_ms` is how long ago that was. Returns its slot.
    ///
    /// # Errors
    /// No machine can have saved this.
    pub fn restore_stream(
        &mut self,
        head: &StreamHead,
        buffer: &[u8],
        now_ms: u64,
        transit_ms: u64,
    ) -> Result<usize, RestoreError> {
        if head.flags & !KNOWN_STREAM_FLAGS != 0 {
            return Err(RestoreError::Unknown("flag of a stream"));
        }
        let has = |bit| head.flags & bit != 0;
        let outgoing = match head.outgoing {
            0 => Outgoing::Pending,
            1 => Outgoing::Sized { remaining: head.remaining },
            2 => Outgoing::Open,
            3 => Outgoing::Omitted { remaining: Some(head.remaining) },
            4 => Outgoing::Omitted { remaining: None },
            5 => Outgoing::Finished,
            _ => return Err(RestoreError::Unknown("stage of a response")),
        };
        let highest = self.streams.iter().last().map_or(0, |(_, stream)| stream.id);
        if head.id.is_multiple_of(2) || head.id <= highest || head.id > self.last_stream {
            return Err(RestoreError::OutOfRange("a stream's number"));
        }
        let window = i64::from(head.receive_window) + i64::from(head.receive_credit);
        if window > i64::from(MAX_WINDOW) || head.receive_credit > MAX_WINDOW {
            return Err(RestoreError::OutOfRange("a window of a stream"));
        }
        let has_body =
            matches!(outgoing, Outgoing::Sized { .. } | Outgoing::Open | Outgoing::Finished);
        if !buffer.is_empty() && !has_body {
            return Err(RestoreError::Contradiction("a body of a response that has none"));
        }
        let is_half_closed = has(STREAM_HALF_CLOSED);
        let may_be = has(STREAM_TUNNEL) && !has(STREAM_LINGERING) && outgoing == Outgoing::Finished;
        if is_half_closed && !may_be {
            return Err(RestoreError::Contradiction("a half-closed stream that is no tunnel"));
        }
        let is_over = outgoing == Outgoing::Finished && buffer.is_empty() && !is_half_closed;
        if is_over && !(has(STREAM_LINGERING) && has(STREAM_RECEIVING)) {
            return Err(RestoreError::Contradiction("a stream that is over"));
        }
        Ok(self.streams.insert(Stream {
            id: head.id,
            outgoing,
            is_receiving: has(STREAM_RECEIVING),
            is_head: has(STREAM_HEAD),
            is_tunnel: has(STREAM_TUNNEL),
            is_half_closed,
            is_lingering: has(STREAM_LINGERING),
            is_held: false,
            send_window: head.send_window,
            receive_window: head.receive_window,
            receive_credit: head.receive_credit,
            received: head.received,
            announced: has(STREAM_ANNOUNCED).then_some(head.announced),
            buffer: buffer.to_vec(),
            trailers: None,
            buffer_start: 0,
            since_ms: now_ms.saturating_sub(head.waited_ms).saturating_sub(transit_ms),
        }))
    }
}

impl Http2 {
    /// Adds what [`Http2::save_trailers`] gave to a stream that has been restored.
    ///
    /// # Errors
    /// No machine can have saved this.
    pub fn restore_trailers(&mut self, id: u32, block: &[u8]) -> Result<(), RestoreError> {
        let stream = self.streams.slot_of(id).and_then(|slot| self.streams.get_mut(slot));
        let stream = stream.ok_or(RestoreError::OutOfRange("the stream of trailers"))?;
        if stream.outgoing != Outgoing::Finished || stream.buffered() == 0 {
            return Err(RestoreError::Contradiction("trailers with no body before them"));
        }
        // Our encoder adds to no table, so that a decoder without a past understands what it wrote.
        let mut fields = hpack::Fields::default();
        let limits = hpack::Limits { max_list_bytes: usize::MAX, max_count: usize::MAX };
        let mut decoder = hpack::Decoder::new();
        let is_sound = decoder.decode(block, &limits, &mut fields).is_ok()
            && decoder.entries() == 0
            && !block.is_empty()
            && fields.iter().all(|(name, value)| {
                syntax::is_field_name(name) && syntax::is_sendable_value(value)
            });
        if !is_sound {
            return Err(RestoreError::OutOfRange("a field of trailers"));
        }
        stream.trailers = Some(block.into());
        Ok(())
    }
}

impl Http2State {
    /// Reads a head and what [`Http2::save_tail`] wrote.
    ///
    /// # Errors
    /// `Truncated`, `Hpack`.
    pub fn decode(head: Http2Head, tail: &[u8]) -> Result<Self, RestoreError> {
        let split = |tail: &mut &[u8], bytes: usize| -> Result<Vec<u8>, RestoreError> {
            let (part, rest) = tail.split_at_checked(bytes).ok_or(RestoreError::Truncated)?;
            *tail = rest;
            Ok(part.to_vec())
        };
        let mut tail = tail;
        let table = split(&mut tail, head.table_bytes as usize)?;
        let block = split(&mut tail, head.block_bytes as usize)?;
        let settings = split(&mut tail, usize::from(head.pending_settings) * 12)?;
        let remembered = split(&mut tail, usize::from(head.remembered) * 4)?;
        let word = |bytes: &[u8]| {
            bytes.first_chunk().map_or(0, |bytes: &[u8; 4]| u32::from_le_bytes(*bytes))
        };
        let sizes = (
            head.decoder_limit_bytes,
            head.decoder_table_bytes,
            head.flags & FLAG_DECODER_UPDATE != 0,
        );
        Ok(Self {
            head,
            decoder: hpack::DecoderState::decode(sizes, &table)?,
            block,
            pending_settings: settings
                .chunks_exact(12)
                .map(|one| Local {
                    max_streams: word(one),
                    initial_window: word(&one[4..]),
                    max_list_bytes: word(&one[8..]),
                })
                .collect(),
            remembered: remembered.chunks_exact(4).map(word).collect(),
        })
    }
}
