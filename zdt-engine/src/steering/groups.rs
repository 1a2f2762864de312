//! Groups and their slots.
//!
//! Must not know: which generation a bank belongs to.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrStorage, getsockname};
use zdt_common::{BANKS, Group, LAYOUT_VERSION, MAX_GROUPS, Policy, group_key};

use super::{GroupId, GroupInfo, Steering, SteeringError, pins};

impl Steering {
    /// Puts the group of `socket`, a listening socket with `SO_REUSEPORT`, under the program. All
    /// sockets that are bound to the same address, now or later, belong to it.
    ///
    /// From here on connections go where route and slots say. As long as the group has no slot that is
    /// nowhere, and they are refused: so add the group right after its first `listen`, and set its
    /// slots at once. An address that is known already keeps its slots, and gets the policy and the
    /// program anew (that of this build).
    pub fn add_listener_group(
        &mut self,
        socket: impl AsFd,
        policy: Policy,
    ) -> Result<GroupId, SteeringError> {
        let address = local_address(socket.as_fd())?;
        let index = match self.find_group(address) {
            Some(known) => known.0,
            None => self
                .mirror
                .iter()
                .position(|group| !group.in_use())
                .map(|index| index as u32)
                .ok_or(SteeringError::Limit {
                    what: "listening addresses",
                    wanted: MAX_GROUPS + 1,
                    most: MAX_GROUPS,
                })?,
        };
        let known = self.mirror[index as usize];
        let group = if known.in_use() {
            Group { policy: policy.code(), ..known }
        } else {
            describe(address, policy, self.max_workers)
        };
        // Until the group is written, the program leaves the choice to the kernel.
        let program = self.programs.get(index)?;
        program
            .attach(socket.as_fd())
            .map_err(|error| SteeringError::Attach { address, source: Box::new(error) })?;
        if let Some(dir) = &self.pin_dir {
            pins::pin_program(program, &dir.join(format!("steer_{index}")))?;
        }
        self.write_group(index, group)?;
        Ok(GroupId(index))
    }

    /// Forgets a group whose sockets are closed, or about to be: clears its slots. The program stays
    /// with the sockets, and leaves the choice to the kernel from now on.
    pub fn remove_listener_group(&mut self, group: GroupId) -> Result<(), SteeringError> {
        self.check_slot(group, 0)?;
        for slot in 0..BANKS * self.max_workers {
            self.clear_slot(group, slot)?;
        }
        self.write_group(group.0, Group::default())?;
        if let Some(dir) = &self.pin_dir {
            let pin = dir.join(format!("steer_{}", group.0));
            pins::remove_pin(&pin)?;
        }
        self.programs.forget(group.0);
        Ok(())
    }

    /// The group of a listening address.
    pub fn find_group(&self, address: SocketAddr) -> Option<GroupId> {
        self.listener_groups().iter().find(|info| same(info.address, address)).map(|info| info.id)
    }

    /// All groups.
    pub fn listener_groups(&self) -> Vec<GroupInfo> {
        (0..)
            .zip(&self.mirror)
            .filter(|(_, group)| group.in_use())
            .map(|(index, group)| GroupInfo {
                id: GroupId(index),
                address: address_of(group),
                policy: Policy::from_code(group.policy),
            })
            .collect()
    }

    /// Changes the policy of a group, from the next connection on.
    pub fn set_policy(&mut self, group: GroupId, policy: Policy) -> Result<(), SteeringError> {
        self.check_slot(group, 0)?;
        let changed = Group { policy: policy.code(), ..self.mirror[group.0 as usize] };
        self.write_group(group.0, changed)
    }

    /// Puts a listening socket of the group into a slot, in place of the one that is there. This
    /// does not make the slot ready.
    ///
    /// # Errors
    /// [`SteeringError::Map`]: the kernel refuses a socket that does not listen yet, is not of a
    /// reuseport group, or is in another slot already.
    pub fn set_slot(
        &mut self,
        group: GroupId,
        slot: u32,
        socket: impl AsFd,
    ) -> Result<(), SteeringError> {
        let (bank, worker) = self.check_slot(group, slot)?;
        let key = group_key(group.0, slot, self.max_workers);
        self.sockets
            .set(key, &socket.as_fd().as_raw_fd(), 0)
            .map_err(SteeringError::map("put a socket into its slot"))?;
        let mut changed = self.mirror[group.0 as usize];
        changed.present.set(bank, worker, true);
        self.write_group(group.0, changed)
    }

    /// Takes a slot out: it is not ready any more, and its socket gets nothing new. What waits in the
    /// socket's accept queue stays there. A slot that is empty already is no error.
    pub fn clear_slot(&mut self, group: GroupId, slot: u32) -> Result<(), SteeringError> {
        let (bank, worker) = self.check_slot(group, slot)?;
        let mut changed = self.mirror[group.0 as usize];
        changed.ready.set(bank, worker, false);
        changed.present.set(bank, worker, false);
        self.write_group(group.0, changed)?;
        let key = group_key(group.0, slot, self.max_workers);
        match self.sockets.clear_index(&key) {
            Ok(()) => Ok(()),
            // The kernel took it out when the socket was closed, or nothing ever was there.
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(SteeringError::map("clear a slot")(error)),
        }
    }

