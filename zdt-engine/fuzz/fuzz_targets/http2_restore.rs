//! Any saved state with any streams: refused, or a machine that saves what it was restored from, takes any input
//! and any calls, and can be saved again.
//!
//! Must not know: which states are valid; the corpus finds them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zdt_engine::proto::Input;
use zdt_engine::proto::hpack::Fields;
use zdt_engine::proto::http2::{
    BodyLength, Environment, ErrorCode, Event, Http2, Http2Head, Http2State, Limits, Options,
    StreamHead,
};

const ENVIRONMENT: Environment<'static> =
    Environment { limits: Limits::SMALL, options: Options::SMALL, now_ms: 10_000, date: b"" };

fn saved(machine: &Http2) -> (Http2Head, Vec<u8>) {
    let mut tail = Vec::new();
    machine.save_tail(&mut tail);
    (machine.save_head(10_000), tail)
}

fn restored(machine: &Http2) -> Http2 {
    let (head, tail) = saved(machine);
    let state = Http2State::decode(head, &tail).expect("just written");
    let mut again = Http2::restore(&state, 10_000, 0).expect("just saved");
    for slot in machine.slots() {
        let (head, buffer) = machine.save_stream(slot, 10_000).expect("it lives");
        let at = again.restore_stream(&head, buffer, 10_000, 0).expect("just saved");
        if let Some(block) = machine.save_trailers(slot) {
            again.restore_trailers(head.id, block).expect("just saved");
        }
        assert_eq!(again.save_stream(at, 10_000), Some((head, buffer)));
    }
    assert_eq!(saved(&again), (head, tail));
    again
}

fuzz_target!(|data: &[u8]| {
    // A head, the tail behind its length, streams behind their count, input, which is also the calls.
    let Some((head, rest)) = data.split_at_checked(size_of::<Http2Head>()) else { return };
    let Some((&[tail_bytes, streams], rest)) = rest.split_first_chunk::<2>() else { return };
    let (tail, mut rest) = rest.split_at(usize::from(tail_bytes).min(rest.len()));
    let head: Http2Head = bytemuck::pod_read_unaligned(head);
    let Ok(state) = Http2State::decode(head, tail) else { return };
    let Ok(mut machine) = Http2::restore(&state, 10_000, 0) else { return };
    for _ in 0..streams % 8 {
        let Some((head, behind)) = rest.split_at_checked(size_of::<StreamHead>()) else { return };
        let Some((&[buffer_bytes, trailer_bytes], behind)) = behind.split_first_chunk::<2>() else {
            return;
        };
        let (buffer, behind) = behind.split_at(usize::from(buffer_bytes).min(behind.len()));
        let (trailers, behind) = behind.split_at(usize::from(trailer_bytes).min(behind.len()));
        rest = behind;
        let head: StreamHead = bytemuck::pod_read_unaligned(head);
        if machine.restore_stream(&head, buffer, 10_000, 0).is_err() {
            return;
        }
        if !trailers.is_empty() && machine.restore_trailers(head.id, trailers).is_err() {
            return;
        }
    }
    let mut machine = restored(&machine);
    let (mut out, mut fields) = (Vec::new(), Fields::default());
    let mut bytes = rest.to_vec();
    let mut input = Input::new(&mut bytes);
    for call in rest {
        let slot = usize::from(call >> 4);
        let _ = match call % 11 {
            0 => machine.respond(slot, &mut out, 200, &[], b"body", &ENVIRONMENT),
            1 => {
                let length = BodyLength::Known(4);
                machine.start_response(slot, &mut out, 200, &[], length, &ENVIRONMENT)
            }
            2 => machine.accept_tunnel(slot, &mut out, &[], &ENVIRONMENT),
            3 => machine.write_body(slot, &mut out, b"body", 10_000),
            4 => machine.finish_response_with(slot, &mut out, &[("x", b"y")]),
            5 => {
                machine.end_tunnel(slot, &mut out, 10_000);
                Ok(())
            }
            6 => {
                machine.reset_stream(slot, ErrorCode::Cancel, &mut out);
                Ok(())
            }
            7 => {
                machine.hold(slot, call & 0x80 != 0, &mut out, &ENVIRONMENT);
                machine.announce(&mut out, &ENVIRONMENT);
                machine.say_farewell(&mut out);
                Ok(())
            }
            8 => {
                machine.flush(&mut out, 1_000, &ENVIRONMENT);
                Ok(())
            }
            9 => {
                machine.half_close_tunnel(slot, &mut out, 10_000);
                Ok(())
            }
            _ => {
                let next = machine.next_event(&mut input, &mut out, &mut fields, &ENVIRONMENT);
                if let Ok(Some(Event::Data { bytes, .. })) = next {
                    input.take(bytes);
                    machine.took(bytes, &mut out, &ENVIRONMENT);
                }
                Ok(())
            }
        };
        machine = restored(&machine);
    }
});
