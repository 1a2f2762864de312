//! HTTP/2 in front of the demo's simple server: streams become connections of their own, which speak HTTP/1.1; clients
//! that do not begin with the preface are passed on as they are.
//!
//! Must not know: what is said, what goes wrong.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{RecvStream, SendStream};
use hyper::http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves in a thread of its own, for as long as the process lives.
pub fn front(back: SocketAddrV4) -> Result<SocketAddrV4> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let SocketAddr::V4(address) = listener.local_addr()? else { bail!("not IPv4") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (client, _) = listener.accept().await?;
                // The client sees what is wrong.
                tokio::spawn(async move { pass(client, back).await });
            }
            #[expect(unreachable_code, reason = "says which error the loop has")]
            std::io::Result::Ok(())
        })
    });
    Ok(address)
}

async fn pass(mut client: TcpStream, back: SocketAddrV4) -> Result<()> {
    client.set_nodelay(true)?;
    let mut first = [0; 2];
    client.read_exact(&mut first).await?;
    let is_http2 = first == *b"PR";
    let (reader, writer) = client.into_split();
    let mut client = tokio::io::join(std::io::Cursor::new(first).chain(reader), writer);
    if is_http2 {
        let mut connection = server::Builder::new()
            .enable_connect_protocol()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 20)
            .handshake::<_, Bytes>(client)
            .await?;
        while let Some(request) = connection.accept().await {
            let (request, respond) = request?;
            tokio::spawn(async move { tunnel(request, respond, back).await });
        }
        return Ok(());
    }
    let mut server = TcpStream::connect(back).await?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// A WebSocket on a stream.
async fn tunnel(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    back: SocketAddrV4,
) -> Result<()> {
    let target = request.uri().path_and_query().context("no target")?.as_str();
    let offer = request.headers().get("sec-websocket-extensions");
    let offer = offer.and_then(|value| value.to_str().ok());
    let offer =
        offer.map_or(String::new(), |offer| format!("Sec-WebSocket-Extensions: {offer}\r\n"));
    let mut server = TcpStream::connect(back).await?;
    server.set_nodelay(true)?;
    server.write_all(format!("GET {target} HTTP/1.1\r\n{offer}\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(server.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let mut response = Response::builder();
    let chosen = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
    if let Some(chosen) = chosen {
        response = response.header("sec-websocket-extensions", chosen);
    }
    let mut sink = respond.send_response(response.body(())?, false)?;
    let mut source = request.into_body();
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = server.read(&mut buffer) => match read {
                Ok(length) if length > 0 => send(&mut sink, &buffer[..length]).await?,
                _ => return Ok(sink.send_data(Bytes::new(), true)?),
            },
            data = source.data() => match data {
                Some(Ok(data)) => {
                    source.flow_control().release_capacity(data.len())?;
                    server.write_all(&data).await?;
                }
                _ => return Ok(()),
            },
        }
    }
}

async fn send(sink: &mut SendStream<Bytes>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        sink.reserve_capacity(bytes.len());
        let room = std::future::poll_fn(|context| sink.poll_capacity(context)).await;
        let room = room.context("reset")??.min(bytes.len());
        sink.send_data(Bytes::copy_from_slice(&bytes[..room]), false)?;
        bytes = &bytes[room..];
    }
    Ok(())
}
