//! HTTP/2 as sections of a state record: one for the connection, and for each stream one, or two where it
//! carries a WebSocket.
//!
//! Must not know: the envelope, sessions.

use bytemuck::{Pod, Zeroable};

use super::http2::Http2Stack;
use super::persist::RestoreError;
use super::tunnel::Tunnel;
use super::{Environment, Slot};
use crate::config::MAX_CONCURRENT_STREAMS;
use crate::proto::http2::{Http2, Http2Head, Http2State, StreamHead};
use crate::proto::websocket::{self, WebSocket, WebSocketHead, WebSocketState};
use crate::state::{Record, Writer};

/// HTTP/2 machine, without its streams.
pub const TAG_HTTP2: u16 = 5;
/// One stream; as many as there are, in the order of their numbers.
pub const TAG_STREAM: u16 = 6;
/// The WebSocket on a stream.
pub const TAG_STREAM_WEBSOCKET: u16 = 7;
/// Trailers that follow what waits on a stream: the stream's number, then the header block. Optional: a
/// build that does not know it ends the response without them.
pub const TAG_STREAM_TRAILERS: u16 = 42;

/// Most bytes of an incomplete WebSocket frame between two DATA frames: a control frame, or a short
/// message that is being topped up.
const MAX_KEPT_BYTES: usize = 8 << 10;

/// Fixed part of [`TAG_STREAM_WEBSOCKET`]; the tail is what was kept of an incomplete frame, then the
/// WebSocket's own.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct TunnelHead {
    stream: u32,
    kept_bytes: u32,
    socket: WebSocketHead,
}

const _: () = assert!(size_of::<TunnelHead>() == 40);

impl Http2Stack {
    /// Variable bytes of the sections that [`Http2Stack::save`] would write now, and the heads of all
    /// streams.
    pub(super) fn saved_bytes(&self) -> usize {
        const HEADS: usize = 3 * crate::state::SECTION_HEADER_BYTES
            + size_of::<StreamHead>()
            + size_of::<TunnelHead>();
        let tunnels: usize = self
            .open_tunnels()
            .map(|(_, tunnel)| {
                let (_, tail) = tunnel.socket.save_parts();
                tunnel.kept.len() + tail.iter().map(|part| part.len()).sum::<usize>()
            })
            .sum();
        self.machine.saved_bytes() + tunnels + self.machine.stream_count() * HEADS
    }

    pub(super) fn save(&self, now_ms: u64, writer: &mut Writer<'_>) {
        let mut tail = Vec::new();
        self.machine.save_tail(&mut tail);
        writer.section(TAG_HTTP2, 1, false, &self.machine.save_head(now_ms), &[&tail]);
        for slot in self.machine.slots() {
            let Some((head, buffer)) = self.machine.save_stream(slot, now_ms) else { continue };
            writer.section(TAG_STREAM, 1, false, &head, &[buffer]);
            if let Some(block) = self.machine.save_trailers(slot) {
                writer.section(TAG_STREAM_TRAILERS, 1, true, &[head.id, 0], &[block]);
            }
            if let Some(Some(tunnel)) = self.tunnels.get(slot) {
                let (socket, [a, b, c, d, e]) = tunnel.socket.save_parts();
                let kept_bytes = tunnel.kept.len() as u32;
                let head = TunnelHead { stream: head.id, kept_bytes, socket };
                let tail = [&tunnel.kept, a, b, c, d, e];
                writer.section(TAG_STREAM_WEBSOCKET, 1, false, &head, &tail);
            }
        }
    }

    pub(super) fn restore(
        record: &Record<'_>,
        environment: &Environment<'_>,
        transit_ms: u64,
    ) -> Result<Self, RestoreError> {
        let section = record.required(TAG_HTTP2)?;
        let head: Http2Head = section.head();
        let state = Http2State::decode(head, section.tail())?;
        let mut machine = Http2::restore(&state, environment.now_ms, transit_ms)?;
        for section in record.sections().filter(|section| section.tag() == TAG_STREAM) {
            if machine.stream_count() >= MAX_CONCURRENT_STREAMS as usize {
                return Err(RestoreError::OutOfRange("the number of streams"));
            }
            let head: StreamHead = section.head();
            machine.restore_stream(&head, section.tail(), environment.now_ms, transit_ms)?;
        }
        for section in record.sections().filter(|section| section.tag() == TAG_STREAM_TRAILERS) {
            let [stream, _]: [u32; 2] = section.head();
            machine.restore_trailers(stream, section.tail())?;
        }
        // Whoever is overdue is found by the first look at the streams.
        let check_due_ms = environment.now_ms;
        let mut stack =
            Self { machine, tunnels: Vec::new(), check_due_ms, is_last: false, is_sliced: false };
        for section in record.sections().filter(|section| section.tag() == TAG_STREAM_WEBSOCKET) {
            let head: TunnelHead = section.head();
            let (kept, tail) = section
                .tail()
                .split_at_checked(head.kept_bytes as usize)
                .filter(|(kept, _)| kept.len() <= MAX_KEPT_BYTES)
                .ok_or(RestoreError::OutOfRange("what was kept of a WebSocket frame"))?;
            let state = WebSocketState::decode(&head.socket, tail)?;
            let max_message_bytes = environment.limits.max_message_bytes;
            let socket = WebSocket::restore(state, &websocket::Limits { max_message_bytes })?;
            let tunnel = Tunnel { socket, kept: kept.to_vec() };
            if !stack.machine.is_tunnel(head.stream) {
                return Err(RestoreError::OutOfRange("the stream of a WebSocket"));
            }
            let slot = stack.machine.slot_of(head.stream).unwrap_or_default();
            stack.put_tunnel(Slot::new(slot), tunnel);
        }
        Ok(stack)
    }
}
