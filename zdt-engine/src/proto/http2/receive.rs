//! From bytes to frames, and what may come when (RFC 9113 §4 to §6).
//!
//! Must not know: where the bytes come from, what a service does.

use super::super::Input;
use super::super::hpack::Fields;
use super::frame::{self, Frame, HEADER_BYTES, Header, MAX_PAYLOAD_BYTES};
use super::{Environment, Error, ErrorCode, Event, Http2, Incoming, MAX_REMEMBERED, PREFACE};

/// What a frame comes to. An error is the end of the connection.
pub(super) type Handled = Result<Option<Event>, Error>;

/// What is lent for the handling of frames.
pub(super) struct Turn<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// Overwritten by the next request's.
    pub(super) fields: &'a mut Fields,
    pub(super) environment: &'a Environment<'a>,
}

impl Http2 {
    /// Takes the next event from the input, and answers what needs no service. `None` when more input
    /// is needed; what is left has to be offered again with more behind it.
    ///
    /// `fields` is overwritten by the next request's.
    ///
    /// # Errors
    /// The end of the connection. Later calls take nothing.
    pub fn next_event(
        &mut self,
        input: &mut Input<'_>,
        out: &mut Vec<u8>,
        fields: &mut Fields,
        environment: &Environment<'_>,
    ) -> Result<Option<Event>, Error> {
        let mut turn = Turn { out, fields, environment };
        let result = self.advance(input, &mut turn);
        if let Err(error) = result {
            self.end(turn.out, error.code, error.reason);
        }
        result
    }

    fn advance(&mut self, input: &mut Input<'_>, turn: &mut Turn<'_>) -> Handled {
        loop {
            match self.incoming {
                Incoming::Frame => {
                    let Some(header) = Header::parse(input.peek()) else { return Ok(None) };
                    if header.length > MAX_PAYLOAD_BYTES {
                        return Err(Error::frame_size("a frame of more than 16384 bytes"));
                    }
                    self.check_order(&header)?;
                    if header.kind == frame::DATA {
                        let padding_bytes = usize::from(header.has(frame::PADDED));
                        if input.len() < HEADER_BYTES + padding_bytes.min(header.length) {
                            return Ok(None);
                        }
                        input.take(HEADER_BYTES);
                        let padding = match padding_bytes {
                            1 if header.length > 0 => Some(input.take(1)[0]),
                            1 => return Err(Error::frame_size("padding in a frame without bytes")),
                            _ => None,
                        };
                        self.has_progress = true;
                        if let Some(event) = self.on_data(&header, padding, turn)? {
                            return Ok(Some(event));
                        }
                        continue;
                    }
                    if input.len() < HEADER_BYTES + header.length {
                        return Ok(None);
                    }
                    let payload = &input.take(HEADER_BYTES + header.length)[HEADER_BYTES..];
                    let handled = self.on_frame(Frame { header, payload }, turn)?;
                    // A part of a header block is none, in however many frames it comes.
                    self.has_progress |= self.block.is_none();
                    if let Some(event) = handled {
                        return Ok(Some(event));
                    }
                }
                Incoming::Data { stream, left, padding, end_stream } => {
                    if left == 0 {
                        self.incoming = match (padding, end_stream && stream != 0) {
                            (0, true) => Incoming::End { stream },
                            (0, false) => Incoming::Frame,
                            // Behind the padding the end would be too late to be remembered here.
                            (_, is_end) => {
                                if input.len() < usize::from(padding) {
                                    return Ok(None);
                                }
                                input.take(usize::from(padding));
                                self.credit(stream, u32::from(padding), turn.out, turn.environment);
                                if is_end { Incoming::End { stream } } else { Incoming::Frame }
                            }
                        };
                        continue;
                    }
                    let bytes = input.len().min(left as usize);
                    if bytes == 0 {
                        return Ok(None);
                    }
                    match self.streams.slot_of(stream).filter(|_| stream != 0) {
                        Some(slot) if self.wants_data(slot) => {
                            return Ok(Some(Event::Data { slot, bytes }));
                        }
                        _ => {
                            input.take(bytes);
                            self.took(bytes, turn.out, turn.environment);
                        }
                    }
                }
                Incoming::End { stream } => {
                    self.incoming = Incoming::Frame;
                    if let Some(event) = self.on_end(stream, turn)? {
                        return Ok(Some(event));
                    }
                }
                Incoming::Preface(seen) => {
                    let wanted = &PREFACE[usize::from(seen)..];
                    let bytes = input.len().min(wanted.len());
                    if input.peek()[..bytes] != wanted[..bytes] {
                        return Err(Error::protocol("the connection preface is wrong"));
                    }
                    input.take(bytes);
                    if bytes < wanted.len() {
                        self.incoming = Incoming::Preface(seen + bytes as u8);
                        return Ok(None);
                    }
                    self.incoming = Incoming::Frame;
                }
                Incoming::Failed => {
                    input.take_all();
                    return Ok(None);
                }
            }
        }
    }

    /// What may come when, whatever it is.
    fn check_order(&mut self, header: &Header) -> Result<(), Error> {
        if !self.has_settings {
            if header.kind != frame::SETTINGS || header.has(frame::ACK) {
                return Err(Error::protocol("the first frame is not SETTINGS"));
            }
            self.has_settings = true;
        }
        if let Some(block) = &self.block
            && (header.kind != frame::CONTINUATION || header.stream != block.stream)
        {
            return Err(Error::protocol("another frame within a header block"));
        }
        Ok(())
    }

    fn on_frame(&mut self, frame: Frame<'_>, turn: &mut Turn<'_>) -> Handled {
        match frame.header.kind {
            frame::HEADERS => return self.on_headers(frame, turn),
            frame::CONTINUATION => return self.on_continuation(frame, turn),
            frame::RST_STREAM => return self.on_reset(frame, turn),
            frame::WINDOW_UPDATE => return self.on_window_update(frame, turn),
            frame::SETTINGS => return self.on_settings(frame, turn),
            frame::PRIORITY => return self.on_priority(frame, turn),
            frame::PING => self.on_ping(frame, turn)?,
            frame::GOAWAY => self.on_goaway(&frame.header, turn)?,
            frame::PUSH_PROMISE => return Err(Error::protocol("PUSH_PROMISE from a client")),
            // §5.5: unknown ones are ignored; PRIORITY_UPDATE (RFC 9218) is among them.
            _ => self.guard.count_useless(turn.environment)?,
        }
        Ok(None)
    }

    /// A stream error (§5.4.2): the client's fault.
    pub(super) fn fail_stream(&mut self, id: u32, code: ErrorCode, turn: &mut Turn<'_>) -> Handled {
        self.guard.count_reset(turn.environment)?;
        frame::write_reset(turn.out, id, code);
        self.remember(id);
        let Some(slot) = self.streams.slot_of(id) else { return Ok(None) };
        let was_over = self.is_exchange_over(slot);
        self.streams.remove(slot);
        Ok((!was_over).then_some(Event::Reset { slot }))
    }

    /// Frames of that stream may be on their way.
    pub(super) fn remember(&mut self, id: u32) {
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(id);
    }
}
