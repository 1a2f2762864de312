//! Saved records that no machine wrote: refused, or harmless.

use bytemuck::Zeroable as _;
use proptest::prelude::*;

use super::moved::moved;
use super::peer::{Fed, LIMITS, events_of, frame, params};
use super::traffic::{encode, negotiated, sent};
use crate::proto::websocket::{
    DeflateState, FrameProgress, Input, Limits, MessageKind, MessageProgress, RestoreError,
    WebSocket, WebSocketHead, WebSocketState,
};

fn refused(state: WebSocketState) -> RestoreError {
    WebSocket::restore(state, &LIMITS).err().expect("must be refused")
}

fn message(kind: MessageKind, compressed: bool, bytes: &[u8]) -> Option<MessageProgress> {
    Some(MessageProgress { kind, compressed, bytes: bytes.to_vec() })
}

fn deflate(client_forgets: bool, bits: u8, incoming: usize, outgoing: usize) -> WebSocketState {
    WebSocketState {
        deflate: Some(DeflateState {
            params: params(false, client_forgets, bits, bits),
            incoming_history: vec![1; incoming],
            outgoing_history: vec![2; outgoing],
        }),
        ..WebSocketState::default()
    }
}

#[test]
fn contradictions_are_refused() {
    let frame = Some(FrameProgress { last: true, remaining: 5, mask: [0; 4] });
    let binary = message(MessageKind::Binary, false, b"abc");
    let malformed = [
        WebSocketState { frame, ..WebSocketState::default() },
        WebSocketState {
            message: binary.clone(),
            frame: Some(FrameProgress { last: true, remaining: 0, mask: [0; 4] }),
            ..WebSocketState::default()
        },
        WebSocketState { message: binary.clone(), failed: true, ..WebSocketState::default() },
        WebSocketState { message: binary, close_received: true, ..WebSocketState::default() },
        WebSocketState {
            message: message(MessageKind::Binary, true, b""),
            ..WebSocketState::default()
        },
        deflate(false, 8, 0, 0),
        deflate(false, 16, 0, 0),
        deflate(false, 0, 0, 0),
        deflate(false, 9, 513, 0),
        deflate(false, 9, 0, 513),
        deflate(true, 9, 1, 0),
    ];
    for state in malformed {
        let error = refused(state.clone());
        assert!(matches!(error, RestoreError::Malformed(_)), "{state:?}: {error}");
    }
    assert!(WebSocket::restore(deflate(false, 9, 512, 512), &LIMITS).is_ok());
}

#[test]
fn messages_that_could_not_have_been_accepted_are_refused() {
    let text = |bytes: &[u8]| WebSocketState {
        message: message(MessageKind::Text, false, bytes),
        ..WebSocketState::default()
    };
    assert!(matches!(refused(text(b"\xff")), RestoreError::Message(_)));
    assert!(WebSocket::restore(text(b"half \xe2\x82"), &LIMITS).is_ok());
    let bad_deflate = WebSocketState {
        message: message(MessageKind::Binary, true, b"\xff\xff\xff"),
        ..deflate(false, 15, 0, 0)
    };
    assert!(matches!(refused(bad_deflate), RestoreError::Message(_)));
    let bomb =
        super::peer::Compressor::new(params(false, false, 15, 15)).message(&[&vec![0; 2 << 20]]);
    let bomb = WebSocketState {
        message: message(MessageKind::Binary, true, &bomb),
        ..deflate(false, 15, 0, 0)
    };
    assert!(matches!(refused(bomb), RestoreError::Message(_)));
    let small = Limits { max_message_bytes: 10 };
    let at_limit = |remaining| WebSocketState {
        message: message(MessageKind::Binary, false, b"12345"),
        frame: Some(FrameProgress { last: false, remaining, mask: [1; 4] }),
        ..WebSocketState::default()
    };
    assert!(WebSocket::restore(at_limit(5), &small).is_ok());
    assert_eq!(WebSocket::restore(at_limit(6), &small).err(), Some(RestoreError::TooBig));
    assert_eq!(WebSocket::restore(at_limit(u64::MAX), &small).err(), Some(RestoreError::TooBig));
    let long = text(&[b'x'; 11]);
    assert_eq!(WebSocket::restore(long, &small).err(), Some(RestoreError::TooBig));
}

