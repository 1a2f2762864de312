//! The HTTP/1.1 machine by itself: parse a request, write a response, save and restore.
//!
//! The figure that counts is `exchange/small`: one small GET from one piece and its whole small
//! answer into a reused buffer, well under 350 ns.
//!
//! Must not know: sockets.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use zdt_engine::proto::Input;
use zdt_engine::proto::http1::{BodyLength, Event, Http1, Http1State, Limits};

/// What load generators send.
const SMALL: &[u8] =
    b"GET /id?id=42 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n";

/// What browsers send.
const BROWSER: &[u8] = b"GET /articles/2024/05/zero-downtime?ref=front-page&lang=en HTTP/1.1\r\n\
    Host: www.example.org\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"124\", \"Not-A.Brand\";v=\"99\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Dest: document\r\n\
    Referer: https://www.example.org/\r\n\
    Accept-Encoding: gzip, deflate, br\r\n\
    Accept-Language: en-US,en;q=0.9\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\n\r\n";

const DATE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";

fn next<'b>(http: &mut Http1, input: &mut Input<'b>, limits: &Limits) -> Option<Event<'b>> {
    http.next_event(input, limits).expect("the input is valid")
}

/// Takes one request and answers it, as a connection does that answers at once.
#[inline]
fn exchange(http: &mut Http1, input: &mut Input<'_>, limits: &Limits, out: &mut Vec<u8>) {
    let Some(Event::Request(request)) = next(http, input, limits) else {
        panic!("a request was there")
    };
    black_box((request.method, request.path, request.query));
    let headers: [(&str, &[u8]); 1] = [("Content-Type", b"text/plain")];
    http.respond(out, 200, &headers, b"42", DATE).expect("a request waits");
}

fn exchanges(criterion: &mut Criterion) {
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("http1/exchange");
    for (name, request) in [("small", SMALL), ("browser", BROWSER)] {
        let mut http = Http1::new();
        let mut received = request.to_vec();
        let mut out = Vec::with_capacity(4096);
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                let mut input = Input::new(black_box(&mut received));
                exchange(&mut http, &mut input, &limits, &mut out);
                black_box(&out);
            });
        });
    }
    let mut http = Http1::new();
    let mut received = SMALL.repeat(16);
    let mut out = Vec::with_capacity(16 << 10);
    group.throughput(Throughput::Elements(16));
    group.bench_function("small, 16 pipelined", |bencher| {
        bencher.iter(|| {
            out.clear();
            let mut input = Input::new(black_box(&mut received));
            for _ in 0..16 {
                exchange(&mut http, &mut input, &limits, &mut out);
            }
            black_box(&out);
        });
    });
    group.finish();
}

fn heads(criterion: &mut Criterion) {
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("http1/head");
    for (name, request) in [("small", SMALL), ("browser", BROWSER)] {
        let mut received = request.to_vec();
        group.throughput(Throughput::Bytes(request.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut http = Http1::new();
                let mut input = Input::new(black_box(&mut received));
                black_box(next(&mut http, &mut input, &limits).is_some())
            });
        });
    }
    let mut received = BROWSER.to_vec();
    group.bench_function("browser, byte by byte", |bencher| {
        bencher.iter(|| {
            let mut http = Http1::new();
            for end in 1..=received.len() {
                let mut input = Input::new(black_box(&mut received[..end]));
                black_box(next(&mut http, &mut input, &limits).is_some());
            }
        });
    });
    let mut received = BROWSER.to_vec();
    let mut input = Input::new(&mut received);
    let Some(Event::Request(request)) = next(&mut Http1::new(), &mut input, &limits) else {
        panic!("a request was there")
    };
    group.bench_function("browser, lookup of the last field", |bencher| {
        bencher.iter(|| black_box(black_box(&request).header("cookie")));
    });
    group.finish();
}

fn bodies(criterion: &mut Criterion) {
    let limits = Limits { max_body_bytes: u64::MAX, ..Limits::default() };
    let mut group = criterion.benchmark_group("http1/body");
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    for size in [64usize, 16 << 10] {
        let mut chunk = format!("{size:x}\r\n").into_bytes();
        chunk.resize(chunk.len() + size, b'a');
        chunk.extend_from_slice(b"\r\n");
        let received = chunk.repeat(64);
        group.throughput(Throughput::Elements(64));
        group.bench_function(format!("64 chunks of {size} B, decoded"), |bencher| {
            bencher.iter_batched_ref(
                || {
                    let mut http = Http1::new();
                    let mut head = head.to_vec();
                    next(&mut http, &mut Input::new(&mut head), &limits);
                    (http, received.clone())
                },
                |(http, received)| {
                    let mut input = Input::new(received);
                    while let Some(event) = next(http, &mut input, &limits) {
                        black_box(&event);
                    }
                },
                BatchSize::LargeInput,
            );
        });
        let data = vec![b'a'; size];
        let mut http = Http1::new();
        let mut received = SMALL.to_vec();
        next(&mut http, &mut Input::new(&mut received), &limits);
        let mut out = Vec::with_capacity(64 * (size + 100));
        http.start_response(&mut out, 200, &[], BodyLength::Unknown, DATE).expect("waits");
        group.bench_function(format!("64 chunks of {size} B, written"), |bencher| {
            bencher.iter(|| {
                out.clear();
                for _ in 0..64 {
                    http.write_body(&mut out, black_box(&data)).expect("it is streaming");
                }
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn saved_states(criterion: &mut Criterion) {
    let http = Http1::new();
    let mut record = Vec::with_capacity(64);
    criterion.bench_function("http1/save, encode, decode, restore", |bencher| {
        bencher.iter(|| {
            record.clear();
            black_box(&http).save().encode(&mut record);
            let state = Http1State::decode(black_box(&record)).expect("just written");
            black_box(Http1::restore(&state).expect("just saved"))
        });
    });
}

criterion_group!(benches, exchanges, heads, bodies, saved_states);
criterion_main!(benches);
