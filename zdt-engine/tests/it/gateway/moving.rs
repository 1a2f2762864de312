//! Reloads of zdt under whatever passes through it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use tungstenite::Message;

use super::upstream::Upstream;
use super::{begin, gateway, gateway_for, read_answer};
use crate::lab::client;
use crate::lab::client::ReadOn;

#[test]
fn downloads_uploads_and_waiting_requests_go_on_across_reloads() {
    let upstream = Upstream::start("app");
    let engine = gateway(&[&upstream], "workers = 1");
    let address = engine.address();
    let bytes = 24usize << 20;
    let mut download = begin(address, &format!("GET /big?n={bytes} HTTP/1.1\r\nHost: test"));
    let mut waiting = begin(address, "GET /never HTTP/1.1\r\nHost: test");
    let mut upload = client::connect(address);
    let length = 8 << 20;
    write!(upload, "POST /sum HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
        .expect("write");

    let mut received = Vec::new();
    let mut piece = vec![0; 1 << 16];
    let data: Vec<u8> = (0..length).map(|at| (at % 253) as u8).collect();
    let mut sent = 0;
    let mut migrated = 0;
    for turn in 0..4 {
        let target = bytes / 5 * (turn + 1);
        while received.len() < target {
            let count = download.read_on(&mut piece).expect("read");
            assert!(count > 0, "cut off at {}", received.len());
            received.extend_from_slice(&piece[..count]);
        }
        let end = length / 5 * (turn + 1);
        upload.write_all(&data[sent..end]).expect("write");
        sent = end;
        migrated += engine.reload_well()["migrated_connections"].as_u64().expect("a number");
    }
    assert_eq!(migrated, 12, "three connections, four reloads");
    upload.write_all(&data[sent..]).expect("write");
    let sum = data.iter().fold(0u64, |sum, &byte| sum.wrapping_mul(31) + u64::from(byte));
    assert_eq!(read_answer(&mut upload).text(), format!("{length} {sum}\n"));
    let head_end = received.windows(4).position(|window| window == b"\r\n\r\n").expect("head") + 4;
    while received.len() < head_end + bytes {
        let count = download.read_on(&mut piece).expect("read");
        assert!(count > 0, "cut off at {}", received.len());
        received.extend_from_slice(&piece[..count]);
    }
    let body = &received[head_end..];
    assert!(
        body.iter()
            .enumerate()
            .all(|(at, &byte)| byte == (at % (1 << 16) % 251) as u8 || byte == (at % 251) as u8)
    );
    // The request that waits was not sent twice, and still gets what becomes of it.
    assert_eq!(upstream.seen().iter().filter(|text| text.starts_with("GET /never")).count(), 1);
    upstream.stop();
    let mut rest = Vec::new();
    waiting.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("time-out");
    // It may be repeated, so it is held now; nobody has answered it.
    let _ = waiting.read_to_end(&mut rest);
    assert_eq!(rest, b"");
}

/// Echoes WebSocket messages, with a count for each connection.
pub fn websocket_upstream() -> String {
    websocket_upstream_at("127.0.0.1:0".parse().expect("address"))
}

pub fn websocket_upstream_at(address: std::net::SocketAddr) -> String {
    let listener = TcpListener::bind(address).expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    url
}

fn echo(stream: TcpStream) {
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    let mut count = 0;
    while let Ok(message) = socket.read() {
        if let Message::Text(text) = message {
            count += 1;
            if socket.send(Message::text(format!("{count} {text}"))).is_err() {
                return;
            }
        }
    }
}

#[test]
fn websockets_pass_through_and_move() {
    let engine = gateway_for(&[websocket_upstream()], "workers = 1");
    let mut clients: Vec<_> =
        (0..20).map(|_| client::websocket(engine.address(), "/any")).collect();
    for turn in 1..6 {
        for (number, client) in clients.iter_mut().enumerate() {
            let text = "x".repeat(number * 1_000);
            client.send(Message::text(text.clone())).expect("send");
            assert_eq!(client.read().expect("read"), Message::text(format!("{turn} {text}")));
        }
        assert_eq!(engine.reload_well()["migrated_connections"], 20);
    }
    for mut client in clients {
        client.close(None).expect("close");
        // The upstream answers the close frame, and its end is passed on.
        while client.read().is_ok() {}
    }
}
