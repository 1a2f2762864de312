//! The listening sockets: the supervisor makes each, and keeps a duplicate until nobody can have a
//! handshake under way on it any more.
//!
//! Must not know: workers as processes, reloads.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::control::ListenerInfo;
use crate::sys;

/// A listener that was taken out of the steering maps may still see the end of a handshake; a
/// SYN-ACK is retransmitted after 1 s and again 2 s later.
pub const LINGER: Duration = Duration::from_secs(3);

/// Never used again for another socket of this run directory.
pub type ListenerId = u64;

/// Whose socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Of one worker of one generation, steered by eBPF.
    Own {
        /// The generation.
        generation: u32,
        /// The worker's index in it.
        index: u32,
    },
    /// Passed on from generation to generation.
    Shared,
    /// Only there so that a connection to it proves a new worker.
    Proof {
        /// The generation.
        generation: u32,
        /// The worker's index in it.
        index: u32,
    },
}

/// One socket.
#[derive(Debug)]
pub struct Listener {
    /// Its number.
    pub id: ListenerId,
    /// The address it is bound to.
    pub address: SocketAddr,
    /// Whose it is.
    pub role: Role,
    /// When it was taken out of the maps for good.
    pub out_since: Option<Instant>,
    socket: OwnedFd,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// All sockets of a supervisor.
#[derive(Debug, Default)]
pub struct Listeners {
    next_id: ListenerId,
    all: BTreeMap<ListenerId, Listener>,
}

impl Listeners {
    /// Continues the numbering of another supervisor.
    pub fn starting_at(next_id: ListenerId) -> Self {
        Self { next_id, all: BTreeMap::new() }
    }

    /// The number that the next socket gets.
    pub fn next_id(&self) -> ListenerId {
        self.next_id
    }

    /// Makes a socket.
    ///
    /// # Errors
    /// What the kernel says, with the address.
    pub fn create(
        &mut self,
        address: SocketAddr,
        role: Role,
        reuse_port: bool,
        backlog: u32,
    ) -> Result<ListenerId, String> {
        if reuse_port && !self.all.values().any(|own| overlap(own.address, address)) {
            wait_until_free(address).map_err(|error| explain(address, &error))?;
        }
        let socket = sys::socket::listener(address, reuse_port, backlog)
            .map_err(|error| explain(address, &error))?;
        let address =
            sys::socket::local_address(socket.as_fd()).map_err(|error| explain(address, &error))?;
        let id = self.next_id;
        self.next_id += 1;
        self.all.insert(id, Listener { id, address, role, out_since: None, socket });
        Ok(id)
    }

    /// Takes in a duplicate that a worker held.
    pub fn adopt(&mut self, id: ListenerId, address: SocketAddr, role: Role, socket: OwnedFd) {
        self.next_id = self.next_id.max(id + 1);
        self.all.entry(id).or_insert(Listener { id, address, role, out_since: None, socket });
    }

    /// One of them.
    pub fn find(&self, id: ListenerId) -> Option<&Listener> {
        self.all.get(&id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.all.values()
    }

    /// The ids with this role.
    pub fn with_role(&self, role: Role) -> Vec<ListenerId> {
        self.iter().filter(|listener| listener.role == role).map(|listener| listener.id).collect()
    }

    /// The shared sockets of one address.
    pub fn shared(&self, address: SocketAddr) -> Vec<ListenerId> {
        self.iter()
            .filter(|listener| listener.role == Role::Shared && listener.address == address)
            .map(|listener| listener.id)
            .collect()
    }

    /// Starts the linger of every socket that this worker's place had to itself.
    pub fn take_out(&mut self, generation: u32, now: Instant) {
        for listener in self.all.values_mut() {
            if matches!(listener.role, Role::Own { generation: of, .. } if of == generation) {
                listener.out_since.get_or_insert(now);
            }
        }
    }

    /// Somebody accepts from it again, for good.
    pub fn take_in(&mut self, id: ListenerId) {
        if let Some(listener) = self.all.get_mut(&id) {
            listener.out_since = None;
        }
    }

    /// Its linger began then, perhaps under another supervisor.
    pub fn set_out_since(&mut self, id: ListenerId, since: Instant) {
        if let Some(listener) = self.all.get_mut(&id) {
            listener.out_since = Some(since);
        }
    }

    /// Removes, and so closes, one of them.
    pub fn remove(&mut self, id: ListenerId) {
        self.all.remove(&id);
    }

    /// Closes all of them.
    pub fn clear(&mut self) {
        self.all.clear();
    }

    /// Those whose linger is over.
    pub fn expired(&self, now: Instant) -> Vec<ListenerId> {
        self.iter()
            .filter(|listener| listener.out_since.is_some_and(|since| now >= since + LINGER))
            .map(|listener| listener.id)
            .collect()
    }

    /// When the next linger ends.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.iter().filter_map(|listener| listener.out_since).min().map(|since| since + LINGER)
    }