    /// Says whether the slot's worker takes new connections. As long as any slot of the group is
    /// ready, one that is not is never chosen. When none is, connections wait in the accept queue of
    /// a slot that has a socket; only when there is none either are they refused.
    ///
    /// # Errors
    /// [`SteeringError::EmptySlot`] for a slot without a socket.
    pub fn set_ready(
        &mut self,
        group: GroupId,
        slot: u32,
        ready: bool,
    ) -> Result<(), SteeringError> {
        let (bank, worker) = self.check_slot(group, slot)?;
        let mut changed = self.mirror[group.0 as usize];
        if ready && !changed.present.contains(bank, worker) {
            return Err(SteeringError::EmptySlot { group: group.0, slot });
        }
        changed.ready.set(bank, worker, ready);
        self.write_group(group.0, changed)
    }

    /// [`Steering::set_ready`] in every group in which the slot has a socket.
    pub fn set_ready_everywhere(&mut self, slot: u32, ready: bool) -> Result<(), SteeringError> {
        for info in self.listener_groups() {
            if self.has_socket(info.id, slot)? {
                self.set_ready(info.id, slot, ready)?;
            }
        }
        Ok(())
    }

    /// [`Steering::clear_slot`] in every group: the first thing to do when a worker has died.
    pub fn clear_slot_everywhere(&mut self, slot: u32) -> Result<(), SteeringError> {
        self.listener_groups().iter().try_for_each(|info| self.clear_slot(info.id, slot))
    }

    /// True if a socket was put into the slot and not cleared since.
    pub fn has_socket(&self, group: GroupId, slot: u32) -> Result<bool, SteeringError> {
        let (bank, worker) = self.check_slot(group, slot)?;
        Ok(self.mirror[group.0 as usize].present.contains(bank, worker))
    }

    /// True if the slot is ready.
    pub fn is_ready(&self, group: GroupId, slot: u32) -> Result<bool, SteeringError> {
        let (bank, worker) = self.check_slot(group, slot)?;
        Ok(self.mirror[group.0 as usize].ready.contains(bank, worker))
    }

    /// Bank and worker of a slot, if group and slot exist.
    pub(super) fn check_slot(
        &self,
        group: GroupId,
        slot: u32,
    ) -> Result<(u32, u32), SteeringError> {
        if !self.mirror.get(group.0 as usize).is_some_and(Group::in_use) {
            return Err(SteeringError::NoSuchGroup { group: group.0 });
        }
        if slot >= BANKS * self.max_workers {
            let most = BANKS * self.max_workers - 1;
            return Err(SteeringError::Limit { what: "slot", wanted: slot, most });
        }
        Ok((slot / self.max_workers, slot % self.max_workers))
    }

    /// Writes a group. The program may read it at the same time and see some words old, some new: each
    /// is valid on its own.
    fn write_group(&mut self, index: u32, group: Group) -> Result<(), SteeringError> {
        self.groups.set(index, group, 0).map_err(SteeringError::map("write a group"))?;
        self.mirror[index as usize] = group;
        Ok(())
    }
}

fn local_address(socket: BorrowedFd<'_>) -> Result<SocketAddr, SteeringError> {
    let storage: SockaddrStorage =
        getsockname(socket.as_raw_fd()).map_err(SteeringError::Socket)?;
    if let Some(v4) = storage.as_sockaddr_in() {
        return Ok(SocketAddr::V4((*v4).into()));
    }
    if let Some(v6) = storage.as_sockaddr_in6() {
        return Ok(SocketAddr::V6((*v6).into()));
    }
    Err(SteeringError::Socket(nix::errno::Errno::EAFNOSUPPORT))
}

/// Equal but for an IPv6 flow label, which is no part of a listening address.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    let key = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => (IpAddr::V4(*v4.ip()), v4.port(), 0),
        SocketAddr::V6(v6) => (IpAddr::V6(*v6.ip()), v6.port(), v6.scope_id()),
    };
    key(one) == key(other)
}

fn describe(address: SocketAddr, policy: Policy, max_workers: u32) -> Group {
    let (family, bytes, scope) = match address {
        SocketAddr::V4(v4) => (4, v4.ip().to_ipv6_mapped().octets(), 0),
        SocketAddr::V6(v6) => (6, v6.ip().octets(), v6.scope_id()),
    };
    Group {
        layout: LAYOUT_VERSION,
        policy: policy.code(),
        max_workers,
        port: address.port().into(),
        address: bytes,
        scope,
        family,
        ..Group::default()
    }
}

fn address_of(group: &Group) -> SocketAddr {
    let ip = Ipv6Addr::from(group.address);
    let port = group.port as u16;
    match (group.family, ip.to_ipv4_mapped()) {
        (4, Some(v4)) => SocketAddr::from((v4, port)),
        _ => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, group.scope)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_map() {
        for text in
            ["127.0.0.1:8080", "0.0.0.0:1", "[::]:443", "[::1]:65535", "[::ffff:10.0.0.1]:80"]
        {
            let address: SocketAddr = text.parse().expect("address");
            let group = describe(address, Policy::RoundRobin, 3);
            assert_eq!(address_of(&group), address);
            assert!(group.in_use());
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 7));
        assert_eq!(address_of(&describe(scoped, Policy::Hash, 1)), scoped);
    }
}
