//! Request heads: from bytes to a validated set of offsets (RFC 9112 §2 to §6).
//!
//! Two kinds of errors, so that the outcome never depends on how the bytes were cut: what is wrong
//! inside a line is reported as soon as that line is complete, what is wrong between lines (Host,
//! framing) when the head is. A head that arrives in pieces is scanned once as it comes, and once
//! more when it is complete; so a slow sender costs no more than twice the fast one.
//!
//! Must not know: bodies' bytes, responses, the machine that drives it.

use super::syntax;
use super::{BodyKind, Error, Limits, Version};

/// How far an incomplete head has been looked at. All offsets count from the head's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Progress {
    /// Where the line begins that is not complete yet.
    line_start: u32,
    /// Nothing before this needs to be looked at again to find the line's end.
    scanned: u32,
    /// Complete lines so far, the request line included.
    lines: u16,
}

impl Progress {
    /// Nothing has been seen.
    pub(super) const START: Self = Self { line_start: 0, scanned: 0, lines: 0 };
}

/// What [`parse`] found.
pub(super) enum Step {
    /// The head goes on beyond the bytes; call again with this and more of them.
    Incomplete(Progress),
    /// An empty line in place of a request line: the caller drops its two bytes.
    EmptyLine,
    /// All of it is there.
    Complete(Head),
}

/// Offsets and facts of a complete, valid head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// Its length, with the empty line.
    pub length: usize,
    pub line: RequestLine,
    pub body: BodyKind,
    pub keep_alive: bool,
    pub expects_continue: bool,
    pub upgrade: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RequestLine {
    /// The line's length, with its CRLF: where the fields begin.
    pub length: usize,
    pub method_length: usize,
    pub target_length: usize,
    /// Within the target, for absolute-form; else empty.
    pub authority: (usize, usize),
    /// Within the target. Empty where an absolute-form target has none.
    pub path: (usize, usize),
    pub has_query: bool,
    pub version: Version,
}

/// Longest method name that is looked at; beyond it the answer is 501.
const MAX_METHOD_BYTES: usize = 32;

/// What a request line has besides its target: method, two spaces, version.
const LINE_OVERHEAD_BYTES: usize = MAX_METHOD_BYTES + 2 + 8;

/// Looks for a complete head at the start of `bytes`.
pub(super) fn parse(bytes: &[u8], from: Progress, limits: &Limits) -> Result<Step, Error> {
    // Whatever it is, it is no HTTP (TLS, for one): no use in waiting for the end of a line.
    match bytes.first() {
        Some(&first) if syntax::is_token_byte(first) || first == b'\r' => {}
        Some(b'\n') => return Err(Error::BareLineFeed),
        Some(_) => return Err(Error::MalformedRequestLine),
        None => return Ok(Step::Incomplete(from)),
    }
    // A line that ends here or later has no room for its own end.
    let head_limit = (limits.max_head_bytes as usize).saturating_sub(2);
    let line_limit = head_limit.min(limits.max_target_bytes as usize + LINE_OVERHEAD_BYTES);

    let mut line_start = from.line_start as usize;
    let mut scanned = from.scanned as usize;
    let mut lines = from.lines;
    let mut request_line = None;
    let mut facts = Facts::default();
    loop {
        let end = syntax::find_control(bytes, scanned);
        if lines == 0 && end > line_limit {
            return Err(Error::TargetTooLong);
        }
        if end > head_limit {
            return Err(Error::HeadTooLarge);
        }
        if !ends_line(bytes, end)? {
            // Both fit: `end` is at most `max_head_bytes`.
            let (line_start, scanned) = (line_start as u32, end as u32);
            return Ok(Step::Incomplete(Progress { line_start, scanned, lines }));
        }
        let line = &bytes[line_start..end];
        line_start = end + 2;
        scanned = line_start;
        if lines == 0 {
            if line.is_empty() {
                return Ok(Step::EmptyLine);
            }
            request_line = Some(parse_request_line(line, limits)?);
        } else if line.is_empty() {
            let Some(request_line) = request_line else {
                // Scanned in pieces: every line is sound; now collect what they say together.
                return parse(bytes, Progress::START, limits);
            };
            return facts.finish(bytes, request_line, line_start, limits).map(Step::Complete);
        } else {
            let (name, value) = parse_field(line)?;
            if lines > limits.max_header_count {
                return Err(Error::TooManyFields);
            }
            facts.collect(name, value);
        }
        lines = lines.saturating_add(1);
    }
}

