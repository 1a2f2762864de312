//! The PROXY protocol, versions 1 and 2 (haproxy.org/download/3.0/doc/proxy-protocol.txt): what a proxy says of
//! the client before the client's first byte.
//!
//! Strict: a header that is not one is an error and not data, since whoever can choose between the two can
//! choose its address. Bounded: whatever comes, no more than [`MAX_HEADER_BYTES`] are wanted.
//!
//! Must not know: who may send such a header, what follows it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header: version 2 with more than 1 KiB of extensions, such as a TLS client's name.
pub const MAX_HEADER_BYTES: usize = 2_048;

/// §2.1: "the buffer is 107 bytes long", the CRLF included.
const MAX_V1_BYTES: usize = 107;
const V1_START: &[u8] = b"PROXY ";
/// §2.2: chosen so that no HTTP, TLS or SMTP implementation takes it for its own.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD_BYTES: usize = 16;
/// §2.2.3: CRC32C of the whole header.
const TLV_CRC32C: u8 = 0x03;

/// What the bytes so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The beginning of a header.
    Incomplete,
    /// A whole header.
    Complete(Header),
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes that it has.
    pub len: usize,
    /// The client, if the header tells: `None` for the proxy's own connections (health checks) and for
    /// addresses that are none of the internet.
    pub source: Option<SocketAddr>,
}

/// Why bytes are no header; the peer is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// They begin otherwise.
    #[error("no PROXY protocol header")]
    NoHeader,
    /// Version 1 whose line is none.
    #[error("PROXY protocol 1: {0}")]
    Line(&'static str),
    /// Version 2 whose fields are none.
    #[error("PROXY protocol 2: {0}")]
    Binary(&'static str),
}

/// Looks at the first bytes of a connection.
///
/// # Errors
/// See [`HeaderError`]; the connection is to be closed.
pub fn parse(bytes: &[u8]) -> Result<Progress, HeaderError> {
    if starts_alike(bytes, &V2_SIGNATURE) {
        parse_binary(bytes)
    } else if starts_alike(bytes, V1_START) {
        parse_line(bytes)
    } else {
        Err(HeaderError::NoHeader)
    }
}

/// True as far as both go.
fn starts_alike(bytes: &[u8], start: &[u8]) -> bool {
    let common = bytes.len().min(start.len());
    bytes[..common] == start[..common]
}

/// §2.1: `PROXY TCP4 SOURCE DESTINATION SPORT DPORT CRLF`.
fn parse_line(bytes: &[u8]) -> Result<Progress, HeaderError> {
    let window = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = window.iter().position(|&byte| byte == b'\r' || byte == b'\n') else {
        if window.len() == MAX_V1_BYTES {
            return Err(HeaderError::Line("the line is too long"));
        }
        return Ok(Progress::Incomplete);
    };
    match (window[end], window.get(end + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) if window.len() < MAX_V1_BYTES => return Ok(Progress::Incomplete),
        _ => return Err(HeaderError::Line("the line does not end with CR LF")),
    }
    let line = std::str::from_utf8(&window[..end]).map_err(|_| HeaderError::Line("not ASCII"))?;
    let mut fields = line.split(' ').skip(1);
    let source = match fields.next() {
        // "the receiver must ignore anything presented before the CRLF"
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(line_source::<Ipv4Addr>(fields)?),
        Some("TCP6") => Some(line_source::<Ipv6Addr>(fields)?),
        _ => return Err(HeaderError::Line("neither TCP4, TCP6 nor UNKNOWN")),
    };
    Ok(Progress::Complete(Header { len: end + 2, source }))
}

fn line_source<'a, A: std::str::FromStr + Into<IpAddr>>(
    mut fields: impl Iterator<Item = &'a str>,
) -> Result<SocketAddr, HeaderError> {
    let mut address = || {
        let field = fields.next().ok_or(HeaderError::Line("an address is missing"))?;
        field.parse::<A>().map_err(|_| HeaderError::Line("an address is none"))
    };
    let (source, _destination) = (address()?, address()?);
    let mut port = || {
        let field = fields.next().ok_or(HeaderError::Line("a port is missing"))?;
        let plain = field == "0" || !field.starts_with(['0', '+']);
        let port = field.parse::<u16>().ok().filter(|_| plain);
        port.ok_or(HeaderError::Line("a port is none"))
    };
    let (source_port, _destination_port) = (port()?, port()?);
    match fields.next() {
        None => Ok(SocketAddr::new(source.into(), source_port)),
        Some(_) => Err(HeaderError::Line("something follows the ports")),
    }
}

