//! Freeze and thaw: a machine that changes to a restored one after every byte goes on exactly like
//! one that never moved, and a client cannot tell.

use proptest::prelude::*;

use super::peer::{Fed, LIMITS, Seen, ServerReader};
use super::traffic::{encode, negotiated, sent};
use crate::proto::websocket::{WebSocket, WebSocketHead, WebSocketState};

/// Save, encode, decode, restore.
pub(super) fn moved(machine: &WebSocket) -> WebSocket {
    let (head, parts) = machine.save_parts();
    let state = machine.save();
    let mut record = Vec::new();
    state.encode(&mut record);
    let (head_bytes, tail) = record.split_at(size_of::<WebSocketHead>());
    assert_eq!(head_bytes, bytemuck::bytes_of(&head));
    assert_eq!(tail, parts.concat());
    let decoded = WebSocketState::decode(&head, tail).expect("own record");
    assert_eq!(decoded, state);
    WebSocket::restore(decoded, &LIMITS).expect("own state")
}

/// Takes bytes and echoes every message.
struct Echo {
    fed: Fed,
    out: Vec<u8>,
    echoed: usize,
}

impl Echo {
    fn new(fed: Fed) -> Self {
        Self { fed, out: Vec::new(), echoed: 0 }
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.fed.feed(bytes, &LIMITS);
        for seen in &self.fed.seen[self.echoed..] {
            match seen {
                Seen::Message(kind, payload) => {
                    self.fed.machine.write_message(&mut self.out, *kind, payload, 10);
                }
                Seen::Ping(payload) => self.fed.machine.write_pong(&mut self.out, payload),
                Seen::Close(code, _) => self.fed.machine.write_close(&mut self.out, *code, ""),
                Seen::Pong(_) | Seen::Error(_) => {}
            }
        }
        self.echoed = self.fed.seen.len();
    }
}

fn answers(seen: &[Seen]) -> Vec<Seen> {
    seen.iter()
        .map(|seen| match seen {
            Seen::Ping(payload) => Seen::Pong(payload.clone()),
            Seen::Close(code, _) => Seen::Close(*code, Vec::new()),
            other => other.clone(),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn moving_after_every_byte_changes_nothing(
        list in prop::collection::vec(sent(), 1..5),
        params in negotiated(),
    ) {
        let (bytes, expected) = encode(&list, params);
        let mut still = Echo::new(Fed::new(params));
        let mut mover = Echo::new(Fed::new(params));
        for (place, byte) in bytes.iter().enumerate() {
            still.feed(&[*byte]);
            mover.feed(&[*byte]);
            prop_assert_eq!(&mover.fed.leftover, &still.fed.leftover);
            prop_assert_eq!(mover.fed.machine.save(), still.fed.machine.save(), "at {}", place);
            mover.fed.machine = moved(&mover.fed.machine);
        }
        prop_assert_eq!(&still.fed.seen, &expected);
        prop_assert_eq!(&mover.fed.seen, &expected);
        prop_assert_eq!(ServerReader::new(params).read(&still.out), answers(&expected));
        prop_assert_eq!(ServerReader::new(params).read(&mover.out), answers(&expected));
    }

    #[test]
    fn damaged_traffic_moves_too(
        list in prop::collection::vec(sent(), 1..4),
        params in negotiated(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        step in 1..30usize,
    ) {
        let (mut bytes, _) = encode(&list, params);
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] ^= value;
        }
        let mut still = Echo::new(Fed::new(params));
        let mut mover = Echo::new(Fed::new(params));
        for piece in bytes.chunks(step) {
            still.feed(piece);
            mover.feed(piece);
            mover.fed.machine = moved(&mover.fed.machine);
        }
        prop_assert_eq!(&mover.fed.seen, &still.fed.seen);
    }

    #[test]
    fn the_json_encoding_says_the_same(
        list in prop::collection::vec(sent(), 1..3),
        params in negotiated(),
        place in any::<prop::sample::Index>(),
    ) {
        let (bytes, _) = encode(&list, params);
        let mut echo = Echo::new(Fed::new(params));
        echo.feed(&bytes[..place.index(bytes.len())]);
        let state = echo.fed.machine.save();
        let json = serde_json::to_string(&state).expect("json");
        prop_assert_eq!(serde_json::from_str::<WebSocketState>(&json).expect("own json"), state);
    }
}

#[test]
fn a_full_window_moves() {
    // More than 32 KiB of history in both directions, so that old bytes fall out of both windows.
    let params = super::peer::params(false, false, 15, 15);
    let mut compressor = super::peer::Compressor::new(params);
    let mut reader = ServerReader::new(Some(params));
    let mut echo = Echo::new(Fed::new(Some(params)));
    let mut state = 1u32;
    let block: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 24) as u8
    })
    .take(11_000)
    .collect();
    for round in 0..8usize {
        let payload = [&block[round * 50..], &block[..round * 50 + 500]].concat();
        let on_wire = compressor.message(&[&payload[..6000], &payload[6000..]]);
        if round > 0 {
            assert!(on_wire.len() < payload.len() / 4, "the window is in use");
        }
        let bytes = super::peer::frame(0xc2, &on_wire, [5, 6, 7, 8]);
        for piece in bytes.chunks(777) {
            echo.feed(piece);
            echo.fed.machine = moved(&echo.fed.machine);
        }
        let echoed = std::mem::take(&mut echo.out);
        if round > 0 {
            assert!(echoed.len() < payload.len() / 4, "our window is in use");
        }
        assert_eq!(reader.read(&echoed), answers(&echo.fed.seen[round..]));
    }
    let saved = echo.fed.machine.save().deflate.expect("negotiated");
    assert_eq!(saved.incoming_history.len(), 32 << 10);
    assert_eq!(saved.outgoing_history.len(), 32 << 10);
}
