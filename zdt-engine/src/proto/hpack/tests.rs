//! Tests of HPACK: the RFC's examples, round trips, hostile blocks, saved tables.
//!
//! Must not know: frames.

use proptest::prelude::*;

use super::huffman_code::CODES;
use super::*;

const LIMITS: Limits = Limits { max_list_bytes: 16 << 10, max_count: 100 };

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| (digit as char).to_digit(16).expect("hex") as u8;
    digits.chunks(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}

fn list(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(name, value)| (text(name), text(value))).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Error> {
    let mut fields = Fields::default();
    decoder.decode(block, &LIMITS, &mut fields).map(|()| list(&fields))
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn huffman_encode(text: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0u64, 0);
    for &byte in text {
        let (code, length) = CODES[usize::from(byte)];
        bits = bits << length | u64::from(code);
        count += u32::from(length);
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        out.push((bits << (8 - count)) as u8 | (0xff >> count) as u8);
    }
    out
}

/// RFC 7541, Appendix C.3 and C.4: the same requests, plain and in Huffman code.
#[test]
fn the_requests_of_the_rfc() {
    let blocks = [
        ["828684410f7777772e6578616d706c652e636f6d", "828684418cf1e3c2e5f23a6ba0ab90f4ff"],
        ["828684be58086e6f2d6361636865", "828684be5886a8eb10649cbf"],
        [
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ];
    #[expect(clippy::needless_range_loop, reason = "one column of a table")]
    for form in 0..2 {
        let mut decoder = Decoder::new();
        let get = |scheme, path| [(":method", "GET"), (":scheme", scheme), (":path", path)];
        let authority = (":authority", "www.example.com");
        let mut expected = get("http", "/").to_vec();
        expected.push(authority);
        assert_eq!(decode(&mut decoder, &bytes(blocks[0][form])), Ok(pairs(&expected)));
        expected.push(("cache-control", "no-cache"));
        assert_eq!(decode(&mut decoder, &bytes(blocks[1][form])), Ok(pairs(&expected)));
        let mut expected = get("https", "/index.html").to_vec();
        expected.extend([authority, ("custom-key", "custom-value")]);
        assert_eq!(decode(&mut decoder, &bytes(blocks[2][form])), Ok(pairs(&expected)));
        assert_eq!(decoder.entries(), 3);
    }
}

/// RFC 7541, Appendix C.5: a table of 256 bytes, from which entries are evicted.
#[test]
fn the_responses_of_the_rfc() {
    let mut decoder = Decoder::new();
    let first = "3fe101 4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d";
    let mut expected = vec![
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ];
    assert_eq!(decode(&mut decoder, &bytes(first)), Ok(pairs(&expected)));
    expected[0].1 = "307";
    assert_eq!(decode(&mut decoder, &bytes("4803333037c1c0bf")), Ok(pairs(&expected)));
    assert_eq!(decoder.entries(), 4);
    let third = "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31";
    let expected = [
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ("location", "https://www.example.com"),
        ("content-encoding", "gzip"),
        ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ];
    assert_eq!(decode(&mut decoder, &bytes(third)), Ok(pairs(&expected)));
    assert_eq!(decoder.entries(), 3);
}

#[test]
fn what_is_encoded_is_decoded() {
    let mut block = Vec::new();
    let mut encoder = Encoder::new();
    encoder.begin_block(&mut block);
    for status in [200, 204, 418, 599] {
        encode::status(&mut block, status);
    }
    encode::field(&mut block, "Content-Type", b"text/plain");
    encode::field(&mut block, "X-Long-Name-That-No-Table-Has", &[b'v'; 300]);
    encode::field(&mut block, "Set-Cookie", b"a=b");
    encode::content_length(&mut block, u64::MAX);
    encode::content_length(&mut block, 0);
    let mut decoder = Decoder::new();
    let fields = decode(&mut decoder, &block).expect("valid");
    let long = "v".repeat(300);
    let expected = [
        (":status", "200"),
        (":status", "204"),
        (":status", "418"),
        (":status", "599"),
        ("content-type", "text/plain"),
        ("x-long-name-that-no-table-has", &long),
        ("set-cookie", "a=b"),
        ("content-length", "18446744073709551615"),
        ("content-length", "0"),
    ];
    assert_eq!(fields, pairs(&expected));
    assert_eq!((decoder.entries(), decoder.heap_bytes()), (0, 0));
}

#[test]
fn a_smaller_table_is_announced_and_awaited() {
    let mut decoder = Decoder::new();
    let mut encoder = Encoder::new();
    decoder.set_limit(0);
    assert_eq!(decode(&mut decoder.clone(), &[0x82]), Err(Error::UpdateMissing));
    encoder.set_peer_limit(10_000); // says nothing
    encoder.set_peer_limit(0);
    assert_eq!(Encoder::restore(0, true), encoder);
    let mut block = Vec::new();
    encoder.begin_block(&mut block);
    encode::status(&mut block, 200);
    assert_eq!(decode(&mut decoder, &block), Ok(pairs(&[(":status", "200")])));
    block.clear();
    encoder.begin_block(&mut block);
    assert!(block.is_empty(), "it is said once");
    assert_eq!(decode(&mut decoder, &[0x3f, 0xe1, 0x1f]), Err(Error::UpdateTooLarge(4096)));
}

#[test]
fn broken_blocks_are_named() {
    let refused = |hex| decode(&mut Decoder::new(), &bytes(hex)).expect_err(hex);
    assert_eq!(refused("80"), Error::NoSuchEntry(0));
    assert_eq!(refused("be"), Error::NoSuchEntry(62));
    assert_eq!(refused("ffffffffff0f"), Error::IntegerTooLarge);
    assert_eq!(refused("ff8080808000"), Error::IntegerTooLarge);
    assert_eq!(refused("ff"), Error::Truncated);
    assert_eq!(refused("4005616263"), Error::Truncated);
    assert_eq!(refused("400161"), Error::Truncated);
    assert_eq!(refused("8220"), Error::UpdateTooLate);
    assert_eq!(refused("3fe21f"), Error::UpdateTooLarge(4097));
    // RFC 7541 §5.2: padding of more than 7 bits, padding with zeroes, the end of string.
    assert_eq!(refused("008161 82ffff"), Error::Huffman);
    assert_eq!(refused("0082 1fff 00"), Error::Huffman);
    assert_eq!(refused("0081 18 00"), Error::Huffman);
    assert_eq!(refused("0084 fffffffc 00"), Error::Huffman);
}

#[test]
fn a_bomb_is_counted_and_left_out() {
    // One entry of 4,000 bytes, then references to it: a byte each.
    let mut block =
        vec![0x40, 1, b'a', 0x7f, 0x80 | ((3900 - 127) & 0x7f) as u8, ((3900 - 127) >> 7) as u8];
    block.extend(std::iter::repeat_n(b'x', 3900));
    block.extend(std::iter::repeat_n(0xbe, 10_000));
    let mut decoder = Decoder::new();
    let mut fields = Fields::default();
    decoder.decode(&block, &LIMITS, &mut fields).expect("valid, if large");
    assert!(fields.is_too_large());
    assert!(fields.bytes.capacity() < 64 << 10, "{}", fields.bytes.capacity());
    assert_eq!(decoder.entries(), 1);
    fields.clear();
    decoder.decode(&[0xbe], &LIMITS, &mut fields).expect("the table is still the peer's");
    assert!(!fields.is_too_large());
    assert_eq!(fields.len(), 1);
}

#[test]
fn saved_tables_that_nobody_saved_are_refused() {
    let entry = |bytes| (vec![b'a'; bytes], Vec::new());
    let state =
        |entries| DecoderState { limit_bytes: 4096, table_bytes: 4096, update_due: false, entries };
    assert!(Decoder::restore(&state(vec![entry(100); 20])).is_ok());
    let refused = |state: &DecoderState| Decoder::restore(state).expect_err("too large");
    assert_eq!(refused(&state(vec![entry(4065)])), RestoreError::TooLarge);
    assert_eq!(refused(&state(vec![entry(100); 32])), RestoreError::TooLarge);
    let too_large = DecoderState { table_bytes: 4097, ..state(vec![]) };
    assert_eq!(refused(&too_large), RestoreError::TooLarge);
    let sizes = (4096, 4096, false);
    assert_eq!(DecoderState::decode(sizes, &[1, 0, 0]), Err(RestoreError::Truncated));
    assert_eq!(DecoderState::decode(sizes, &[1, 0, 1, 0, 9]), Err(RestoreError::Truncated));
    assert_eq!(DecoderState::decode(sizes, &[0; 4097]), Err(RestoreError::TooLarge));
}

fn name_or_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-z]{1,12}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..80),
    ]
}

