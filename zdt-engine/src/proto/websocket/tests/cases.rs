//! Single rules of RFC 6455 and RFC 7692, by hand.

use super::peer::{Compressor, Fed, LIMITS, Seen, ServerReader, events_of, frame, params};
use crate::proto::Input;
use crate::proto::websocket::{
    DeflateParams, Event, INFLATED_AT_ONCE, Limits, MessageKind, SLICE_BYTES, WebSocket,
};

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const PLAIN: DeflateParams = DeflateParams {
    server_no_context_takeover: false,
    client_no_context_takeover: false,
    server_window_bits: 15,
    client_window_bits: 15,
};

fn text(text: &str) -> Seen {
    Seen::Message(MessageKind::Text, text.as_bytes().to_vec())
}

fn frames(list: &[(u8, &[u8])]) -> Vec<u8> {
    list.iter().flat_map(|(first, payload)| frame(*first, payload, MASK)).collect()
}

#[test]
fn the_examples_of_rfc_6455() {
    // §5.7: a masked "Hello", a fragmented one, a ping in between.
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(events_of(&hello, None), [text("Hello")]);
    let bytes = frames(&[(0x01, b"Hel"), (0x89, b"Hello"), (0x80, b"lo")]);
    assert_eq!(events_of(&bytes, None), [Seen::Ping(b"Hello".to_vec()), text("Hello")]);
}

