//! What can be wrong with a header block.
//!
//! Must not know: what is done about it.

/// The peer's fault, and the end of the connection: after it the two tables differ (RFC 7541 §2.2, RFC
/// 9113 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The block ends within a field.
    #[error("the header block is truncated")]
    Truncated,
    /// An integer that no field needs (RFC 7541 §5.1).
    #[error("an integer in the header block is too large")]
    IntegerTooLarge,
    /// An index that names no entry (RFC 7541 §2.3.3, §6.1).
    #[error("index {0} names no entry of the tables")]
    NoSuchEntry(u32),
    /// RFC 7541 §5.2: a padding that is too long or not of ones, or the code for the end of string.
    #[error("a string is not valid Huffman code")]
    Huffman,
    /// RFC 7541 §4.2: not at the beginning of the block.
    #[error("a table size update behind a field")]
    UpdateTooLate,
    /// RFC 7541 §6.3: above what was agreed.
    #[error("a table size update to {0}, above what was agreed")]
    UpdateTooLarge(u32),
    /// RFC 7541 §4.2: the table was made smaller, and the block does not acknowledge that.
    #[error("no table size update after the table was made smaller")]
    UpdateMissing,
}
