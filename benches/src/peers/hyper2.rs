//! HTTP/2 server of hyper with h2, by prior knowledge: answers what its query says, as `/id` of the demo does.
//!
//! Must not know: who measures.

use std::convert::Infallible;
use std::net::TcpListener;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let id = request.uri().query().and_then(|query| query.strip_prefix("id=")).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(id.as_bytes())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Serves until the process ends.
pub fn serve(listener: TcpListener) -> std::io::Result<()> {
    super::serve_each(listener, |stream| async {
        // A client that goes is no news here.
        let _ = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .await;
    })
}
