//! The HTTP/1.1 machine's verdicts against the letter of RFC 9112, and against h11, which is
//! another implementation of it, by other people, in another language.
//!
//! Every row of the table says what the RFC wants and whether h11 differs; a difference that no row
//! or rule knows fails the test. What matters most comes last: whatever we accept of randomly
//! damaged input, h11 must understand as exactly the same requests.
//!
//! Must not know: the machine's insides.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use zdt_engine::proto::Input;
use zdt_engine::proto::http1::{Event, Http1, Limits, Version};

use crate::skip::skip;

/// A request as either side understood it: method, target, fields, body, whether it was complete.
/// Bytes as Latin-1 text.
pub type Understood = (String, String, Vec<(String, String)>, String, bool);

#[derive(Debug, Deserialize)]
pub struct Verdict {
    pub requests: Vec<Understood>,
    /// Of the refusal that ended it.
    status: Option<u16>,
    /// An empty line before a request was ignored, which h11 does not do.
    #[serde(default)]
    ignored_empty_line: bool,
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// Our verdict. Like the other side's, it ends with the first HTTP/1.0 request.
pub fn judge(bytes: &[u8]) -> Verdict {
    let mut bytes = bytes.to_vec();
    let mut input = Input::new(&mut bytes);
    let mut http = Http1::new();
    let mut verdict = Verdict { requests: Vec::new(), status: None, ignored_empty_line: false };
    let mut is_http10 = false;
    loop {
        verdict.ignored_empty_line |= http.is_idle() && input.peek().starts_with(b"\r\n");
        match http.next_event(&mut input, &Limits::default()) {
            Ok(Some(Event::Request(request))) => {
                let headers = request.headers().map(|(name, value)| {
                    // As h11 shows them: what is case-insensitive in lower case.
                    let (name, value) = (name.to_ascii_lowercase(), latin1(value));
                    let is_coding = name == "transfer-encoding";
                    let value = if is_coding { value.to_lowercase() } else { value };
                    (name, value)
                });
                let (method, target) = (request.method.to_owned(), request.target.to_owned());
                verdict.requests.push((method, target, headers.collect(), String::new(), false));
                is_http10 = request.version == Version::Http10;
            }
            Ok(Some(Event::Body(piece))) => {
                let request = verdict.requests.last_mut().expect("a body follows a request");
                request.3 += &latin1(piece);
            }
            Ok(Some(Event::End)) => {
                verdict.requests.last_mut().expect("an end follows a request").4 = true;
                if is_http10 {
                    return verdict;
                }
                http.respond(&mut Vec::new(), 204, &[], b"", b"").expect("a request waits");
            }
            Ok(None) => return verdict,
            Err(error) => {
                verdict.status = Some(error.status());
                return verdict;
            }
        }
    }
}

/// What RFC 9112 wants.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// These requests, as "METHOD target body", and nothing left over.
    Accept(&'static [&'static str]),
    /// This status, before the last request is complete.
    Refuse(u16),
}