#[test]
fn protocol_errors_are_1002() {
    let unmasked = [0x81, 0x05, b'H', b'e', b'l', b'l', b'o'];
    assert_eq!(events_of(&unmasked, None), [Seen::Error(1002)]);
    for first in [0xa1, 0x91, 0xc1, 0x83, 0x87, 0x8b, 0x8f, 0xc9, 0x09, 0x08, 0x80, 0x00] {
        assert_eq!(events_of(&frame(first, b"x", MASK), None), [Seen::Error(1002)], "{first:x}");
    }
    for list in [
        // A new message inside a fragmented one.
        &[(0x01, &b"a"[..]), (0x81, &b"b"[..])][..],
        &[(0x01, b"a"), (0x02, b"b")],
        // The compression bit on a continuation, even where it was negotiated.
        &[(0x01, b"a"), (0xc0, b"b")],
    ] {
        assert_eq!(events_of(&frames(list), Some(PLAIN)), [Seen::Error(1002)]);
    }
    assert_eq!(events_of(&frame(0x89, &[0; 126], MASK), None), [Seen::Error(1002)]);
    let not_minimal_16 = [0x82, 0xfe, 0, 125, 0, 0, 0, 0];
    let not_minimal_64 = [0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    let negative = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for bytes in [&not_minimal_16[..], &not_minimal_64, &negative] {
        assert_eq!(events_of(bytes, None), [Seen::Error(1002)]);
    }
}

#[test]
fn close_frames() {
    assert_eq!(events_of(&frame(0x88, b"", MASK), None), [Seen::Close(None, Vec::new())]);
    assert_eq!(
        events_of(&frame(0x88, b"\x03\xe8bye", MASK), None),
        [Seen::Close(Some(1000), b"bye".to_vec())]
    );
    assert_eq!(events_of(&frame(0x88, b"\x03", MASK), None), [Seen::Error(1002)]);
    assert_eq!(events_of(&frame(0x88, b"\x03\xe8\xff", MASK), None), [Seen::Error(1007)]);
    for (code, valid) in [
        (0, false),
        (999, false),
        (1000, true),
        (1003, true),
        (1004, false),
        (1005, false),
        (1006, false),
        (1007, true),
        (1014, true),
        (1015, false),
        (2999, false),
        (3000, true),
        (4999, true),
        (5000, false),
    ] {
        let expected = if valid { Seen::Close(Some(code), Vec::new()) } else { Seen::Error(1002) };
        assert_eq!(events_of(&frame(0x88, &u16::to_be_bytes(code), MASK), None), [expected]);
    }
    // Whatever follows a close is ignored.
    let bytes = frames(&[(0x88, b""), (0x81, b"late"), (0xff, b"")]);
    assert_eq!(events_of(&bytes, None), [Seen::Close(None, Vec::new())]);
}

#[test]
fn text_fails_at_the_first_bad_byte() {
    // The frame announces more than what has arrived; so does the message.
    let whole = frame(0x01, b"ab\xce\xba\xff and much more that never arrives", MASK);
    let mut fed = Fed::new(None);
    let bad = 6 + 4;
    fed.feed(&whole[..bad], &LIMITS);
    assert_eq!(fed.seen, []);
    fed.feed(&whole[bad..=bad], &LIMITS);
    assert_eq!(fed.seen, [Seen::Error(1007)]);
    // A character over a frame boundary, and one that ends too early.
    let bytes = frames(&[(0x01, b"\xe2"), (0x00, b"\x82"), (0x80, b"\xac")]);
    assert_eq!(events_of(&bytes, None), [text("€")]);
    let bytes = frames(&[(0x01, b"\xe2"), (0x80, b"\x82")]);
    assert_eq!(events_of(&bytes, None), [Seen::Error(1007)]);
    assert_eq!(events_of(&frame(0x81, b"\xe2\x82", MASK), None), [Seen::Error(1007)]);
    // Compressed text as well, before its end.
    let compressed = Compressor::new(PLAIN).message(&[b"fine", b"\xff"]);
    let bytes = frames(&[(0x41, &compressed), (0x00, b"")]);
    assert_eq!(events_of(&bytes, Some(PLAIN)), [Seen::Error(1007)]);
}

#[test]
fn limits_hold_before_the_bytes_arrive() {
    let limits = Limits { max_message_bytes: 10 };
    let mut too_long = Fed::new(None);
    too_long.feed(&frame(0x82, &[0; 11], MASK)[..6], &limits);
    assert_eq!(too_long.seen, [Seen::Error(1009)]);
    let mut fragments = Fed::new(None);
    fragments.feed(&frames(&[(0x02, &[0; 6]), (0x00, &[0; 4]), (0x80, &[0; 1])]), &limits);
    assert_eq!(fragments.seen, [Seen::Error(1009)]);
    let mut exact = Fed::new(None);
    exact.feed(&frames(&[(0x02, &[0; 6]), (0x80, &[0; 4]), (0x82, &[0; 10])]), &limits);
    assert_eq!(exact.seen.len(), 2);
}

#[test]
fn memory_grows_with_what_arrives_only() {
    let header = [0x82, 0xff, 0, 0, 0, 0, 0, 0x0f, 0xff, 0xff, 0, 0, 0, 0];
    let mut fed = Fed::new(None);
    fed.feed(&header, &LIMITS);
    assert_eq!(fed.machine.heap_bytes(), 0);
    let mut arrived = 0;
    for _ in 0..1000 {
        fed.feed(&[0; 100], &LIMITS);
        arrived += 100;
        assert!(fed.machine.heap_bytes() <= 2 * arrived);
    }
    assert_eq!(fed.seen, []);
}

#[test]
fn a_bomb_fails_while_it_goes_off() {
    let zeros = vec![0; 64 << 20];
    let bomb = Compressor::new(PLAIN).message(&[&zeros]);
    assert!(bomb.len() < 100_000);
    let mut fed = Fed::new(Some(PLAIN));
    let limits = Limits { max_message_bytes: 1 << 20 };
    let bytes = frame(0x42, &bomb, MASK);
    for piece in bytes.chunks(1000) {
        fed.feed(piece, &limits);
        assert!(fed.machine.heap_bytes() < 3 << 20);
    }
    assert_eq!(fed.seen, [Seen::Error(1009)]);
    // Exactly the limit is fine.
    let bytes = frame(0xc2, &Compressor::new(PLAIN).message(&[&zeros[..1 << 20]]), MASK);
    let mut fed = Fed::new(Some(PLAIN));
    fed.feed(&bytes, &limits);
    assert_eq!(fed.seen, [Seen::Message(MessageKind::Binary, vec![0; 1 << 20])]);
    let bytes = frame(0xc2, &Compressor::new(PLAIN).message(&[&zeros[..(1 << 20) + 1]]), MASK);
    let mut fed = Fed::new(Some(PLAIN));
    fed.feed(&bytes, &limits);
    assert_eq!(fed.seen, [Seen::Error(1009)]);
}

/// What one call inflates is bounded, and between two of them the machine can move.
#[test]
fn a_long_message_is_inflated_in_slices() {
    const BYTES: usize = 8 << 20;
    const MOST: usize = SLICE_BYTES + 1032 * INFLATED_AT_ONCE;
    let limits = Limits { max_message_bytes: BYTES as u64 };
    let zeros = vec![0; BYTES];
    let message = Compressor::new(PLAIN).message(&[&zeros]);
    for params in [PLAIN, DeflateParams { client_no_context_takeover: true, ..PLAIN }] {
        let mut bytes = frame(0xc2, &message, MASK);
        let mut input = Input::new(&mut bytes);
        let mut machine = WebSocket::new(Some(params));
        let (mut slices, mut before) = (0, 0);
        let payload = loop {
            match machine.next_event(&mut input, &limits).expect("valid") {
                Some(Event::Message { payload, .. }) => break payload,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            assert!(machine.is_sliced(&input));
            slices += 1;
            let inflated = machine.assembly.len();
            assert!(inflated - before <= MOST, "{} bytes in one slice", inflated - before);
            before = inflated;
            machine = WebSocket::restore(machine.save(), &limits).expect("its own state");
            assert_eq!(machine.assembly.len(), inflated);
        };
        assert!(*payload == *zeros, "it is what was sent");
        assert!(slices >= BYTES / MOST - 1, "{slices} slices");
        assert!(input.is_empty() && !machine.is_sliced(&input));
    }
}

#[test]
fn empty_deflate_blocks_cannot_go_on_for_ever() {
    let limits = Limits { max_message_bytes: 1000 };
    let mut fed = Fed::new(Some(PLAIN));
    fed.feed(&frame(0x42, &[0, 0, 0, 0xff, 0xff], MASK), &limits);
    for _ in 0..1000 {
        fed.feed(&frame(0x00, &[0, 0, 0, 0xff, 0xff].repeat(10), MASK), &limits);
        assert!(fed.machine.heap_bytes() < 100 << 10);
    }
    assert_eq!(fed.seen, [Seen::Error(1009)]);
}

#[test]
fn the_examples_of_rfc_7692() {
    let hello = |payload: &[u8]| events_of(&frame(0xc1, payload, MASK), Some(PLAIN));
    // §7.2.3.1 one block, §7.2.3.3 no compression, §7.2.3.4 final block, §7.2.3.5 two blocks.
    assert_eq!(hello(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]), [text("Hello")]);
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    assert_eq!(hello(&stored), [text("Hello")]);
    assert_eq!(hello(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]), [text("Hello")]);
    let two = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(hello(&two), [text("Hello")]);
    // §7.2.3.2: the second message refers to the first.
    let bytes = frames(&[
        (0xc1, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]),
        (0xc1, &[0xf2, 0x00, 0x11, 0x00, 0x00]),
    ]);
    assert_eq!(events_of(&bytes, Some(PLAIN)), [text("Hello"), text("Hello")]);
    let forgetful = params(false, true, 15, 15);
    assert_eq!(events_of(&bytes, Some(forgetful)), [text("Hello"), Seen::Error(1007)]);
    // §7.2.3.6: an empty message.
    assert_eq!(hello(&[0x00]), [text("")]);
    // Fragmented (§7.2.3.1).
    let bytes = frames(&[(0x41, &[0xf2, 0x48, 0xcd]), (0x80, &[0xc9, 0xc9, 0x07, 0x00])]);
    assert_eq!(events_of(&bytes, Some(PLAIN)), [text("Hello")]);
}

