//! The access log: a line for each request, when its exchange is over.
//!
//! Lines are collected and written by the ring, a batch at a time, so that nothing waits for a disk. What a slow
//! disk cannot take is dropped and counted. Whatever a client sends, a line stays one line, and its fields stay
//! its fields.
//!
//! Must not know: who serves the request, what the file is.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use bytemuck::{Pod, Zeroable};

use crate::config::AccessLogFormat;
use crate::conn::Head;
use crate::proto::http1::Version;
use crate::service::WorkerInfo;
use crate::state::{Record, Writer};
use crate::sys;
use crate::uring::SendBuffer;

use super::Worker;
use super::event_loop::civil_date;
use super::record::RestoreError;
use super::tokens::Token;

/// A batch this large is written at once.
const BATCH_BYTES: usize = 16 << 10;
/// A line waits no longer for others.
const MAX_WAIT_MS: u64 = 200;
/// Lines that may wait for the disk.
const MAX_WAITING_BYTES: usize = 1 << 20;

const MAX_METHOD_BYTES: usize = 32;
const MAX_TARGET_BYTES: usize = 2_048;
const MAX_FIELD_BYTES: usize = 512;

/// The status of an exchange that ended before its answer began.
const NO_ANSWER: u16 = 499;

const PROTOCOLS: [&str; 3] = ["HTTP/1.0", "HTTP/1.1", "HTTP/2.0"];

/// What is known of a request until its exchange is over: moves with its connection.
#[derive(Debug)]
pub struct LogEntry {
    began_ns: u64,
    bytes: u64,
    status: u16,
    /// Index into [`PROTOCOLS`].
    protocol: u16,
    /// Method, target, referrer, user agent.
    lengths: [u16; 4],
    text: Vec<u8>,
}

/// The request of [`super::places::Place`] that is being logged; without its session's help.
pub const TAG_LOG: u16 = 41;

/// Fixed part of [`TAG_LOG`]; the tail is the four texts.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct LogHead {
    elapsed_ns: u64,
    bytes: u64,
    status: u16,
    lengths: [u16; 4],
    protocol: u16,
    reserved: [u16; 2],
}

const _: () = assert!(size_of::<LogHead>() == 32);

/// What is being logged on the streams of HTTP/2: for each its number, a head and the texts of [`TAG_LOG`].
pub const TAG_STREAM_LOGS: u16 = 44;

impl LogHead {
    fn text_bytes(&self) -> usize {
        self.lengths.iter().map(|length| usize::from(*length)).sum()
    }
}

impl LogEntry {
    /// A request that has just come.
    pub fn new(head: &Head<'_>) -> Box<Self> {
        let mut text = Vec::with_capacity(256);
        let mut add = |parts: &[&[u8]], most: usize| {
            let start = text.len();
            for part in parts {
                let room = most - (text.len() - start);
                text.extend_from_slice(&part[..part.len().min(room)]);
            }
            (text.len() - start) as u16
        };
        let query = head.query().map_or((&b""[..], &b""[..]), |query| (b"?", query.as_bytes()));
        let lengths = [
            add(&[head.method().as_bytes()], MAX_METHOD_BYTES),
            add(&[head.path().as_bytes(), query.0, query.1], MAX_TARGET_BYTES),
            add(&[head.header("referer").unwrap_or_default()], MAX_FIELD_BYTES),
            add(&[head.header("user-agent").unwrap_or_default()], MAX_FIELD_BYTES),
        ];
        let protocol = match head {
            Head::Http1(request) if request.version == Version::Http10 => 0,
            Head::Http1(_) => 1,
            Head::Http2(_) => 2,
        };
        Box::new(Self {
            began_ns: sys::monotonic_ns(),
            bytes: 0,
            status: 0,
            protocol,
            lengths,
            text,
        })
    }

    /// What one call to the service has answered.
    pub fn note(&mut self, status: Option<u16>, bytes: u64) {
        self.status = status.unwrap_or(self.status);
        self.bytes += bytes;
    }

    fn texts(&self) -> [&[u8]; 4] {
        let mut rest = &self.text[..];
        self.lengths.map(|length| {
            let (text, behind) = rest.split_at(usize::from(length));
            rest = behind;
            text
        })
    }