/// What h11 makes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum H11 {
    Agrees,
    /// It accepts what we refuse, for this reason.
    Laxer(&'static str),
    /// It refuses what we accept, for this reason.
    Stricter(&'static str),
}

use H11::{Agrees, Laxer, Stricter};
use Wanted::{Accept, Refuse};

/// Section of RFC 9112 (unless another is named), input, verdict, h11's.
type Row = (&'static str, &'static str, Wanted, H11);

const HOST_LINE: H11 = Laxer("does not look at the value of Host");
const TARGET: H11 = Laxer("does not look at the form of the target");
const BARE_LF: H11 = Laxer("§2.2: a recipient MAY recognize a single LF as a line terminator");

const TABLE: &[Row] = &[
    ("§2.1", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", Accept(&["GET / "]), Agrees),
    (
        "§2.2 empty line before the request line SHOULD be ignored",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["GET / "]),
        Stricter("does not ignore it"),
    ),
    ("§2.2 bare CR", "GET / HTTP/1.1\r\nHost: a\r\nB: c\rd\r\n\r\n", Refuse(400), Agrees),
    (
        "§2.2 bare CR in the request line",
        "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    ("§2.2 bare LF", "GET / HTTP/1.1\nHost: a\n\n", Refuse(400), BARE_LF),
    (
        "§2.2 space before the first field",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    (
        "§2.3 higher minor version",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        Refuse(505),
        Laxer("RFC 9110 §2.5: SHOULD be read as 1.1"),
    ),
    ("§2.3 case of the version", "GET / Http/1.1\r\nHost: a\r\n\r\n", Refuse(400), Agrees),
    ("§3 two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refuse(400), Agrees),
    ("§3 space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Refuse(400), Agrees),
    ("§3 no version", "GET /\r\nHost: a\r\n\r\n", Refuse(400), Agrees),
    (
        "§3.1 any token is a method",
        "!#$%&'*+-.^_`|~ / HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["!#$%&'*+-.^_`|~ / "]),
        Agrees,
    ),
    ("§3.1 case-sensitive", "get / HTTP/1.1\r\nHost: a\r\n\r\n", Accept(&["get / "]), Agrees),
    ("§3.2 no Host", "GET / HTTP/1.1\r\n\r\n", Refuse(400), Agrees),
    ("§3.2 two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Refuse(400), Agrees),
    ("§3.2 invalid Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refuse(400), HOST_LINE),
    (
        "§3.2 Host with user information",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        Refuse(400),
        HOST_LINE,
    ),
    ("§3.2 empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", Accept(&["GET / "]), Agrees),
    ("§3.2 HTTP/1.0 needs no Host", "GET / HTTP/1.0\r\n\r\n", Accept(&["GET / "]), Agrees),
    ("§3.2 invalid target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", Refuse(400), TARGET),
    (
        "§3.2.1 origin-form",
        "GET /where?q=now HTTP/1.1\r\nHost: www.example.org\r\n\r\n",
        Accept(&["GET /where?q=now "]),
        Agrees,
    ),
    (
        "§3.2.2 absolute-form",
        "GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["GET http://a/b?c "]),
        Agrees,
    ),
    (
        "§3.2.2 another Host than in the target",
        "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        Refuse(400),
        Laxer("does not compare them"),
    ),
    ("§3.2.3 authority-form", "GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Refuse(400), TARGET),
    (
        "§3.2.4 asterisk-form",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["OPTIONS * "]),
        Agrees,
    ),
    ("§3.2.4 asterisk-form, not OPTIONS", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refuse(400), TARGET),
    ("RFC 3986 §3.5 fragment", "GET /#b HTTP/1.1\r\nHost: a\r\n\r\n", Refuse(400), TARGET),
    (
        "§5 any white space around the value",
        "GET / HTTP/1.1\r\nHost:a \t \r\nB: \tc\td \r\n\r\n",
        Accept(&["GET / "]),
        Agrees,
    ),
    (
        "§5.1 white space before the colon",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    (
        "§5.2 folding",
        "GET / HTTP/1.1\r\nHost: a\r\nB: c\r\n d\r\n\r\n",
        Refuse(400),
        Laxer("a server MAY replace it by spaces"),
    ),
    ("§5.1 no colon", "GET / HTTP/1.1\r\nHost: a\r\nB\r\n\r\n", Refuse(400), Agrees),
    ("RFC 9110 §5.5 NUL", "GET / HTTP/1.1\r\nHost: a\r\nB: \0\r\n\r\n", Refuse(400), Agrees),
    (
        "RFC 9110 §5.5 other controls",
        "GET / HTTP/1.1\r\nHost: a\r\nB: \u{1}\r\n\r\n",
        Refuse(400),
        Laxer("takes them for text"),
    ),
    (
        "§6.1 chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nbc\r\n0\r\n\r\n",
        Accept(&["POST / bc"]),
        Agrees,
    ),
    (
        "§6.1 coding with a length",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        Refuse(400),
        Laxer("a server MAY process it by the coding alone"),
    ),
    (
        "§6.1 coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refuse(400),
        Laxer("takes the coding for granted"),
    ),
    (
        "§6.1 chunked twice",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    (
        "§6.1 unknown coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: b, chunked\r\n\r\n0\r\n\r\n",
        Refuse(501),
        Agrees,
    ),
    (
        "§6.3 chunked is not the final coding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    (
        "§6.2 length",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nbc",
        Accept(&["POST / bc"]),
        Agrees,
    ),
    (
        "§6.2 length of an empty body",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        Accept(&["POST / "]),
        Agrees,
    ),
    (
        "§6.2 leading zeros",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 002\r\n\r\nbc",
        Accept(&["POST / bc"]),
        Agrees,
    ),
    (
        "§6.3 sign",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\nbc",
        Refuse(400),
        Agrees,
    ),
    (
        "§6.3 different lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nbcd",
        Refuse(400),
        Agrees,
    ),
    (
        "§6.3 equal lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nbc",
        Refuse(400),
        Laxer("a recipient MAY fold them"),
    ),
    (
        "§6.3 list of equal lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nbc",
        Refuse(400),
        Laxer("a recipient MAY fold them"),
    ),
    (
        "§6.3 neither: no body",
        "POST / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["POST / ", "GET /b "]),
        Agrees,
    ),
    (
        "§6.3 a body of GET is one",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nbc",
        Accept(&["GET / bc"]),
        Agrees,
    ),
    (
        "§7.1 sizes",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00a\r\n0123456789\r\nA\r\n0123456789\r\n00\r\n\r\n",
        Accept(&["POST / 01234567890123456789"]),
        Agrees,
    ),
    (
        "§7.1 size with a prefix",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nb\r\n0\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    (
        "§7.1 overflow",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\nb\r\n0\r\n\r\n",
        Refuse(400),
        Laxer("has big numbers"),
    ),
    (
        "§7.1 space after the size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\nb\r\n0\r\n\r\n",
        Refuse(400),
        Laxer("because some servers send it"),
    ),
    (
        "§7.1 no CRLF after the data",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nbcc0\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    (
        "§7.1.1 unknown extensions MUST be ignored",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;c;d=e;f=\"g\\\"h;\"\r\nb\r\n0;i\r\n\r\n",
        Accept(&["POST / b"]),
        Agrees,
    ),
    (
        "§7.1.1 bad white space MUST be parsed",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 ; c = d\r\nb\r\n0\r\n\r\n",
        Accept(&["POST / b"]),
        Stricter("none before the semicolon"),
    ),
    (
        "§7.1.1 malformed extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;=c\r\nb\r\n0\r\n\r\n",
        Refuse(400),
        Laxer("does not look at extensions"),
    ),
    (
        "§7.1.2 trailers",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nC: d\r\n\r\nGET /e HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["POST / b", "GET /e "]),
        Agrees,
    ),
    (
        "§7.1.2 malformed trailer",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nC d\r\n\r\n",
        Refuse(400),
        Agrees,
    ),
    (
        "RFC 9110 §6.5.1 framing in a trailer",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 1\r\n\r\n",
        Refuse(400),
        Laxer("leaves it to the application"),
    ),
    (
        "§9.3.2 pipelining",
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["GET /a ", "GET /b "]),
        Agrees,
    ),
    (
        "§9.6 nothing after close",
        "GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        Accept(&["GET /a "]),
        Agrees,
    ),
    (
        "RFC 9110 §10.1.1 unknown expectation",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: b\r\nContent-Length: 1\r\n\r\nc",
        Refuse(417),
        Laxer("a server MAY refuse it"),
    ),
    (
        "RFC 9113 §3.4 preface",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Refuse(505),
        Laxer("looks at no version"),
    ),
];

fn summary(verdict: &Verdict) -> Vec<String> {
    let line = |(method, target, _, body, _): &Understood| format!("{method} {target} {body}");
    verdict.requests.iter().map(line).collect()
}

fn is_accepted(verdict: &Verdict) -> bool {
    verdict.status.is_none() && verdict.requests.last().is_some_and(|request| request.4)
}

#[test]
fn verdicts_follow_the_table() {
    for (section, bytes, wanted, _) in TABLE {
        let verdict = judge(bytes.as_bytes());
        match wanted {
            Accept(requests) => {
                assert_eq!(verdict.status, None, "{section}: {bytes:?}");
                assert_eq!(summary(&verdict), *requests, "{section}: {bytes:?}");
                assert!(is_accepted(&verdict), "{section}: {bytes:?}");
            }
            Refuse(status) => assert_eq!(verdict.status, Some(*status), "{section}: {bytes:?}"),
        }
    }
}

/// The interpreter that the tests' clients are installed for, if h11 is among them.
fn python_with_h11(test: &str) -> Option<String> {
    let skipped = |reason: &str| {
        skip(&format!("http1_differential::{test}"), reason);
        None
    };
    let Ok(python) = std::env::var("ZDT_TEST_PYTHON") else {
        return skipped("ZDT_TEST_PYTHON names no Python");
    };
    match Command::new(&python).args(["-c", "import h11"]).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Some(python),
        Ok(_) => skipped(&format!("{python} has no h11 (pip install h11)")),
        Err(error) => skipped(&format!("{python}: {error}")),
    }
}

/// h11's verdicts on all of `inputs`.
fn ask_h11(python: &str, inputs: &[Vec<u8>]) -> Vec<Verdict> {
    let mut child = Command::new(python)
        .args(["-c", include_str!("http1_h11.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it has just run");
    let mut stdin = child.stdin.take().expect("piped");
    let stdout = child.stdout.take().expect("piped");
    let verdicts = std::thread::scope(|scope| {
        scope.spawn(move || {
            for input in inputs {
                let line: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(stdin, "{line}").expect("the script reads to the end");
            }
        });
        let lines = BufReader::new(stdout).lines().map(|line| line.expect("text"));
        lines.map(|line| serde_json::from_str(&line).expect("a verdict")).collect::<Vec<_>>()
    });
    assert!(child.wait().expect("a child").success());
    assert_eq!(verdicts.len(), inputs.len());
    verdicts
}

#[test]
fn h11_agrees_but_for_known_differences() {
    let Some(python) = python_with_h11("h11_agrees_but_for_known_differences") else { return };
    let inputs: Vec<Vec<u8>> = TABLE.iter().map(|row| row.1.as_bytes().to_vec()).collect();
    for ((section, bytes, wanted, h11), theirs) in TABLE.iter().zip(ask_h11(&python, &inputs)) {
        let ours = judge(bytes.as_bytes());
        match h11 {
            Agrees => {
                assert_eq!(is_accepted(&theirs), is_accepted(&ours), "{section}: {theirs:?}");
                if matches!(wanted, Accept(_)) {
                    assert_eq!(theirs.requests, ours.requests, "{section}");
                }
            }
            Laxer(reason) => {
                assert!(
                    !is_accepted(&ours) && theirs.status.is_none(),
                    "{section}, {reason}: {theirs:?}"
                );
            }
            Stricter(reason) => {
                assert!(
                    is_accepted(&ours) && theirs.status.is_some(),
                    "{section}, {reason}: {theirs:?}"
                );
            }
        }
    }
}

/// Valid input of some variety, before the damage.
pub fn exchange(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(1..4) {
        let method = *["GET", "POST", "HEAD"].choose(random).expect("some");
        let target = *["/", "/a?b=c", "http://a/", "/%20;x"].choose(random).expect("some");
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n");
        for field in ["Accept: */*\r\n", "B:c\r\n", "Connection: keep-alive\r\n", "D: e, \"f\"\r\n"]
        {
            if random.random_bool(0.3) {
                head += field;
            }
        }
        let body = ["", "b", "0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"].choose(random);
        let body = *body.expect("some");
        match random.random_range(0..3) {
            0 => head += "\r\n",
            1 => head += &format!("Content-Length: {}\r\n\r\n{body}", body.len()),
            _ => {
                head += "Transfer-Encoding: chunked\r\n\r\n";
                if !body.is_empty() {
                    head += &format!("{:x};c=d\r\n{body}\r\n", body.len());
                }
                head += *["0\r\n\r\n", "0;e\r\nF: g\r\n\r\n"].choose(random).expect("some");
            }
        }
        bytes.extend_from_slice(head.as_bytes());
    }
    bytes
}

pub fn damage(random: &mut StdRng, bytes: &mut Vec<u8>) {
    let pieces: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"0",
        b"1",
        b"-",
        b"\0",
        b"\x0b",
        b"\xff",
        b"\r\n ",
        b"chunked",
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: b\r\n",
        b"X",
        b"\"",
        b"0\r\n\r\n",
        b"HTTP/1.1",
        b"/",
    ];
    for _ in 0..random.random_range(1..4) {
        let place = random.random_range(0..=bytes.len());
        let end = (place + random.random_range(0..3)).min(bytes.len());
        let piece = *pieces.choose(random).expect("some");
        match random.random_range(0..3) {
            0 => drop(bytes.splice(place..place, piece.iter().copied())),
            1 => drop(bytes.splice(place..end, piece.iter().copied())),
            _ => drop(bytes.drain(place..end)),
        }
    }
}

#[test]
fn what_we_accept_means_the_same_to_h11() {
    let Some(python) = python_with_h11("what_we_accept_means_the_same_to_h11") else { return };
    let seed = std::env::var("ZDT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("ZDT_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let inputs: Vec<Vec<u8>> = (0..20_000)
        .map(|_| {
            let mut bytes = exchange(&mut random);
            damage(&mut random, &mut bytes);
            bytes
        })
        .collect();
    let (mut accepted, mut excused) = (0, 0);
    for (bytes, theirs) in inputs.iter().zip(ask_h11(&python, &inputs)) {
        let ours = judge(bytes);
        let shown = bytes.escape_ascii();
        let complete = ours.requests.iter().filter(|request| request.4).count();
        accepted += complete;
        // The two things that we take and h11 does not; what came before, it takes alike.
        let is_stricter = theirs.status.is_some()
            && (ours.ignored_empty_line
                || bytes.windows(2).any(|pair| matches!(pair, b" ;" | b"\t;")));
        let count = if is_stricter {
            excused += 1;
            complete.min(theirs.requests.iter().filter(|request| request.4).count())
        } else {
            complete
        };
        let ours: Vec<_> = ours.requests.iter().take(count).collect();
        let theirs: Vec<_> = theirs.requests.iter().take(count).collect();
        assert_eq!(ours, theirs, "ZDT_TEST_SEED={seed}\n{shown}");
    }
    println!("{accepted} requests compared, {excused} inputs of {} excused", inputs.len());
    assert!(excused < inputs.len() / 10, "{excused} inputs excused");
    assert!(accepted > 5_000, "only {accepted} requests survived the damage");
}