/// A field in one of the forms that an encoder may choose.
fn encoded(name: &[u8], value: &[u8], form: u8) -> Vec<u8> {
    let mut out = vec![[0x00, 0x10, 0x40][usize::from(form % 3)]];
    for text in [name, value] {
        let code = huffman_encode(text);
        let (flag, text) = if form & 4 != 0 { (0x80, &code[..]) } else { (0, text) };
        match text.len() {
            length @ 0..127 => out.push(flag | length as u8),
            length => out.extend([
                flag | 0x7f,
                0x80 | ((length - 127) & 0x7f) as u8,
                ((length - 127) >> 7) as u8,
            ]),
        }
        out.extend_from_slice(text);
    }
    out
}

proptest! {
    #[test]
    fn any_fields_come_back_and_any_table_moves(
        blocks in prop::collection::vec(
            prop::collection::vec((name_or_value(), name_or_value(), any::<u8>()), 0..8), 1..30),
        updates in prop::collection::vec(prop::option::of(0u32..4097), 30),
    ) {
        let mut moved = Decoder::new();
        let mut stays = Decoder::new();
        for (block, update) in blocks.iter().zip(updates) {
            let mut bytes = Vec::new();
            if let Some(update) = update {
                super::encode::Encoder { table_bytes: 0, update: Some(update) }.begin_block(&mut bytes);
            }
            let mut expected = Vec::new();
            for (name, value, form) in block {
                bytes.extend(encoded(name, value, *form));
                expected.push((name.clone(), value.clone()));
            }
            let (mut first, mut second) = (Fields::default(), Fields::default());
            stays.decode(&bytes, &LIMITS, &mut first).unwrap();
            moved.decode(&bytes, &LIMITS, &mut second).unwrap();
            let owned: Vec<_> = first.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(&owned, &expected);
            // Whatever is in the table can be named, in both, and is the same.
            for index in 0..stays.entries() {
                prop_assert_eq!(stays.table.get(index), moved.table.get(index));
            }
            let mut entries = Vec::new();
            moved.encode_entries(&mut entries);
            prop_assert_eq!(entries.len(), moved.encoded_bytes());
            let state = DecoderState::decode(moved.sizes(), &entries).unwrap();
            prop_assert_eq!(&state, &moved.save());
            prop_assert_eq!(&state, &stays.save());
            moved = Decoder::restore(&state).unwrap();
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..10),
    ) {
        let mut decoder = Decoder::new();
        let mut fields = Fields::default();
        for block in blocks {
            fields.clear();
            if decoder.decode(&block, &LIMITS, &mut fields).is_err() {
                break;
            }
            prop_assert!(fields.len() <= LIMITS.max_count);
            let state = decoder.save();
            prop_assert_eq!(Decoder::restore(&state).unwrap().save(), state);
        }
    }

    #[test]
    fn huffman_code_is_undone(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut out = Vec::new();
        super::huffman::decode(&huffman_encode(&text), &mut out).unwrap();
        prop_assert_eq!(out, text);
    }
}

#[test]
fn crumbs_are_joined() {
    let mut fields = Fields::default();
    for (name, value) in [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")] {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields.join(b"cookie", b"; ");
    assert_eq!(list(&fields), pairs(&[("cookie", "a=1; b=2; c=3"), ("x", "y")]));
    fields.join(b"x", b"; ");
    assert_eq!(fields.len(), 2);
}