/// True when there is a CRLF at `end`, false when that cannot be known yet. `end` is where
/// [`syntax::find_control`] stopped.
pub(super) fn ends_line(bytes: &[u8], end: usize) -> Result<bool, Error> {
    match (bytes.get(end), bytes.get(end + 1)) {
        (Some(b'\r'), Some(b'\n')) => Ok(true),
        (None, _) | (Some(b'\r'), None) => Ok(false),
        (Some(b'\r'), Some(_)) => Err(Error::BareCarriageReturn),
        (Some(b'\n'), _) => Err(Error::BareLineFeed),
        (Some(_), _) => Err(Error::ControlCharacter),
    }
}

/// Splits a field line without its CRLF into name and trimmed value (RFC 9112 §5). The caller has
/// made sure that there is no control character in it.
pub(super) fn parse_field(line: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let name_length = line.iter().position(|&byte| !syntax::is_token_byte(byte));
    match name_length.map(|length| (length, line[length])) {
        Some((0, b' ' | b'\t')) => Err(Error::LineFolding),
        Some((length @ 1.., b':')) => Ok((&line[..length], syntax::trim(&line[length + 1..]))),
        _ => Err(Error::MalformedFieldName),
    }
}

/// `method SP request-target SP HTTP-version` (RFC 9112 §3), with exactly these two spaces.
fn parse_request_line(line: &[u8], limits: &Limits) -> Result<RequestLine, Error> {
    if !line.contains(&b'/') {
        return Err(Error::NotHttp);
    }
    let method_length = line.iter().position(|&byte| !syntax::is_token_byte(byte));
    let method_length = match method_length {
        Some(length @ 1..) if line[length] == b' ' => length,
        _ => return Err(Error::MalformedRequestLine),
    };
    let rest = &line[method_length + 1..];
    let Some((target, version)) = rest.split_last_chunk::<9>() else {
        return Err(Error::MalformedRequestLine);
    };
    let version = match version {
        b" HTTP/1.1" => Version::Http11,
        b" HTTP/1.0" => Version::Http10,
        [b' ', b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return Err(Error::UnsupportedVersion);
        }
        _ => return Err(Error::MalformedRequestLine),
    };
    if target.is_empty() {
        return Err(Error::MalformedRequestLine);
    }
    if target.len() > limits.max_target_bytes as usize {
        return Err(Error::TargetTooLong);
    }
    let method = &line[..method_length];
    // CONNECT asks for a tunnel, which an origin server does not dig (RFC 9110 §9.3.6).
    if method_length > MAX_METHOD_BYTES || method == b"CONNECT" {
        return Err(Error::MethodNotImplemented);
    }
    // RFC 9112 §3.2: origin-form, asterisk-form, absolute-form.
    let is_asterisk = target == b"*" && method == b"OPTIONS";
    let authority = if target[0] == b'/' || is_asterisk { (0, 0) } else { absolute_form(target)? };
    let path_start = authority.1;
    let path_end = path_start + syntax::path_length(&target[path_start..]);
    let has_query = match target.get(path_end) {
        None => false,
        Some(b'?') if syntax::is_query(&target[path_end..]) => true,
        Some(_) => return Err(Error::MalformedTarget),
    };
    Ok(RequestLine {
        length: line.len() + 2,
        method_length,
        target_length: target.len(),
        authority,
        path: (path_start, path_end),
        has_query,
        version,
    })
}

/// Where the authority of an absolute-form target begins and ends (RFC 9112 §3.2.2).
fn absolute_form(target: &[u8]) -> Result<(usize, usize), Error> {
    let starts_with = |scheme: &[u8]| {
        target.len() > scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme)
    };
    let start = match () {
        () if starts_with(b"http://") => 7,
        () if starts_with(b"https://") => 8,
        () => return Err(Error::MalformedTarget),
    };
    let rest = &target[start..];
    let length = rest.iter().position(|&byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    // No user information, which is for phishing (RFC 9110 §4.2.4); no empty host (§4.2.1).
    let authority = &rest[..length];
    if authority.is_empty() || authority[0] == b':' || !syntax::is_authority(authority) {
        return Err(Error::MalformedTarget);
    }
    Ok((start, start + length))
}

