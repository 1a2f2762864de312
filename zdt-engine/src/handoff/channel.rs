//! One end of a channel: greeting, offers out, offers in, end.
//!
//! Must not know: the worker's loop. The caller polls [`Channel::socket`], [`Channel::wake`] and
//! [`Channel::peer_pidfd`] for reading and calls the handler of the one that is ready.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::incoming::{self, Arrival, RECORD_IN_MEMFD, RECORD_INLINE};
use super::message::{
    self, BatchEntry, Decoded, MAX_BATCH_FDS, MAX_MESSAGE_BYTES, PeerHello, Role,
};
use super::outgoing::{Answer, Offer, OfferError, Outgoing};
use crate::control::{OpenChannel, VersionRange};
use crate::shm::channel::ChannelEnd;
use crate::shm::sealed_copy;
use crate::state::{Integrity, Opener, Sealer, Secret, StateError};
use crate::sys::EventFd;
use crate::{fdpass, state, sys};

/// Versions of the handoff protocol that this build speaks.
pub const HANDOFF_VERSIONS: VersionRange = VersionRange { oldest: 1, newest: 1 };

/// Records above this travel in a memfd: a quarter of the ring, with room for the ring's own header.
pub const MAX_INLINE_RECORD: usize = crate::shm::channel::RING_BYTES / 4 - 64;

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The own hello is sent, the peer's has not come.
    Greeting,
    /// Offers may go both ways.
    Open,
    /// No further offers. The open ones are still settled through the ownership table.
    Closed,
}

/// See [`Channel::room`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Connections.
    pub places: usize,
    /// Bytes of their records. One that is larger than [`MAX_INLINE_RECORD`] needs none.
    pub bytes: usize,
}

/// Why a channel is closed.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer did what the protocol forbids.
    #[error("the peer broke the handoff protocol: {0}")]
    Protocol(String),
    /// The peer has closed its end, or is gone.
    #[error("the peer closed the channel")]
    Closed,
    /// The two builds have no version in common.
    #[error("no common version: {0}")]
    Version(String),
    /// The kernel said no.
    #[error("handoff socket: {0}")]
    Io(#[from] io::Error),
}

/// What [`Channel::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// The peer's hello fits; the channel is open.
    Greeted,
    /// Offers to be adopted or refused are in the list that was passed in.
    Offers,
    /// A message for a connection that came over earlier.
    Push {
        /// Id of the connection.
        connection: u64,
        /// The stream on it.
        stream: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Nothing more for now.
    Nothing,
}

/// The descriptors that come with [`OpenChannel`].
#[derive(Debug)]
pub struct Descriptors {
    /// This end of the seqpacket pair.
    pub socket: OwnedFd,
    /// Wakes this end.
    pub wake: EventFd,
    /// Wakes the peer.
    pub wake_peer: EventFd,
    /// Becomes readable when the peer has died.
    pub peer_pidfd: OwnedFd,
}

/// See the module.
pub struct Channel {
    /// What the supervisor said about it.
    pub info: OpenChannel,
    phase: Phase,
    /// Set when the channel is closed for a reason.
    failure: Option<String>,
    end: ChannelEnd,
    descriptors: Descriptors,
    outgoing: Outgoing,
    window: usize,
    peer_is_dead: bool,
    retired: bool,
    /// Answers were written since the peer was last woken.
    answers_unannounced: bool,
    /// The peer's socket was full; try again after a wake-up.
    send_blocked: bool,
    message: Vec<u8>,
    spare_records: Vec<Vec<u8>>,
    /// Present where what this end offers is sealed.
    sealer: Option<Sealer>,
    /// Present where what the peer offers must be sealed.
    opener: Option<Opener>,
}

/// The key for one direction of one channel, and the direction's number.
fn direction_key(secret: &Secret, info: &OpenChannel, from_blue: bool) -> (Secret, u8) {
    let direction = u8::from(!from_blue);
    let purpose = [&info.reload.to_le_bytes()[..], &info.channel.to_le_bytes(), &[direction]];
    (state::derive(secret, b"zdt handoff records, format 2", &purpose), direction)
}

