//! Requests as a table: what is accepted and how it is understood, what is refused and with which
//! status.

use super::super::*;

fn outcome(bytes: &[u8], limits: &Limits) -> Result<String, u16> {
    let mut http = Http1::new();
    let mut bytes = bytes.to_vec();
    let mut input = Input::new(&mut bytes);
    let mut seen = String::new();
    loop {
        match http.next_event(&mut input, limits) {
            Ok(Some(Event::Request(request))) => {
                seen += &format!("{} {} {:?}", request.method, request.target, request.body);
            }
            Ok(Some(Event::Body(piece))) => {
                seen += &format!(" {:?}", String::from_utf8_lossy(piece));
            }
            Ok(Some(Event::End)) => {
                seen += " end\n";
                http.respond(&mut Vec::new(), 204, &[], b"", b"").expect("a request was there");
            }
            Ok(None) => return Ok(seen),
            Err(error) => return Err(error.status()),
        }
    }
}

#[test]
fn pipelined_requests_come_out_one_by_one() {
    let bytes = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc\
        POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=\"y\"\r\nf\r\n0\r\nA: b\r\n\r\n\
        GET /d HTTP/1.1\r\nHost";
    let expected =
        "GET /a None end\nPOST /b Known(3) \"abc\" end\nPOST /c Chunked \"de\" \"f\" end\n";
    assert_eq!(outcome(bytes, &Limits::default()), Ok(expected.to_owned()));
}
