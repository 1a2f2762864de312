//! The gateway: a reverse proxy as a service of the worker, with connections of its own.
//!
//! | file | what it does |
//! |---|---|
//! | `table` | routes, upstreams, who is chosen, who is down |
//! | `head` | what is passed on of a message's head |
//! | `exchange` | what is kept of a request, and of an upstream connection |
//! | `core` | requests from the client's side: begun, fed, released |
//! | `sending` | to an upstream, to another one, or to the client with a 502 |
//! | `holding` | held, replayed, given up |
//! | `spill` | what of a held body goes to the disk, and comes back |
//! | `spilling` | such files in the worker's ring |
//! | `watch` | time-outs, the supervisor's word, the figures |
//! | `response` | from an upstream's bytes to the client |
//! | `session` | the client's side: the service and its sessions |
//! | `frames` | where WebSocket frames begin in a tunnel |
//! | `state` | a request in progress as bytes |
//! | `links` | upstream sockets in the worker's ring |
//! | `moving` | what a handoff needs of all this |
//!
//! Everything but `links`, `spilling` and `moving` is without I/O: it changes [`Core`] and leaves [`Todo`]s, which
//! the worker works off after each completion. A client's session and the worker share the core; a
//! session is called with it free, and nobody keeps it borrowed across a call of another part.
//!
//! Must not know: the supervisor, how a handoff travels.

mod agreement;
mod core;
mod exchange;
mod frames;
mod head;
mod holding;
mod links;
mod moving;
mod response;
mod sending;
mod session;
mod spill;
mod spilling;
mod state;
mod table;
mod watch;

use std::cell::RefCell;
use std::rc::Rc;

pub use self::core::Core;
pub use exchange::Leaving;
pub use session::service;

/// The core, as the worker and the sessions hold it.
pub type Shared = Rc<RefCell<Core>>;