    fn head(&self, now_ms: u64) -> LogHead {
        LogHead {
            elapsed_ns: (now_ms * 1_000_000).saturating_sub(self.began_ns),
            bytes: self.bytes,
            status: self.status,
            lengths: self.lengths,
            protocol: self.protocol,
            reserved: [0; 2],
        }
    }

    /// Writes it down; a build that does not log skips it.
    pub fn save(&self, now_ms: u64, writer: &mut Writer<'_>) {
        writer.section(TAG_LOG, 1, true, &self.head(now_ms), &[&self.text]);
    }

    /// Adds it to the tail of [`TAG_STREAM_LOGS`].
    pub fn append(&self, stream: u64, now_ms: u64, tail: &mut Vec<u8>) {
        tail.extend_from_slice(bytemuck::bytes_of(&stream));
        tail.extend_from_slice(bytemuck::bytes_of(&self.head(now_ms)));
        tail.extend_from_slice(&self.text);
    }

    /// Reads it again, if the record has one.
    pub fn restore(
        record: &Record<'_>,
        now_ms: u64,
        transit_ms: u64,
    ) -> Result<Option<Box<Self>>, RestoreError> {
        let Some(section) = record.section(TAG_LOG) else { return Ok(None) };
        let entry = Self::from_parts(&section.head(), section.tail(), now_ms, transit_ms);
        entry.map(Some).ok_or(RestoreError::OutOfRange("the entry of the access log"))
    }

    /// Takes the first entry from what is left of the tail of [`TAG_STREAM_LOGS`], with its stream's number.
    pub fn take(tail: &mut &[u8], now_ms: u64, transit_ms: u64) -> Option<(u64, Box<Self>)> {
        let (stream, rest) = tail.split_first_chunk::<8>()?;
        let (head, rest) = rest.split_at_checked(size_of::<LogHead>())?;
        let head: LogHead = bytemuck::pod_read_unaligned(head);
        let (text, rest) = rest.split_at_checked(head.text_bytes())?;
        *tail = rest;
        let entry = Self::from_parts(&head, text, now_ms, transit_ms)?;
        Some((u64::from_le_bytes(*stream), entry))
    }

    fn from_parts(head: &LogHead, text: &[u8], now_ms: u64, transit_ms: u64) -> Option<Box<Self>> {
        let LogHead { elapsed_ns, bytes, status, lengths, protocol, .. } = *head;
        if head.text_bytes() != text.len()
            || usize::from(protocol) >= PROTOCOLS.len()
            || text.len() > MAX_METHOD_BYTES + MAX_TARGET_BYTES + 2 * MAX_FIELD_BYTES
        {
            return None;
        }
        let now_ns = now_ms.saturating_sub(transit_ms) * 1_000_000;
        let began_ns = now_ns.saturating_sub(elapsed_ns);
        let text = text.to_vec();
        Some(Box::new(Self { began_ns, bytes, status, protocol, lengths, text }))
    }
}

/// The lines that are not written yet, and where they go.
pub struct AccessLog {
    format: AccessLogFormat,
    file: OwnedFd,
    worker: WorkerInfo,
    lines: Vec<u8>,
    /// When the first of them came.
    since_ms: u64,
    /// How much of the batch in flight was written before.
    in_flight: Option<usize>,
    dropped: u64,
    /// The date and time of this second, in the format's form.
    second: u64,
    stamp: String,
}

impl AccessLog {
    /// A log to that file.
    pub fn new(format: AccessLogFormat, file: OwnedFd, worker: WorkerInfo) -> Self {
        Self {
            format,
            file,
            worker,
            lines: Vec::new(),
            since_ms: 0,
            in_flight: None,
            dropped: 0,
            second: u64::MAX,
            stamp: String::new(),
        }
    }