#[test]
fn the_encoding_is_exact() {
    let zero = WebSocketHead::zeroed();
    assert_eq!(WebSocketState::decode(&zero, &[]), Ok(WebSocketState::default()));
    let wrong = [
        WebSocketHead { flags: 1 << 11, ..zero },
        WebSocketHead { message_bytes: 1, ..zero },
        WebSocketHead { message_bytes: u64::MAX, ..zero },
        WebSocketHead { remaining: 1, ..zero },
        WebSocketHead { mask: [0, 0, 0, 1], ..zero },
        WebSocketHead { server_window_bits: 15, ..zero },
        WebSocketHead { incoming_history_bytes: 1, ..zero },
        WebSocketHead { flags: 1 << 7, ..zero },
        WebSocketHead { flags: 1 << 10, ..zero },
    ];
    for head in wrong {
        assert!(WebSocketState::decode(&head, &[]).is_err(), "{head:?}");
        assert!(WebSocketState::decode(&head, &[0]).is_err(), "{head:?}");
    }
    assert!(WebSocketState::decode(&zero, &[0]).is_err());
}

#[test]
fn the_fixed_part_has_this_layout() {
    // Of state format 1; a golden record.
    let mut fed = Fed::new(Some(params(true, false, 15, 12)));
    let bytes = frame(0x01, "a€b".as_bytes(), [0x11, 0x22, 0x33, 0x44]);
    fed.feed(&bytes[..6 + 3], &LIMITS);
    let mut record = Vec::new();
    fed.machine.save().encode(&mut record);
    let expected = [
        2,
        0,
        0,
        0,
        0,
        0,
        0,
        0, // remaining
        3,
        0,
        0,
        0,
        0,
        0,
        0,
        0, // message bytes
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0, // histories
        0x44,
        0x11,
        0x22,
        0x33, // mask, turned
        0b1101_1000,
        0b0000_0010, // deflate, server forgets, message, text, frame
        15,
        12, // window bits
        b'a',
        0xe2,
        0x82,
    ];
    assert_eq!(record, expected);
}

proptest! {
    #[test]
    fn any_record_is_refused_or_harmless(
        head in any::<[u8; 32]>(),
        keep in any::<[u8; 32]>(),
        tail in prop::collection::vec(any::<u8>(), 0..200),
        input in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        // Sparse heads get further.
        let head: [u8; 32] =
            std::array::from_fn(|index| if keep[index] % 4 == 0 { head[index] } else { 0 });
        let mut head: WebSocketHead = bytemuck::pod_read_unaligned(&head);
        head.message_bytes %= 300;
        head.incoming_history_bytes %= 100;
        head.outgoing_history_bytes %= 100;
        try_record(&head, &tail, input);
    }

    #[test]
    fn a_damaged_record_is_refused_or_harmless(
        list in prop::collection::vec(sent(), 1..3),
        params in negotiated(),
        place in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (bytes, _) = encode(&list, params);
        let (before, after) = bytes.split_at(place.index(bytes.len()));
        let mut fed = Fed::new(params);
        fed.feed(before, &LIMITS);
        let mut record = Vec::new();
        fed.machine.save().encode(&mut record);
        for (place, value) in damage {
            let place = place.index(record.len());
            record[place] ^= value;
        }
        let (head, tail) = record.split_at(32);
        try_record(&bytemuck::pod_read_unaligned(head), tail, after.to_vec());
    }
}

/// If the record is taken, the machine must work, and save what it was restored from.
fn try_record(head: &WebSocketHead, tail: &[u8], mut input: Vec<u8>) {
    let Ok(state) = WebSocketState::decode(head, tail) else { return };
    let Ok(mut machine) = WebSocket::restore(state.clone(), &LIMITS) else { return };
    assert_eq!(machine.save(), state);
    let mut out = Vec::new();
    let mut input = Input::new(&mut input);
    while let Ok(Some(_)) = machine.next_event(&mut input, &LIMITS) {
        machine.write_message(&mut out, MessageKind::Binary, b"some bytes to write", 5);
    }
    moved(&machine);
}

#[test]
fn an_empty_record_is_a_new_machine() {
    let machine = WebSocket::restore(WebSocketState::default(), &LIMITS).expect("empty");
    assert!(machine.is_idle());
    assert_eq!(machine.heap_bytes(), 0);
    assert_eq!(events_of(&frame(0x82, b"x", [0; 4]), None).len(), 1);
}
