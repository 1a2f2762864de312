//! What a kernel must offer, and how to say that it does not.
//!
//! Must not know: how the ring is used.

use std::io;

use std::os::fd::IntoRawFd;

use io_uring::{IoUring, Parameters, Probe, opcode, register::Restriction};

use crate::sys::ring::{self, Blank};

/// Opcodes that a [`super::Ring`] uses, with their names.
pub const NEEDED_OPCODES: &[(u8, &str)] = &[
    (opcode::AcceptMulti::CODE, "ACCEPT"),
    (opcode::RecvMulti::CODE, "RECV"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    (opcode::Close::CODE, "CLOSE"),
];

/// Opcodes that a ring with [`super::Ring::new_connecting`] uses besides.
pub(super) const CONNECTING_OPCODES: &[(u8, &str)] = &[
    (opcode::Socket::CODE, "SOCKET"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Read::CODE, "READ"),
];

/// `IORING_UNREGISTER_RING_FDS`.
pub(super) const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The kernel does not know what is asked; Linux 6.1 is the oldest that does.
    #[error("io_uring lacks {missing}: Linux 6.1 or newer is needed")]
    Unsupported {
        /// The missing flag, feature or opcodes.
        missing: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// io_uring is switched off for this process.
    #[error(
        "io_uring is refused ({source}): look at the sysctl kernel.io_uring_disabled and at the container's seccomp profile"
    )]
    Denied {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A limit is too low.
    #[error("io_uring could not be set up ({source}): raise the limit of open files")]
    Limit {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no memory for it, or none that may be locked.
    #[error(
        "io_uring could not be set up ({source}): of the rings of all processes of this user together, no more than \
         {} may be locked memory. Raise that limit (LimitMEMLOCK= in the systemd unit), or give the supervisor CAP_IPC_LOCK: the \
         rings of its workers are not counted then",
        locked_limit()
    )]
    Memory {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A size that no ring can have.
    #[error(
        "the number of receive buffers must be a power of two up to 32768, and their size not 0"
    )]
    InvalidSize,
    /// Anything else.
    #[error("io_uring could not be set up while {doing}: {source}")]
    Other {
        /// The step.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SetupError {
    pub(super) fn from_io(doing: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSYS) => Self::Unsupported { missing: "everything".to_owned(), source },
            Some(libc::EINVAL) => Self::Unsupported { missing: doing.to_owned(), source },
            Some(libc::EPERM | libc::EACCES) => Self::Denied { source },
            Some(libc::EMFILE | libc::ENFILE) => Self::Limit { source },
            Some(libc::ENOMEM) => Self::Memory { source },
            _ => Self::Other { doing, source },
        }
    }
}

/// RLIMIT_MEMLOCK, in words.
fn locked_limit() -> String {
    match crate::sys::process::locked_memory() {
        Ok(Some(bytes)) => format!("{} KiB", bytes >> 10),
        Ok(None) => "all".to_owned(),
        Err(_) => "as much as RLIMIT_MEMLOCK says".to_owned(),
    }
}

/// Makes a ring to be furnished.
pub(super) fn make(shape: ring::Shape) -> Result<Blank, SetupError> {
    Blank::make(shape)
        .map_err(|error| SetupError::from_io("SINGLE_ISSUER and DEFER_TASKRUN", error))
}

/// Maps the bare ring and checks its features and opcodes. It is still disabled.
pub(super) fn map(blank: Blank, further: &[(u8, &str)]) -> Result<IoUring, SetupError> {
    let (descriptor, parameters) = blank.into_parts();
    // SAFETY: both are 120 bytes, any value of which is valid: one is the kernel's `io_uring_params` as words, the other
    // a transparent wrapper of it.
    let parameters = unsafe { std::mem::transmute::<ring::Parameters, Parameters>(parameters) };
    // SAFETY: the descriptor is a ring's, and owned; the parameters are what the kernel said when it was made. `Blank` has
    // both from there, if need be by way of this process's own past, before it executed this program.
    let ring: IoUring = unsafe { IoUring::from_fd(descriptor.into_raw_fd(), parameters) }
        .map_err(|error| SetupError::from_io("mapping the ring", error))?;
    let unsupported = |missing: &str| SetupError::Unsupported {
        missing: missing.to_owned(),
        source: io::ErrorKind::Unsupported.into(),
    };
    let parameters = ring.params();
    if !parameters.is_feature_nodrop() {
        return Err(unsupported("FEAT_NODROP"));
    }
    if !parameters.is_feature_ext_arg() {
        return Err(unsupported("FEAT_EXT_ARG"));
    }
    if !parameters.is_feature_skip_cqe_on_success() {
        return Err(unsupported("FEAT_CQE_SKIP"));
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| SetupError::from_io("REGISTER_PROBE", error))?;
    let missing: Vec<&str> = NEEDED_OPCODES
        .iter()
        .chain(further)
        .filter(|(code, _)| !probe.is_supported(*code))
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(unsupported(&missing.join(", ")));
    }
    Ok(ring)
}

/// Limits the ring to what is used here (seccomp does not see io_uring's operations), and enables
/// it. Buffers must be registered by now.
pub(super) fn restrict_and_enable(
    ring: &IoUring,
    further: &[(u8, &str)],
) -> Result<(), SetupError> {
    use io_uring::squeue::Flags;
    let mut restrictions: Vec<Restriction> =
        NEEDED_OPCODES.iter().chain(further).map(|(code, _)| Restriction::sqe_op(*code)).collect();
    let mut flags = Flags::BUFFER_SELECT | Flags::SKIP_SUCCESS;
    if !further.is_empty() {
        flags |= Flags::ASYNC;
    }
    restrictions.push(Restriction::sqe_flags_allowed(flags.bits()));
    restrictions.push(Restriction::register_op(UNREGISTER_RING_FDS as u8));
    ring.submitter()
        .register_restrictions(&mut restrictions)
        .map_err(|error| SetupError::from_io("REGISTER_RESTRICTIONS", error))?;
    ring.submitter()
        .register_enable_rings()
        .map_err(|error| SetupError::from_io("REGISTER_ENABLE_RINGS", error))
}

/// Sets up a small ring with everything that a worker needs and takes it down again.
///
/// # Errors
/// What is missing, see [`SetupError`].
pub fn probe() -> Result<(), SetupError> {
    super::Ring::new(8, 2, 64).map(drop)
}
