//! What a completion belongs to: a kind and an index, packed into the ring's token.
//!
//! Must not know: what is done about it.

/// Bits of the index.
const INDEX_BITS: u32 = 40;

/// What an operation was submitted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Accept on a listener.
    Accept(usize),
    /// Receive on a connection.
    Receive(usize),
    /// Send on a connection.
    Send(usize),
    /// Control connection of that number readable.
    Control(usize),
    /// A later supervisor connects.
    Reattach,
    /// A channel's socket readable.
    ChannelSocket(usize),
    /// A channel's eventfd readable.
    ChannelWake(usize),
    /// A channel's peer died.
    ChannelPeer(usize),
    /// Another thread has pushed something.
    Inbox,
    /// The socket of an upstream connection is made.
    LinkSocket(usize),
    /// An upstream connection is connected.
    LinkConnect(usize),
    /// Receive on an upstream connection.
    LinkReceive(usize),
    /// Send on an upstream connection.
    LinkSend(usize),
    /// Read or write on a spill file.
    Spill(usize),
    /// A batch of the access log.
    AccessLog,
}

impl Token {
    /// The token as a number below 2^56.
    pub fn pack(self) -> u64 {
        let (kind, index) = match self {
            Token::Accept(index) => (1, index),
            Token::Receive(index) => (2, index),
            Token::Send(index) => (3, index),
            Token::Control(number) => (4, number),
            Token::Reattach => (6, 0),
            Token::ChannelSocket(index) => (7, index),
            Token::ChannelWake(index) => (8, index),
            Token::ChannelPeer(index) => (9, index),
            Token::Inbox => (10, 0),
            Token::LinkSocket(index) => (11, index),
            Token::LinkConnect(index) => (12, index),
            Token::LinkReceive(index) => (13, index),
            Token::LinkSend(index) => (14, index),
            Token::Spill(index) => (15, index),
            Token::AccessLog => (20, 0),
        };
        kind << INDEX_BITS | index as u64
    }

    /// Undoes [`Token::pack`].
    pub fn unpack(token: u64) -> Self {
        let index = (token & ((1 << INDEX_BITS) - 1)) as usize;
        match token >> INDEX_BITS {
            1 => Token::Accept(index),
            2 => Token::Receive(index),
            3 => Token::Send(index),
            4 => Token::Control(index),
            6 => Token::Reattach,
            7 => Token::ChannelSocket(index),
            8 => Token::ChannelWake(index),
            9 => Token::ChannelPeer(index),
            10 => Token::Inbox,
            11 => Token::LinkSocket(index),
            12 => Token::LinkConnect(index),
            13 => Token::LinkReceive(index),
            14 => Token::LinkSend(index),
            15 => Token::Spill(index),
            20 => Token::AccessLog,
            other => unreachable!("the ring returned a token of kind {other} that nobody made"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn tokens_survive_packing() {
        for token in [
            Token::Accept(0),
            Token::Receive(7),
            Token::Send(usize::MAX >> 24),
            Token::Control(2),
            Token::Reattach,
            Token::ChannelSocket(3),
            Token::ChannelWake(3),
            Token::ChannelPeer(3),
            Token::Inbox,
            Token::LinkSocket(4),
            Token::LinkConnect(4),
            Token::LinkReceive(4),
            Token::LinkSend(4),
            Token::Spill(5),
            Token::AccessLog,
        ] {
            assert!(token.pack() < 1 << 56);
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
