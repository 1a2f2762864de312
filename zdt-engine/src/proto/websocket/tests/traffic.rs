//! Random traffic of a client: whatever the split, the same events; garbage never panics.

use proptest::prelude::*;
use zlib_rs::DeflateFlush;

use super::peer::{Compressor, Fed, LIMITS, Seen, events_of, frame, params};
use crate::proto::websocket::{DeflateParams, Limits, MessageKind};

/// A message of a client, and how it travels.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    text: bool,
    /// Which of [`PHRASES`], how often each.
    phrases: Vec<(usize, usize)>,
    noise: Vec<u8>,
    compressed: bool,
    /// Ends with a final block, in a stream of its own.
    final_block: bool,
    /// Where the payload is cut into fragments, and the deflate stream flushed.
    cuts: Vec<prop::sample::Index>,
    /// Payload of a ping before each fragment.
    pings: Vec<u8>,
    mask: [u8; 4],
}

const PHRASES: [&str; 5] = [
    "zdt replaces the processes behind a busy port. ",
    "äöü ",
    "€ ¥ £ ",
    "𝄞𝄢",
    "{\"n\":12345,\"worker\":77,\"generation\":3}",
];

impl Sent {
    fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        for (phrase, times) in &self.phrases {
            payload.extend(PHRASES[phrase % PHRASES.len()].repeat(*times).bytes());
        }
        if !self.text {
            payload.extend(&self.noise);
        }
        payload
    }

    fn encode(&self, compressor: Option<&mut Compressor>, out: &mut Vec<u8>) -> Vec<Seen> {
        let payload = self.payload();
        let mut first = if self.text { 0x01 } else { 0x02 };
        let on_wire = match compressor {
            Some(compressor) if self.compressed => {
                first |= 0x40;
                if self.final_block {
                    compressor.final_block_message(&payload)
                } else {
                    // Flush at the cuts of the plain payload too.
                    let mut cuts = self.cuts_of(payload.len());
                    cuts.dedup();
                    let pieces: Vec<&[u8]> =
                        cuts.windows(2).map(|cut| &payload[cut[0]..cut[1]]).collect();
                    if pieces.is_empty() { vec![0] } else { compressor.message(&pieces) }
                }
            }
            _ => payload.clone(),
        };
        let mut seen = Vec::new();
        let cuts = self.cuts_of(on_wire.len());
        let fragments = cuts.len() - 1;
        for (index, cut) in cuts.windows(2).enumerate() {
            if let Some(length) = self.pings.get(index) {
                let ping = vec![*length; usize::from(*length % 126)];
                out.extend(frame(0x89, &ping, self.mask));
                seen.push(Seen::Ping(ping));
            }
            let opcode = if index == 0 { first } else { 0x00 };
            let fin = if index + 1 == fragments { 0x80 } else { 0x00 };
            out.extend(frame(opcode | fin, &on_wire[cut[0]..cut[1]], self.mask));
        }
        let kind = if self.text { MessageKind::Text } else { MessageKind::Binary };
        seen.push(Seen::Message(kind, payload));
        seen
    }

    fn cuts_of(&self, length: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = self.cuts.iter().map(|cut| cut.index(length + 1)).collect();
        cuts.extend([0, length]);
        cuts.sort_unstable();
        cuts
    }
}

pub(super) fn sent() -> impl Strategy<Value = Sent> {
    (
        any::<bool>(),
        prop::collection::vec((0..PHRASES.len(), 1..8usize), 0..4),
        prop::collection::vec(any::<u8>(), 0..300),
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.1),
        prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        prop::collection::vec(0..=125u8, 0..3),
        any::<[u8; 4]>(),
    )
        .prop_map(|(text, phrases, noise, compressed, final_block, cuts, pings, mask)| Sent {
            text,
            phrases,
            noise,
            compressed,
            final_block,
            cuts,
            pings,
            mask,
        })
}

