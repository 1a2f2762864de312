//! Bodies of held requests that go on to arrive: what memory has no room for goes to a file without a name.
//!
//! Without a directory for such files a held body stays with its client, and none of this has anything to do. With
//! one, the bytes of a request stand in this order: `Exchange::out`, then the file from `read` to `written`, then the
//! file's `tail`. While the request is held, the tail goes into the file; when it is sent, the file comes into `out`,
//! piece by piece, ahead of what is being sent, and when there is nothing left behind `out`, the file goes.
//!
//! Must not know: sockets' operations, the client's protocol.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use slab::Slab;

use super::core::{Core, WINDOW_BYTES};
use super::exchange::{LinkStage, Stage, Todo};
use super::head::Framing;
use crate::config::HoldOptions;

/// What is read of a file at a time.
const READ_BYTES: u64 = 64 << 10;

/// A chunk's size and ends, or the last chunk.
const FRAMING_BYTES: u64 = 24;

/// What the kernel is doing with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Nothing,
    Reading,
    Writing,
}

/// What is to be done with a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Its tail is to be written behind what is there.
    Write,
    /// So many bytes are to be read.
    Read(usize),
    /// Nobody wants it any more.
    Close,
}

/// What a request has on the disk.
#[derive(Debug)]
pub struct Spill {
    /// Made when the first bytes are to be written.
    pub file: Option<OwnedFd>,
    /// Whose it is; without, it goes as soon as the kernel lets go of it.
    pub exchange: Option<usize>,
    pub read: u64,
    pub written: u64,
    /// Behind what is in the file, and in memory still.
    pub tail: Vec<u8>,
    pub doing: Doing,
    /// What it counts towards the bound.
    bytes: u64,
    /// A `Todo::Spill` is on its way.
    due: bool,
}

impl Spill {
    /// What is in the file and not in memory.
    pub fn unread(&self) -> u64 {
        self.written - self.read
    }
}

/// All files of a worker, and their bounds.
#[derive(Debug)]
pub struct Spills {
    directory: Option<OwnedFd>,
    threshold_bytes: usize,
    max_bytes: u64,
    bytes: u64,
    /// What has arrived for held requests and is in memory beside the queue.
    beside_bytes: usize,
    pub files: Slab<Spill>,
}

impl Spills {
    /// `share`: this worker's part of a bound.
    pub fn new(
        hold: &HoldOptions,
        directory: Option<OwnedFd>,
        share: impl Fn(u64) -> usize,
    ) -> Self {
        Self {
            directory,
            threshold_bytes: usize::try_from(hold.spill_threshold_bytes).unwrap_or(usize::MAX),
            max_bytes: share(hold.spill_bytes) as u64,
            bytes: 0,
            beside_bytes: 0,
            files: Slab::new(),
        }
    }

    /// Where files are made, if they are.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd)
    }

    /// Requests that have something on the disk.
    pub fn requests(&self) -> u64 {
        self.files.iter().filter(|(_, spill)| spill.exchange.is_some()).count() as u64
    }

    /// What counts towards the bound.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// See the field.
    pub fn beside_bytes(&self) -> usize {
        self.beside_bytes
    }

    fn add(&mut self, exchange: usize, read: u64, written: u64, tail: Vec<u8>) -> usize {
        let bytes = written - read + tail.len() as u64;
        self.bytes += bytes;
        let (file, exchange) = (None, Some(exchange));
        let doing = Doing::Nothing;
        self.files.insert(Spill { file, exchange, read, written, tail, doing, bytes, due: false })
    }
}

impl Core {
    /// Of a held request's body more is taken in.
    pub fn takes_body(&self, index: usize) -> bool {
        let exchange = &self.exchanges[index];
        let is_held = matches!(exchange.stage, Stage::Held(_));
        let wants_more = exchange.framing != Framing::None && !exchange.body_done;
        is_held && wants_more && self.spills.directory.is_some()
    }