#[test]
fn a_window_survives_final_blocks() {
    let phrase = b"the same phrase, again and again".repeat(4);
    let first = Compressor::new(PLAIN).message(&[&phrase]);
    let second = Compressor::new(PLAIN).final_block_message(b"bye");
    // What a sender makes whose window has outlived its final block.
    let mut compressor = Compressor::with_window(PLAIN, &[&phrase[..], b"bye"].concat());
    let third = compressor.message(&[&phrase]);
    assert!(third.len() < 16);
    let bytes = frames(&[(0xc2, &first), (0xc2, &second), (0xc2, &third)]);
    let expected: Vec<Seen> = [&phrase[..], b"bye", &phrase]
        .iter()
        .map(|bytes| Seen::Message(MessageKind::Binary, bytes.to_vec()))
        .collect();
    assert_eq!(events_of(&bytes, Some(PLAIN)), expected);
    // The same as three blocks of one message, where the window is in the message itself.
    let mut one = Compressor::new(PLAIN).piece(&phrase, zlib_rs::DeflateFlush::Finish);
    one.extend(&second[..second.len() - 1]);
    one.extend(&third);
    let expected = [&phrase[..], b"bye", &phrase].concat();
    assert_eq!(
        events_of(&frame(0xc2, &one, MASK), Some(PLAIN)),
        [Seen::Message(MessageKind::Binary, expected)]
    );
}

#[test]
fn compressed_messages_must_end_between_blocks() {
    let good = Compressor::new(PLAIN).message(&[b"some words that compress, some words that do"]);
    for end in 1..good.len() {
        let seen = events_of(&frame(0xc2, &good[..end], MASK), Some(PLAIN));
        assert_eq!(seen, [Seen::Error(1007)], "cut at {end} of {}", good.len());
    }
    // A stored block that would swallow the trailer, and a byte too many.
    let stored = [0x00, 0x08, 0x00, 0xf7, 0xff, b'x', b'y', b'z', b'w'];
    assert_eq!(events_of(&frame(0xc2, &stored, MASK), Some(PLAIN)), [Seen::Error(1007)]);
    for extra in [0x00, 0x01, 0x55, 0xff] {
        let long = [&good[..], &[extra]].concat();
        let seen = events_of(&frame(0xc2, &long, MASK), Some(PLAIN));
        assert_eq!(seen, [Seen::Error(1007)], "{extra:x}");
    }
}

