//! The same echo as `tungstenite`, behind tokio-rustls.
//!
//! Must not know: who measures.

use std::net::TcpListener;
use std::path::Path;

use anyhow::Result;
use tokio_rustls::TlsAcceptor;

use super::tungstenite::echo;

/// Serves until the process ends.
pub fn serve(
    listener: TcpListener,
    certificate: &Path,
    key: &Path,
    buffer_bytes: usize,
) -> Result<()> {
    let acceptor = TlsAcceptor::from(crate::secure::server_config(certificate, key)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    echo(stream, buffer_bytes).await;
                }
            });
        }
    })
}
