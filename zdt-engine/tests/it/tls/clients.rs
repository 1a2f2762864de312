//! Clients of other people across reloads: OpenSSL, curl, Python.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::lab::programs::{Guarded, curl, have, have_curl};
use crate::lab::secure::Authority;
use crate::lab::system::while_reloading;
use crate::supervisor::engine::{Engine, Options};

fn engine(authority: &Authority) -> Engine {
    Engine::start(Options::config(&authority.config()))
}

/// Asks for eight ids on one connection, reloads meanwhile: each answer has this behind its id, and the number of
/// connections that were made for it.
fn keeps_its_connection(arguments: &[&str], behind: &str) {
    let authority = Authority::new();
    let engine = engine(&authority);
    let port = engine.address().port();
    let run = || {
        curl(&["--rate", "300/m", "--cacert"])
            .arg(authority.path("server.pem"))
            .args(arguments)
            .args(["-w", " %{http_code} %{http_version} %{num_connects}\n"])
            .arg(format!("https://localhost:{port}/id?id=[1-8]"))
            .output()
            .expect("run curl")
    };
    let (output, reloads) = while_reloading(&engine, Duration::from_millis(100), run);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected: String =
        (1..=8).map(|id| format!("{id} {behind} {}\n", u8::from(id == 1))).collect();
    assert_eq!(text, expected, "{output:?}");
    assert!(reloads > 1);
}

/// `k` and `K` of s_client are key updates, the second with a request for one.
#[test]
fn openssl_changes_keys_before_and_after_reloads() {
    if !have("tls::clients::openssl_changes_keys_before_and_after_reloads", "openssl", "version") {
        return;
    }
    let authority = Authority::new();
    let engine = engine(&authority);
    for arguments in [
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"][..],
        &["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"],
        &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    ] {
        let mut child = Guarded(
            Command::new("openssl")
                .args(["s_client", "-connect", &engine.address().to_string()])
                .args(["-servername", "localhost", "-CAfile"])
                .arg(authority.path("server.pem"))
                .arg("-verify_return_error")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("run openssl"),
        );
        let mut input = child.0.stdin.take().expect("stdin");
        let mut lines = BufReader::new(child.0.stdout.take().expect("stdout")).lines();
        let mut ask = |id: &str| {
            write!(input, "GET /id?id={id} HTTP/1.1\r\nHost: x\r\nX-Pad: {id}\r\n\r\n")
                .expect("write");
            input.flush().expect("flush");
            // The body has no line end; the next answer, or text of s_client, follows it.
            let length = format!("Content-Length: {}", id.len());
            let found = lines.by_ref().map_while(Result::ok).any(|line| line == length);
            assert!(found, "{arguments:?}: no answer to {id}");
        };
        ask("a");
        for id in ["bb", "ccc"] {
            engine.reload_well();
            ask(id);
            ask(&format!("{id}x"));
        }
    }
}

#[test]
fn curl_keeps_its_connection() {
    if !have_curl("tls::clients::curl_keeps_its_connection") {
        return;
    }
    for version in ["1.2", "1.3"] {
        keeps_its_connection(&["--http1.1", "--tls-max", version], "200 1.1");
    }
}

/// HTTP/2 is agreed in the handshake, and its connection moves like any other.
#[test]
fn curl_speaks_http2_on_one_connection() {
    if !have_curl("tls::clients::curl_speaks_http2_on_one_connection") {
        return;
    }
    keeps_its_connection(&["--http2"], "200 2");
}

#[test]
fn http2_that_is_off_is_not_offered() {
    if !have_curl("tls::clients::http2_that_is_off_is_not_offered") {
        return;
    }
    let authority = Authority::new();
    let config = format!("{}\n[http2]\nenabled = false\n", authority.config());
    let engine = Engine::start(Options::config(&config));
    let output = curl(&["--http2", "--cacert"])
        .arg(authority.path("server.pem"))
        .args(["-w", " %{http_code} %{http_version}"])
        .arg(format!("https://localhost:{}/id?id=7", engine.address().port()))
        .output()
        .expect("run curl");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "7 200 1.1", "{output:?}");
}

#[test]
fn python_reads_everything_and_unwraps() {
    let test = "tls::clients::python_reads_everything_and_unwraps";
    if !have(test, "python3", "--version") {
        return;
    }
    let authority = Authority::new();
    let engine = engine(&authority);
    let run = || {
        Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/client.py"))
            .arg(engine.address().port().to_string())
            .arg(authority.path("server.pem"))
            .output()
            .expect("run python3")
    };
    let (output, reloads) = while_reloading(&engine, Duration::from_millis(50), run);
    assert!(output.status.success(), "{output:?}");
    assert!(reloads > 2);
}