/// §2.2: signature, version and command, family and protocol, length, addresses, extensions.
fn parse_binary(bytes: &[u8]) -> Result<Progress, HeaderError> {
    // What cannot become right any more is refused at once.
    let command = match bytes.get(12) {
        None => return Ok(Progress::Incomplete),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(version) if version >> 4 != 2 => return Err(HeaderError::Binary("not version 2")),
        Some(_) => return Err(HeaderError::Binary("neither LOCAL nor PROXY")),
    };
    let Some(head) = bytes.get(..V2_HEAD_BYTES) else { return Ok(Progress::Incomplete) };
    let len = V2_HEAD_BYTES + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if len > MAX_HEADER_BYTES {
        return Err(HeaderError::Binary("the header is too long"));
    }
    let Some(header) = bytes.get(..len) else { return Ok(Progress::Incomplete) };
    let body = &header[V2_HEAD_BYTES..];
    let too_short = HeaderError::Binary("shorter than its addresses");
    let (source, addresses) = match (command, head[13]) {
        // "the receiver must accept this connection as valid and must use the real connection endpoints"
        (Command::Local, _) | (Command::Proxy, 0x00) => {
            return Ok(Progress::Complete(Header { len, source: None }));
        }
        (Command::Proxy, 0x11) => {
            let fixed: &[u8; 12] = body.first_chunk().ok_or(too_short)?;
            let [a, b, c, d, ..] = *fixed;
            let port = u16::from_be_bytes([fixed[8], fixed[9]]);
            (Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port)), 12)
        }
        (Command::Proxy, 0x21) => {
            let fixed: &[u8; 36] = body.first_chunk().ok_or(too_short)?;
            let address: &[u8; 16] = fixed.first_chunk().ok_or(too_short)?;
            let port = u16::from_be_bytes([fixed[32], fixed[33]]);
            (Some(SocketAddr::new(Ipv6Addr::from(*address).into(), port)), 36)
        }
        // A client of a Unix socket has no address.
        (Command::Proxy, 0x31) => (None, 216),
        _ => return Err(HeaderError::Binary("not a stream of a known family")),
    };
    let extensions = body.get(addresses..).ok_or(too_short)?;
    check_extensions(header, len - extensions.len())?;
    Ok(Progress::Complete(Header { len, source }))
}

#[derive(Clone, Copy)]
enum Command {
    Local,
    Proxy,
}

