//! Responses whole, in pieces, saved and restored in between, and those that must be refused.

use proptest::prelude::*;

use super::*;

/// What a caller sees, joined.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    interim: Vec<u16>,
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    ended: bool,
    idle: bool,
    error: Option<ClientError>,
}

fn drive(is_head: bool, upgrade: bool, pieces: &[&[u8]], end: bool) -> Seen {
    let mut client = Http1Client::new();
    client.begin(is_head, upgrade);
    let mut seen = Seen::default();
    let mut pending = Vec::new();
    for piece in pieces {
        pending.extend_from_slice(piece);
        // Moved to another process before every piece.
        client = Http1Client::restore(&client.save()).expect("a state of its own");
        let total = pending.len();
        let mut input = Input::new(&mut pending);
        loop {
            match client.next_event(&mut input, &ClientLimits::default()) {
                Ok(Some(ClientEvent::Interim(response))) => seen.interim.push(response.status),
                Ok(Some(ClientEvent::Response(response))) => {
                    seen.status = response.status;
                    for (name, value) in response.headers() {
                        seen.headers.push((name.to_owned(), value.to_vec()));
                    }
                }
                Ok(Some(ClientEvent::Body(bytes))) => seen.body.extend_from_slice(bytes),
                Ok(Some(ClientEvent::Trailer(name, value))) => {
                    seen.trailers.push((name.to_owned(), value.to_vec()));
                }
                Ok(Some(ClientEvent::End)) => seen.ended = true,
                Ok(None) => break,
                Err(error) => {
                    seen.error = Some(error);
                    return seen;
                }
            }
        }
        let left = input.len();
        pending.drain(..total - left);
    }
    if end {
        match client.on_receive_end(false) {
            Ok(complete) => seen.ended |= complete,
            Err(error) => seen.error = Some(error),
        }
    }
    seen.idle = client.is_idle();
    seen
}

const WHOLE: [&[u8]; 6] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Sum: 7\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 500 \r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
];

#[test]
fn responses_are_understood() {
    let seen = drive(false, false, &[WHOLE[0]], false);
    assert_eq!(
        (seen.status, seen.body.as_slice(), seen.ended, seen.idle),
        (200, &b"hello"[..], true, true)
    );
    let seen = drive(false, false, &[WHOLE[1]], false);
    assert_eq!((seen.interim.as_slice(), seen.body.as_slice()), (&[103][..], &b"abcde"[..]));
    assert_eq!(seen.trailers, [("X-Sum".to_owned(), b"7".to_vec())]);
    assert!(drive(false, false, &[WHOLE[2]], false).idle);
    assert!(drive(false, false, &[WHOLE[3]], false).idle);
    assert!(drive(false, false, &[WHOLE[4]], false).idle);
    assert!(!drive(false, false, &[WHOLE[5]], false).idle, "it said close");
    let seen = drive(true, false, &[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], false);
    assert!(seen.ended && seen.idle, "an answer to HEAD has no body");
}

#[test]
fn the_end_of_the_connection_ends_what_it_may() {
    let until_close = drive(false, false, &[b"HTTP/1.1 200 OK\r\n\r\nabc"], true);
    assert_eq!((until_close.body.as_slice(), until_close.ended), (&b"abc"[..], true));
    for cut in [
        &b""[..],
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ] {
        assert_eq!(drive(false, false, &[cut], true).error, Some(ClientError::CutOff), "{cut:?}");
    }
}

#[test]
fn a_switch_of_protocols_must_have_been_asked_for() {
    let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
    assert_eq!(drive(false, false, &[switched], false).error, Some(ClientError::Switched));
    assert_eq!(drive(false, true, &[switched], false).status, 101);
    let silent = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    assert_eq!(drive(false, true, &[silent], false).error, Some(ClientError::Switched));
}