    /// As a worker is told of them.
    pub fn describe(&self, ids: &[ListenerId], own: bool) -> Vec<(ListenerInfo, BorrowedFd<'_>)> {
        ids.iter()
            .filter_map(|id| self.all.get(id))
            .map(|listener| {
                let info = ListenerInfo { id: listener.id, address: listener.address, own };
                (info, listener.as_fd())
            })
            .collect()
    }
}

/// Where to connect to in order to reach a listener of this machine.
pub fn connect_address(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let mut address = listening;
    address.set_ip(ip);
    address
}

/// How long the sockets of processes that have just ended may still be there: the kernel takes an
/// io_uring down behind its process.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// True if a listener on one of them would be in the way of one on the other.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// Fails if somebody else listens there. SO_REUSEPORT would join the sockets of any process of the
/// same user: another supervisor's clients would be steered here, and refused once this one is gone.
fn wait_until_free(address: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + LEFTOVERS;
    loop {
        match sys::socket::listener(address, false, 1) {
            Err(error)
                if error.raw_os_error() == Some(libc::EADDRINUSE) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            outcome => return outcome.map(drop),
        }
    }
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    let advice = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            "; somebody else listens there (`ss -ltnp` shows who), or another user started it"
        }
        Some(libc::EACCES) => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        Some(libc::EADDRNOTAVAIL) => "; no interface of this machine has that address",
        Some(libc::EAFNOSUPPORT) => "; this kernel has no such address family",
        Some(libc::EMFILE | libc::ENFILE) => "; out of descriptors, see `zdt doctor`",
        _ => "",
    };
    format!("cannot listen on {address}: {error}{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_one_address_share_its_port() {
        let mut listeners = Listeners::default();
        let role = |index| Role::Own { generation: 1, index };
        let any = "127.0.0.1:0".parse().unwrap();
        let first = listeners.create(any, role(0), true, 16).unwrap();
        let address = listeners.find(first).unwrap().address;
        let second = listeners.create(address, role(1), true, 16).unwrap();
        assert_ne!(first, second);
        assert_eq!(listeners.with_role(role(1)), [second]);
        let message = listeners.create(address, Role::Shared, false, 16).unwrap_err();
        assert!(
            message.contains(&address.to_string()) && message.contains("ss -ltnp"),
            "{message}"
        );
    }

    #[test]
    fn a_listener_lingers_after_it_was_taken_out() {
        let (mut listeners, now) = (Listeners::starting_at(9), Instant::now());
        let any = "127.0.0.1:0".parse().unwrap();
        let id = listeners.create(any, Role::Own { generation: 1, index: 0 }, true, 16).unwrap();
        assert_eq!(id, 9);
        listeners.create(any, Role::Own { generation: 2, index: 0 }, true, 16).unwrap();
        assert_eq!(listeners.next_expiry(), None);
        listeners.take_out(1, now);
        listeners.take_out(1, now + LINGER);
        assert_eq!(listeners.next_expiry(), Some(now + LINGER), "counted from the first time");
        assert!(listeners.expired(now + LINGER - Duration::from_millis(1)).is_empty());
        assert_eq!(listeners.expired(now + LINGER), [id]);
    }

    #[test]
    fn wildcard_listeners_are_reached_over_loopback() {
        let reach = |text: &str| connect_address(text.parse().unwrap()).to_string();
        assert_eq!(reach("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(reach("[::]:80"), "[::1]:80");
        assert_eq!(reach("10.1.2.3:80"), "10.1.2.3:80");
    }
}
