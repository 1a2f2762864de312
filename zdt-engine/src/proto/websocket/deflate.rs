//! permessage-deflate (RFC 7692 §7.2): the two zlib contexts of a connection, and what it takes to
//! make them again elsewhere.
//!
//! A context cannot be saved, but between two messages all that it knows is the last window of
//! plaintext, which is kept here beside it and becomes the preset dictionary of a new one. In the
//! middle of an arriving message its compressed bytes so far are kept too, to be fed again. Both
//! contexts are made when they are first needed.
//!
//! Must not know: frames, UTF-8.

use std::collections::VecDeque;

use zlib_rs::{DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status};

use super::negotiation::DeflateParams;
use super::{Error, Limits};

/// What every message ends with, and what the sender leaves out (RFC 7692 §7.2.1).
const TRAILER: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// zlib's level for outgoing messages: within 2 % of the size that level 6 gives, in up to a third
/// less time (measured with English text and JSON, messages of 70 bytes to 8 KiB).
const LEVEL: i32 = 4;
/// zlib's memLevel, 2^(6 + 6) symbols a block: as good as 8 for messages, and 86 KB smaller.
const MEMORY_LEVEL: i32 = 6;
/// Output that is made ready at once while inflating.
const MIN_STEP_BYTES: usize = 256;
const MAX_STEP_BYTES: usize = 64 << 10;

const BAD_DATA: Error = Error::invalid_data("invalid compressed data");

/// Most compressed bytes that a message within the limits may take: some overhead is normal for
/// data that does not compress, but empty blocks could go on for ever.
pub(super) fn max_compressed_bytes(limits: &Limits) -> u64 {
    limits.max_message_bytes.saturating_add(limits.max_message_bytes / 8).saturating_add(1024)
}

/// The last window of plaintext in one direction.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<u8>);