#[test]
fn what_could_be_understood_differently_is_refused() {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n").into_bytes();
    let cases: [(Vec<u8>, Option<ClientError>); 18] = [
        (head("Content-Length: 1\r\nContent-Length: 1"), Some(Error::RepeatedContentLength.into())),
        (head("Content-Length: 1, 1"), Some(Error::RepeatedContentLength.into())),
        (head("Content-Length: +1"), Some(Error::MalformedContentLength.into())),
        (head("Content-Length: 0x1"), Some(Error::MalformedContentLength.into())),
        (head("Content-Length: 99999999999999999999"), Some(Error::MalformedContentLength.into())),
        (
            head("Content-Length: 1\r\nTransfer-Encoding: chunked"),
            Some(Error::ContentLengthWithTransferEncoding.into()),
        ),
        (head("Transfer-Encoding: gzip, chunked"), Some(Error::UnknownTransferCoding.into())),
        (head("Transfer-Encoding: xchunked"), Some(Error::UnknownTransferCoding.into())),
        (
            head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            Some(Error::MalformedTransferEncoding.into()),
        ),
        (head("Content-Length : 1"), Some(Error::MalformedFieldName.into())),
        (head("A: b\r\n c"), Some(Error::LineFolding.into())),
        (head("A: b\nB: c"), Some(Error::BareLineFeed.into())),
        (head("A: b\rB: c"), Some(Error::BareCarriageReturn.into())),
        (head("A: \0"), Some(Error::ControlCharacter.into())),
        (
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            Some(Error::TransferEncodingInHttp10.into()),
        ),
        (b"HTTP/1.1  200 OK\r\n\r\n".to_vec(), Some(ClientError::StatusLine)),
        (b"HTTP/2 200 OK\r\n\r\n".to_vec(), Some(ClientError::StatusLine)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab".to_vec(), Some(ClientError::Unasked)),
    ];
    for (bytes, error) in cases {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(drive(false, false, &[&bytes], false).error, error, "{text:?}");
    }
    let endless = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"A: b\r\n".repeat(40_000)].concat();
    assert_eq!(drive(false, false, &[&endless], false).error, Some(Error::HeadTooLarge.into()));
    let hints = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40);
    assert_eq!(drive(false, false, &[&hints], false).error, Some(ClientError::TooManyInterim));
}

proptest! {
    #[test]
    fn pieces_do_not_matter(which in 0..WHOLE.len(), cuts in prop::collection::vec(0usize..200, 0..8)) {
        let bytes = WHOLE[which];
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut at = 0;
        for cut in cuts {
            pieces.push(&bytes[at..cut]);
            at = cut;
        }
        pieces.push(&bytes[at..]);
        prop_assert_eq!(drive(false, false, &pieces, true), drive(false, false, &[bytes], true));
    }

    #[test]
    fn any_bytes_end_in_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300), tail in prop::sample::select(vec![&b"HTTP/1.1 200 OK\r\n"[..], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""])) {
        let bytes = [tail, &bytes].concat();
        drive(false, true, &[&bytes], true);
    }

    #[test]
    fn any_saved_state_restores_or_is_refused(bytes in prop::array::uniform32(any::<u8>())) {
        let head: ClientHead = bytemuck::pod_read_unaligned(&bytes);
        if let Ok(client) = Http1Client::restore(&head) {
            prop_assert_eq!(Http1Client::restore(&client.save()), Ok(client));
        }
    }
}

#[test]
fn a_body_without_a_length_is_whole_only_if_it_ends_in_order() {
    for (is_reset, expected) in [(false, Ok(true)), (true, Err(ClientError::CutOff))] {
        let mut client = Http1Client::new();
        client.begin(false, false);
        let mut bytes = b"HTTP/1.0 200 OK\r\n\r\nsome".to_vec();
        let mut input = Input::new(&mut bytes);
        while let Ok(Some(_)) = client.next_event(&mut input, &ClientLimits::default()) {}
        assert_eq!(client.on_receive_end(is_reset), expected);
    }
}