    /// Adds the line of a request whose exchange is over.
    pub fn add(&mut self, entry: &LogEntry, peer: SocketAddr, connection: u64, now_ms: u64) {
        if self.lines.len() >= MAX_WAITING_BYTES {
            self.dropped += 1;
            return;
        }
        if self.lines.is_empty() {
            self.since_ms = now_ms;
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != since_epoch.as_secs() {
            self.second = since_epoch.as_secs();
            self.stamp = stamp(self.format, self.second);
        }
        let status = if entry.status == 0 { NO_ANSWER } else { entry.status };
        let took_us = sys::monotonic_ns().saturating_sub(entry.began_ns) / 1_000;
        match self.format {
            AccessLogFormat::Off => {}
            AccessLogFormat::Json => {
                let [method, target, referer, user_agent] =
                    entry.texts().map(String::from_utf8_lossy);
                let line = serde_json::json!({
                    "time": format!("{}.{:03}Z", self.stamp, since_epoch.subsec_millis()),
                    "client": peer.ip(),
                    "port": peer.port(),
                    "method": method,
                    "target": target,
                    "protocol": PROTOCOLS[usize::from(entry.protocol)],
                    "status": status,
                    "bytes": entry.bytes,
                    "duration_us": took_us,
                    "referer": referer,
                    "user_agent": user_agent,
                    "connection": connection,
                    "worker": self.worker.worker,
                    "generation": self.worker.generation,
                });
                // A vector takes everything.
                let _ = serde_json::to_writer(&mut self.lines, &line);
            }
            AccessLogFormat::Combined => {
                let [method, target, referer, user_agent] = entry.texts();
                let head = format!("{} - - [{}] \"", peer.ip(), self.stamp);
                self.lines.extend_from_slice(head.as_bytes());
                push_escaped(&mut self.lines, method);
                self.lines.push(b' ');
                push_escaped(&mut self.lines, target);
                let protocol = PROTOCOLS[usize::from(entry.protocol)];
                let middle = format!(" {protocol}\" {status} {} \"", entry.bytes);
                self.lines.extend_from_slice(middle.as_bytes());
                push_escaped(&mut self.lines, or_dash(referer));
                self.lines.extend_from_slice(b"\" \"");
                push_escaped(&mut self.lines, or_dash(user_agent));
                self.lines.push(b'"');
            }
        }
        self.lines.push(b'\n');
    }

    fn due_ms(&self) -> Option<u64> {
        let wanted = !self.lines.is_empty() && self.in_flight.is_none();
        wanted
            .then(|| if self.lines.len() >= BATCH_BYTES { 0 } else { self.since_ms + MAX_WAIT_MS })
    }
}

fn or_dash(text: &[u8]) -> &[u8] {
    if text.is_empty() { b"-" } else { text }
}

/// Whatever could end the field or the line, or move a terminal's cursor, as `\xHH`.
fn push_escaped(line: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for &byte in text {
        if matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\' {
            line.push(byte);
        } else {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            line.extend([b'\\', b'x', high, low]);
        }
    }
}

fn stamp(format: AccessLogFormat, second: u64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (year, month, day) = civil_date(second / 86_400);
    let (hour, minute, of_minute) = (second / 3_600 % 24, second / 60 % 60, second % 60);
    if format == AccessLogFormat::Json {
        format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{of_minute:02}")
    } else {
        let month = MONTHS[(month - 1) as usize];
        format!("{day:02}/{month}/{year}:{hour:02}:{minute:02}:{of_minute:02} +0000")
    }
}

impl Worker {
    /// When the log has something to do.
    pub(super) fn log_due_ms(&self) -> Option<u64> {
        self.access_log.as_ref().and_then(AccessLog::due_ms)
    }

    /// Writes a batch, if it is time and none is on its way.
    pub(super) fn flush_log(&mut self) {
        let Some(log) = &mut self.access_log else { return };
        if log.due_ms().is_none_or(|due_ms| due_ms > self.now_ms) {
            return;
        }
        if std::mem::take(&mut log.dropped) > 0 {
            tracing::warn!("the access log is slower than the requests: lines were dropped");
        }
        let batch = SendBuffer::Owned(std::mem::take(&mut log.lines));
        log.in_flight = Some(0);
        self.ring.write(log.file.as_fd(), Token::AccessLog.pack(), batch, 0);
    }

    /// A batch, or a part of one, is written.
    pub(super) fn on_log_written(&mut self, result: i32, batch: SendBuffer) {
        let Some(log) = &mut self.access_log else { return };
        let Some(before) = log.in_flight.take() else { return };
        let written = before + usize::try_from(result).unwrap_or(0);
        if result == -libc::EINTR || result == -libc::EAGAIN || result > 0 {
            if written < batch.as_slice().len() {
                log.in_flight = Some(written);
                self.ring.write(log.file.as_fd(), Token::AccessLog.pack(), batch, written);
                return;
            }
        } else {
            let error = std::io::Error::from_raw_os_error(-result);
            tracing::error!("access log: {error}; some lines are lost");
        }
        if let SendBuffer::Owned(mut bytes) = batch
            && log.lines.is_empty()
            && bytes.capacity() <= 4 * BATCH_BYTES
        {
            bytes.clear();
            log.lines = bytes; // its memory serves again
        }
    }