impl Channel {
    /// Opens this end and sends its hello.
    pub fn open(
        mut info: OpenChannel,
        end: ChannelEnd,
        descriptors: Descriptors,
        window: usize,
    ) -> Result<Self, ChannelError> {
        let hello = message::encode_hello(&PeerHello {
            protocol: HANDOFF_VERSIONS,
            state_reads: state::FORMAT_READS,
            state_writes: state::FORMAT_WRITES,
            reload: info.reload,
            channel: info.channel,
        });
        fdpass::send(descriptors.socket.as_fd(), &[IoSlice::new(&hello)], &[])?;
        // The secrets end here: what is told about the channel later has none.
        let sealer = info.outgoing_secret.take().map(|secret| {
            let (key, direction) = direction_key(&secret, &info, info.is_blue);
            Sealer::new(&key, direction)
        });
        let opener = info.incoming_secret.take().map(|secret| {
            let (key, direction) = direction_key(&secret, &info, !info.is_blue);
            Opener::new(&key, direction)
        });
        Ok(Self {
            info,
            phase: Phase::Greeting,
            failure: None,
            end,
            descriptors,
            outgoing: Outgoing::new(),
            window,
            peer_is_dead: false,
            retired: false,
            answers_unannounced: false,
            send_blocked: false,
            message: Vec::new(),
            spare_records: Vec::new(),
            sealer,
            opener,
        })
    }

