//! Any saved record: refused, or a machine that takes any input and any calls, and saves exactly
//! what it was restored from.
//!
//! Must not know: which records are valid; the corpus finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::Input;
use zdt_engine::proto::websocket::{Event, Limits, WebSocket, WebSocketHead, WebSocketState};

const LIMITS: Limits = Limits { max_message_bytes: 1 << 16 };

fuzz_target!(|data: &[u8]| {
    // A head, the tail's length, the tail, input.
    let Some((head, rest)) = data.split_at_checked(size_of::<WebSocketHead>()) else { return };
    let Some((length, rest)) = rest.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (tail, input) = rest.split_at(length);
    let head: WebSocketHead = bytemuck::pod_read_unaligned(head);
    let Ok(state) = WebSocketState::decode(&head, tail) else { return };
    let mut record = Vec::new();
    state.encode(&mut record);
    assert_eq!(record, [bytemuck::bytes_of(&head), tail].concat());
    let Ok(mut machine) = WebSocket::restore(state.clone(), &LIMITS) else { return };
    assert_eq!(machine.save(), state);

    let mut input = input.to_vec();
    let mut input = Input::new(&mut input);
    let mut out = Vec::new();
    while let Ok(Some(event)) = machine.next_event(&mut input, &LIMITS) {
        if let Event::Message { kind, payload } = event {
            machine.write_message(&mut out, kind, &payload, 4);
        }
    }
    machine.release_contexts();
    machine.write_ping(&mut out, b"still there?");
    machine.write_close(&mut out, Some(1000), "bye");
    WebSocket::restore(machine.save(), &LIMITS).expect("just saved");
});
