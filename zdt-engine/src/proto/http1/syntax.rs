//! Character classes and small scanners of RFC 9110 §5.6 and RFC 3986, as tables and words.
//!
//! Must not know: messages, state, limits.

const TOKEN: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 4;
const HOST: u8 = 8;

/// One byte of class bits per octet.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        let byte = octet as u8;
        let alphanumeric = byte.is_ascii_alphanumeric();
        let mut class = 0;
        // RFC 9110 §5.6.2
        if alphanumeric || contains(b"!#$%&'*+-.^_`|~", byte) {
            class |= TOKEN;
        }
        // RFC 3986 §3.3 and §3.4, widened by what browsers send unescaped (WHATWG URL, the path and
        // query percent-encode sets). A fragment never belongs on the wire, and a backslash in the
        // path is a slash to some and a letter to others.
        if byte.is_ascii_graphic() && !contains(b"#\"<>", byte) {
            class |= QUERY;
            if byte != b'\\' {
                class |= PATH;
            }
        }
        // RFC 3986 §3.2.2, reg-name, less the comma: two Host fields joined by a proxy look like it.
        if alphanumeric || contains(b"-._~%!$&'()*+;=", byte) {
            class |= HOST;
        }
        table[octet] = class;
        octet += 1;
    }
    table
}

const fn contains(set: &[u8], byte: u8) -> bool {
    let mut index = 0;
    while index < set.len() {
        if set[index] == byte {
            return true;
        }
        index += 1;
    }
    false
}

/// True for `tchar` (RFC 9110 §5.6.2).
#[inline]
pub(super) fn is_token_byte(byte: u8) -> bool {
    CLASS[usize::from(byte)] & TOKEN != 0
}

/// True for a non-empty `token`.
#[inline]
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

/// Where the path ends: at the first byte that may not be in a path, or is a `?`.
#[inline]
pub(super) fn path_length(bytes: &[u8]) -> usize {
    let inside = |&byte: &u8| CLASS[usize::from(byte)] & PATH != 0 && byte != b'?';
    bytes.iter().position(|byte| !inside(byte)).unwrap_or(bytes.len())
}

/// True when every byte may be in a query.
#[inline]
pub(super) fn is_query(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| CLASS[usize::from(byte)] & QUERY != 0)
}

/// `uri-host [ ":" port ]` (RFC 9110 §4.2, §7.2); an empty one is an empty authority.
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let (host_is_valid, port) = if let Some(rest) = bytes.strip_prefix(b"[") {
        // IP-literal; of its two forms, IPvFuture has never been used.
        let Some(end) = rest.iter().position(|&byte| byte == b']') else { return false };
        let address = &rest[..end];
        let valid = address.contains(&b':')
            && address.iter().all(|&byte| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.');
        (valid, &rest[end + 1..])
    } else {
        let end = bytes.iter().position(|&byte| byte == b':').unwrap_or(bytes.len());
        (is_registered_name(&bytes[..end]), &bytes[end..])
    };
    let port_is_valid = match port.strip_prefix(b":") {
        Some(digits) => {
            digits.len() <= 5
                && decimal(digits).is_none_or(|port| port <= 65_535)
                && all_digits(digits)
        }
        None => port.is_empty(),
    };
    host_is_valid && port_is_valid
}

fn is_registered_name(bytes: &[u8]) -> bool {
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        let valid = if byte == b'%' {
            let mut digit = || rest.next().is_some_and(u8::is_ascii_hexdigit);
            digit() && digit()
        } else {
            CLASS[usize::from(byte)] & HOST != 0
        };
        if !valid {
            return false;
        }
    }
    true
}

/// True when there is nothing but digits (or nothing at all).
pub(super) fn all_digits(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_digit)
}

/// The value of `1*DIGIT`, saturating at `u64::MAX`; `None` if it is anything else.
pub(super) fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !all_digits(bytes) {
        return None;
    }
    let add =
        |value: u64, digit: &u8| value.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(bytes.iter().fold(0, add))
}

/// Without spaces and tabs at either end (RFC 9110 §5.6.3, OWS).
#[inline]
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list, trimmed; empty ones are kept (RFC 9110 §5.6.1).
pub(super) fn list(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&byte| byte == b',').map(trim)
}

/// Index of the first byte at or after `from` that cannot be inside a line: a control character
/// other than tab (so CR and LF, too), or DEL. The length of `bytes` if there is none.
#[inline]
pub(super) fn find_control(bytes: &[u8], from: usize) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH: u64 = ONES * 0x80;
    let mut at = from;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        // Both tests are exact for the lowest byte that they mark, which is all that is used.
        let below_space = word.wrapping_sub(ONES * 0x20) & !word;
        let not_delete = word ^ (ONES * 0x7f);
        let delete = not_delete.wrapping_sub(ONES) & !not_delete;
        let marks = (below_space | delete) & HIGH;
        if marks == 0 {
            at += 8;
            continue;
        }
        at += marks.trailing_zeros() as usize / 8;
        if bytes[at] != b'\t' {
            return at;
        }
        at += 1;
    }
    let is_control = |&byte: &u8| (byte < 0x20 && byte != b'\t') || byte == 0x7f;
    match bytes.get(at..) {
        Some(rest) => at + rest.iter().position(is_control).unwrap_or(rest.len()),
        None => bytes.len(),
    }
}
