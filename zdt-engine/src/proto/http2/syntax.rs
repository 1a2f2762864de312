//! Characters of header fields (RFC 9113 §8.2.1, RFC 9110 §5).
//!
//! Must not know: which fields there are.

const TOKEN: u8 = 1;
const UPPER: u8 = 2;
const VALUE: u8 = 4;
const TARGET: u8 = 8;
const HOST: u8 = 16;

/// What each byte may be part of.
static CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0usize;
    while byte < 256 {
        let c = byte as u8;
        let is_token = c.is_ascii_alphanumeric()
            || matches!(
                c,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        if is_token {
            class[byte] |= TOKEN;
        }
        if c.is_ascii_uppercase() {
            class[byte] |= UPPER;
        }
        if c == b'\t' || (c >= b' ' && c != 0x7f) {
            class[byte] |= VALUE;
        }
        // RFC 3986 §3.3 and §3.4, and what browsers send beyond it.
        if c.is_ascii_graphic() && !matches!(c, b'"' | b'<' | b'>' | b'#' | b'\\') {
            class[byte] |= TARGET;
        }
        // RFC 3986 §3.2.2, reg-name, less the comma: HTTP/1.1 behind a gateway takes it for two.
        if c.is_ascii_alphanumeric()
            || matches!(c, b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$')
            || matches!(c, b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=')
        {
            class[byte] |= HOST;
        }
        byte += 1;
    }
    class
};

fn all(bytes: &[u8], wanted: u8) -> bool {
    bytes.iter().all(|&byte| CLASS[usize::from(byte)] & wanted != 0)
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// A token in lower case.
#[inline]
pub(super) fn is_field_name(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|&byte| CLASS[usize::from(byte)] & (TOKEN | UPPER) == TOKEN)
}

/// No control characters, no white space around it.
#[inline]
pub(super) fn is_field_value(bytes: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    all(bytes, VALUE) && !is_blank(bytes.first()) && !is_blank(bytes.last())
}

/// A value that a service may send: blanks around it are its business.
pub(super) fn is_sendable_value(bytes: &[u8]) -> bool {
    all(bytes, VALUE)
}

/// A path with its query.
pub(super) fn is_target(bytes: &[u8]) -> bool {
    all(bytes, TARGET)
}

/// `uri-host [ ":" port ]` (RFC 9110 §4.2): no user information (RFC 9113 §8.3.1), no blanks, no quotes.
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let (host, rest) = match bytes.strip_prefix(b"[") {
        Some(inside) => {
            let Some(end) = inside.iter().position(|&byte| byte == b']') else { return false };
            let is_address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            if end == 0 || !inside[..end].iter().all(is_address) {
                return false;
            }
            (&b""[..], &inside[end + 1..])
        }
        None => bytes.split_at(bytes.iter().position(|&byte| byte == b':').unwrap_or(bytes.len())),
    };
    let is_port = match rest.split_first() {
        None => true,
        Some((b':', port)) => port.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    all(host, HOST) && is_port
}

/// Decimal digits that fit.
pub(super) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 19 || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(bytes.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}
