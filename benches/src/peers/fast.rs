//! WebSocket echo of fastwebsockets, as in its own example: one thread, hyper for the upgrade.
//!
//! Must not know: who measures.

use std::net::TcpListener;

use fastwebsockets::{FragmentCollector, OpCode, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};

async fn echo(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = FragmentCollector::new(upgraded.await?);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}

async fn accept(mut request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    tokio::spawn(tokio::task::unconstrained(async move {
        // A client that goes without a close frame is no news here.
        let _ = echo(upgraded).await;
    }));
    Ok(response)
}

/// Serves until the process ends.
pub fn serve(listener: TcpListener) -> std::io::Result<()> {
    super::serve_each(listener, |stream| async {
        let io = hyper_util::rt::TokioIo::new(stream);
        let _ =
            http1::Builder::new().serve_connection(io, service_fn(accept)).with_upgrades().await;
    })
}
