//! Request smuggling: whatever a client sends, the upstream gets the requests that a strict parser
//! finds in it, in their order, and nothing that such a parser would refuse.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zdt_engine::proto::Input;
use zdt_engine::proto::http1::{Event, Http1, Limits};

use super::gateway_for;
use crate::http1_differential::{damage, exchange, judge};
use crate::lab::client;
use crate::lab::client::ReadOn;

/// Method, target, body.
type Seen = (String, String, String);

/// What arrives at an upstream that takes everything literally; an error is a line of its own.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Result<Seen, String>>>>);

impl Recorder {
    fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let recorder = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let recorder = recorder.clone();
                std::thread::spawn(move || recorder.serve(stream));
            }
        });
        url
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut http = Http1::new();
        let mut pending = Vec::new();
        let mut current: Option<Seen> = None;
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stream.read_on(&mut piece) {
            pending.extend_from_slice(&piece[..count]);
            let total = pending.len();
            let mut input = Input::new(&mut pending);
            let mut out = Vec::new();
            loop {
                match http.next_event(&mut input, &Limits::default()) {
                    Ok(Some(Event::Request(request))) => {
                        let target = request.target.to_owned();
                        current = Some((request.method.to_owned(), target, String::new()));
                    }
                    Ok(Some(Event::Body(bytes))) => {
                        let body = bytes.iter().map(|&byte| char::from(byte));
                        current.as_mut().expect("a request").2.extend(body);
                    }
                    Ok(Some(Event::End)) => {
                        let seen = current.take().expect("a request");
                        self.0.lock().expect("lock").push(Ok(seen));
                        http.respond(&mut out, 200, &[], b"", b"").expect("a request waits");
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.0.lock().expect("lock").push(Err(error.to_string()));
                        return;
                    }
                }
            }
            let left = input.len();
            pending.drain(..total - left);
            if stream.write_all(&out).is_err() {
                return;
            }
        }
    }

    fn take(&self) -> Vec<Result<Seen, String>> {
        std::mem::take(&mut *self.0.lock().expect("lock"))
    }
}

/// The complete requests that a strict parser finds.
fn expected(bytes: &[u8]) -> Vec<Seen> {
    let origin_form = |target: &str| match target.split_once("://") {
        Some((_, rest)) => match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => rest[at..].to_owned(),
            Some(at) => format!("/{}", &rest[at..]),
            None => "/".to_owned(),
        },
        None => target.to_owned(),
    };
    judge(bytes)
        .requests
        .into_iter()
        .filter(|request| request.4)
        .map(|(method, target, _, body, _)| (method, origin_form(&target), body))
        .collect()
}

fn send(address: std::net::SocketAddr, bytes: &[u8]) {
    let mut stream = client::connect(address);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
}

const VECTORS: [&str; 14] = [
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-encoding: x\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\nx\r\na\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 30\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n   ",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding, host\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAA\r\n\r\n",
];

#[test]
fn nothing_is_smuggled_past_the_gateway() {
    let recorder = Recorder::default();
    let engine = gateway_for(&[recorder.start()], "workers = 1");
    let check = |bytes: &[u8], whole: bool| {
        send(engine.address(), bytes);
        let seen: Result<Vec<Seen>, String> = recorder.take().into_iter().collect();
        let text = String::from_utf8_lossy(bytes);
        let seen = seen.unwrap_or_else(|error| panic!("the upstream got {error}: {text:?}"));
        let wanted = expected(bytes);
        assert!(wanted.starts_with(&seen), "{text:?}: {seen:?} instead of {wanted:?}");
        assert!(!whole || seen == wanted, "{text:?}: {seen:?} instead of {wanted:?}");
    };
    for vector in VECTORS {
        check(vector.as_bytes(), false);
    }
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for turn in 0..400 {
        let mut bytes = exchange(&mut random);
        let damaged = turn % 4 != 0;
        if damaged {
            damage(&mut random, &mut bytes);
        }
        check(&bytes, !damaged);
    }
}
