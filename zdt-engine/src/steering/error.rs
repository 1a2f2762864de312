//! What can go wrong with steering, and whose fault it is.
//!
//! Must not know: who reports it.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use aya::maps::MapError;

/// See the variants: the operator's fault, the kernel's, or the caller's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SteeringError {
    /// Operator: this process may not use BPF.
    #[error(
        "not permitted to {what}: run as root, or with CAP_BPF and CAP_NET_ADMIN (and CAP_SYS_ADMIN, \
         to mount a bpffs); in a container, bpf(2) must be allowed too"
    )]
    NotPermitted {
        /// What was tried.
        what: &'static str,
        /// The refusal.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Kernel: it does not take the program or one of its maps.
    #[error(
        "this kernel cannot {what}; steering needs Linux 6.1 or later with CONFIG_BPF_SYSCALL and \
         CONFIG_INET"
    )]
    Unsupported {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The kernel refused an operation on a map.
    #[error("cannot {what}")]
    Map {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// The program cannot be attached: most often the socket was bound without `SO_REUSEPORT`.
    #[error("cannot attach the steering program to the sockets at {address}")]
    Attach {
        /// Of the group.
        address: SocketAddr,
        /// What the kernel said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The descriptor is not an IPv4 or IPv6 socket.
    #[error("cannot read the address of the listening socket")]
    Socket(#[source] nix::errno::Errno),
    /// Pinning, or opening a pin.
    #[error("cannot pin at {}", path.display())]
    Pin {
        /// The file or directory on the bpffs.
        path: PathBuf,
        /// What the kernel said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Nothing is pinned there.
    #[error("no steering is pinned in {}", dir.display())]
    NotPinned {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// What is pinned is from a build with another layout of the maps.
    #[error("the steering pinned in {} is of another layout ({found}) than this build's", dir.display())]
    OtherLayout {
        /// Where it is.
        dir: PathBuf,
        /// What is there.
        found: String,
    },
    /// A number is out of range.
    #[error("{what}: {wanted} is out of range, at most {most}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// What was asked for.
        wanted: u32,
        /// What there can be.
        most: u32,
    },
    /// Caller: the group was never added, or was removed.
    #[error("there is no group {group}")]
    NoSuchGroup {
        /// Its number.
        group: u32,
    },
    /// Caller: only a slot with a socket can be ready.
    #[error("slot {slot} of group {group} has no socket")]
    EmptySlot {
        /// The group's number.
        group: u32,
        /// The slot.
        slot: u32,
    },
}

impl SteeringError {
    /// True if the operator can help by running zdt with more rights.
    pub fn is_not_permitted(&self) -> bool {
        matches!(self, SteeringError::NotPermitted { .. })
    }

    pub(super) fn map(what: &'static str) -> impl Fn(MapError) -> SteeringError {
        move |source| {
            if refused(&source) {
                return SteeringError::NotPermitted { what, source: Box::new(source) };
            }
            SteeringError::Map { what, source }
        }
    }

    /// For what depends on rights and on the kernel's features only.
    pub(super) fn setup<E: Error + Send + Sync + 'static>(
        what: &'static str,
    ) -> impl Fn(E) -> SteeringError {
        move |source| {
            let not_permitted = refused(&source);
            let source = Box::new(source);
            if not_permitted {
                SteeringError::NotPermitted { what, source }
            } else {
                SteeringError::Unsupported { what, source }
            }
        }
    }

    pub(super) fn pin<E: Error + Send + Sync + 'static>(
        path: &Path,
    ) -> impl Fn(E) -> SteeringError + use<E> {
        let path = path.to_owned();
        move |source| {
            let not_permitted = refused(&source);
            let source = Box::new(source);
            if not_permitted {
                SteeringError::NotPermitted { what: "pin on a bpffs", source }
            } else {
                SteeringError::Pin { path: path.clone(), source }
            }
        }
    }
}

/// True if EPERM or EACCES is somewhere among the causes.
fn refused(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::PermissionDenied
        {
            return true;
        }
        cause = error.source();
    }
    false
}
