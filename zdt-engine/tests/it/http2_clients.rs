//! Other people's clients of HTTP/2, across reloads: curl, nghttp, h2load, Python's h2; and Python's hpack as an
//! oracle for the decoder.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use zdt_engine::proto::hpack::{Decoder, Encoder, Fields, Limits, encode};

use crate::lab::programs::{Guarded, Rounds, curl, have, have_curl, python, read_big};
use crate::lab::system::while_reloading;
use crate::supervisor::engine::{Engine, Options};

#[test]
fn a_stream_to_curl_goes_on_through_reloads() {
    if !have_curl("http2_clients::a_stream_to_curl_goes_on_through_reloads") {
        return;
    }
    let engine = Engine::start(Options::default());
    let mut client = Guarded(
        curl(&["-N", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}\n"])
            .arg(format!("http://{}/stream?chunks=60&interval_ms=50", engine.address()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("run curl"),
    );
    let lines = BufReader::new(client.0.stdout.take().expect("stdout")).lines();
    let mut seen = Vec::new();
    for line in lines {
        seen.push(line.expect("read"));
        if seen.len() % 10 == 1 && seen.len() < 30 {
            let verdict = engine.reload_well();
            assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
        }
    }
    let mut expected: Vec<_> = (0..60).map(|number| format!("chunk {number}")).collect();
    expected.push("2 200".to_owned());
    assert_eq!(seen, expected);
    assert!(client.0.wait().expect("wait").success());
}

#[test]
fn a_download_by_curl_crosses_reloads() {
    if !have_curl("http2_clients::a_download_by_curl_crosses_reloads") {
        return;
    }
    const TOTAL: usize = 24 << 20;
    let engine = Engine::start(Options::default());
    let client = Guarded(
        curl(&["--http2-prior-knowledge", "--limit-rate", "12M"])
            .arg(format!("http://{}/big?n={TOTAL}", engine.address()))
            .spawn()
            .expect("run curl"),
    );
    read_big(client, TOTAL, 5 << 20, 3, || {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
    });
}

#[test]
fn websockets_of_the_h2_library_count_on_through_reloads() {
    let test = "http2_clients::websockets_of_the_h2_library_count_on_through_reloads";
    let Some(python) = python(test) else { return };
    let engine = Engine::start(Options::default());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/http2_clients.py");
    let port = engine.address().port().to_string();
    let mut client = Rounds::begin(Command::new(python).args([script, &port, "20"]));
    for _ in 0..5 {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        client.next();
    }
    client.end();
}

#[test]
fn h2load_loses_no_request_to_reloads() {
    let test = "http2_clients::h2load_loses_no_request_to_reloads";
    if !have(test, "h2load", "--version") {
        return;
    }
    let engine = Engine::start(Options::default());
    let (output, reloads) = while_reloading(&engine, Duration::from_millis(100), || {
        Command::new("h2load")
            .args(["-D", "4", "-c", "20", "-m", "16"])
            .arg(format!("http://{}/id?id=h2load", engine.address()))
            .output()
            .expect("run h2load")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(reloads >= 3, "only {reloads} reloads");
    assert!(text.contains(" 0 failed, 0 errored, 0 timeout"), "{text}");
    assert!(text.contains(" 0 3xx, 0 4xx, 0 5xx"), "{text}");
}

#[test]
fn nghttp_gets_the_page_and_uploads() {
    let test = "http2_clients::nghttp_gets_the_page_and_uploads";
    if !have(test, "nghttp", "--version") {
        return;
    }
    let engine = Engine::start(Options::default());
    let url = |path: &str| format!("http://{}{path}", engine.address());
    let run = |arguments: &[&str], path: &str| {
        let output =
            Command::new("nghttp").args(arguments).arg(url(path)).output().expect("run nghttp");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    assert_eq!(run(&[], "/id?id=nghttp"), b"nghttp");
    // It sends a header list that needs CONTINUATION, above the limit.
    let refused = run(&["--no-dep", "--continuation"], "/id?id=long");
    assert_eq!(refused, b"431 Request Header Fields Too Large\n");
    let upload = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/http2_spec/mod.rs");
    let echoed = run(&["-d", upload], "/echo");
    assert_eq!(echoed, std::fs::read(upload).expect("read"));
}

const HPACK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/http2_hpack.py");

/// What a word of its output stands for; `-` is nothing.
fn bytes(hex: &str) -> Vec<u8> {
    let hex = hex.trim_start_matches('-').as_bytes();
    let text = |pair: &[u8]| String::from_utf8_lossy(pair).into_owned();
    hex.chunks(2).map(|pair| u8::from_str_radix(&text(pair), 16).expect("hex")).collect()
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if digits.is_empty() { "-".to_owned() } else { digits }
}

#[test]
fn what_we_encode_is_what_the_hpack_library_decodes() {
    use std::io::Write as _;
    let test = "http2_clients::what_we_encode_is_what_the_hpack_library_decodes";
    let Some(python) = python(test) else { return };
    let mut seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let names =
        ["date", "Content-Type", "x-Long", "set-cookie", "authorization", "age", "etag", "x"];
    let mut encoder = Encoder::new();
    let (mut lines, mut expected) = (String::new(), Vec::new());
    for _ in 0..2_000 {
        // What the client's decoder allows changes between two blocks, also to nothing and back.
        let limit = (random(20) == 0).then(|| [0, 64, 300, 4_096, 10_000][random(5)]);
        if let Some(limit) = limit {
            encoder.set_peer_limit(limit);
        }
        let (mut block, mut fields) = (Vec::new(), Vec::new());
        encoder.begin_block(&mut block);
        let status = [200, 204, 206, 304, 400, 404, 500, 418, 100][random(9)];
        encode::status(&mut block, status);
        fields.push(format!("{}:{}", hex(b":status"), hex(status.to_string().as_bytes())));
        for _ in 0..random(8) {
            let name = names[random(names.len())];
            let length = [0, 1, 30, 126, 127, 128, 300, 20_000][random(8)];
            let value: Vec<u8> = (0..length).map(|_| 32 + random(95) as u8).collect();
            encode::field(&mut block, name, &value);
            fields.push(format!("{}:{}", hex(name.to_lowercase().as_bytes()), hex(&value)));
        }
        let length = random(1 << 30) as u64 * random(1 << 30) as u64;
        encode::content_length(&mut block, length);
        fields.push(format!("{}:{}", hex(b"content-length"), hex(length.to_string().as_bytes())));
        let limit = limit.map_or("-".to_owned(), |limit| limit.to_string());
        lines.push_str(&format!("{limit} {}\n", hex(&block)));
        expected.push(fields.join(" "));
        // And after each block the encoder moves.
        let (table_bytes, is_due) = encoder.save();
        encoder = Encoder::restore(table_bytes, is_due);
    }
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(lines.as_bytes()).expect("write");
    let output = Command::new(python)
        .args([HPACK.as_ref(), "decode".as_ref(), file.path()])
        .output()
        .expect("run the decoder");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), expected.len());
    for (number, (line, expected)) in text.lines().zip(&expected).enumerate() {
        assert_eq!(line, expected, "block {number}");
    }
}

#[test]
fn hpack_agrees_with_the_hpack_library() {
    let test = "http2_clients::hpack_agrees_with_the_hpack_library";
    let Some(python) = python(test) else { return };
    let seed = std::process::id().to_string();
    println!("seed {seed}");
    let output =
        Command::new(python).args([HPACK, "encode", &seed]).output().expect("run the encoder");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut decoder = Decoder::new();
    let (mut fields, mut lists) = (Fields::default(), 0);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut words = line.split(' ');
        let block = bytes(words.next().expect("a block"));
        fields.clear();
        let limits = Limits { max_list_bytes: 1 << 20, max_count: 100 };
        decoder.decode(&block, &limits, &mut fields).expect("the library's block");
        let expected: Vec<_> = words
            .filter_map(|word| word.split_once(':'))
            .map(|(name, value)| (bytes(name), bytes(value)))
            .collect();
        let seen: Vec<_> = fields.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        assert_eq!(seen, expected, "list {lists}");
        // And after each list the table moves.
        decoder = Decoder::restore(&decoder.save()).expect("its own table");
        lists += 1;
    }
    assert_eq!(lists, 2_000);
}