    /// The exchanges of a connection end with it.
    pub(super) fn log_all(&mut self, key: usize) {
        let Some(log) = &mut self.access_log else { return };
        let entry = &mut self.entries[key];
        let (peer, id) = (entry.peer, entry.id);
        for logged in entry.places.take_logs() {
            log.add(&logged, peer, id, self.now_ms);
        }
    }

    /// Before the process ends: what is left, for as long as the disk takes it at once.
    pub(super) fn finish_log(&mut self) {
        for _ in 0..20 {
            self.now_ms = u64::MAX; // no line waits for others any more
            self.flush_log();
            let Some(log) = &self.access_log else { return };
            if log.in_flight.is_none() && log.lines.is_empty() {
                return;
            }
            if self.ring.enter(1, Some(std::time::Duration::from_millis(10))).is_err() {
                return;
            }
            while let Some(completion) = self.ring.next_completion() {
                if let crate::uring::CompletionPayload::Sent(batch) = completion.payload
                    && Token::unpack(completion.token) == Token::AccessLog
                {
                    self.on_log_written(completion.result, batch);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(texts: [&[u8]; 4]) -> LogEntry {
        LogEntry {
            began_ns: sys::monotonic_ns(),
            bytes: 12,
            status: 200,
            protocol: 1,
            lengths: texts.map(|text| text.len() as u16),
            text: texts.concat(),
        }
    }

    fn lines(format: AccessLogFormat, texts: [&[u8]; 4]) -> String {
        let file = std::fs::File::open("/dev/null").unwrap().into();
        let worker = WorkerInfo { pid: 1, worker: 2, generation: 3 };
        let mut log = AccessLog::new(format, file, worker);
        log.add(&entry(texts), "192.0.2.1:4000".parse().unwrap(), 9, 0);
        String::from_utf8(log.lines).unwrap()
    }

    #[test]
    fn nothing_that_a_client_sends_makes_another_line_or_field() {
        let evil: [&[u8]; 4] =
            [b"GET", b"/a\"b\nHTTP/1.1 200", b"http://x/\r\n\x1b[2J", b"\"}\xff\\\x00"];
        for format in [AccessLogFormat::Json, AccessLogFormat::Combined] {
            let text = lines(format, evil);
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.ends_with('\n') && !text.contains(['\r', '\x1b', '\0']), "{text}");
        }
        let json: serde_json::Value =
            serde_json::from_str(&lines(AccessLogFormat::Json, evil)).unwrap();
        assert_eq!(
            (&json["target"], &json["status"]),
            (&"/a\"b\nHTTP/1.1 200".into(), &200.into())
        );
        let combined = lines(AccessLogFormat::Combined, evil);
        assert_eq!(combined.matches('"').count(), 6, "{combined}");
        assert!(
            combined.contains(r#""GET /a\x22b\x0aHTTP/1.1 200 HTTP/1.1" 200 12 ""#),
            "{combined}"
        );
    }

    #[test]
    fn stamps_are_those_of_the_formats() {
        assert_eq!(stamp(AccessLogFormat::Json, 951_782_401), "2000-02-29T00:00:01");
        assert_eq!(stamp(AccessLogFormat::Combined, 951_782_401), "29/Feb/2000:00:00:01 +0000");
    }

    #[test]
    fn entries_survive_a_record() {
        let saved = entry([b"GET", b"/x?y=1", b"", b"curl"]);
        let mut bytes = Vec::new();
        let freeze = crate::state::FreezeInstant { boot_hash: 0, boottime_ns: 0 };
        let mut writer = Writer::new(&mut bytes, freeze);
        saved.save(1, &mut writer);
        writer.finish(crate::state::FORMAT_WRITES.newest);
        crate::state::set_checksum(&mut bytes);
        let record = Record::parse(&bytes).unwrap();
        let restored = LogEntry::restore(&record, 1, 0).unwrap().unwrap();
        assert_eq!(restored.texts(), saved.texts());
        assert_eq!((restored.status, restored.bytes), (200, 12));
    }
}
