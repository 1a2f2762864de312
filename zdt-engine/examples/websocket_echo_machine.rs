//! WebSocket echo over the bare machine: one thread and one blocking socket a connection.
//!
//! Shows how a caller drives [`WebSocket`], and is what a protocol suite runs against without the
//! rest of the engine. With `--move` every connection changes to a restored machine after every
//! read, through the binary encoding, as a live handoff would do it.
//!
//! `cargo run -p zdt-engine --example websocket_echo_machine -- 127.0.0.1:9001 [--move]`

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use zdt_engine::proto::websocket::handshake::{self, DeflateOptions};
use zdt_engine::proto::websocket::{Event, Limits, WebSocket, WebSocketState};
use zdt_engine::proto::{Input, Payload};

const LIMITS: Limits = Limits { max_message_bytes: 16 << 20 };
const MAX_HEAD_BYTES: usize = 16 << 10;

fn main() -> io::Result<()> {
    let mut address = "127.0.0.1:9001".to_owned();
    let mut moves = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--move" => moves = true,
            _ => address = argument,
        }
    }
    let listener = TcpListener::bind(&address)?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept()?;
        std::thread::spawn(move || {
            if let Err(error) = serve(stream, moves) {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

fn serve(mut stream: TcpStream, moves: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    let Some(mut machine) = open(&mut stream, &mut input)? else { return Ok(()) };
    let mut out = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let leftover = respond(&mut machine, &mut input, &mut out);
        stream.write_all(&out)?;
        out.clear();
        if machine.close_sent() {
            // Our FIN, then whatever the client still sends, so that it gets no reset.
            stream.shutdown(std::net::Shutdown::Write)?;
            while stream.read(&mut buffer)? > 0 {}
            return Ok(());
        }
        input.drain(..input.len() - leftover);
        if moves {
            machine = hand_over(&machine);
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        input.extend_from_slice(&buffer[..count]);
    }
}

/// Answers all events in `input`; returns how many bytes the machine left at its end.
fn respond(machine: &mut WebSocket, input: &mut [u8], out: &mut Vec<u8>) -> usize {
    let mut input = Input::new(input);
    loop {
        match machine.next_event(&mut input, &LIMITS) {
            Ok(Some(Event::Message { kind, payload })) => {
                machine.write_message(out, kind, &payload, 0);
            }
            Ok(Some(Event::Ping(payload))) => machine.write_pong(out, &payload),
            Ok(Some(Event::Pong(_))) => {}
            Ok(Some(Event::Close { code, reason })) => {
                machine.write_close(out, code, text(&reason));
            }
            Ok(None) => return input.len(),
            Err(error) => machine.write_close(out, Some(error.close_code), error.reason),
        }
    }
}

fn text<'p>(reason: &'p Payload<'_>) -> &'p str {
    std::str::from_utf8(reason).unwrap_or_default()
}

fn hand_over(machine: &WebSocket) -> WebSocket {
    let (head, parts) = machine.save_parts();
    let state = WebSocketState::decode(&head, &parts.concat()).expect("own record");
    WebSocket::restore(state, &LIMITS).expect("own state")
}

/// Reads the upgrade request and answers it.
fn open(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<Option<WebSocket>> {
    let mut buffer = [0; 4096];
    let head_bytes = loop {
        if let Some(place) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break place + 4;
        }
        let count = stream.read(&mut buffer)?;
        if count == 0 || input.len() > MAX_HEAD_BYTES {
            return Ok(None);
        }
        input.extend_from_slice(&buffer[..count]);
    };
    let head: Vec<u8> = input.drain(..head_bytes).collect();
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(&head).map_err(io::Error::other)?;
    let headers = request.headers.iter().map(|header| (header.name, header.value));
    let accept = match handshake::check(
        request.method.unwrap_or_default(),
        request.version == Some(1),
        headers,
    ) {
        Ok(accept) => accept,
        Err(refusal) => {
            let mut response = format!("HTTP/1.1 {} Refused\r\n", refusal.status).into_bytes();
            for (name, value) in refusal.headers {
                response.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
            }
            response.extend(b"Connection: close\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(&response)?;
            return Ok(None);
        }
    };
    let options = DeflateOptions::default();
    let deflate = handshake::negotiate_deflate(accept.extensions.iter().copied(), &options);
    let mut response = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Accept: "
        .to_vec();
    response.extend(accept.accept);
    if let Some((_, value)) = &deflate {
        response.extend(b"\r\nSec-WebSocket-Extensions: ");
        response.extend(value.as_bytes());
    }
    if let Some(protocol) = accept.subprotocols.first() {
        response.extend(b"\r\nSec-WebSocket-Protocol: ");
        response.extend(protocol.as_bytes());
    }
    response.extend(b"\r\n\r\n");
    stream.write_all(&response)?;
    Ok(Some(WebSocket::new(deflate.map(|(params, _)| params))))
}
