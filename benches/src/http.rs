//! HTTP/1.1 responses, parsed by the generator: incrementally, strictly, without keeping bodies.
//!
//! Must not know: sockets, which request a response belongs to.

const MAX_HEAD_BYTES: usize = 64 << 10;

/// Part of a response.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The final head.
    Head {
        /// Status code.
        status: u16,
        /// Whether another response can follow on this connection.
        keep_alive: bool,
    },
    /// Bytes of the body.
    Body(&'a [u8]),
    /// The response is complete.
    End,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    Head,
    Known(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
}

/// Parser of the responses of one connection.
#[derive(Debug, Default)]
pub struct Responses {
    state: State,
    line: Vec<u8>,
}

impl Responses {
    #[cfg(test)]
    /// Whether a response has begun and not ended.
    fn is_within(&self) -> bool {
        !matches!(self.state, State::Head) || !self.line.is_empty()
    }

    /// Takes received bytes; `on_event` is called for every part of them.
    pub fn receive(
        &mut self,
        mut data: &[u8],
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<(), String> {
        while !data.is_empty() {
            match self.state {
                State::Head => {
                    let Some(rest) = self.take_until(data, b"\r\n\r\n")? else { return Ok(()) };
                    data = rest;
                    let head = std::mem::take(&mut self.line);
                    let head = parse_head(&head)?;
                    if head.status < 200 {
                        continue;
                    }
                    on_event(Event::Head { status: head.status, keep_alive: head.keep_alive });
                    self.state = match head.length {
                        Length::Known(0) => {
                            on_event(Event::End);
                            State::Head
                        }
                        Length::Known(length) => State::Known(length),
                        Length::Chunked => State::ChunkSize,
                    };
                }
                State::Known(left) | State::Chunk(left) => {
                    let length = left.min(data.len() as u64);
                    let (body, rest) = data.split_at(length as usize);
                    on_event(Event::Body(body));
                    data = rest;
                    let left = left - length;
                    self.state = match self.state {
                        State::Known(_) if left == 0 => {
                            on_event(Event::End);
                            State::Head
                        }
                        State::Known(_) => State::Known(left),
                        _ if left == 0 => State::ChunkEnd,
                        _ => State::Chunk(left),
                    };
                }
                State::ChunkSize | State::ChunkEnd | State::Trailer => {
                    let Some(rest) = self.take_until(data, b"\r\n")? else { return Ok(()) };
                    data = rest;
                    let line = std::mem::take(&mut self.line);
                    let line = line.strip_suffix(b"\r\n").unwrap_or_default();
                    self.state = match self.state {
                        State::ChunkSize => match parse_chunk_size(line)? {
                            0 => State::Trailer,
                            length => State::Chunk(length),
                        },
                        State::ChunkEnd if line.is_empty() => State::ChunkSize,
                        State::ChunkEnd => return Err("no line end after a chunk".to_owned()),
                        _ if line.is_empty() => {
                            on_event(Event::End);
                            State::Head
                        }
                        _ => State::Trailer,
                    };
                }
            }
        }
        Ok(())
    }

    /// Moves bytes into `line` up to and including `end`; the rest, once it is complete.
    fn take_until<'a>(&mut self, data: &'a [u8], end: &[u8]) -> Result<Option<&'a [u8]>, String> {
        let before = self.line.len();
        let from = before.saturating_sub(end.len() - 1);
        self.line.extend_from_slice(&data[..data.len().min(MAX_HEAD_BYTES)]);
        match self.line[from..].windows(end.len()).position(|window| window == end) {
            Some(at) => {
                let length = from + at + end.len();
                self.line.truncate(length);
                Ok(Some(&data[length - before..]))
            }
            None if self.line.len() >= MAX_HEAD_BYTES => Err("head or line too long".to_owned()),
            None => Ok(None),
        }
    }
}

enum Length {
    Known(u64),
    Chunked,
}

struct Head {
    status: u16,
    keep_alive: bool,
    length: Length,
}

fn parse_head(head: &[u8]) -> Result<Head, String> {
    let text = std::str::from_utf8(head).map_err(|_| "head is not UTF-8".to_owned())?;
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let bad = || format!("bad status line {:?}", status_line.chars().take(80).collect::<String>());
    let rest = status_line.strip_prefix("HTTP/1.1 ").ok_or_else(bad)?;
    let status = rest.get(..3).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let (mut keep_alive, mut length) = (true, None);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("header without a colon")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let value = value.parse().map_err(|_| format!("Content-Length {value:?}"))?;
            if length.replace(Length::Known(value)).is_some() {
                return Err("two lengths".to_owned());
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") || length.replace(Length::Chunked).is_some() {
                return Err(format!("Transfer-Encoding {value:?}"));
            }
        } else if name.eq_ignore_ascii_case("connection") {
            keep_alive = !value.eq_ignore_ascii_case("close");
        }
    }
    let bodyless = status < 200 || status == 204 || status == 304;
    let length = match length {
        _ if bodyless => Length::Known(0),
        Some(length) => length,
        None => return Err("a body that only the end of the connection ends".to_owned()),
    };
    Ok(Head { status, keep_alive, length })
}

fn parse_chunk_size(line: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(line).unwrap_or("?");
    let digits = text.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16).map_err(|_| format!("chunk size {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
        HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nwiki\r\na;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\n\
        HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

    #[test]
    fn responses_in_pieces_of_any_size() {
        for size in 1..WIRE.len() {
            let mut parser = Responses::default();
            let (mut bodies, mut body, mut heads) = (Vec::new(), Vec::new(), Vec::new());
            for piece in WIRE.as_bytes().chunks(size) {
                parser
                    .receive(piece, |event| match event {
                        Event::Head { status, keep_alive } => heads.push((status, keep_alive)),
                        Event::Body(bytes) => body.extend_from_slice(bytes),
                        Event::End => {
                            bodies.push(String::from_utf8(std::mem::take(&mut body)).unwrap())
                        }
                    })
                    .unwrap();
            }
            assert_eq!(heads, [(200, true), (200, true), (204, false)], "pieces of {size}");
            assert_eq!(bodies, ["hello", "wiki0123456789", ""]);
            assert!(!parser.is_within());
        }
    }

    #[test]
    fn bad_responses_are_errors() {
        for wire in [
            "HTTP/1.0 200 OK\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        ] {
            let result = Responses::default().receive(wire.as_bytes(), |_| {});
            assert!(result.is_err(), "{wire:?}");
        }
    }
}
