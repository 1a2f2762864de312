//! One stream (RFC 9113 §5.1), and the table of those that live.
//!
//! A stream lives from its request's head until both directions have ended and all output is framed. The
//! table hands out small slots, which are used again; what is behind them is found by the stream's id
//! with a binary search, since ids only grow.
//!
//! Must not know: frames, header fields.

/// How a response body goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// Its head has not been written.
    Pending,
    /// So many bytes are owed.
    Sized { remaining: u64 },
    /// Until it is finished; a tunnel too.
    Open,
    /// The answer to HEAD, or one that has no body: bytes are counted if a length was announced, never
    /// sent. END_STREAM has been said with the head.
    Omitted { remaining: Option<u64> },
    /// All of it has been handed over, and END_STREAM follows behind what is still in the buffer.
    Finished,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    /// Odd; 0 marks a vacant slot.
    pub id: u32,
    pub outgoing: Outgoing,
    /// The peer has not ended its direction.
    pub is_receiving: bool,
    pub is_head: bool,
    /// An extended CONNECT that has been accepted: both directions carry bytes of another protocol.
    pub is_tunnel: bool,
    /// A tunnel of which we have ended our direction (it is [`Outgoing::Finished`]), and whose other one goes on:
    /// what comes is delivered, and the stream stays until the caller ends it.
    pub is_half_closed: bool,
    /// We have ended, and wait for the peer's end.
    pub is_lingering: bool,
    /// The service has no room for more of the body. Not saved: it says so again.
    pub is_held: bool,
    /// May be negative (§6.9.2).
    pub send_window: i32,
    pub receive_window: i32,
    /// Bytes that were taken and for which no WINDOW_UPDATE has been sent.
    pub receive_credit: u32,
    /// Body bytes received.
    pub received: u64,
    /// What content-length announced (§8.1.1).
    pub announced: Option<u64>,
    /// Body bytes that the windows have not let through, from `buffer_start` on.
    pub buffer: Vec<u8>,
    pub buffer_start: usize,
    /// Header block of the trailers that follow the buffer, which is not empty then. Only literals and
    /// indices of the static table: it is good at any later time.
    pub trailers: Option<Box<[u8]>>,
    /// When the peer last did something for it.
    pub since_ms: u64,
}

impl Stream {
    pub(super) const VACANT: Self = Self {
        id: 0,
        outgoing: Outgoing::Pending,
        is_receiving: false,
        is_head: false,
        is_tunnel: false,
        is_half_closed: false,
        is_lingering: false,
        is_held: false,
        send_window: 0,
        receive_window: 0,
        receive_credit: 0,
        received: 0,
        announced: None,
        buffer: Vec::new(),
        buffer_start: 0,
        trailers: None,
        since_ms: 0,
    };

    /// True once nobody wants to read what the peer sends on it.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.outgoing == Outgoing::Finished && !self.is_half_closed
    }

    /// Bytes that wait for the windows.
    #[inline]
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len() - self.buffer_start
    }

    pub(super) fn unsent(&self) -> &[u8] {
        &self.buffer[self.buffer_start..]
    }

    fn heap_bytes(&self) -> usize {
        self.buffer.capacity() + self.trailers.as_ref().map_or(0, |block| block.len())
    }

    /// Drops what has been framed. An empty buffer holds no memory.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.buffer_start += bytes;
        if self.buffer_start == self.buffer.len() {
            self.buffer = Vec::new();
            self.buffer_start = 0;
        } else if self.buffer_start > self.buffer.len() / 2 {
            self.buffer.drain(..self.buffer_start);
            self.buffer_start = 0;
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Streams {
    slots: Vec<Stream>,
    vacant: Vec<u32>,
    /// Ids in ascending order, and where they are.
    order: Vec<(u32, u32)>,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Upper bound of the slots in use.
    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn slot_of(&self, id: u32) -> Option<usize> {
        // The newest is asked for most.
        if let Some((last, slot)) = self.order.last()
            && *last == id
        {
            return Some(*slot as usize);
        }
        let place = self.order.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.order[place].1 as usize)
    }

    #[inline]
    pub(super) fn get(&self, slot: usize) -> Option<&Stream> {
        self.slots.get(slot).filter(|stream| stream.id != 0)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Stream> {
        self.slots.get_mut(slot).filter(|stream| stream.id != 0)
    }

    /// Those that live, in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Stream)> {
        self.order.iter().map(|(_, slot)| (*slot as usize, &self.slots[*slot as usize]))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.slots.iter_mut().filter(|stream| stream.id != 0)
    }

    /// Enters a stream whose id is above all others.
    #[inline]
    pub(super) fn insert(&mut self, stream: Stream) -> usize {
        let id = stream.id;
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.slots[slot as usize] = stream;
                slot as usize
            }
            None => {
                self.slots.push(stream);
                self.slots.len() - 1
            }
        };
        self.order.push((id, slot as u32));
        slot
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: usize) {
        let Some(stream) = self.slots.get_mut(slot).filter(|stream| stream.id != 0) else { return };
        let id = stream.id;
        *stream = Stream::VACANT;
        if let Ok(place) = self.order.binary_search_by_key(&id, |(id, _)| *id) {
            self.order.remove(place);
        }
        self.vacant.push(slot as u32);
    }

    /// Gives memory back that a burst of streams has left behind.
    pub(super) fn shrink(&mut self) {
        if self.order.is_empty() {
            *self = Self::default();
        }
    }

    /// Bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Stream>()
            + self.slots.iter().map(Stream::heap_bytes).sum::<usize>()
            + self.vacant.capacity() * size_of::<u32>()
            + self.order.capacity() * size_of::<(u32, u32)>()
    }
}
