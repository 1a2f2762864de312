//! What can be wrong with the bytes of a client, and with the answers of a service.
//!
//! [`Error`] is always the client's fault and maps to one status code; [`ResponseError`] is always
//! the fault of the code that answers, and nothing of the refused call has reached the wire.
//!
//! Must not know: how either is reported, or to whom.

/// Why a request was refused. The `Display` text is the reason that the client is told.
///
/// After any of these the connection cannot go on: where one message ends and the next begins is
/// no longer certain (RFC 9112 §2.2, §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// RFC 9112 §3.
    #[error("malformed request line")]
    MalformedRequestLine,
    /// A first line without a slash: every version of HTTP has one in it. Perhaps the preface of another
    /// protocol (RFC 9113 §3.4).
    #[error("no request line of HTTP")]
    NotHttp,
    /// RFC 9112 §3.2.
    #[error("malformed request target")]
    MalformedTarget,
    /// RFC 9112 §2.2: more than the one empty line that is tolerated before a request.
    #[error("empty lines before the request")]
    EmptyLines,
    /// RFC 9112 §2.2.
    #[error("carriage return that is not followed by a line feed")]
    BareCarriageReturn,
    /// RFC 9112 §2.2: we do not take the offer to accept it as a line terminator.
    #[error("line feed without a carriage return")]
    BareLineFeed,
    /// RFC 9110 §5.5.
    #[error("control character in the message head")]
    ControlCharacter,
    /// RFC 9112 §5.2.
    #[error("obsolete line folding")]
    LineFolding,
    /// RFC 9112 §5.1: not a token directly followed by a colon.
    #[error("malformed field name, or white space before the colon")]
    MalformedFieldName,
    /// RFC 9112 §3.2.
    #[error("Host is missing")]
    MissingHost,
    /// RFC 9112 §3.2.
    #[error("Host appears more than once")]
    RepeatedHost,
    /// RFC 9112 §3.2.
    #[error("malformed Host")]
    MalformedHost,
    /// RFC 9112 §3.2: a client has to send the same authority in both places.
    #[error("Host differs from the authority of the request target")]
    HostMismatch,
    /// RFC 9110 §8.6.
    #[error("malformed Content-Length")]
    MalformedContentLength,
    /// RFC 9112 §6.3: refused even when the values agree.
    #[error("Content-Length appears more than once")]
    RepeatedContentLength,
    /// RFC 9112 §6.3: a request-smuggling attempt more often than not.
    #[error("both Content-Length and Transfer-Encoding")]
    ContentLengthWithTransferEncoding,
    /// RFC 9112 §6.3: `chunked` is not the final coding, or is there twice, or the list is malformed.
    #[error("Transfer-Encoding does not end in a single chunked")]
    MalformedTransferEncoding,
    /// RFC 9112 §6.1.
    #[error("Transfer-Encoding in an HTTP/1.0 request")]
    TransferEncodingInHttp10,
    /// RFC 9112 §7.1.
    #[error("malformed chunk")]
    MalformedChunk,
    /// RFC 9112 §7.1.1: a server ought to limit the total length of chunk extensions.
    #[error("chunk extensions are too long")]
    ChunkExtensionsTooLong,
    /// RFC 9110 §6.5.1: a field that frames or routes a message cannot come after it.
    #[error("forbidden trailer field")]
    ForbiddenTrailer,
    /// The caller's header timer ran out. Never returned by the machine itself.
    #[error("the request did not arrive in time")]
    RequestTimeout,
    /// Longer than [`max_body_bytes`](super::Limits::max_body_bytes).
    #[error("the request body is too large")]
    BodyTooLarge,
    /// Longer than [`max_target_bytes`](super::Limits::max_target_bytes).
    #[error("the request target is too long")]
    TargetTooLong,
    /// RFC 9110 §10.1.1: anything but `100-continue`.
    #[error("unknown expectation")]
    UnknownExpectation,
    /// Longer than [`max_head_bytes`](super::Limits::max_head_bytes); trailers count alike.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// More than [`max_header_count`](super::Limits::max_header_count).
    #[error("too many header fields")]
    TooManyFields,
    /// RFC 9110 §9.1: CONNECT, or a method name beyond reason.
    #[error("the method is not implemented")]
    MethodNotImplemented,
    /// RFC 9112 §6.1.
    #[error("the transfer coding is not implemented")]
    UnknownTransferCoding,
    /// RFC 9110 §15.6.6. An HTTP/2 preface ends here, too.
    #[error("the HTTP version is not supported here")]
    UnsupportedVersion,
    /// More body than is worth discarding arrived after the answer was complete.
    #[error("the answer is complete, the rest of the body is not wanted")]
    BodyNotWanted,
}

impl Error {
    /// The status code to answer with.
    pub fn status(self) -> u16 {
        match self {
            Self::RequestTimeout => 408,
            Self::BodyTooLarge | Self::BodyNotWanted => 413,
            Self::TargetTooLong => 414,
            Self::UnknownExpectation => 417,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::MethodNotImplemented | Self::UnknownTransferCoding => 501,
            Self::UnsupportedVersion => 505,
            Self::MalformedRequestLine
            | Self::NotHttp
            | Self::MalformedTarget
            | Self::EmptyLines
            | Self::BareCarriageReturn
            | Self::BareLineFeed
            | Self::ControlCharacter
            | Self::LineFolding
            | Self::MalformedFieldName
            | Self::MissingHost
            | Self::RepeatedHost
            | Self::MalformedHost
            | Self::HostMismatch
            | Self::MalformedContentLength
            | Self::RepeatedContentLength
            | Self::ContentLengthWithTransferEncoding
            | Self::MalformedTransferEncoding
            | Self::TransferEncodingInHttp10
            | Self::MalformedChunk
            | Self::ChunkExtensionsTooLong
            | Self::ForbiddenTrailer => 400,
        }
    }
}

/// A misuse of the response side. The call that returns it has appended nothing to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// No request waits for this: none has arrived, or its answer has been begun or finished.
    #[error("no request waits for an answer")]
    NotExpected,
    /// Body bytes, or the end of a body, without a response head.
    #[error("the response has not been started")]
    NotStarted,
    /// Not in 200..=599; interim responses have functions of their own.
    #[error("status {0} cannot be sent as a final response")]
    InvalidStatus(u16),
    /// A name that is not a token, or a value with a control character (response splitting).
    #[error("a response header has an invalid name or value")]
    InvalidHeader,
    /// Content-Length, Transfer-Encoding and Keep-Alive are the machine's to write.
    #[error("a response header is written by the HTTP machine alone")]
    ReservedHeader,
    /// More body bytes than announced, or any for a status that has no body.
    #[error("the response body is longer than announced by {excess} bytes")]
    BodyTooLong {
        /// Bytes beyond the announced length.
        excess: u64,
    },
    /// The response was to be finished before its announced length was reached. Send the rest, or
    /// drop the connection.
    #[error("the response body is shorter than announced by {missing} bytes")]
    BodyTooShort {
        /// Bytes still owed.
        missing: u64,
    },
    /// A switch of protocols that the client has not asked for, or before its request has ended.
    #[error("the request cannot be upgraded")]
    NotUpgradable,
}