    /// Takes in a piece of a body, or its end. False if there is no room for it, of which the client is told.
    pub(super) fn put_body(&mut self, index: usize, piece: Option<&[u8]>) -> bool {
        let exchange = &self.exchanges[index];
        if piece.is_none() && exchange.framing != Framing::Chunked {
            return true; // an end without bytes
        }
        let count = piece.map_or(0, <[u8]>::len);
        if self.goes_to_disk(index, count) && !self.begin_spill(index, count as u64) {
            return false;
        }
        let exchange = &mut self.exchanges[index];
        let out = match exchange.spill {
            Some(spill) => &mut self.spills.files[spill].tail,
            None => &mut exchange.out,
        };
        let before = out.len();
        match (exchange.framing, piece) {
            (Framing::Chunked, Some(bytes)) => {
                use std::io::Write as _;
                let _ = write!(out, "{:x}\r\n", bytes.len());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            (Framing::Chunked, None) => out.extend_from_slice(b"0\r\n\r\n"),
            (_, Some(bytes)) => out.extend_from_slice(bytes),
            (_, None) => {}
        }
        let count = out.len() - before;
        match exchange.spill {
            Some(spill) => {
                self.spills.files[spill].bytes += count as u64;
                self.spills.bytes += count as u64;
                self.spill_later(index);
            }
            None if matches!(exchange.stage, Stage::Held(_)) => self.spills.beside_bytes += count,
            None => {}
        }
        true
    }

    fn goes_to_disk(&self, index: usize, count: usize) -> bool {
        let exchange = &self.exchanges[index];
        if exchange.spill.is_some() {
            return true; // behind what is there
        }
        let in_memory = self.queue.memory() + self.spills.beside_bytes + count;
        self.takes_body(index)
            && (exchange.out.len() + count > self.spills.threshold_bytes
                || in_memory > self.queue.settings().max_bytes)
    }

    fn begin_spill(&mut self, index: usize, count: u64) -> bool {
        let exchange = &self.exchanges[index];
        let is_held = matches!(exchange.stage, Stage::Held(_));
        if is_held && self.spills.bytes + count + FRAMING_BYTES > self.spills.max_bytes {
            self.fail_spill(index, "there is no more room for it on disk");
            return false;
        }
        if exchange.spill.is_none() {
            let tail = self.buffer();
            self.exchanges[index].spill = Some(self.spills.add(index, 0, 0, tail));
            self.status.spilled_total += 1;
        }
        true
    }

    /// A held request is given up, since its body cannot be kept.
    pub(super) fn fail_spill(&mut self, index: usize, why: &str) {
        self.status.unspilled += 1;
        let reason = format!("no upstream of this route works, the request is large, and {why}");
        self.fail(index, 503, &reason);
    }

    /// What has come out of a saved request.
    pub(super) fn restore_spill(&mut self, index: usize, read: u64, written: u64, tail: Vec<u8>) {
        self.exchanges[index].spill = Some(self.spills.add(index, read, written, tail));
    }

    /// A request's file is looked at.
    pub(super) fn spill_later(&mut self, index: usize) {
        if let Some(spill) = self.exchanges[index].spill
            && !std::mem::replace(&mut self.spills.files[spill].due, true)
        {
            self.todo.push_back(Todo::Spill(spill));
        }
    }

    /// A request does not need its file, if it has one.
    pub(super) fn drop_spill(&mut self, index: usize) {
        let Some(place) = self.exchanges[index].spill else { return };
        self.spill_later(index);
        self.exchanges[index].spill = None;
        let spill = &mut self.spills.files[place];
        spill.exchange = None;
        self.spills.bytes -= std::mem::take(&mut spill.bytes);
        let tail = std::mem::take(&mut spill.tail);
        self.recycle(tail);
    }

    /// A request is held no more; what has arrived meanwhile was counted.
    pub(super) fn unhold(&mut self, index: usize) {
        let exchange = &self.exchanges[index];
        if matches!(exchange.stage, Stage::Held(_)) {
            self.spills.beside_bytes -= exchange.out.len();
        }
    }

    /// What is to be done with a file next. One that has nothing left to say goes with that.
    pub(super) fn next_step(&mut self, place: usize) -> Step {
        let Some(spill) = self.spills.files.get_mut(place) else { return Step::Nothing };
        spill.due = false;
        if spill.doing != Doing::Nothing {
            return Step::Nothing; // its end leads here
        }
        let Some(index) = spill.exchange else { return Step::Close };
        let exchange = &mut self.exchanges[index];
        if exchange.frozen {
            return Step::Nothing;
        }
        match exchange.stage {
            Stage::Held(_) if !spill.tail.is_empty() => return Step::Write,
            Stage::Sent | Stage::Responding => {}
            _ => return Step::Nothing,
        }
        let Some(link) = exchange.link.map(|link| &self.links[link]) else { return Step::Nothing };
        if link.stage != LinkStage::Ready {
            return Step::Nothing;
        }
        let is_unwanted = link.send_is_shut && exchange.stage == Stage::Responding;
        if spill.unread() > 0 && !is_unwanted {
            let has_room = exchange.out.len() < WINDOW_BYTES;
            let count = spill.unread().min(READ_BYTES) as usize;
            return if has_room { Step::Read(count) } else { Step::Nothing };
        }
        if !is_unwanted {
            exchange.out.append(&mut spill.tail);
        }
        self.drop_spill(index);
        self.send_later(index);
        self.release_input(index);
        Step::Nothing // but `drop_spill` leads here again
    }

    /// A write has ended.
    pub(super) fn on_spill_written(&mut self, place: usize, result: i32, bytes: Vec<u8>) {
        let spill = &mut self.spills.files[place];
        spill.doing = Doing::Nothing;
        let count = bytes.len().min(result.max(0) as usize);
        spill.written += count as u64;
        let Some(index) = spill.exchange else {
            self.recycle(bytes);
            return self.todo.push_back(Todo::Spill(place));
        };
        if count < bytes.len() {
            spill.tail.splice(..0, bytes[count..].iter().copied());
        }
        self.recycle(bytes);
        let exchange = &self.exchanges[index];
        let is_held = matches!(exchange.stage, Stage::Held(_));
        if let Some(why) = failure(result)
            && is_held
            && !exchange.frozen
        {
            // Otherwise it is in memory, and may stay there.
            return self.fail_spill(index, &format!("it cannot be written to the disk: {why}"));
        }
        self.spill_later(index);
        let has_room = self.spills.files[place].tail.len() <= WINDOW_BYTES / 2;
        if has_room && self.exchanges[index].input_held && self.takes_body(index) {
            self.hold_input(index, false);
        }
    }

    /// A read has ended.
    pub(super) fn on_spill_read(&mut self, place: usize, result: i32, mut bytes: Vec<u8>) {
        let spill = &mut self.spills.files[place];
        spill.doing = Doing::Nothing;
        bytes.truncate(result.max(0) as usize);
        spill.read += bytes.len() as u64;
        let Some(index) = spill.exchange else {
            self.recycle(bytes);
            return self.todo.push_back(Todo::Spill(place));
        };
        let exchange = &mut self.exchanges[index];
        if matches!(exchange.stage, Stage::Held(_)) {
            self.spills.beside_bytes += bytes.len(); // it has gone back into the queue meanwhile
        }
        if exchange.out.is_empty() {
            std::mem::swap(&mut exchange.out, &mut bytes);
        } else {
            exchange.out.extend_from_slice(&bytes);
        }
        self.recycle(bytes);
        if let Some(why) = failure(result) {
            let why = format!("what was kept of the request on disk cannot be read: {why}");
            return self.fail(index, 502, &why);
        }
        self.send_later(index);
        self.spill_later(index);
    }
}

/// Why nothing was written or read; `None` if something was, or may be at the next attempt.
fn failure(result: i32) -> Option<String> {
    let harmless = [libc::ECANCELED, libc::EINTR, libc::EAGAIN];
    match result {
        1.. => None,
        0 => Some("it takes, or has, no more".to_owned()),
        _ if harmless.contains(&-result) => None,
        _ => Some(std::io::Error::from_raw_os_error(-result).to_string()),
    }
}
