//! WebSocket echo of tokio-tungstenite, set up as well as it can be: one thread, buffers as large as suits the messages
//! (its default of 128 KiB makes it slower), replies flushed together while more messages are waiting.
//!
//! Must not know: who measures.

use std::net::TcpListener;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Serves until the process ends.
pub fn serve(listener: TcpListener, buffer_bytes: usize) -> std::io::Result<()> {
    super::serve_each(listener, |stream| echo(stream, buffer_bytes))
}

/// Echoes on one connection until it ends.
pub async fn echo(stream: impl AsyncRead + AsyncWrite + Unpin, buffer_bytes: usize) {
    let config =
        WebSocketConfig::default().read_buffer_size(buffer_bytes).write_buffer_size(buffer_bytes);
    let Ok(mut socket) = accept_async_with_config(stream, Some(config)).await else { return };
    loop {
        // What is there already is answered with one flush; `feed` flushes a full buffer itself.
        let message = match socket.next().now_or_never() {
            Some(message) => message,
            None => {
                if socket.flush().await.is_err() {
                    return;
                }
                socket.next().await
            }
        };
        let Some(Ok(message)) = message else { return };
        if (message.is_text() || message.is_binary()) && socket.feed(message).await.is_err() {
            return;
        }
    }
}
