//! The responses of [`Http1`]: heads, bodies, and everything that must not be got wrong about them
//! (RFC 9110 §6 and §15, RFC 9112 §6 and §9).
//!
//! Must not know: where the bytes go.

use super::{BodyLength, Error, Http1, Incoming, Outgoing, ResponseError, syntax};

impl Http1 {
    /// Tells a client that waits for it to go on and send the body (RFC 9110 §10.1.1). Does nothing
    /// if the client does not wait, any longer or at all, so it may be called whenever the body is
    /// wanted.
    pub fn send_continue(&mut self, out: &mut Vec<u8>) {
        if self.flags.continue_awaited && self.outgoing == Outgoing::Pending {
            self.flags.continue_awaited = false;
            out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    /// An interim response (RFC 9110 §15.2): any number of them may precede the final one. Nothing is
    /// written to a client of HTTP/1.0, which would not understand it.
    ///
    /// # Errors
    /// See [`ResponseError`]; `out` is unchanged then.
    pub fn inform(
        &mut self,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
    ) -> Result<(), ResponseError> {
        if self.outgoing != Outgoing::Pending {
            return Err(ResponseError::NotExpected);
        }
        if !(100..200).contains(&status) || status == 101 {
            return Err(ResponseError::InvalidStatus(status));
        }
        for &(name, value) in headers {
            check_header(name, value)?;
        }
        if self.flags.is_http10 {
            return Ok(());
        }
        if status == 100 {
            self.flags.continue_awaited = false;
        }
        write_status_line(out, status);
        for &(name, value) in headers {
            write_header(out, name, value);
        }
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Begins the final response. Its body, if `length` announces one, follows through
    /// [`write_body`](Self::write_body); [`finish_response`](Self::finish_response) ends it in any
    /// case.
    ///
    /// `date` is the value of the Date field, already formatted, or empty. Framing fields are
    /// written by the machine. A `Connection` header is understood: `close` makes this response the
    /// last, other options are passed on. For HEAD, give the length that GET would have (or `None`
    /// if that is not known), and leave out or write the body as for GET: it is never sent. 204, 205
    /// and 304 have no body; a `Known` length of a 304 is announced all the same.
    ///
    /// # Errors
    /// See [`ResponseError`]; `out` is unchanged then, and another response can be begun.
    pub fn start_response(
        &mut self,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        length: BodyLength,
        date: &[u8],
    ) -> Result<(), ResponseError> {
        if self.outgoing != Outgoing::Pending {
            return Err(ResponseError::NotExpected);
        }
        let start = out.len();
        match self.write_head(out, status, headers, length, date) {
            Ok(outgoing) => {
                self.outgoing = outgoing;
                Ok(())
            }
            Err(error) => {
                out.truncate(start);
                Err(error)
            }
        }
    }

    fn write_head(
        &mut self,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        length: BodyLength,
        date: &[u8],
    ) -> Result<Outgoing, ResponseError> {
        if !(200..600).contains(&status) {
            return Err(ResponseError::InvalidStatus(status));
        }
        write_status_line(out, status);
        let mut date = date;
        // RFC 9110 §10.1.1: whether a client that waits for 100 still sends the body after a final
        // status is anyone's guess, so what follows on this connection could be body or request.
        let mut keep_alive = self.flags.keep_alive && !self.flags.continue_awaited;
        let mut options = false;
        for &(name, value) in headers {
            check_header(name, value)?;
            if name.eq_ignore_ascii_case("connection") {
                options = true;
                keep_alive &= !syntax::list(value).any(|one| one.eq_ignore_ascii_case(b"close"));
                continue;
            }
            if name.eq_ignore_ascii_case("date") {
                date = b"";
            }
            write_header(out, name, value);
        }
        if !date.is_empty() {
            if syntax::find_control(date, 0) < date.len() {
                return Err(ResponseError::InvalidHeader);
            }
            write_header(out, "Date", date);
        }
        let outgoing = match length {
            // RFC 9110 §8.6: never with 204; of a 304, only the length of the 200 that it replaces.
            _ if status == 204 => Outgoing::Sized { remaining: 0 },
            BodyLength::Known(length) if status == 304 => {
                write_content_length(out, length);
                Outgoing::Sized { remaining: 0 }
            }
            _ if status == 304 => Outgoing::Sized { remaining: 0 },
            BodyLength::Known(excess @ 1..) if status == 205 => {
                return Err(ResponseError::BodyTooLong { excess });
            }
            _ if status == 205 => {
                write_content_length(out, 0);
                Outgoing::Sized { remaining: 0 }
            }
            BodyLength::None if self.flags.is_head => Outgoing::Sized { remaining: 0 },
            BodyLength::None => {
                write_content_length(out, 0);
                Outgoing::Sized { remaining: 0 }
            }
            BodyLength::Known(length) => {
                write_content_length(out, length);
                if self.flags.is_head {
                    Outgoing::Omitted { remaining: Some(length) }
                } else {
                    Outgoing::Sized { remaining: length }
                }
            }
            // RFC 9112 §6.1: never to a client that has not spoken 1.1.
            BodyLength::Unknown if self.flags.is_http10 => {
                if self.flags.is_head {
                    Outgoing::Omitted { remaining: None }
                } else {
                    keep_alive = false;
                    Outgoing::UntilClose
                }
            }
            BodyLength::Unknown => {
                out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                if self.flags.is_head {
                    Outgoing::Omitted { remaining: None }
                } else {
                    Outgoing::Chunked
                }
            }
        };
        if options || !keep_alive || self.flags.is_http10 {
            let options = if options { headers } else { &[] };
            write_connection(out, options, keep_alive, self.flags.is_http10);
        }
        out.extend_from_slice(b"\r\n");
        self.flags.keep_alive = keep_alive;
        Ok(outgoing)
    }

    /// Appends bytes of the response body, framed as was announced.
    ///
    /// # Errors
    /// `BodyTooLong` if fewer have been announced, `NotStarted` without a response that is
    /// streaming; nothing is written then, and the response stays as it was.
    pub fn write_body(&mut self, out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), ResponseError> {
        match &mut self.outgoing {
            Outgoing::Sized { remaining } | Outgoing::Omitted { remaining: Some(remaining) } => {
                let count = bytes.len() as u64;
                if count > *remaining {
                    return Err(ResponseError::BodyTooLong { excess: count - *remaining });
                }
                *remaining -= count;
                if let Outgoing::Sized { .. } = self.outgoing {
                    out.extend_from_slice(bytes);
                }
            }
            Outgoing::UntilClose => out.extend_from_slice(bytes),
            // A chunk of no bytes would end the body.
            Outgoing::Chunked if bytes.is_empty() => {}
            Outgoing::Chunked => {
                out.reserve(bytes.len() + 20);
                write_hexadecimal(out, bytes.len() as u64);
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Outgoing::Omitted { remaining: None } => {}
            Outgoing::Idle | Outgoing::Pending | Outgoing::Finished { .. } => {
                return Err(ResponseError::NotStarted);
            }
        }
        Ok(())
    }

    /// Ends the response. Events of its request come no longer; the next request can be taken from
    /// the input, unless [`must_close`](Self::must_close).
    ///
    /// # Errors
    /// `BodyTooShort` if more has been announced: send the rest, or drop the connection.
    /// `NotStarted` without a response that is streaming.
    pub fn finish_response(&mut self, out: &mut Vec<u8>) -> Result<(), ResponseError> {
        self.finish_response_with(out, &[])
    }

    /// Like [`finish_response`](Self::finish_response), with trailer fields (RFC 9110 §6.5), which are
    /// left out where the response is not chunked.
    ///
    /// # Errors
    /// As there; `InvalidHeader` and `ReservedHeader` leave the response as it was.
    pub fn finish_response_with(
        &mut self,
        out: &mut Vec<u8>,
        trailers: &[(&str, &[u8])],
    ) -> Result<(), ResponseError> {
        for &(name, value) in trailers {
            check_header(name, value)?;
        }
        match self.outgoing {
            Outgoing::Sized { remaining: missing @ 1.. } => {
                return Err(ResponseError::BodyTooShort { missing });
            }
            Outgoing::Sized { .. } | Outgoing::Omitted { .. } | Outgoing::UntilClose => {}
            Outgoing::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for &(name, value) in trailers {
                    write_header(out, name, value);
                }
                out.extend_from_slice(b"\r\n");
            }
            Outgoing::Idle | Outgoing::Pending | Outgoing::Finished { .. } => {
                return Err(ResponseError::NotStarted);
            }
        }
        self.response_finished();
        Ok(())
    }

    /// A whole response in one call: head, body, end. See [`start_response`](Self::start_response).
    ///
    /// # Errors
    /// See [`ResponseError`]; `out` and the machine are unchanged then.
    #[inline]
    pub fn respond(
        &mut self,
        out: &mut Vec<u8>,
        status: u16,
        headers: &[(&str, &[u8])],
        body: &[u8],
        date: &[u8],
    ) -> Result<(), ResponseError> {
        let length = match status {
            204 | 205 | 304 if body.is_empty() => BodyLength::None,
            204 | 205 | 304 => {
                return Err(ResponseError::BodyTooLong { excess: body.len() as u64 });
            }
            _ => BodyLength::Known(body.len() as u64),
        };
        out.reserve(body.len() + 256);
        self.start_response(out, status, headers, length, date)?;
        if let Outgoing::Sized { .. } = self.outgoing {
            out.extend_from_slice(body);
        }
        self.response_finished();
        Ok(())
    }

    /// Answers an [`Error`] of [`next_event`](Self::next_event) (or one of the caller's: a timeout)
    /// with its status, and a line of text that says what is wrong; the connection is at its end.
    /// Writes nothing if a response has been begun for the same request.
    pub fn error_response(&mut self, out: &mut Vec<u8>, error: &Error, date: &[u8]) {
        let is_owed = match self.outgoing {
            Outgoing::Pending => true,
            Outgoing::Idle => matches!(self.incoming, Incoming::Head(_)),
            _ => false,
        };
        let is_head = self.outgoing == Outgoing::Pending && self.flags.is_head;
        self.incoming = Incoming::Closed;
        self.flags.keep_alive = false;
        if !is_owed {
            return;
        }
        self.outgoing = Outgoing::Idle;
        let status = error.status();
        let body = format!("{status} {}: {error}\n", reason_phrase(status));
        write_status_line(out, status);
        if !date.is_empty() && syntax::find_control(date, 0) == date.len() {
            write_header(out, "Date", date);
        }
        out.extend_from_slice(b"Content-Type: text/plain\r\n");
        write_content_length(out, body.len() as u64);
        out.extend_from_slice(b"Connection: close\r\n\r\n");
        if !is_head {
            out.extend_from_slice(body.as_bytes());
        }
    }

    /// Switches to another protocol (RFC 9110 §7.8, §15.2.2): writes the 101 with
    /// `Connection: Upgrade` and `Upgrade: protocol`. What is left in the input, and all that
    /// follows, belongs to that protocol; this machine is of no use any more.
    ///
    /// # Errors
    /// `NotUpgradable` unless the request has offered an upgrade and has no body left to come;
    /// `NotExpected`, `InvalidHeader`, `ReservedHeader`. `out` is unchanged then.
    pub fn upgrade(
        &mut self,
        out: &mut Vec<u8>,
        protocol: &str,
        headers: &[(&str, &[u8])],
    ) -> Result<(), ResponseError> {
        if self.outgoing != Outgoing::Pending {
            return Err(ResponseError::NotExpected);
        }
        if !self.flags.upgrade || !matches!(self.incoming, Incoming::End | Incoming::Complete) {
            return Err(ResponseError::NotUpgradable);
        }
        check_header("upgrade", protocol.as_bytes())?;
        for &(name, value) in headers {
            check_header(name, value)?;
            if name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("upgrade") {
                return Err(ResponseError::ReservedHeader);
            }
        }
        write_status_line(out, 101);
        write_header(out, "Connection", b"Upgrade");
        write_header(out, "Upgrade", protocol.as_bytes());
        for &(name, value) in headers {
            write_header(out, name, value);
        }
        out.extend_from_slice(b"\r\n");
        self.incoming = Incoming::Closed;
        self.outgoing = Outgoing::Idle;
        self.flags.keep_alive = false;
        Ok(())
    }
}

/// RFC 9110 §5.1 and §5.5, and the fields that frame a message.
#[inline]
fn check_header(name: &str, value: &[u8]) -> Result<(), ResponseError> {
    let is_valid =
        syntax::is_token(name.as_bytes()) && syntax::find_control(value, 0) == value.len();
    if !is_valid {
        return Err(ResponseError::InvalidHeader);
    }
    let reserved = match name.len() {
        10 => "keep-alive",
        14 => "content-length",
        17 => "transfer-encoding",
        _ => return Ok(()),
    };
    if name.eq_ignore_ascii_case(reserved) { Err(ResponseError::ReservedHeader) } else { Ok(()) }
}

#[inline]
fn write_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// RFC 9112 §9.3 and §9.6, with whatever else the caller's Connection headers list.
fn write_connection(
    out: &mut Vec<u8>,
    headers: &[(&str, &[u8])],
    keep_alive: bool,
    is_http10: bool,
) {
    let passed_on = headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .flat_map(|(_, value)| syntax::list(value))
        .filter(|one| {
            syntax::is_token(one)
                && !one.eq_ignore_ascii_case(b"close")
                && !one.eq_ignore_ascii_case(b"keep-alive")
        });
    let own: Option<&[u8]> = match (keep_alive, is_http10) {
        (false, _) => Some(b"close"),
        (true, true) => Some(b"keep-alive"),
        (true, false) => None,
    };
    let mut separator: &[u8] = b"Connection: ";
    for option in passed_on.chain(own) {
        out.extend_from_slice(separator);
        out.extend_from_slice(option);
        separator = b", ";
    }
    if separator == b", " {
        out.extend_from_slice(b"\r\n");
    }
}

#[inline]
fn write_content_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"Content-Length: ");
    let mut digits = [0; 20];
    let mut first = digits.len();
    let mut rest = length;
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
    out.extend_from_slice(b"\r\n");
}

fn write_hexadecimal(out: &mut Vec<u8>, number: u64) {
    let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
    for position in (0..digits).rev() {
        let digit = (number >> (position * 4)) as usize & 0xf;
        out.push(b"0123456789abcdef"[digit]);
    }
}

#[inline]
fn write_status_line(out: &mut Vec<u8>, status: u16) {
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    let digits = [status / 100 % 10, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(&digits);
    // The space stays when the phrase is empty (RFC 9112 §4).
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The IANA registry's phrase; empty for a code that is not in it.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        511 => "Network Authentication Required",
        _ => "",
    }
}
