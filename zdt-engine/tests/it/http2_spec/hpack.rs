//! `hpack`: blocks that cannot be decoded end the connection.

use super::*;

#[test]
fn hpack() {
    check("hpack", |spec| {
        for (name, before, behind) in [
            (
                "2.3.3/1: sends a indexed header field representation with invalid index",
                &b""[..],
                &b"\xc6"[..],
            ),
            (
                "2.3.3/2: sends a literal header field representation with invalid index",
                b"",
                b"\x7f\x07\x00",
            ),
            ("4.2/1: sends a dynamic table size update at the end of header block", b"", b"\x21"),
            (
                "5.2/1: sends a Huffman-encoded string literal representation with padding longer than 7 bits",
                b"",
                b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff",
            ),
            (
                "5.2/2: sends a Huffman-encoded string literal representation padded by zero",
                b"",
                b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90",
            ),
            (
                "5.2/3: sends a Huffman-encoded string literal representation containing the EOS symbol",
                b"",
                b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f",
            ),
            ("6.1/1: sends a indexed header field representation with index 0", b"", b"\x80"),
            (
                "6.3/1: sends a dynamic table size update larger than the value of SETTINGS_HEADER_TABLE_SIZE",
                b"\x3f\xe2\x1f",
                b"",
            ),
        ] {
            spec.case(name, |c| {
                whole(c, 1, &[before, &common("GET")[..], behind].concat());
                ConnectionError(COMPRESSION)
            });
        }
    });
}