#[test]
fn writing() {
    let mut machine = WebSocket::new(None);
    let mut reader = ServerReader::new(None);
    let mut out = Vec::new();
    let mut expected = Vec::new();
    for length in [0, 1, 125, 126, 127, 65535, 65536, 70000] {
        machine.write_message(&mut out, MessageKind::Binary, &vec![7; length], 0);
        expected.push(Seen::Message(MessageKind::Binary, vec![7; length]));
    }
    machine.write_ping(&mut out, b"are you there");
    machine.write_pong(&mut out, &[1; 200]);
    machine.write_close(&mut out, Some(1001), &"€".repeat(60));
    assert!(machine.close_sent());
    expected.push(Seen::Ping(b"are you there".to_vec()));
    expected.push(Seen::Pong(vec![1; 125]));
    expected.push(Seen::Close(Some(1001), "€".repeat(41).into_bytes()));
    // Nothing goes behind a close.
    machine.write_message(&mut out, MessageKind::Text, b"late", 0);
    machine.write_ping(&mut out, b"late");
    machine.write_close(&mut out, None, "");
    assert_eq!(reader.read(&out), expected);
    // A code that must not be on the wire.
    let mut out = Vec::new();
    WebSocket::new(None).write_close(&mut out, Some(1006), "no");
    assert_eq!(out, [0x88, 0x00]);
}

#[test]
fn writing_compressed() {
    let noise: Vec<u8> =
        (0u32..70000).map(|index| (index.wrapping_mul(2654435761) >> 13) as u8).collect();
    for params in [
        params(false, false, 15, 15),
        params(true, true, 15, 15),
        params(false, false, 9, 9),
        params(true, false, 12, 8),
    ] {
        let mut machine = WebSocket::new(Some(params));
        let mut reader = ServerReader::new(Some(params));
        for round in 0..3 {
            for length in [0, 1, 2, 100, 125, 126, 127, 130, 250, 252, 300, 65535, 65536, 70000] {
                for payload in [&vec![b'x'; length], &noise[..length].to_vec()] {
                    let mut out = b"before".to_vec();
                    machine.write_message(&mut out, MessageKind::Binary, payload, 2);
                    let seen = reader.read(&out[6..]);
                    assert_eq!(seen, [Seen::Message(MessageKind::Binary, payload.clone())]);
                    if length < 2 {
                        assert_eq!(out[6], 0x82, "below the threshold");
                    } else if payload[0] == payload[length / 2] && length > 100 {
                        assert!(out.len() < 6 + 4 + length / 4, "{length}: {}", out.len());
                    }
                    assert!(out.len() <= 6 + 10 + 8 + length + length / 256);
                }
            }
            if round == 1 {
                machine.release_contexts();
                assert!(machine.heap_bytes() <= (64 << 10) + 256);
            }
        }
    }
}

#[test]
fn a_quiet_connection_can_let_its_contexts_go() {
    let params = params(false, false, 15, 15);
    let mut compressor = Compressor::new(params);
    let mut fed = Fed::new(Some(params));
    let phrase = b"once upon a time there was a window".repeat(3);
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let compressed = compressor.message(&[&phrase]);
        sizes.push(compressed.len());
        // In the middle of a message, too.
        let bytes = frames(&[(0x42, &compressed[..3]), (0x80, &compressed[3..])]);
        fed.feed(&bytes[..12], &LIMITS);
        fed.machine.release_contexts();
        fed.feed(&bytes[12..], &LIMITS);
        fed.machine.release_contexts();
    }
    assert!(sizes[1] < sizes[0] / 2);
    assert_eq!(fed.seen, vec![Seen::Message(MessageKind::Binary, phrase); 4]);
}

#[test]
fn an_idle_machine_owns_nothing() {
    let mut fed = Fed::new(Some(PLAIN));
    fed.feed(&frames(&[(0x81, b"Hello"), (0x01, b"Hel"), (0x80, b"lo"), (0x89, b"")]), &LIMITS);
    assert_eq!(fed.seen.len(), 3);
    assert!(fed.machine.is_idle());
    assert_eq!(fed.machine.heap_bytes(), 0);
}
