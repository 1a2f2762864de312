//! curl across reloads: kept connections, a download, an upload, each checked to the last byte.

use std::io::{BufRead, BufReader, Write};

use sha2::{Digest, Sha256};

use crate::lab::programs::{Guarded, curl, have_curl, read_big};
use crate::supervisor::engine::{Engine, Options, output_of};

const MIB: usize = 1 << 20;

#[test]
fn one_connection_serves_a_client_through_reloads() {
    if !have_curl("system_curl::one_connection_serves_a_client_through_reloads") {
        return;
    }
    let engine = Engine::start(Options::default());
    let mut client = Guarded(
        curl(&["--rate", "240/m", "-w", " %{http_code} %{num_connects}\n"])
            .arg(format!("http://{}/id?id=[1-6]", engine.address()))
            .spawn()
            .expect("run curl"),
    );
    let lines = BufReader::new(client.0.stdout.take().expect("stdout")).lines();
    let mut seen = Vec::new();
    for line in lines {
        seen.push(line.expect("read"));
        if seen.len() < 6 {
            engine.reload_well();
        }
    }
    assert_eq!(seen, ["1 200 1", "2 200 0", "3 200 0", "4 200 0", "5 200 0", "6 200 0"]);
    assert!(client.0.wait().expect("wait").success());
}

#[test]
fn a_large_download_crosses_reloads() {
    if !have_curl("system_curl::a_large_download_crosses_reloads") {
        return;
    }
    const TOTAL: usize = 48 * MIB;
    let engine = Engine::start(Options::default());
    let client = Guarded(
        curl(&["--limit-rate", "24M"])
            .arg(format!("http://{}/big?n={TOTAL}", engine.address()))
            .spawn()
            .expect("run curl"),
    );
    read_big(client, TOTAL, 8 * MIB, 5, || {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
    });
}

#[test]
fn a_large_upload_crosses_reloads() {
    if !have_curl("system_curl::a_large_upload_crosses_reloads") {
        return;
    }
    let engine = Engine::start(Options::default());
    let mut client = curl(&["-X", "POST", "-T", "-"])
        .arg(format!("http://{}/digest", engine.address()))
        .spawn()
        .expect("run curl");
    let mut stdin = client.stdin.take().expect("stdin");
    let mut sum = Sha256::new();
    for part in 0..6_usize {
        let piece: Vec<u8> = (0..8 * MIB + 13).map(|at| (at * 31 % 253 + part) as u8).collect();
        stdin.write_all(&piece).expect("write");
        sum.update(&piece);
        if part < 5 {
            let verdict = engine.reload_well();
            assert_eq!(verdict["migrated_connections"], 1, "{verdict}");
        }
    }
    drop(stdin);
    let output = output_of(client);
    assert!(output.status.success(), "{output:?}");
    let expected: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), expected);
}
