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
    super::serve_each(listener, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                echo(stream, buffer_bytes).await;
            }
        }
    })?;
    Ok(())
}