pub(super) fn negotiated() -> impl Strategy<Value = Option<DeflateParams>> {
    prop::option::weighted(
        0.8,
        (any::<bool>(), any::<bool>(), 9..=15u8, 8..=15u8).prop_map(
            |(server_forgets, client_forgets, server_bits, client_bits)| {
                params(server_forgets, client_forgets, server_bits, client_bits)
            },
        ),
    )
}

/// The client's bytes and what a server must see.
pub(super) fn encode(list: &[Sent], params: Option<DeflateParams>) -> (Vec<u8>, Vec<Seen>) {
    let mut compressor = params.map(Compressor::new);
    let mut bytes = Vec::new();
    let mut expected = Vec::new();
    for sent in list {
        expected.extend(sent.encode(compressor.as_mut(), &mut bytes));
    }
    bytes.extend(frame(0x88, b"\x03\xe8enough", [1, 2, 3, 4]));
    expected.push(Seen::Close(Some(1000), b"enough".to_vec()));
    (bytes, expected)
}

fn events_in_pieces(bytes: &[u8], params: Option<DeflateParams>, cuts: &[usize]) -> Vec<Seen> {
    let mut fed = Fed::new(params);
    let mut start = 0;
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        fed.feed(&bytes[start..cut], &LIMITS);
        start = cut;
    }
    fed.seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_split_gives_the_same_events(
        list in prop::collection::vec(sent(), 1..4),
        params in negotiated(),
    ) {
        let (bytes, expected) = encode(&list, params);
        prop_assert_eq!(events_of(&bytes, params), expected.clone());
        for cut in 0..=bytes.len() {
            prop_assert_eq!(&events_in_pieces(&bytes, params, &[cut]), &expected, "cut at {}", cut);
        }
        for step in [1, 2, 3, 7, 64] {
            let cuts: Vec<usize> = (0..bytes.len()).step_by(step).collect();
            prop_assert_eq!(&events_in_pieces(&bytes, params, &cuts), &expected, "steps of {}", step);
        }
    }

    #[test]
    fn damaged_traffic_never_panics_and_splits_agree(
        list in prop::collection::vec(sent(), 1..4),
        params in negotiated(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        limit in 1..5000u64,
        step in 1..40usize,
    ) {
        let (mut bytes, _) = encode(&list, params);
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] ^= value;
        }
        let limits = Limits { max_message_bytes: limit };
        let mut whole = Fed::new(params);
        whole.feed(&bytes, &limits);
        let mut pieces = Fed::new(params);
        for piece in bytes.chunks(step) {
            pieces.feed(piece, &limits);
        }
        prop_assert_eq!(whole.seen, pieces.seen);
    }

    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        first in prop::sample::select(vec![0x01u8, 0x02, 0x41, 0x42, 0x81, 0xc1, 0xc2, 0x89]),
        params in negotiated(),
    ) {
        events_of(&bytes, params);
        // Behind a valid header it gets further.
        let mut fed = Fed::new(params);
        for piece in bytes.chunks(120) {
            fed.feed(&frame(first, piece, [9, 8, 7, 6]), &LIMITS);
            fed.feed(&frame(0x80, piece, [9, 8, 7, 6]), &LIMITS);
        }
        if bytes.len() > 120 {
            prop_assert!(!fed.seen.is_empty());
        }
    }
}

#[test]
fn pieces_of_a_deflate_stream_need_not_be_flushed() {
    // Fragments of one deflate block, at every place.
    let params = params(false, false, 15, 15);
    let payload = PHRASES.concat().repeat(20);
    let mut compressor = Compressor::new(params);
    let mut on_wire = compressor.piece(payload.as_bytes(), DeflateFlush::SyncFlush);
    on_wire.truncate(on_wire.len() - 4);
    for cut in 0..=on_wire.len() {
        let mut bytes = frame(0x41, &on_wire[..cut], [0; 4]);
        bytes.extend(frame(0x80, &on_wire[cut..], [0; 4]));
        let expected = Seen::Message(MessageKind::Text, payload.clone().into_bytes());
        assert_eq!(events_of(&bytes, Some(params)), [expected], "cut at {cut}");
    }
}
