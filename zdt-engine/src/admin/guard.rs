//! Who may ask the admin endpoint.
//!
//! With a token, whoever shows it, from wherever. Without one only this machine, and then a browser on it is
//! the danger: a page may send requests there (CSRF), or have its own name resolve to 127.0.0.1 and read the
//! answers (DNS rebinding). So the Host must be one that no page can have, and no page may be the origin.
//!
//! Must not know: what is asked.

use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::supervisor::AdminToken;

/// What a request is held against.
#[derive(Clone)]
pub struct Guard {
    /// Where the endpoint listens.
    pub address: SocketAddr,
    /// The token that counts now.
    pub token: watch::Receiver<AdminToken>,
}

/// Lets a request pass, or answers it.
pub async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let verdict = {
        let token = guard.token.borrow();
        judge(guard.address, token.as_ref().map(|token| token.expose()), &request)
    };
    match verdict {
        Ok(()) => next.run(request).await,
        Err((code, message)) => {
            let mut answer = (code, Json(serde_json::json!({ "error": message }))).into_response();
            if code == StatusCode::UNAUTHORIZED {
                let scheme = header::HeaderValue::from_static("Bearer");
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            answer
        }
    }
}

type Refusal = (StatusCode, &'static str);

fn judge(address: SocketAddr, token: Option<&str>, request: &Request) -> Result<(), Refusal> {
    let headers = request.headers();
    if request.method() != Method::GET && request.method() != Method::HEAD {
        refuse_pages(headers)?;
    }
    match token {
        Some(token) => match shown_token(headers) {
            Some(shown) if is_same(shown, token.as_bytes()) => Ok(()),
            Some(_) => Err((StatusCode::UNAUTHORIZED, "this is not the token")),
            None => Err((StatusCode::UNAUTHORIZED, "show the token as `Authorization: Bearer …`")),
        },
        None if !address.ip().is_loopback() => Err((
            StatusCode::FORBIDDEN,
            "no token is configured, and this is not a loopback address",
        )),
        None => refuse_names(headers),
    }
}

/// The token of a request (RFC 6750 §2.1), if there is exactly one.
fn shown_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = only.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Takes as long whatever differs: digests have one length, and say nothing about where texts part.
fn is_same(shown: &[u8], token: &[u8]) -> bool {
    Sha256::digest(shown).ct_eq(&Sha256::digest(token)).into()
}

/// Browsers say which page a changing request comes from (RFC 6454 §7, Fetch Metadata); no page is welcome.
fn refuse_pages(headers: &HeaderMap) -> Result<(), Refusal> {
    let site = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    let foreign_site = site.is_some_and(|site| site != b"none" && site != b"same-origin");
    if headers.contains_key(header::ORIGIN) || foreign_site {
        return Err((StatusCode::FORBIDDEN, "requests of web pages are refused here"));
    }
    Ok(())
}

/// A name other than `localhost` may have been pointed at this machine by anybody.
fn refuse_names(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut all = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (all.next(), all.next()) else {
        return Err((StatusCode::BAD_REQUEST, "one Host is needed"));
    };
    if host.to_str().is_ok_and(is_this_machine) {
        return Ok(());
    }
    Err((StatusCode::FORBIDDEN, "without a token, Host must be localhost or a loopback address"))
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn judged(address: &str, token: Option<&str>, method: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri("/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let address = address.parse().unwrap();
        judge(address, token, &request).map_or_else(|(code, _)| code.as_u16(), |()| 200)
    }

    #[test]
    fn without_a_token_only_this_machine_and_no_page() {
        let local = |method: &str, headers: &[(&str, &str)]| {
            judged("127.0.0.1:9180", None, method, headers)
        };
        for host in ["127.0.0.1:9180", "localhost", "LOCALHOST:9", "[::1]:9180", "127.9.9.9"] {
            assert_eq!(local("GET", &[("host", host)]), 200, "{host}");
            assert_eq!(local("POST", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9180",
            "localhost.evil.example",
            "10.0.0.1",
            "",
            "[::2]",
            "127.0.0.1.evil.example",
            "[127.0.0.1",
            "localhost:1:2",
        ] {
            assert_eq!(local("GET", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(local("GET", &[]), 400);
        assert_eq!(local("GET", &[("host", "localhost"), ("host", "localhost")]), 400);
        let here = ("host", "localhost:9180");
        for page in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "http://localhost:9180"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(local("POST", &[here, page]), 403, "{page:?}");
        }
        assert_eq!(local("POST", &[here, ("sec-fetch-site", "none")]), 200);
        assert_eq!(judged("0.0.0.0:9180", None, "GET", &[here]), 403, "never without a token");
    }

    #[test]
    fn with_a_token_only_who_shows_it() {
        for address in ["127.0.0.1:9180", "0.0.0.0:9180"] {
            let shows = |value: &str| {
                let headers = [("host", "any.example"), ("authorization", value)];
                judged(address, Some(TOKEN), "POST", &headers)
            };
            assert_eq!(shows(&format!("Bearer {TOKEN}")), 200);
            assert_eq!(shows(&format!("bearer  {TOKEN}")), 200);
            for wrong in
                ["", "Bearer", "Bearer ", "Basic 0123456789abcdef", "Bearer 0123456789abcde"]
            {
                assert_eq!(shows(wrong), 401, "{wrong}");
            }
            let twice = format!("Bearer {TOKEN}");
            let twice = [("authorization", twice.as_str()), ("authorization", twice.as_str())];
            assert_eq!(judged(address, Some(TOKEN), "GET", &twice), 401);
            assert_eq!(judged(address, Some(TOKEN), "GET", &[("host", "localhost")]), 401);
        }
    }
}
