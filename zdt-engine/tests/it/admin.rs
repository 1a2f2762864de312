//! The admin endpoint, as scripts, browsers and strangers meet it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use crate::lab::client;
use crate::supervisor::engine::{Engine, Options};

/// Free a moment ago, which is the best that can be had before the supervisor binds it.
pub fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address")
}

/// Status code and body of a request with these header lines.
#[track_caller]
pub fn request(admin: SocketAddr, what: &str, headers: &str) -> (u16, String) {
    let mut stream = client::connect(admin);
    let text = format!("{what} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    (code, body.to_owned())
}

const LOCAL: &str = "Host: localhost\r\n";

#[test]
fn a_page_in_a_browser_gets_nothing() {
    let admin = free_address();
    let _engine = Engine::start(Options::default().and("--admin", &admin.to_string()));
    assert_eq!(request(admin, "GET /healthz", LOCAL).0, 200);
    // Its own name, pointed at this machine.
    let rebound = format!("Host: evil.example:{}\r\n", admin.port());
    let (code, body) = request(admin, "GET /_zero-downtime/status", &rebound);
    assert_eq!(code, 403);
    assert!(!body.contains("pid"), "{body}");
}

#[test]
fn a_token_counts_from_the_reload_that_reads_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("token");
    let write = |token: &str| {
        std::fs::write(&path, token).expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("chmod");
    };
    write("first-token-of-this-test\n");
    let admin = free_address();
    let config = format!("admin_token_file = {:?}\n", path.to_str().expect("path"));
    let options = Options::config(&config).and("--admin", &admin.to_string());
    let engine = Engine::start(options);
    let ask = |token: &str| {
        let headers = format!("Host: x\r\nAuthorization: Bearer {token}\r\n");
        request(admin, "GET /healthz", &headers).0
    };
    assert_eq!(request(admin, "GET /healthz", LOCAL).0, 401);
    assert_eq!((ask("first-token-of-this-test"), ask("another-token-of-this-test")), (200, 401));
    write("another-token-of-this-test");
    engine.reload_well();
    assert_eq!((ask("first-token-of-this-test"), ask("another-token-of-this-test")), (401, 200));
    write("short");
    let verdict = engine.reload();
    let error = verdict["error"].as_str().expect("error");
    assert!(error.contains("admin_token_file") && !error.contains("short\""), "{error}");
    assert_eq!(ask("another-token-of-this-test"), 200);
    let output = engine.zdt(&["status", "--json"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("another-token"));
}
