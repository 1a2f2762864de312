//! Any header blocks, one after the other: the same fields and the same error with the decoder moved between
//! them, no more memory than was allowed, and fields that our encoder writes come back.
//!
//! Must not know: valid blocks; the corpus finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::hpack::{Decoder, DecoderState, Fields, Limits, encode};

const LIMITS: Limits = Limits { max_list_bytes: 4_096, max_count: 40 };

fn moved(decoder: &Decoder) -> Decoder {
    let mut entries = Vec::new();
    decoder.encode_entries(&mut entries);
    assert_eq!(entries.len(), decoder.encoded_bytes());
    let state = DecoderState::decode(decoder.sizes(), &entries).expect("just written");
    assert_eq!(state, decoder.save());
    Decoder::restore(&state).expect("just saved")
}

fuzz_target!(|data: &[u8]| {
    let [control, rest @ ..] = data else { return };
    let (mut stays, mut moves) = (Decoder::new(), Decoder::new());
    let (mut fields, mut same) = (Fields::default(), Fields::default());
    // Each block behind its length.
    let mut rest = rest;
    while let Some((&length, behind)) = rest.split_first() {
        let (block, behind) = behind.split_at(usize::from(length).min(behind.len()));
        rest = behind;
        if length % 16 == 0 {
            stays.set_limit(u32::from(*control) * 20);
            moves.set_limit(u32::from(*control) * 20);
        }
        fields.clear();
        same.clear();
        let result = stays.decode(block, &LIMITS, &mut fields);
        moves = moved(&moves);
        assert_eq!(moves.decode(block, &LIMITS, &mut same), result);
        if result.is_err() {
            return;
        }
        assert!(fields.iter().eq(same.iter()));
        let kept: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(kept <= LIMITS.max_list_bytes && fields.len() <= LIMITS.max_count);
        assert!(stays.heap_bytes() < 64 << 10, "{} bytes", stays.heap_bytes());
        let (mut written, mut wanted) = (Vec::new(), Vec::new());
        for (name, value) in fields.iter() {
            if let Ok(name) = std::str::from_utf8(name) {
                encode::field(&mut written, name, value);
                wanted.push((name.to_ascii_lowercase().into_bytes(), value.to_vec()));
            }
        }
        let mut back = Fields::default();
        let limits = Limits { max_list_bytes: 1 << 20, max_count: 1_000 };
        Decoder::new().decode(&written, &limits, &mut back).expect("our own block");
        assert!(back.iter().eq(wanted.iter().map(|(name, value)| (&name[..], &value[..]))));
    }
});
