//! Any bytes from a client: the same events in one piece as in many, with the machine saved and
//! restored between them, and no more memory than the limit allows.
//!
//! Must not know: valid frames; the corpus finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::Input;
use zdt_engine::proto::websocket::{
    DeflateParams, Event, Limits, MessageKind, WebSocket, WebSocketState,
};

const LIMITS: Limits = Limits { max_message_bytes: 1 << 16 };
/// Twice the message (a vector that grows), its compressed form likewise, both contexts, both
/// windows.
const MOST_HEAP_BYTES: usize = 4 * (1 << 16) + (512 << 10);

/// An event without its borrow; the number tells the kind.
type Seen = (u16, Vec<u8>);

fn run(bytes: &[u8], params: Option<DeflateParams>, step: usize, moves: bool) -> Vec<Seen> {
    let mut machine = WebSocket::new(params);
    let mut seen = Vec::new();
    let mut out = Vec::new();
    let mut buffer = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        if moves {
            let (head, tail) = machine.save_parts();
            let state = WebSocketState::decode(&head, &tail.concat()).expect("just written");
            machine = WebSocket::restore(state, &LIMITS).expect("just saved");
        }
        let mut input = Input::new(&mut buffer);
        loop {
            match machine.next_event(&mut input, &LIMITS) {
                Ok(Some(Event::Message { kind, payload })) => {
                    assert!(payload.len() as u64 <= LIMITS.max_message_bytes);
                    let is_text = kind == MessageKind::Text;
                    assert!(!is_text || std::str::from_utf8(&payload).is_ok());
                    machine.write_message(&mut out, kind, &payload, 4);
                    seen.push((u16::from(is_text), payload.to_vec()));
                }
                Ok(Some(Event::Ping(payload))) => {
                    machine.write_pong(&mut out, &payload);
                    seen.push((2, payload.to_vec()));
                }
                Ok(Some(Event::Pong(payload))) => seen.push((3, payload.to_vec())),
                Ok(Some(Event::Close { code, reason })) => {
                    assert!(std::str::from_utf8(&reason).is_ok());
                    seen.push((code.unwrap_or(4), reason.to_vec()));
                }
                Ok(None) => break,
                Err(error) => {
                    machine.write_close(&mut out, Some(error.close_code), error.reason);
                    seen.push((5, error.close_code.to_be_bytes().to_vec()));
                }
            }
            assert!(machine.heap_bytes() <= MOST_HEAP_BYTES);
            out.clear();
        }
        let left = input.len();
        assert!(left <= 130);
        buffer.drain(..buffer.len() - left);
    }
    seen
}

fuzz_target!(|data: &[u8]| {
    let [options, step, bytes @ ..] = data else { return };
    let params = (options & 1 != 0).then(|| DeflateParams {
        server_no_context_takeover: options & 2 != 0,
        client_no_context_takeover: options & 4 != 0,
        server_window_bits: 9 + ((options >> 3) & 3) * 2,
        client_window_bits: 9 + ((options >> 5) & 3) * 2,
    });
    let whole = run(bytes, params, bytes.len(), false);
    assert_eq!(whole, run(bytes, params, usize::from(*step), false));
    assert_eq!(whole, run(bytes, params, usize::from(*step), true));
});
