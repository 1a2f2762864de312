//! The output side: messages, pings, pongs and the close frame, appended to the caller's vector.
//!
//! Must not know: what has been received.

use super::{MessageKind, WebSocket, frame};

/// Longest close reason: a control frame less the code (RFC 6455 §5.5.1).
const MAX_REASON_BYTES: usize = frame::MAX_CONTROL_BYTES - 2;

impl WebSocket {
    /// Appends a message in one frame. It is compressed if that was negotiated and the payload has
    /// at least `deflate_threshold` bytes. Text must be valid UTF-8. After the close frame nothing
    /// is written.
    #[inline]
    pub fn write_message(
        &mut self,
        out: &mut Vec<u8>,
        kind: MessageKind,
        payload: &[u8],
        deflate_threshold: u32,
    ) {
        if self.close_sent {
            return;
        }
        let opcode = match kind {
            MessageKind::Text => frame::TEXT,
            MessageKind::Binary => frame::BINARY,
        };
        if self.params.is_some() && payload.len() >= deflate_threshold as usize {
            self.write_compressed(out, opcode, payload);
        } else {
            frame::write(out, frame::FIN | opcode, payload);
        }
    }

    fn write_compressed(&mut self, out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
        let Some(params) = self.params.filter(|_| !payload.is_empty()) else {
            return frame::write(out, frame::FIN | opcode, payload);
        };
        // The header's size follows from the payload's, which only the end of compression tells:
        // guess it, and move the payload if the guess was wrong.
        let first = frame::FIN | frame::RSV1 | opcode;
        let start = out.len();
        let (guess, guessed_bytes) = frame::server_header(first, payload.len() / 2);
        out.extend_from_slice(&guess[..guessed_bytes]);
        let body = out.len();
        self.deflate.get_or_insert_default().compress(params, payload, out);
        let compressed_bytes = out.len() - body;
        let (header, header_bytes) = frame::server_header(first, compressed_bytes);
        if header_bytes > guessed_bytes {
            out.resize(out.len() + header_bytes - guessed_bytes, 0);
        }
        out.copy_within(body..body + compressed_bytes, start + header_bytes);
        out.truncate(start + header_bytes + compressed_bytes);
        out[start..start + header_bytes].copy_from_slice(&header[..header_bytes]);
    }

    /// Appends a ping; a payload beyond 125 bytes is cut off.
    pub fn write_ping(&mut self, out: &mut Vec<u8>, payload: &[u8]) {
        self.write_control(out, frame::PING, payload);
    }

    /// Appends a pong; a payload beyond 125 bytes is cut off.
    pub fn write_pong(&mut self, out: &mut Vec<u8>, payload: &[u8]) {
        self.write_control(out, frame::PONG, payload);
    }

    /// Appends the close frame, once. A code that must not be on the wire (RFC 6455 §7.4.1) is left
    /// out, and the reason with it; a reason beyond 123 bytes is cut between two characters.
    pub fn write_close(&mut self, out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
        let mut payload = [0; frame::MAX_CONTROL_BYTES];
        let mut payload_bytes = 0;
        if let Some(code) = code.filter(|code| frame::is_close_code(*code)) {
            let mut end = reason.len().min(MAX_REASON_BYTES);
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            let reason = &reason.as_bytes()[..end];
            payload_bytes = 2 + reason.len();
            payload[..2].copy_from_slice(&code.to_be_bytes());
            payload[2..payload_bytes].copy_from_slice(reason);
        }
        self.write_control(out, frame::CLOSE, &payload[..payload_bytes]);
        self.close_sent = true;
    }

    fn write_control(&mut self, out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
        if !self.close_sent {
            let payload = &payload[..payload.len().min(frame::MAX_CONTROL_BYTES)];
            frame::write(out, frame::FIN | opcode, payload);
        }
    }
}