/// §2.2.3: type, length, value; only the checksum means anything here.
fn check_extensions(header: &[u8], mut at: usize) -> Result<(), HeaderError> {
    while at < header.len() {
        let cut_off = HeaderError::Binary("an extension is cut off");
        let head: &[u8; 3] = header[at..].first_chunk().ok_or(cut_off)?;
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([head[1], head[2]]));
        let bytes = header.get(value..end).ok_or(cut_off)?;
        if head[0] == TLV_CRC32C {
            let said: &[u8; 4] = bytes
                .try_into()
                .map_err(|_| HeaderError::Binary("the checksum has not 4 bytes"))?;
            let mut zeroed = header.to_vec();
            zeroed[value..end].fill(0);
            if crc_fast::crc32_iscsi(&zeroed) != u32::from_be_bytes(*said) {
                return Err(HeaderError::Binary("the checksum is another"));
            }
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(bytes: &[u8]) -> Header {
        match parse(bytes) {
            Ok(Progress::Complete(header)) => header,
            other => panic!("{other:?}: {bytes:?}"),
        }
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn lines() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nGET /";
        let header = complete(line);
        assert_eq!(header.source, Some("192.0.2.1:56324".parse().unwrap()));
        assert_eq!(&line[header.len..], b"GET /");
        let header = complete(b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n");
        assert_eq!(header.source, Some("[2001:db8::1]:0".parse().unwrap()));
        assert_eq!(complete(b"PROXY UNKNOWN\r\n").source, None);
        assert_eq!(complete(b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n").source, None);
        for bad in [
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 \r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.7 56324 443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.7 56324 443\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.7 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 065 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 +65 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 1 2\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 1 2\rX",
            "PROXY UDP4 192.0.2.1 198.51.100.7 1 2\r\n",
            "PROXY tcp4 192.0.2.1 198.51.100.7 1 2\r\n",
            "PROXY \r\n",
            "proxy TCP4",
            "GET / HTTP/1.1\r\n",
            "\r\n\r\nX",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
        assert_eq!(parse(long.as_bytes()), Err(HeaderError::Line("the line is too long")));
    }

    #[test]
    fn binaries() {
        let four = [192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 1, 0xbb];
        let header = complete(&binary(0x21, 0x11, &four));
        assert_eq!(header.source, Some("192.0.2.1:56324".parse().unwrap()));
        let mut six = [0; 36];
        six[15] = 1;
        six[33] = 80;
        assert_eq!(complete(&binary(0x21, 0x21, &six)).source, Some("[::1]:80".parse().unwrap()));
        assert_eq!(complete(&binary(0x20, 0x11, &four)).source, None, "LOCAL");
        assert_eq!(complete(&binary(0x20, 0x00, &[])).source, None);
        assert_eq!(complete(&binary(0x21, 0x00, &[1, 2, 3])).source, None, "UNSPEC");
        assert_eq!(complete(&binary(0x21, 0x31, &[0; 216])).source, None, "a Unix socket");
        for (bad, why) in [
            (binary(0x11, 0x11, &four), "version"),
            (binary(0x22, 0x11, &four), "LOCAL"),
            (binary(0x21, 0x12, &four), "family"),
            (binary(0x21, 0x41, &four), "family"),
            (binary(0x21, 0x11, &four[..11]), "shorter"),
            (binary(0x21, 0x21, &six[..35]), "shorter"),
            (binary(0x21, 0x11, &[&four[..], &[4, 0]].concat()), "cut off"),
            (binary(0x21, 0x11, &[&four[..], &[4, 0, 9, 1]].concat()), "cut off"),
            (binary(0x21, 0x11, &vec![0; 3_000]), "too long"),
        ] {
            let error = parse(&bad).expect_err(why).to_string();
            assert!(error.contains(why), "{error}, not {why}");
        }
    }

    #[test]
    fn a_checksum_is_checked() {
        let mut body = vec![192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 1, 0xbb];
        body.extend([4, 0, 1, 0, TLV_CRC32C, 0, 4, 0, 0, 0, 0]);
        let mut header = binary(0x21, 0x11, &body);
        let crc = crc_fast::crc32_iscsi(&header);
        let at = header.len() - 4;
        header[at..].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(complete(&header).len, header.len());
        header[16] ^= 1;
        assert_eq!(parse(&header), Err(HeaderError::Binary("the checksum is another")));
    }

    proptest! {
        #[test]
        fn every_beginning_of_a_header_is_incomplete(
            source in any::<SocketAddr>(), port in any::<u16>(), tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let line = match source.ip() {
                IpAddr::V4(ip) => format!("PROXY TCP4 {ip} {ip} {} {port}\r\n", source.port()),
                IpAddr::V6(ip) => format!("PROXY TCP6 {ip} {ip} {} {port}\r\n", source.port()),
            };
            let mut body = match source.ip() {
                IpAddr::V4(ip) => [ip.octets(), ip.octets()].concat(),
                IpAddr::V6(ip) => [ip.octets(), ip.octets()].concat(),
            };
            body.extend(source.port().to_be_bytes());
            body.extend(port.to_be_bytes());
            let family = if source.is_ipv4() { 0x11 } else { 0x21 };
            for header in [line.into_bytes(), binary(0x21, family, &body)] {
                for cut in 0..header.len() {
                    prop_assert_eq!(parse(&header[..cut]), Ok(Progress::Incomplete));
                }
                let whole = [&header[..], &tail].concat();
                let parsed = complete(&whole);
                prop_assert_eq!(parsed.len, header.len());
                prop_assert_eq!(parsed.source, Some(SocketAddr::new(source.ip(), source.port())));
            }
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), start in 0usize..3) {
            let start: &[u8] = [&[][..], V1_START, &V2_SIGNATURE][start];
            let bytes = [start, &bytes].concat();
            if let Ok(Progress::Complete(header)) = parse(&bytes) {
                prop_assert!(header.len <= bytes.len().min(MAX_HEADER_BYTES));
                // What follows makes no difference.
                prop_assert_eq!(parse(&bytes[..header.len]), Ok(Progress::Complete(header)));
            }
        }
    }
}
