//! The control socket: requests of the command line, a JSON object a line.
//!
//! Must not know: how a request is served.

use std::os::fd::{AsFd, OwnedFd};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};

use super::handle::{Handle, MAX_LINE_BYTES, Reply, Request};
use crate::sys;

/// Commands that may be served at once.
const MAX_CLIENTS: usize = 64;

/// Serves the socket for as long as the supervisor lives.
pub(super) async fn serve(socket: OwnedFd, handle: Handle) {
    let listener = std::os::unix::net::UnixListener::from(socket);
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot serve the control socket");
            return;
        }
    };
    let free = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = std::sync::Arc::clone(&free).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = handle.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve_client(stream, handle).await {
                        tracing::debug!(%error, "a control connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept on the control socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_client(stream: UnixStream, handle: Handle) -> std::io::Result<()> {
    let peer = sys::socket::peer_credentials(stream.as_fd())?;
    let own = nix::unistd::geteuid().as_raw();
    let (reader, mut writer) = stream.into_split();
    if peer.uid != own && peer.uid != 0 {
        tracing::warn!(uid = peer.uid, pid = peer.pid, "refused on the control socket");
        let message = format!("user {} may not control this supervisor of user {own}", peer.uid);
        return write(&mut writer, &Reply::Error { message }).await;
    }
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_LINE_BYTES as u64;
        if (&mut reader).take(limit).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        match serde_json::from_slice(&line) {
            Ok(request) => serve_request(request, &handle, &mut writer).await?,
            Err(error) => {
                let message =
                    format!("request not understood ({error}); is the command of another version?");
                return write(&mut writer, &Reply::Error { message }).await;
            }
        }
    }
}

fn ending() -> Reply {
    Reply::Error { message: "the supervisor is ending".to_owned() }
}

async fn serve_request(
    request: Request,
    handle: &Handle,
    writer: &mut OwnedWriteHalf,
) -> std::io::Result<()> {
    match request {
        Request::Status => {
            let reply = handle.status().await.map_or_else(ending, Reply::Status);
            write(writer, &reply).await
        }
        Request::TestMigration => {
            let reply = match handle.test_migration().await {
                Some(Ok(result)) => Reply::TestMigration(Box::new(result)),
                Some(Err(message)) => Reply::Error { message },
                None => ending(),
            };
            write(writer, &reply).await
        }
        Request::Plan => {
            let reply = handle.plan().await.map_or_else(ending, Reply::Plan);
            write(writer, &reply).await
        }
        Request::FlushQueue => {
            let reply = handle.flush_queue().await.map_or_else(ending, Reply::Flushed);
            write(writer, &reply).await
        }
        Request::Config => {
            let reply = handle.config().await.map_or_else(ending, Reply::Config);
            write(writer, &reply).await
        }
        Request::Stop { now } => {
            let reply =
                handle.stop(now).await.map_or_else(ending, |workers| Reply::Stopping { workers });
            write(writer, &reply).await
        }
        Request::Reload(request) => write_all(writer, handle.reload(request).await).await,
        Request::Rollback => write_all(writer, handle.rollback().await).await,
    }
}

/// Progress, and the verdict at last.
async fn write_all(
    writer: &mut OwnedWriteHalf,
    replies: Option<tokio::sync::mpsc::Receiver<Reply>>,
) -> std::io::Result<()> {
    if let Some(mut replies) = replies {
        while let Some(reply) = replies.recv().await {
            let last = matches!(reply, Reply::Verdict(_));
            write(writer, &reply).await?;
            if last {
                return Ok(());
            }
        }
    }
    write(writer, &ending()).await
}

async fn write(writer: &mut OwnedWriteHalf, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