/// What the fields say about framing and the connection, collected line by line.
#[derive(Default)]
struct Facts<'h> {
    /// The first thing that is wrong, kept until the head is complete.
    error: Option<Error>,
    host: Option<&'h [u8]>,
    content_length: Option<u64>,
    has_transfer_encoding: bool,
    ends_in_chunked: bool,
    has_other_coding: bool,
    close: bool,
    keep_alive: bool,
    upgrade_listed: bool,
    has_upgrade: bool,
    expects_continue: bool,
    expects_other: bool,
}

impl<'h> Facts<'h> {
    #[inline]
    fn collect(&mut self, name: &'h [u8], value: &'h [u8]) {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            6 if name.eq_ignore_ascii_case(b"expect") => {
                // RFC 9110 §10.1.1
                let is_continue = value.eq_ignore_ascii_case(b"100-continue");
                self.expects_continue |= is_continue;
                self.expects_other |= !is_continue;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.has_upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in syntax::list(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                    self.upgrade_listed |= option.eq_ignore_ascii_case(b"upgrade");
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => {}
        }
    }

    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    fn host(&mut self, value: &'h [u8]) {
        if self.host.is_some() {
            self.fail(Error::RepeatedHost);
        } else if !syntax::is_authority(value) {
            self.fail(Error::MalformedHost);
        }
        self.host = Some(value);
    }

    // RFC 9110 §8.6: `1*DIGIT`, not even a list of equal ones.
    fn content_length(&mut self, value: &[u8]) {
        if self.content_length.is_some() {
            self.fail(Error::RepeatedContentLength);
        }
        match syntax::decimal(value) {
            Some(length) => self.content_length = Some(length),
            None if value.contains(&b',') => self.fail(Error::RepeatedContentLength),
            None => self.fail(Error::MalformedContentLength),
        }
    }

    // RFC 9112 §6.1 and §7: a list over all lines of the field; `chunked` once, and last.
    fn transfer_encoding(&mut self, value: &[u8]) {
        self.has_transfer_encoding = true;
        for coding in syntax::list(value) {
            if self.ends_in_chunked {
                self.fail(Error::MalformedTransferEncoding);
            }
            let name = coding.split(|&byte| byte == b';').next().unwrap_or_default();
            if coding.eq_ignore_ascii_case(b"chunked") {
                self.ends_in_chunked = true;
            } else if syntax::is_token(syntax::trim(name)) {
                self.has_other_coding = true;
            } else {
                self.fail(Error::MalformedTransferEncoding);
            }
        }
    }

    fn finish(
        self,
        bytes: &[u8],
        line: RequestLine,
        length: usize,
        limits: &Limits,
    ) -> Result<Head, Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let is_http11 = line.version == Version::Http11;
        let body = self.body(is_http11, limits)?;
        match self.host {
            None if is_http11 => return Err(Error::MissingHost),
            Some(host) if line.authority.1 > 0 => {
                let target = &bytes[line.method_length + 1..];
                if !target[line.authority.0..line.authority.1].eq_ignore_ascii_case(host) {
                    return Err(Error::HostMismatch);
                }
            }
            _ => {}
        }
        if self.expects_other && is_http11 {
            return Err(Error::UnknownExpectation);
        }
        Ok(Head {
            length,
            line,
            body,
            // RFC 9112 §9.3
            keep_alive: !self.close && (is_http11 || self.keep_alive),
            // RFC 9110 §10.1.1: not from HTTP/1.0, and meaningless without a body.
            expects_continue: self.expects_continue
                && is_http11
                && !matches!(body, BodyKind::None | BodyKind::Known(0)),
            // RFC 9110 §7.8: ignored from HTTP/1.0, and unless Connection lists it.
            upgrade: is_http11 && self.has_upgrade && self.upgrade_listed,
        })
    }

    // RFC 9112 §6.3
    fn body(&self, is_http11: bool, limits: &Limits) -> Result<BodyKind, Error> {
        if self.has_transfer_encoding {
            return match self.content_length {
                Some(_) => Err(Error::ContentLengthWithTransferEncoding),
                None if !is_http11 => Err(Error::TransferEncodingInHttp10),
                None if !self.ends_in_chunked => Err(Error::MalformedTransferEncoding),
                None if self.has_other_coding => Err(Error::UnknownTransferCoding),
                None => Ok(BodyKind::Chunked),
            };
        }
        match self.content_length {
            // The maximum may be a number that did not fit.
            Some(length) if length > limits.max_body_bytes || length == u64::MAX => {
                Err(Error::BodyTooLarge)
            }
            Some(length) => Ok(BodyKind::Known(length)),
            None => Ok(BodyKind::None),
        }
    }
}
