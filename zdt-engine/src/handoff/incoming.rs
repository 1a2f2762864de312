//! The accepting side of a channel: descriptors and records come together again.
//!
//! Must not know: what is in a record, what becomes of the connection.

use std::os::fd::{AsFd, OwnedFd};

use super::message::{BatchEntry, Role};
use crate::shm::read_sealed;
use crate::shm::ring::Consumer;

/// Kind of a ring record that holds the state itself.
pub const RECORD_INLINE: u32 = 1;
/// Kind of a ring record whose state is in a memfd beside the socket; it holds the length (u64).
pub const RECORD_IN_MEMFD: u32 = 2;

/// Largest record that travels in a memfd.
pub const MAX_RECORD_BYTES: u64 = 64 << 20;

/// A complete offer.
#[derive(Debug)]
pub struct Arrival {
    /// Names it in the ownership table.
    pub sequence: u64,
    /// The client's socket.
    pub socket: OwnedFd,
    /// Its upstreams' sockets.
    pub upstreams: Vec<OwnedFd>,
    /// The state record, not yet validated.
    pub record: Vec<u8>,
}

/// Pairs the descriptors of one batch with their records from the ring.
///
/// `take_buffer` lends vectors for the records. An error means that the peer broke the protocol:
/// the descriptors that were not paired are closed by being dropped.
pub fn pair(
    entries: &[BatchEntry],
    descriptors: Vec<OwnedFd>,
    consumer: &mut Consumer,
    mut take_buffer: impl FnMut() -> Vec<u8>,
    arrivals: &mut Vec<Arrival>,
) -> Result<(), String> {
    if entries.len() != descriptors.len() {
        return Err(format!(
            "a batch lists {} descriptors and brought {}",
            entries.len(),
            descriptors.len()
        ));
    }
    let mut entries = entries.iter().zip(descriptors).peekable();
    while let Some((entry, socket)) = entries.next() {
        if entry.role != Role::Client {
            return Err(format!("offer {} does not begin with its socket", entry.sequence));
        }
        let mut upstreams = Vec::new();
        while let Some((_, upstream)) = entries
            .next_if(|(next, _)| next.sequence == entry.sequence && next.role == Role::Upstream)
        {
            upstreams.push(upstream);
        }
        let memfd = entries
            .next_if(|(next, _)| next.sequence == entry.sequence && next.role == Role::Record)
            .map(|(_, memfd)| memfd);
        let mut record = take_buffer();
        let kind = next_record(entry.sequence, consumer, &mut record)?;
        match (kind, memfd) {
            (RECORD_INLINE, None) => {}
            (RECORD_IN_MEMFD, Some(memfd)) => read_memfd(memfd, &mut record)?,
            (kind, memfd) => {
                return Err(format!(
                    "offer {} has a record of kind {kind} and {} memfd",
                    entry.sequence,
                    if memfd.is_some() { "a" } else { "no" }
                ));
            }
        }
        arrivals.push(Arrival { sequence: entry.sequence, socket, upstreams, record });
    }
    // The room in the ring is what the peer waits for next.
    consumer.publish();
    Ok(())
}

/// Reads on to the record of that offer. Earlier ones were taken back before their descriptors left.
fn next_record(
    sequence: u64,
    consumer: &mut Consumer,
    record: &mut Vec<u8>,
) -> Result<u32, String> {
    loop {
        match consumer.next(record).map_err(|error| error.to_string())? {
            None => return Err(format!("a descriptor for offer {sequence} without a record")),
            Some(header) if header.sequence < sequence => {}
            Some(header) if header.sequence == sequence => return Ok(header.kind),
            Some(header) => {
                return Err(format!(
                    "a descriptor for offer {sequence}, but the ring is at {}",
                    header.sequence
                ));
            }
        }
    }
}

fn read_memfd(memfd: OwnedFd, record: &mut Vec<u8>) -> Result<(), String> {
    let length = <[u8; 8]>::try_from(record.as_slice())
        .map(u64::from_le_bytes)
        .map_err(|_| "a memfd record without its length".to_owned())?;
    if length > MAX_RECORD_BYTES {
        return Err(format!("a record of {length} bytes; {MAX_RECORD_BYTES} is the most"));
    }
    let bytes = read_sealed(memfd.as_fd(), MAX_RECORD_BYTES as usize)
        .map_err(|error| format!("record memfd: {error}"))?;
    if bytes.len() as u64 != length {
        return Err(format!("a record of {length} bytes, but its memfd has {}", bytes.len()));
    }
    *record = bytes;
    Ok(())
}
