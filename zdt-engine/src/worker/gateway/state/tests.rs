//! Exchanges as they were laid down in `tests/golden`: made here by hand, not by what is under test.

use std::path::PathBuf;

use super::*;
use crate::config::{GatewayConfig, RouteTarget, UpstreamTarget};

const URL: &str = "http://127.0.0.1:9000";

fn core() -> Core {
    let route = RouteTarget {
        name: "default".to_owned(),
        path: "/".to_owned(),
        upstreams: vec![UpstreamTarget::parse(URL).unwrap()],
        ..RouteTarget::default()
    };
    let config = GatewayConfig { routes: vec![route], workers: 1, ..GatewayConfig::default() };
    Core::new(&config, None, 0)
}

/// One that waits, a download, and a tunnel in the middle of a frame. Never change them: add others.
fn golden(name: &str) -> Vec<u8> {
    let address = UpstreamAddress::Tcp("127.0.0.1:9000".parse().unwrap());
    let url = serde_json::to_vec(&(URL, address)).unwrap();
    let mut machine = Http1Client::new();
    machine.begin(false, name == "tunnel");
    let (stage, flags, parts): (u8, u16, [&[u8]; 7]) = match name {
        "held" => (
            WAITING,
            KEPT | BODY_DONE | REPEATABLE | MAY_HAVE_BEEN_SENT,
            [b"default", b"", b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n", b"", b"", b"", b"[]"],
        ),
        "download" => (
            RESPONDING,
            BODY_DONE | REPEATABLE | ENDED,
            [
                b"default",
                &url,
                b"",
                b"",
                b"bytes that the client has no room for",
                b"",
                b"[[\"x-sum\",[55]]]",
            ],
        ),
        _ => (
            TUNNEL,
            BODY_DONE | WEBSOCKET,
            [b"default", &url, b"\x81\x85mas", b"", b"\x81", b"GET /ws HTTP/1.1\r\n\r\n", b"[]"],
        ),
    };
    let is_tunnel = name == "tunnel";
    let has_link = stage != WAITING;
    let (mut up, mut down) = (Frames::default(), Frames::default());
    if is_tunnel {
        up.feed(b"\x81\x85mas");
        down.feed(b"\x01");
    }
    let head = ExchangeHead {
        held_ms: if has_link { 0 } else { 1_234 },
        connection: 77,
        stream: 0,
        client: if has_link { machine.save() } else { Http1Client::new().save() },
        lengths: parts.map(|part| part.len() as u32),
        flags,
        stage,
        framing: 0,
        attempts: 1,
        priority: 5,
        leaving: u8::from(is_tunnel) * 2,
        padding: 0,
        up: up.save(),
        down: down.save(),
        has_link: u32::from(has_link),
        early_bytes: 0,
        spill_bytes: 0,
        reserved: [0; 2],
    };
    [bytemuck::bytes_of(&head), &parts.concat()].concat()
}

#[test]
fn golden_exchanges_are_restored_byte_for_byte() {
    for name in ["held", "download", "tunnel"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/golden/gateway-exchange-1-{name}.bin"));
        if std::env::var_os("ZDT_WRITE_GOLDEN").is_some() && !path.exists() {
            std::fs::write(&path, golden(name)).unwrap();
        }
        let laid_down = std::fs::read(&path).unwrap();
        assert!(laid_down == golden(name), "{name}: the form has changed");
        let mut core = core();
        let index = core.restore(&laid_down).unwrap();
        let exchange = &core.exchanges[index];
        let sockets = usize::from(name != "held");
        assert_eq!((core.count_descriptors(index), exchange.connection), (sockets, 77));
        assert_eq!((core.version(index), exchange.frozen), (1, true));
        let mut saved = Vec::new();
        core.save(index, &mut saved).unwrap();
        assert!(saved == laid_down, "{name}: {saved:?}");
        // A byte less, or one more, is no exchange.
        let mut other = self::core();
        assert!(other.restore(&laid_down[..laid_down.len() - 1]).is_err());
        assert!(other.restore(&[laid_down, vec![0]].concat()).is_err());
        assert!(other.exchanges.is_empty() && other.links.is_empty());
    }
}

/// One whose body is in a file from byte 10 to byte 100, and goes on behind it.
fn golden_with_a_file() -> Vec<u8> {
    let mut bytes = golden("held");
    let start = std::mem::offset_of!(ExchangeHead, spill_bytes);
    bytes[start..start + 4].copy_from_slice(&20u32.to_le_bytes());
    bytes.extend_from_slice(bytemuck::bytes_of(&SpillHead { read: 10, written: 100 }));
    bytes.extend_from_slice(b"tail");
    bytes
}

#[test]
fn an_exchange_with_a_file_is_restored_byte_for_byte_and_expects_its_file() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/gateway-exchange-3-spilled.bin");
    if std::env::var_os("ZDT_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, golden_with_a_file()).unwrap();
    }
    let laid_down = std::fs::read(&path).unwrap();
    assert!(laid_down == golden_with_a_file(), "the form has changed");
    let mut core = core();
    let index = core.restore(&laid_down).unwrap();
    assert_eq!((core.version(index), core.spills.bytes()), (3, 94));
    let mut saved = Vec::new();
    core.save(index, &mut saved).unwrap();
    assert!(saved == laid_down, "{saved:?}");
    // One file, as long as it must be.
    let file = |bytes| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        std::os::fd::OwnedFd::from(file)
    };
    assert!(core.expects(&[file(100)]));
    assert!(!core.expects(&[]) && !core.expects(&[file(99)]));
    assert!(!core.expects(&[file(100), file(100)]));
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(!core.expects(&[socket.into()]));
    core.release(index);
    assert_eq!((core.spills.bytes(), core.spills.requests()), (0, 0));
}

#[test]
fn files_that_nobody_saves_are_refused() {
    let whole = golden_with_a_file();
    let head = whole.len() - 20;
    let mut core = core();
    for (read, written) in [(101, 100), (5, 5), (0, u64::MAX), (u64::MAX, 0)] {
        let mut bytes = whole.clone();
        bytes[head..head + 16].copy_from_slice(bytemuck::bytes_of(&SpillHead { read, written }));
        assert!(core.restore(&bytes).is_err(), "{read} {written}");
    }
    for length in 0..20u32 {
        let mut bytes = whole[..head + length as usize].to_vec();
        assert!(core.restore(&bytes).is_err(), "{length}");
        let start = std::mem::offset_of!(ExchangeHead, spill_bytes);
        bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
        assert_eq!(core.restore(&bytes).is_ok(), length == 0 || length >= 16, "{length}");
    }
    // A tunnel has no body.
    let mut tunnel = golden("tunnel");
    let start = std::mem::offset_of!(ExchangeHead, spill_bytes);
    tunnel[start..start + 4].copy_from_slice(&20u32.to_le_bytes());
    tunnel.extend_from_slice(&whole[head..]);
    assert!(core.restore(&tunnel).is_err());
}