impl History {
    fn push(&mut self, bytes: &[u8], window_bytes: usize) {
        let bytes = &bytes[bytes.len().saturating_sub(window_bytes)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(window_bytes);
        self.0.drain(..excess);
        if self.0.capacity() < self.0.len() + bytes.len() {
            let room = (2 * (self.0.len() + bytes.len())).min(window_bytes);
            self.0.reserve_exact(room - self.0.len());
        }
        self.0.extend(bytes);
    }

    pub(super) fn from_saved(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// Oldest bytes first.
    pub(super) fn as_slices(&self) -> (&[u8], &[u8]) {
        self.0.as_slices()
    }
}

/// Compression in both directions of one connection.
#[derive(Default)]
pub(super) struct Deflate {
    /// `None` stands for a fresh one whose window is `incoming` and what the current message has
    /// given so far.
    inflater: Option<Inflate>,
    /// `None` stands for a fresh one whose window is `outgoing`.
    deflater: Option<zlib_rs::Deflate>,
    incoming: History,
    outgoing: History,
    /// What has arrived of the current message, unless it arrived in one piece.
    compressed: Vec<u8>,
}

impl Deflate {
    pub(super) fn from_saved(incoming: Vec<u8>, outgoing: Vec<u8>) -> Self {
        Self {
            incoming: History::from_saved(incoming),
            outgoing: History::from_saved(outgoing),
            ..Self::default()
        }
    }

    pub(super) fn incoming(&self) -> &History {
        &self.incoming
    }

    pub(super) fn outgoing(&self) -> &History {
        &self.outgoing
    }

    pub(super) fn compressed(&self) -> &[u8] {
        &self.compressed
    }

    /// True if dropping it would lose nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.inflater.is_none()
            && self.deflater.is_none()
            && self.incoming.0.is_empty()
            && self.outgoing.0.is_empty()
            && self.compressed.is_empty()
    }

    pub(super) fn heap_bytes(&self, params: DeflateParams) -> usize {
        // Measured: zlib-rs 0.6 takes one block for each context.
        const INFLATER_BYTES: usize = 47_552;
        const DEFLATER_BYTES: usize = 162_944;
        let deflater_bytes = DEFLATER_BYTES + 4 * params.server_window_bytes();
        size_of::<Self>()
            + self.inflater.as_ref().map_or(0, |_| INFLATER_BYTES)
            + self.deflater.as_ref().map_or(0, |_| deflater_bytes)
            + self.incoming.0.capacity()
            + self.outgoing.0.capacity()
            + self.compressed.capacity()
    }

    /// Drops the contexts; the histories stand for them. `receiving`: a compressed message is in
    /// the middle of arriving, so its context must stay.
    pub(super) fn release_contexts(&mut self, receiving: bool) {
        self.deflater = None;
        if !receiving {
            self.inflater = None;
        }
    }

    /// Inflates the next `bytes` of a message behind `message`, which holds what came before.
    /// Never makes more than the limit: a bomb fails while it goes off.
    pub(super) fn receive(
        &mut self,
        params: DeflateParams,
        bytes: &[u8],
        message: &mut Vec<u8>,
        limits: &Limits,
    ) -> Result<(), Error> {
        let mut rest = bytes;
        let mut output_was_full = false;
        while !rest.is_empty() || output_was_full {
            let inflater = match &mut self.inflater {
                Some(inflater) => inflater,
                None => self.inflater.insert(new_inflater(params, &mut self.incoming, message)),
            };
            let start = message.len();
            let allowed = limits.max_message_bytes.saturating_sub(start as u64);
            let step = match output_was_full {
                false => rest.len().saturating_mul(4).clamp(MIN_STEP_BYTES, MAX_STEP_BYTES),
                true => MAX_STEP_BYTES,
            };
            let step = usize::try_from(allowed).map_or(step, |allowed| step.min(allowed));
            let (consumed, produced) = (inflater.total_in(), inflater.total_out());
            let mut probe = [0; 1];
            let output = if step == 0 {
                &mut probe[..]
            } else {
                message.resize(start + step, 0);
                &mut message[start..]
            };
            let room = output.len();
            let status = inflater.decompress(rest, output, InflateFlush::NoFlush);
            let consumed = (inflater.total_in() - consumed) as usize;
            let produced = (inflater.total_out() - produced) as usize;
            message.truncate(start + if step == 0 { 0 } else { produced });
            if step == 0 && produced > 0 {
                return Err(Error::TOO_BIG);
            }
            rest = &rest[consumed..];
            match status {
                Ok(Status::Ok) => output_was_full = produced == room,
                // Nothing left to give: fine, unless it refuses to take what is there.
                Ok(Status::BufError) if rest.is_empty() || consumed + produced > 0 => {
                    output_was_full = false;
                }
                // A final block does not end the connection's stream (RFC 7692 §7.2.3.4).
                Ok(Status::StreamEnd) => {
                    self.inflater = None;
                    output_was_full = false;
                }
                Ok(Status::BufError) | Err(_) => return Err(BAD_DATA),
            }
        }
        Ok(())
    }

    /// After the last byte of a message, which has become `message`: checks that it ended where a
    /// message may end, and gets ready for the next.
    pub(super) fn end_message(
        &mut self,
        params: DeflateParams,
        message: &[u8],
    ) -> Result<(), Error> {
        self.compressed = Vec::new();
        // Without a context the message ended with a final block, or was empty.
        if let Some(inflater) = &mut self.inflater {
            // The context must have been waiting for the length of an empty stored block. Z_BLOCK
            // makes it stop behind that block and leave the byte after it alone; in any other
            // place of a deflate stream it takes that byte too, or gives output, or fails.
            let [a, b, c, d] = TRAILER;
            let mut output = [0; 16];
            let (consumed, produced) = (inflater.total_in(), inflater.total_out());
            inflater
                .decompress(&[a, b, c, d, 0], &mut output, InflateFlush::Block)
                .map_err(|_| BAD_DATA)?;
            if inflater.total_in() - consumed != 4 || inflater.total_out() != produced {
                return Err(BAD_DATA);
            }
        }
        if params.client_no_context_takeover {
            if let Some(inflater) = &mut self.inflater {
                inflater.reset(false);
            }
        } else {
            self.incoming.push(message, params.client_window_bytes());
        }
        Ok(())
    }

    /// Keeps a piece of a message that has been received but did not end it.
    pub(super) fn keep_compressed(&mut self, bytes: &[u8]) {
        self.compressed.extend_from_slice(bytes);
    }

    /// Takes over the compressed bytes of a message in progress, which have been received again.
    pub(super) fn set_compressed(&mut self, bytes: Vec<u8>) {
        self.compressed = bytes;
    }

    /// Appends `payload`, compressed as a whole message, to `out`.
    pub(super) fn compress(&mut self, params: DeflateParams, payload: &[u8], out: &mut Vec<u8>) {
        let deflater = match &mut self.deflater {
            Some(deflater) => deflater,
            None => self.deflater.insert(new_deflater(params, &mut self.outgoing)),
        };
        let mut rest = payload;
        loop {
            let start = out.len();
            // Room for the flush marker too, so that it is not begun twice.
            let room = rest.len() + rest.len() / 8 + 64;
            out.resize(start + room, 0);
            let (consumed, produced) = (deflater.total_in(), deflater.total_out());
            let status = deflater.compress(rest, &mut out[start..], DeflateFlush::SyncFlush);
            assert!(status.is_ok(), "zlib refuses to compress: {:?}", deflater.error_message());
            let produced = (deflater.total_out() - produced) as usize;
            out.truncate(start + produced);
            rest = &rest[(deflater.total_in() - consumed) as usize..];
            if rest.is_empty() && produced < room {
                break;
            }
        }
        assert!(out.ends_with(&TRAILER), "zlib's flush has no marker");
        out.truncate(out.len() - TRAILER.len());
        if params.server_no_context_takeover {
            deflater.reset();
        } else {
            self.outgoing.push(payload, params.server_window_bytes());
        }
    }
}

fn new_inflater(params: DeflateParams, history: &mut History, message: &[u8]) -> Inflate {
    let mut inflater = Inflate::new(false, params.client_window_bits.max(9));
    let window_bytes = params.client_window_bytes();
    let recent = &message[message.len().saturating_sub(window_bytes)..];
    for dictionary in [history.0.make_contiguous(), recent] {
        if !dictionary.is_empty() {
            inflater.set_dictionary(dictionary).expect("raw inflate takes any dictionary");
        }
    }
    inflater
}

fn new_deflater(params: DeflateParams, history: &mut History) -> zlib_rs::Deflate {
    let mut deflater = zlib_rs::Deflate::new_with_config(DeflateConfig {
        window_bits: -i32::from(params.server_window_bits),
        mem_level: MEMORY_LEVEL,
        ..DeflateConfig::new(LEVEL)
    });
    let dictionary = history.0.make_contiguous();
    if !dictionary.is_empty() {
        deflater.set_dictionary(dictionary).expect("raw deflate takes any dictionary");
    }
    deflater
}
