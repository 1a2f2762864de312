//! The whole engine: certificates reloaded, sessions resumed, client certificates kept.

use std::io::Write;
use std::sync::Arc;

use rustls::HandshakeKind;
use serde_json::Value;

use crate::lab::client;
use crate::lab::client::ReadOn;
use crate::lab::eventually;
use crate::lab::secure::{self, Authority, Stream};
use crate::supervisor::engine::{Engine, Options};

/// What the service knows of this connection.
#[track_caller]
fn seen(stream: &mut Stream) -> Value {
    stream.write_all(b"GET /tls HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    let mut text = String::new();
    while !text.ends_with('}') {
        let mut buffer = [0; 1024];
        let count = stream.read_on(&mut buffer).expect("read");
        assert!(count > 0, "it ended: {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).expect("text"));
    }
    serde_json::from_str(text.split("\r\n\r\n").nth(1).expect("body")).expect("JSON")
}

#[test]
fn websockets_and_sessions_survive_reloads() {
    let authority = Authority::new();
    let engine = Engine::start(Options::config(&authority.config()));
    let address = engine.address();
    let mut clients: Vec<_> =
        (0..20).map(|_| authority.websocket(address, "/ws/counter")).collect();
    let config = Arc::new(authority.client_config(&rustls::version::TLS13));
    let old = Arc::new(authority.client_config(&rustls::version::TLS12));
    for (config, kind) in [
        (&config, HandshakeKind::Full),
        (&old, HandshakeKind::Full),
        (&config, HandshakeKind::Resumed),
        (&old, HandshakeKind::Resumed),
    ] {
        let mut stream = secure::connect(address, config);
        assert_eq!(stream.conn.handshake_kind(), Some(kind));
        assert_eq!(seen(&mut stream)["server_name"], "localhost");
    }
    for generation in 2..5 {
        let verdict = engine.reload_well();
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        for client in &mut clients {
            client.get_mut().conn.refresh_traffic_keys().expect("key update");
            assert_eq!(client::count(client), (generation - 1, generation));
        }
        // Begun in an earlier generation.
        for config in [&config, &old] {
            let mut stream = secure::connect(address, config);
            assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed), "{generation}");
            seen(&mut stream);
        }
    }
    let status = engine.status();
    let workers = status["worker_stats"].as_object().expect("workers").values();
    let over_tls: u64 = workers
        .map(|worker| {
            worker["figures"]["by_transport"]["tls1.3"]
                .as_u64()
                .or(worker["by_transport"]["tls1.3"].as_u64())
                .unwrap_or(0)
        })
        .sum();
    assert_eq!(over_tls, 20, "{status}");
}

