//! The WebSocket machine by itself: echo of small and large frames, fragments, permessage-deflate,
//! and saved state.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use zdt_engine::proto::Input;
use zdt_engine::proto::websocket::{
    DeflateParams, Event, Limits, MessageKind, WebSocket, WebSocketState,
};

const LIMITS: Limits = Limits { max_message_bytes: 16 << 20 };
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const DEFLATE: DeflateParams = DeflateParams {
    server_no_context_takeover: false,
    client_no_context_takeover: false,
    server_window_bits: 15,
    client_window_bits: 15,
};

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | length as u8),
        length @ 126..65536 => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0xff);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// Echoes all messages in `input` into `out`.
#[inline(never)]
fn echo(machine: &mut WebSocket, input: &mut [u8], out: &mut Vec<u8>) {
    let mut input = Input::new(input);
    while let Some(event) = machine.next_event(&mut input, &LIMITS).expect("valid traffic") {
        if let Event::Message { kind, payload } = event {
            machine.write_message(out, kind, &payload, 128);
        }
    }
}

/// Echo of `count` equal frames in one input. Unmasking happens in place, so every other pass finds
/// the payload masked: the same work for binary messages, and no copy to measure.
fn bench_frames(criterion: &mut Criterion, name: &str, first: u8, bytes: usize, count: usize) {
    let traffic = frame(first, &vec![b'x'; bytes]).repeat(count);
    let mut machine = WebSocket::new(None);
    let mut input = traffic.clone();
    let mut out = Vec::new();
    let mut group = criterion.benchmark_group("websocket_echo");
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            out.clear();
            echo(&mut machine, &mut input, &mut out);
            black_box(&out);
        });
    });
    group.finish();
}

fn bench_echo(criterion: &mut Criterion) {
    bench_frames(criterion, "binary_64", 0x82, 64, 400);
    bench_frames(criterion, "binary_1k", 0x82, 1024, 30);
    bench_frames(criterion, "binary_16k", 0x82, 16 << 10, 2);
    let mut group = criterion.benchmark_group("websocket_echo");
    // Text must be valid each time, so it is copied.
    for (name, bytes, count) in [("text_64", 64, 400), ("text_16k", 16 << 10, 2)] {
        let traffic = frame(0x81, &vec![b'x'; bytes]).repeat(count);
        let (mut machine, mut out) = (WebSocket::new(None), Vec::new());
        let mut input = traffic.clone();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{name}_with_copy"), |bencher| {
            bencher.iter(|| {
                input.copy_from_slice(&traffic);
                out.clear();
                echo(&mut machine, &mut input, &mut out);
                black_box(&out);
            });
        });
    }
    // What the receive and the copy into the output cost at least.
    group.throughput(Throughput::Elements(2));
    let source = vec![b'x'; 32 << 10];
    let mut target = Vec::new();
    group.bench_function("memcpy_2x16k", |bencher| {
        bencher.iter(|| {
            target.clear();
            target.extend_from_slice(black_box(&source));
            black_box(&target);
        });
    });
    // A large frame over several receives of 16 KiB.
    let traffic = frame(0x82, &vec![b'x'; 256 << 10]);
    let (mut machine, mut out) = (WebSocket::new(None), Vec::new());
    group.throughput(Throughput::Bytes(traffic.len() as u64));
    group.bench_function("binary_256k_in_16k_pieces", |bencher| {
        bencher.iter_batched_ref(
            || traffic.clone(),
            |traffic| {
                out.clear();
                for piece in traffic.chunks_mut(16 << 10) {
                    echo(&mut machine, piece, &mut out);
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn json_message(number: usize) -> Vec<u8> {
    let item = format!(
        "{{\"id\":{number},\"symbol\":\"ZDT\",\"price\":{}.{:02},\"side\":\"{}\"}}",
        100 + number % 17,
        number % 97,
        ["buy", "sell"][number % 2]
    );
    vec![item; 16].join(",").into_bytes()
}

fn bench_deflate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("websocket_deflate");
    let payload = json_message(1);
    group.throughput(Throughput::Bytes(payload.len() as u64));
    let (mut machine, mut out) = (WebSocket::new(Some(DEFLATE)), Vec::new());
    let mut number = 0;
    group.bench_function("write_json_1k", |bencher| {
        bencher.iter_batched_ref(
            || {
                number += 1;
                json_message(number)
            },
            |payload| {
                out.clear();
                machine.write_message(&mut out, MessageKind::Text, payload, 0);
            },
            BatchSize::SmallInput,
        );
    });
    // A server's output without its mask is a client's output with mask 0.
    let mut writer = WebSocket::new(Some(DEFLATE));
    let mut machine = WebSocket::new(Some(DEFLATE));
    group.bench_function("read_json_1k", |bencher| {
        bencher.iter_batched_ref(
            || {
                number += 1;
                let mut out = Vec::new();
                writer.write_message(&mut out, MessageKind::Text, &json_message(number), 0);
                let header_bytes = if out[1] < 126 { 2 } else { 4 };
                let mut masked = out[..header_bytes].to_vec();
                masked[1] |= 0x80;
                masked.extend([0; 4]);
                masked.extend(&out[header_bytes..]);
                masked
            },
            |bytes| {
                let mut input = Input::new(bytes);
                let event = machine.next_event(&mut input, &LIMITS).expect("valid");
                assert!(matches!(event, Some(Event::Message { .. })));
            },
            BatchSize::NumIterations(64),
        );
    });
    group.finish();
}

fn bench_state(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("websocket_state");
    let idle = WebSocket::new(None);
    let mut half = WebSocket::new(None);
    let mut bytes = frame(0x82, &[7; 8 << 10]);
    let some = half.next_event(&mut Input::new(&mut bytes[..8 + (4 << 10)]), &LIMITS);
    assert!(matches!(some, Ok(None)));
    let mut deflate = WebSocket::new(Some(DEFLATE));
    for number in 0..100 {
        deflate.write_message(&mut Vec::new(), MessageKind::Text, &json_message(number), 0);
    }
    for (name, machine) in
        [("idle", &idle), ("half_of_8k", &half), ("deflate_32k_history", &deflate)]
    {
        let mut record = Vec::new();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                record.clear();
                let (head, tail) = black_box(machine).save_parts();
                tail.iter().for_each(|part| record.extend_from_slice(part));
                let state = WebSocketState::decode(&head, &record).expect("own record");
                WebSocket::restore(state, &LIMITS).expect("own state")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench_echo, bench_deflate, bench_state);
criterion_main!(benches);
