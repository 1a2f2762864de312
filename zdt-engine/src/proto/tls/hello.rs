//! What has come of a client's first message before anything is answered.
//!
//! Until then there are no keys and no transcript, only bytes: a client that is silent, or has stopped in the
//! middle of its ClientHello, can be carried to another process as those bytes, which a handshake cannot. So
//! the handshake begins only with the whole message, however many records it comes in (RFC 8446 §5.1,
//! RFC 5246 §6.2.1), or with whatever cannot become one: to find the words for that is the handshake's business.
//!
//! Must not know: what a ClientHello says.

use super::CLIENT_HELLO;
use super::handshake::MAX_HANDSHAKE_BYTES;
use super::record::{HEADER_BYTES, content, record_bytes};

/// Longer ones are answered where they are.
const MAX_HELLO_BYTES: usize = 16 << 10;

/// Most bytes of a [`Hello`]: with one more than a handshake may have it ends in that error.
const MAX_KEPT_BYTES: usize = MAX_HANDSHAKE_BYTES + 1;

/// Bytes of a handshake that has not begun.
#[derive(Default, PartialEq, Eq)]
pub struct Hello {
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Hello").field("bytes", &self.bytes.len()).finish()
    }
}

impl Hello {
    /// What another process has received; `None` if that is more than any keeps.
    pub fn restore(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX_KEPT_BYTES).then(|| Self { bytes: bytes.to_vec() })
    }

    /// What has come: its saved form, too.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// More has come.
    pub fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_KEPT_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// True once a handshake can do something about it: answer, or fail.
    pub fn is_due(&self) -> bool {
        if self.bytes.len() > MAX_HELLO_BYTES {
            return true;
        }
        let mut rest = &self.bytes[..];
        let (mut head, mut received) = ([0; 4], 0);
        loop {
            let total = match record_bytes(rest) {
                Ok(Some(total)) => total,
                Ok(None) => return false,
                Err(_) => return true,
            };
            // "zero-length fragments of Handshake types" are none.
            if rest[0] != content::HANDSHAKE || total == HEADER_BYTES {
                return true;
            }
            let Some((record, behind)) = rest.split_at_checked(total) else { return false };
            let fragment = &record[HEADER_BYTES..];
            head.iter_mut().skip(received).zip(fragment).for_each(|(to, from)| *to = *from);
            received += fragment.len();
            rest = behind;
            let [kind, length @ ..] = head;
            let [a, b, c] = length.map(usize::from);
            if kind != CLIENT_HELLO || (received >= 4 && received - 4 >= a << 16 | b << 8 | c) {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A first message of so many bytes, in records of these sizes.
    fn in_records(body: usize, sizes: &[usize]) -> Vec<u8> {
        let length = (body as u32).to_be_bytes();
        let message = [&[CLIENT_HELLO], &length[1..], &vec![7; body]].concat();
        let (mut rest, mut wire) = (&message[..], Vec::new());
        for size in sizes.iter().cycle() {
            let (fragment, behind) = rest.split_at((*size).min(rest.len()));
            wire.extend([content::HANDSHAKE, 3, 1]);
            wire.extend((fragment.len() as u16).to_be_bytes());
            wire.extend(fragment);
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        wire
    }

    fn is_due(bytes: &[u8]) -> bool {
        let mut hello = Hello::default();
        hello.keep(bytes);
        hello.is_due()
    }

    #[test]
    fn what_cannot_become_one_is_due_with_its_header() {
        for (bytes, header) in [
            (&b"GET / HTTP/1.1"[..], 5),
            (b"\x15\x03\x01\0\x02\x01\0", 5), // an alert
            (b"\x16\x02\0\0\x05", 5),         // SSL 2
            (b"\x16\x03\x01\0\0", 5),         // nothing in it
            (b"\x16\x03\x01\0\x01\x02", 6),   // another message
        ] {
            assert!(!is_due(&bytes[..header - 1]), "{bytes:?}");
            assert!(is_due(&bytes[..header]), "{bytes:?}");
        }
    }

    #[test]
    fn nobody_makes_it_grow() {
        let mut hello = Hello::default();
        // A message that never ends, a byte in a record.
        for _ in 0..MAX_HANDSHAKE_BYTES {
            hello.keep(b"\x16\x03\x01\0\x01\x01");
        }
        assert_eq!(hello.bytes().len(), MAX_KEPT_BYTES);
        assert!(hello.is_due());
        assert_eq!(Hello::restore(hello.bytes()), Some(hello));
        assert_eq!(Hello::restore(&[0; MAX_KEPT_BYTES + 1]), None);
    }

    proptest! {
        #[test]
        fn it_is_due_with_its_last_byte(
            body in 0usize..1_500,
            sizes in proptest::collection::vec(1usize..600, 1..6),
            behind in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let wire = in_records(body, &sizes);
            for cut in 0..wire.len() {
                prop_assert!(!is_due(&wire[..cut]), "{} of {}", cut, wire.len());
            }
            prop_assert!(is_due(&wire));
            prop_assert!(is_due(&[wire, behind].concat()));
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let due = is_due(&[b"\x16\x03\x01", &bytes[..]].concat());
            // What is due stays due.
            prop_assert!(!due || is_due(&[b"\x16\x03\x01", &bytes[..], b"more"].concat()));
        }
    }
}