    /// To be polled for messages.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.descriptors.socket.as_fd()
    }

    /// To be polled for wake-ups.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.descriptors.wake.as_fd()
    }

    /// To be polled for the peer's death.
    pub fn peer_pidfd(&self) -> BorrowedFd<'_> {
        self.descriptors.peer_pidfd.as_fd()
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why it was closed, if it failed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// True once the peer's pidfd has fired.
    pub fn peer_is_dead(&self) -> bool {
        self.peer_is_dead
    }

    /// True if what is offered here is encrypted.
    pub fn is_sealing(&self) -> bool {
        self.sealer.is_some()
    }

    /// What may still be frozen for this channel.
    pub fn room(&mut self) -> Room {
        let takes_offers =
            self.phase == Phase::Open && self.info.write_format.is_some() && !self.send_blocked;
        if !takes_offers {
            return Room::default();
        }
        // Half of the ring: records are not known to the byte before they are written, and a record
        // may have to skip the ring's end.
        let half = crate::shm::channel::RING_BYTES / 2;
        let free = self.end.producer.free_bytes().unwrap_or(0);
        Room {
            places: self.window.saturating_sub(self.outgoing.open()),
            bytes: free.saturating_sub(half),
        }
    }

    /// Offers without an answer.
    pub fn open_offers(&self) -> usize {
        self.outgoing.open()
    }

    /// Completes the record, publishes it and puts the connection on offer; [`Channel::flush`] sends
    /// the descriptors. The record has neither checksum nor seal yet; what is not offered may have
    /// got one, and is of no use then.
    pub fn offer(
        &mut self,
        key: u64,
        record: &mut Vec<u8>,
        socket: OwnedFd,
        upstreams: Vec<OwnedFd>,
        now_ms: u64,
    ) -> Result<(), OfferError> {
        debug_assert!(upstreams.len() <= message::MAX_UPSTREAMS, "checked where it was frozen");
        if self.phase != Phase::Open {
            return Err(OfferError::Closed(socket, upstreams));
        }
        let sealed_bytes = record.len() + self.sealer.as_ref().map_or(0, |_| state::SEAL_BYTES);
        let is_large = sealed_bytes > MAX_INLINE_RECORD;
        let in_ring = if is_large { size_of::<u64>() } else { sealed_bytes };
        if self.end.producer.try_reserve(in_ring).is_err() {
            return Err(OfferError::Full(socket, upstreams));
        }
        let sequence = self.outgoing.take_sequence();
        match &mut self.sealer {
            Some(sealer) => {
                if !sealer.seal(record, sequence) {
                    return Err(OfferError::Full(socket, upstreams));
                }
            }
            None => state::set_checksum(record),
        }
        let memfd = match is_large.then(|| sealed_copy("zdt-record", &[record])) {
            Some(Ok(memfd)) => Some(memfd),
            Some(Err(_)) => return Err(OfferError::Full(socket, upstreams)),
            None => None,
        };
        let length = (record.len() as u64).to_le_bytes();
        let (kind, bytes) = match memfd {
            None => (RECORD_INLINE, &record[..]),
            Some(_) => (RECORD_IN_MEMFD, &length[..]),
        };
        // The word first: a record in the ring whose word is refused would share its sequence with
        // the next offer. The peer looks at neither before the descriptors come.
        if !self.end.outgoing.offer(sequence) {
            return Err(OfferError::Full(socket, upstreams));
        }
        if self.end.producer.push(&[bytes], kind, sequence).is_err() {
            self.end.outgoing.reclaim_offered(sequence);
            self.end.outgoing.release(sequence);
            return Err(OfferError::Full(socket, upstreams));
        }
        fault_point!("offer.recorded");
        self.end.producer.publish();
        fault_point!("offer.published");
        self.outgoing.push(Offer {
            key,
            sequence,
            socket,
            upstreams,
            record: memfd,
            offered_ms: now_ms,
        });
        Ok(())
    }

    /// Opens the seal of an arrival's record, if this channel's records have one. An error is a
    /// reason to refuse the offer.
    ///
    /// # Errors
    /// The record is not what the peer sealed for that sequence.
    pub fn unseal(&mut self, sequence: u64, record: &mut Vec<u8>) -> Result<Integrity, StateError> {
        match &mut self.opener {
            Some(opener) => opener.open(record, sequence),
            None => Ok(Integrity::Unknown),
        }
    }

    /// Sends the descriptors of what is on offer. A full socket is not an error: the peer's answers
    /// are waited for.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        self.send_blocked = false;
        while self.phase == Phase::Open && self.outgoing.unsent_count() > 0 {
            let mut entries = Vec::with_capacity(MAX_BATCH_FDS);
            let mut descriptors = Vec::with_capacity(MAX_BATCH_FDS);
            let mut offers = 0;
            for offer in self.outgoing.unsent() {
                let wanted = 1 + offer.upstreams.len() + usize::from(offer.record.is_some());
                if offers > 0 && entries.len() + wanted > MAX_BATCH_FDS {
                    break;
                }
                entries.push(BatchEntry { sequence: offer.sequence, role: Role::Client });
                descriptors.push(offer.socket.as_fd());
                for upstream in &offer.upstreams {
                    entries.push(BatchEntry { sequence: offer.sequence, role: Role::Upstream });
                    descriptors.push(upstream.as_fd());
                }
                if let Some(record) = &offer.record {
                    entries.push(BatchEntry { sequence: offer.sequence, role: Role::Record });
                    descriptors.push(record.as_fd());
                }
                offers += 1;
            }
            message::encode_batch(&entries, &mut self.message);
            fault_point!("offer.before_descriptors");
            let sent = fdpass::send(
                self.descriptors.socket.as_fd(),
                &[IoSlice::new(&self.message)],
                &descriptors,
            );
            match sent {
                Ok(_) => self.outgoing.mark_sent(offers),
                Err(error) if is_congestion(&error) => {
                    self.send_blocked = true;
                    return Ok(());
                }
                Err(error) => return Err(self.fail(ChannelError::Io(error))),
            }
            fault_point!("offer.after_descriptors");
        }
        Ok(())
    }

    /// True when [`Channel::flush`] has to be tried again.
    pub fn has_unsent(&self) -> bool {
        self.outgoing.unsent_count() > 0
    }

    /// Sends a pushed message after a connection that has moved. False if it could not be sent.
    pub fn forward_push(&mut self, connection: u64, stream: u64, bytes: &[u8]) -> bool {
        let message = message::encode_push(connection, stream, bytes);
        message.len() <= MAX_MESSAGE_BYTES
            && fdpass::send(self.socket(), &[IoSlice::new(&message)], &[]).is_ok()
    }

    /// Collects answers; what the peer decided, and what is overdue comes back.
    pub fn collect(&mut self, overdue_before_ms: Option<u64>, answers: &mut Vec<Answer>) {
        // A closed channel brings no descriptor to the peer any more that it has not got already.
        let overdue = if self.phase == Phase::Closed { Some(u64::MAX) } else { overdue_before_ms };
        self.outgoing.collect(&self.end.outgoing, overdue, self.peer_is_dead, answers);
    }

    /// When the oldest open offer was made.
    pub fn oldest_offer_ms(&self) -> Option<u64> {
        self.outgoing.oldest_ms()
    }

    /// The pidfd fired: what the peer adopted and did not start may be taken back.
    pub fn on_peer_death(&mut self) {
        self.peer_is_dead = true;
    }

    /// The eventfd fired.
    pub fn on_wake(&mut self) {
        let _ = self.descriptors.wake.take();
        self.send_blocked = false;
    }

    /// Receives one message. Offers are appended to `arrivals`.
    pub fn receive(&mut self, arrivals: &mut Vec<Arrival>) -> Result<Received, ChannelError> {
        if self.phase == Phase::Closed {
            return Ok(Received::Nothing);
        }
        let mut bytes = std::mem::take(&mut self.message);
        bytes.resize(MAX_MESSAGE_BYTES, 0);
        let mut descriptors = Vec::new();
        let received =
            fdpass::receive(self.descriptors.socket.as_fd(), &mut bytes, &mut descriptors);
        let outcome = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Nothing),
            Err(error) => Err(ChannelError::Io(error)),
            Ok(received) if received.bytes == 0 => Err(ChannelError::Closed),
            Ok(received) if received.control_truncated => Err(ChannelError::Protocol(
                "descriptors were cut off (MSG_CTRUNC): no free descriptors here?".to_owned(),
            )),
            Ok(received) if received.truncated => {
                Err(ChannelError::Protocol("an overlong message".to_owned()))
            }
            Ok(received) => self.on_message(&bytes[..received.bytes], descriptors, arrivals),
        };
        self.message = bytes;
        outcome.map_err(|error| self.fail(error))
    }

    fn on_message(
        &mut self,
        bytes: &[u8],
        descriptors: Vec<OwnedFd>,
        arrivals: &mut Vec<Arrival>,
    ) -> Result<Received, ChannelError> {
        let decoded = message::decode(bytes).map_err(ChannelError::Protocol)?;
        match (decoded, self.phase) {
            (Decoded::Hello(hello), Phase::Greeting) => {
                self.check_hello(&hello)?;
                self.phase = Phase::Open;
                Ok(Received::Greeted)
            }
            (Decoded::Batch(entries), Phase::Open) => {
                fault_point!("adopt.received");
                let spare = &mut self.spare_records;
                incoming::pair(
                    &entries,
                    descriptors,
                    &mut self.end.consumer,
                    || spare.pop().unwrap_or_default(),
                    arrivals,
                )
                .map_err(ChannelError::Protocol)?;
                Ok(Received::Offers)
            }
            (Decoded::Push { connection, stream, bytes }, Phase::Open) => {
                Ok(Received::Push { connection, stream, bytes: bytes.to_vec() })
            }
            (_, phase) => {
                Err(ChannelError::Protocol(format!("a message that does not fit {phase:?}")))
            }
        }
    }

    fn check_hello(&self, hello: &PeerHello) -> Result<(), ChannelError> {
        if HANDOFF_VERSIONS.newest_common(hello.protocol).is_none() {
            return Err(ChannelError::Version(format!(
                "handoff protocol: the peer speaks {:?}, this build {HANDOFF_VERSIONS:?}",
                hello.protocol
            )));
        }
        if (hello.reload, hello.channel) != (self.info.reload, self.info.channel) {
            return Err(ChannelError::Protocol(format!(
                "the peer is on channel {} of reload {}, this end on {} of {}",
                hello.channel, hello.reload, self.info.channel, self.info.reload
            )));
        }
        if let Some(format) = self.info.write_format
            && !(hello.state_reads.oldest..=hello.state_reads.newest).contains(&format)
        {
            return Err(ChannelError::Version(format!(
                "state format {format}: the peer reads {:?}",
                hello.state_reads
            )));
        }
        Ok(())
    }

    /// The record buffer of an arrival may be used again.
    pub fn recycle(&mut self, mut record: Vec<u8>) {
        if record.capacity() <= 64 << 10 && self.spare_records.len() < self.window {
            record.clear();
            self.spare_records.push(record);
        }
    }

    /// Takes ownership of an offer. False: somebody else was faster; close the descriptor.
    pub fn adopt(&mut self, sequence: u64) -> bool {
        let adopted = self.end.incoming.adopt(sequence);
        fault_point!("adopt.adopted");
        adopted
    }

    /// From here on this process does I/O on it. False: it was taken back.
    pub fn start(&mut self, sequence: u64) -> bool {
        let started = self.end.incoming.start(sequence);
        self.answers_unannounced = true;
        fault_point!("adopt.started");
        started
    }

    /// Declines an offer. The caller has closed its descriptor before.
    pub fn refuse(&mut self, sequence: u64) {
        self.end.incoming.refuse(sequence);
        self.answers_unannounced = true;
    }

    /// Wakes the peer if there are answers that it has not been told of.
    pub fn announce_answers(&mut self) {
        if std::mem::take(&mut self.answers_unannounced) {
            let _ = self.descriptors.wake_peer.signal();
        }
    }

    /// The reload is over: the channel is closed, and goes once its offers are settled.
    pub fn retire(&mut self) {
        self.close();
        self.retired = true;
    }

    /// True after [`Channel::retire`].
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Ends the channel in good order. Open offers are settled by [`Channel::collect`].
    pub fn close(&mut self) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            // The peer must see the end even while this process keeps the descriptor for a moment.
            let _ = sys::socket::shutdown(self.socket(), std::net::Shutdown::Both);
        }
    }

    /// Ends this side: the memory is unmapped, the descriptors are left to be closed.
    pub fn into_descriptors(self) -> [OwnedFd; 4] {
        let Descriptors { socket, wake, wake_peer, peer_pidfd } = self.descriptors;
        [socket, wake.into(), wake_peer.into(), peer_pidfd]
    }

    fn fail(&mut self, error: ChannelError) -> ChannelError {
        self.failure.get_or_insert_with(|| error.to_string());
        self.close();
        error
    }
}

/// Errors of sendmsg(2) that mean "later": see unix(7), ETOOMANYREFS.
fn is_congestion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ETOOMANYREFS | libc::ENOBUFS | libc::ENOMEM | libc::EINTR)
    )
}