#[test]
fn a_later_supervisor_knows_the_keys_of_tickets() {
    let authority = Authority::new();
    let mut engine = Engine::start(Options::config(&authority.config()));
    let config = Arc::new(authority.client_config(&rustls::version::TLS13));
    seen(&mut secure::connect(engine.address(), &config));
    engine.signal(nix::sys::signal::Signal::SIGKILL);
    engine.wait();
    engine.restart();
    engine.reload_well();
    let stream = secure::connect(engine.address(), &config);
    assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn keys_of_tickets_change_and_old_tickets_live_on_for_a_while() {
    let authority = Authority::new();
    let text = format!(
        "[tls]\nticket_rotation_ms = 1000\nticket_lifetime_ms = 3000\n{}",
        authority.config()
    );
    let engine = Engine::start(Options::config(&text));
    let config = Arc::new(authority.client_config(&rustls::version::TLS13));
    let begun = std::time::Instant::now();
    seen(&mut secure::connect(engine.address(), &config));
    let mut resumed = 0;
    let mut refused = false;
    // Each connection gets new tickets, so that the chain never breaks while it is used.
    while begun.elapsed() < std::time::Duration::from_millis(2_500) {
        let mut stream = secure::connect(engine.address(), &config);
        seen(&mut stream);
        assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
        resumed += 1;
    }
    // Unused for longer than its life, a ticket is worth nothing.
    let since = std::time::Instant::now();
    crate::lab::eventually("the tickets have died", || {
        if since.elapsed() < std::time::Duration::from_millis(4_500) {
            return false;
        }
        let stream = secure::connect(engine.address(), &config);
        refused = stream.conn.handshake_kind() == Some(HandshakeKind::Full);
        true
    });
    assert!(resumed > 1 && refused);
}

#[test]
fn certificates_are_read_again_and_errors_leave_the_old_ones() {
    let authority = Authority::new();
    let engine = Engine::start(Options::config(&authority.config()));
    let address = engine.address();
    let mut kept = authority.connect(address);
    seen(&mut kept);
    // A key that is not the certificate's: nothing happens to anybody.
    authority.write("other", "localhost");
    std::fs::copy(authority.path("other.key"), authority.path("server.key")).expect("copy");
    let refused = engine.reload();
    assert_eq!(refused["reload_successful"], false);
    assert!(refused.to_string().contains("not that of the certificate"), "{refused}");
    seen(&mut kept);
    seen(&mut authority.connect(address));
    // Both files: the next generation shows it, and connections from before go on.
    std::fs::copy(authority.path("other.pem"), authority.path("server.pem")).expect("copy");
    engine.reload_well();
    seen(&mut kept);
    let config = Arc::new(authority.client_config(&rustls::version::TLS13));
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("name");
    let mut connection = rustls::ClientConnection::new(config, name).expect("client");
    let error = connection.complete_io(&mut client::connect(address)).expect_err("another one");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn a_clients_identity_is_told_to_the_service_and_moves() {
    let authority = Authority::new();
    let (der, key) = authority.write("client", "some.client");
    for rule in ["required", "optional"] {
        let text = format!(
            "[tls]\nclient_ca = {:?}\nclient_certificates = {rule:?}\n{}",
            authority.path("client.pem"),
            authority.config()
        );
        let engine = Engine::start(Options::config(&text));
        let config = Arc::new(authority.client_config_as((der.clone(), key.clone())));
        let mut stream = secure::connect(engine.address(), &config);
        let before = seen(&mut stream);
        assert_eq!(before["client_certificate_sha256"].as_str().map(str::len), Some(64));
        engine.reload_well();
        assert_eq!(seen(&mut stream), before);
        let mut resumed = secure::connect(engine.address(), &config);
        assert_eq!(resumed.conn.handshake_kind(), Some(HandshakeKind::Resumed));
        assert_eq!(seen(&mut resumed), before, "also from a ticket");
        let config = Arc::new(authority.client_config(&rustls::version::TLS12));
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("name");
        let mut nameless = rustls::ClientConnection::new(config, name).expect("client");
        let mut socket = client::connect(engine.address());
        let is_let_in = nameless.complete_io(&mut socket).is_ok();
        assert_eq!(is_let_in, rule == "optional");
    }
}

#[test]
fn the_command_line_and_the_file_are_checked() {
    let authority = Authority::new();
    let engine = Engine::start(
        Options::default()
            .and("--tls-cert", &authority.path("server.pem").display().to_string())
            .and("--tls-key", &authority.path("server.key").display().to_string()),
    );
    seen(&mut authority.connect(engine.address()));
    let doctor = |certificate: &str| {
        let path = authority.path("zdt.toml");
        let text = format!(
            "[[tls.certificates]]\ncertificate = {:?}\nkey = {:?}\n",
            authority.path(certificate),
            authority.path("server.key")
        );
        std::fs::write(&path, text).expect("write");
        let output = engine.zdt(&["doctor", "--json", "--config", &path.display().to_string()]);
        let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = result["checks"].as_array().expect("checks").clone();
        checks.into_iter().find(|check| check["name"] == "certificates").expect("the check")
    };
    assert_eq!(doctor("server.pem")["level"], "ok");
    assert_eq!(doctor("server.key")["level"], "error");
}

/// Clients that never say a word, or not all of their first one, cost a reload no time and leave nothing behind.
#[test]
fn a_thousand_silent_clients_move() {
    let authority = Authority::new();
    let config = format!("{}\n[limits]\nheader_timeout_ms = 120000\n", authority.config());
    let engine = Engine::start(Options::config(&config));
    let clients: Vec<_> = (0..1_000)
        .map(|number| {
            let mut stream = client::connect(engine.address());
            stream
                .write_all(&b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03"[..number % 11])
                .expect("write");
            stream
        })
        .collect();
    eventually("all are there", || engine.status()["active_connections"] == clients.len());
    for _ in 0..3 {
        let verdict = engine.reload_well();
        assert_eq!(verdict["migrated_connections"], clients.len(), "{verdict}");
        assert_eq!(verdict["drained_connections"], 0, "{verdict}");
        eventually("one generation is left", || {
            engine.status()["generations"].as_array().map(Vec::len) == Some(1)
        });
    }
}
