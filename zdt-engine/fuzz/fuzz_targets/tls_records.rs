//! Any saved TLS state: refused, or a record layer that takes any bytes, answers with whole records, and saves
//! exactly what it was restored from.
//!
//! Must not know: which states are valid; the corpus finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::tls::{Tls, TlsHead};

fuzz_target!(|data: &[u8]| {
    // A head, the tail's length, the tail, input in pieces of a length each.
    let Some((head, rest)) = data.split_at_checked(size_of::<TlsHead>()) else { return };
    let Some((&[tail_bytes, piece], rest)) = rest.split_first_chunk::<2>() else { return };
    let (tail, input) = rest.split_at(usize::from(tail_bytes).min(rest.len()));
    let head: TlsHead = bytemuck::pod_read_unaligned(head);
    let Ok(mut tls) = Tls::restore(&head, tail, &[]) else { return };
    {
        let saved = tls.save();
        let again = Tls::restore(&saved.head, &saved.tail.concat(), &[]).expect("just saved");
        assert_eq!(bytemuck::bytes_of(&again.save().head), bytemuck::bytes_of(&saved.head));
    }
    tls.start();
    let mut output = Vec::new();
    for bytes in input.chunks(usize::from(piece).max(1)) {
        let mut bytes = bytes.to_vec();
        let taken = tls.complete(&bytes);
        let mut kept = if tls.has_whole_record() { tls.take_incoming() } else { Vec::new() };
        let opened = tls.open(&mut kept, &mut output);
        tls.keep(&kept[opened.consumed..]);
        let rest = &mut bytes[taken..];
        if tls.incoming().is_empty() {
            let opened = tls.open(rest, &mut output);
            assert!(opened.plaintext.end <= opened.consumed);
            tls.keep(&rest[opened.consumed..]);
        } else {
            tls.keep(rest);
        }
    }
    let mut answer = b"answer".to_vec();
    let _ = tls.seal(&mut answer, 1_000);
    tls.update_key(true, &mut output);
    tls.close(&mut output);
    for wire in [&answer, &output] {
        let mut rest = &wire[..];
        while let Some(header) = rest.first_chunk::<5>() {
            rest = &rest[5 + usize::from(u16::from_be_bytes([header[3], header[4]]))..];
        }
        assert!(rest.is_empty(), "whole records only");
    }
});
