//! HPACK (RFC 7541): header fields of HTTP/2, compressed.
//!
//! [`Decoder`] turns a header block into [`Fields`], with bounds for what it may make of it, and has a
//! dynamic table that can be saved at any moment between two blocks (see `persist.rs`). The encoding
//! half never adds to a table: what the functions of [`encode`] write depends on nothing that came
//! before, and one small [`Encoder`] remembers what must be said about the table's size.
//!
//! Must not know: frames, streams, what the fields mean.

mod decoder;
pub mod encode;
mod error;
mod fields;
mod huffman;
mod huffman_code;
mod persist;
mod static_table;
mod table;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Limits};
pub use encode::Encoder;
pub use error::Error;
pub use fields::Fields;
pub use persist::{DecoderState, RestoreError};

/// Size of a dynamic table before anybody has said anything (RFC 9113 §6.5.2), in the octets of RFC
/// 7541 §4.1; also the most that this implementation offers.
pub const DEFAULT_TABLE_BYTES: u32 = 4_096;

/// What an entry of a table counts beyond its name and value (RFC 7541 §4.1), and what each field of a
/// header list does (RFC 9113 §10.5.1).
pub const FIELD_OVERHEAD_BYTES: usize = 32;
