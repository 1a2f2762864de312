//! A registry of live connections for applications that hold connections of their own: which are active, what
//! their state is, and who takes them over.
//!
//! The engine's own workers move theirs through [`crate::handoff`]; what both share is the order in which
//! connections go, [`Order`].
//!
//! ```
//! use zdt_engine::registry::{Connection, ConnectionRegistry};
//! use zdt_engine::service::Busy;
//!
//! /// A chat in which each side has said something.
//! struct Chat(String);
//!
//! impl Connection for Chat {
//!     fn protocol(&self) -> &str {
//!         "chat"
//!     }
//!     fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
//!         bytes.extend_from_slice(self.0.as_bytes());
//!         Ok(())
//!     }
//! }
//!
//! let mut registry = ConnectionRegistry::new();
//! registry.register(1, 100, Chat("hello".to_owned()));
//! registry.register(2, 100, Chat("good bye".to_owned()));
//! registry.mark_active(2);
//! assert_eq!((registry.active_count(), registry.total_count()), (1, 2));
//!
//! // Active connections come first.
//! let saved = registry.serialize_all();
//! assert_eq!(saved.states[0].bytes, b"good bye");
//!
//! // Through a file or a pipe, and back.
//! let packed = zdt_engine::registry::compress_states(&saved.states);
//! let states = zdt_engine::registry::decompress_states(&packed).unwrap();
//! assert_eq!(states, saved.states);
//! assert!(registry.validate_states(&states).is_empty());
//!
//! // Dealt out to the workers that take over.
//! let moved = registry.migrate(&states, &[200, 201], |_worker, _state| Ok(()));
//! assert_eq!(moved.migrated.len(), 2);
//! assert_eq!(registry.worker_of(2), Some(200));
//! ```
//!
//! Must not know: sockets, processes, protocols.

mod order;
mod states;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use crate::service::Busy;

pub use order::Order;
pub use states::{
    ConnectionState, InvalidState, MAX_STATE_BYTES, StatesError, compress_states, decompress_states,
};

/// A connection that can give its state away.
pub trait Connection {
    /// The name of what it speaks.
    fn protocol(&self) -> &str;

    /// Appends its state.
    ///
    /// # Errors
    /// If it cannot be saved just now.
    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy>;
}

/// How much a connection matters at a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Something goes on: it moves first.
    Active,
    /// Nothing does.
    Idle,
    /// It is about to end, and does not move.
    Closing,
}

/// End of a list.
const NOBODY: u32 = u32::MAX;

struct Node<C> {
    id: u64,
    worker: u32,
    mark: Mark,
    connection: C,
    /// Neighbours in the list of its mark.
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
    count: usize,
}

const EMPTY: List = List { first: NOBODY, last: NOBODY, count: 0 };

/// See the module. Marks, look-ups and counts take constant time, however many connections there are.
pub struct ConnectionRegistry<C> {
    nodes: slab::Slab<Node<C>>,
    by_id: HashMap<u64, u32>,
    /// By [`Mark`].
    lists: [List; 3],
}

/// States, and what could not be saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Active ones first, each kind in the order in which it was marked.
    pub states: Vec<ConnectionState>,
    /// Connections that could not be saved just now, and why.
    pub busy: Vec<(u64, &'static str)>,
}

/// What a migration did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migration {
    /// Connection and the worker that has it now.
    pub migrated: Vec<(u64, u32)>,
    /// Connections that stay, and why.
    pub failed: Vec<(u64, String)>,
}

/// Counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryStats {
    /// All.
    pub total: usize,
    /// By mark.
    pub active: usize,
    /// By mark.
    pub idle: usize,
    /// By mark.
    pub closing: usize,
    /// By protocol.
    pub by_protocol: BTreeMap<String, usize>,
    /// By worker.
    pub by_worker: BTreeMap<u32, usize>,
}

impl<C> Default for ConnectionRegistry<C> {
    fn default() -> Self {
        Self { nodes: slab::Slab::new(), by_id: HashMap::new(), lists: [EMPTY; 3] }
    }
}

impl<C: Connection> ConnectionRegistry<C> {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a connection of a worker, idle. One of that id that was there before is given back.
    pub fn register(&mut self, id: u64, worker: u32, connection: C) -> Option<C> {
        let earlier = self.unregister(id);
        let node =
            Node { id, worker, mark: Mark::Idle, connection, previous: NOBODY, next: NOBODY };
        let key = u32::try_from(self.nodes.insert(node)).expect("fewer connections than 2^32");
        self.by_id.insert(id, key);
        self.link(key);
        earlier
    }

    /// Takes a connection out.
    pub fn unregister(&mut self, id: u64) -> Option<C> {
        let key = self.by_id.remove(&id)?;
        self.unlink(key);
        Some(self.nodes.remove(key as usize).connection)
    }

    /// Whether there is a connection of that id.
    pub fn has(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// The connection of that id.
    pub fn get(&self, id: u64) -> Option<&C> {
        Some(&self.node(id)?.connection)
    }

    /// The connection of that id.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut C> {
        let key = *self.by_id.get(&id)?;
        Some(&mut self.nodes.get_mut(key as usize)?.connection)
    }

    /// The worker that has it.
    pub fn worker_of(&self, id: u64) -> Option<u32> {
        Some(self.node(id)?.worker)
    }

    /// It moves first. False if there is none of that id.
    pub fn mark_active(&mut self, id: u64) -> bool {
        self.mark(id, Mark::Active)
    }

    /// It moves after those that are active. False if there is none of that id.
    pub fn mark_idle(&mut self, id: u64) -> bool {
        self.mark(id, Mark::Idle)
    }

    /// It does not move. False if there is none of that id.
    pub fn mark_closing(&mut self, id: u64) -> bool {
        self.mark(id, Mark::Closing)
    }

    /// Whether it is there and active.
    pub fn is_active(&self, id: u64) -> bool {
        self.node(id).is_some_and(|node| node.mark == Mark::Active)
    }

    /// How many are active.
    pub fn active_count(&self) -> usize {
        self.lists[Mark::Active as usize].count
    }

    /// How many there are.
    pub fn total_count(&self) -> usize {
        self.nodes.len()
    }

    /// Counts by mark, protocol and worker; looks at every connection.
    pub fn stats(&self) -> RegistryStats {
        let count = |mark: Mark| self.lists[mark as usize].count;
        let mut stats = RegistryStats {
            total: self.total_count(),
            active: count(Mark::Active),
            idle: count(Mark::Idle),
            closing: count(Mark::Closing),
            ..RegistryStats::default()
        };
        for (_, node) in &self.nodes {
            *stats.by_protocol.entry(node.connection.protocol().to_owned()).or_default() += 1;
            *stats.by_worker.entry(node.worker).or_default() += 1;
        }
        stats
    }

    /// The states of all that are not closing, active ones first.
    pub fn serialize_all(&self) -> Saved {
        self.serialize(&[Mark::Active, Mark::Idle], |_| true)
    }

    /// The states of the active ones.
    pub fn serialize_active(&self) -> Saved {
        self.serialize(&[Mark::Active], |_| true)
    }

    /// The states of one worker's, active ones first.
    pub fn serialize_worker(&self, worker: u32) -> Saved {
        self.serialize(&[Mark::Active, Mark::Idle], |node| node.worker == worker)
    }

    fn serialize(&self, marks: &[Mark], wanted: impl Fn(&Node<C>) -> bool) -> Saved {
        let mut saved = Saved::default();
        for &mark in marks {
            let mut key = self.lists[mark as usize].first;
            while let Some(node) = self.nodes.get(key as usize) {
                key = node.next;
                if !wanted(node) {
                    continue;
                }
                let mut bytes = Vec::new();
                match node.connection.save(&mut bytes) {
                    Ok(()) if bytes.len() > MAX_STATE_BYTES => {
                        saved.busy.push((node.id, "record-too-large"));
                    }
                    Ok(()) => saved.states.push(ConnectionState {
                        id: node.id,
                        worker: node.worker,
                        is_active: mark == Mark::Active,
                        protocol: node.connection.protocol().to_owned(),
                        bytes,
                    }),
                    Err(Busy(reason)) => saved.busy.push((node.id, reason)),
                }
            }
        }
        saved
    }

    /// Deals states out to workers in turn, active ones first: `deliver` hands a state to a worker. What was
    /// delivered belongs to that worker from then on; what could not be stays where it was.
    pub fn migrate(
        &mut self,
        states: &[ConnectionState],
        workers: &[u32],
        mut deliver: impl FnMut(u32, &ConnectionState) -> Result<(), String>,
    ) -> Migration {
        let mut order = Order::default();
        for (index, state) in states.iter().enumerate() {
            order.push(index, if state.is_active { Mark::Active } else { Mark::Idle });
        }
        let mut migration = Migration::default();
        let mut turn = 0;
        while let Some(index) = order.pop() {
            let state = &states[index];
            let Some(&worker) = workers.get(turn % workers.len().max(1)) else {
                migration.failed.push((state.id, "there is no worker".to_owned()));
                continue;
            };
            let Some(&key) = self.by_id.get(&state.id) else {
                migration.failed.push((state.id, "it has ended".to_owned()));
                continue;
            };
            match deliver(worker, state) {
                Ok(()) => {
                    self.nodes[key as usize].worker = worker;
                    migration.migrated.push((state.id, worker));
                    turn += 1;
                }
                Err(reason) => migration.failed.push((state.id, reason)),
            }
        }
        migration
    }

    /// Moves all of one worker's connections to another.
    pub fn migrate_worker(
        &mut self,
        from: u32,
        to: u32,
        deliver: impl FnMut(u32, &ConnectionState) -> Result<(), String>,
    ) -> Migration {
        let saved = self.serialize_worker(from);
        let mut migration = self.migrate(&saved.states, &[to], deliver);
        migration.failed.extend(saved.busy.iter().map(|&(id, reason)| (id, reason.to_owned())));
        migration
    }

    /// What is wrong with states that came from elsewhere: nothing, if the list is empty.
    pub fn validate_states(&self, states: &[ConnectionState]) -> Vec<InvalidState> {
        states::validate(states)
    }

    fn node(&self, id: u64) -> Option<&Node<C>> {
        self.nodes.get(*self.by_id.get(&id)? as usize)
    }

    fn mark(&mut self, id: u64, mark: Mark) -> bool {
        let Some(&key) = self.by_id.get(&id) else { return false };
        if self.nodes[key as usize].mark != mark {
            self.unlink(key);
            self.nodes[key as usize].mark = mark;
            self.link(key);
        }
        true
    }

    /// Appends to the list of its mark.
    fn link(&mut self, key: u32) {
        let list = &mut self.lists[self.nodes[key as usize].mark as usize];
        let last = std::mem::replace(&mut list.last, key);
        list.count += 1;
        match self.nodes.get_mut(last as usize) {
            Some(node) => node.next = key,
            None => list.first = key,
        }
        let node = &mut self.nodes[key as usize];
        (node.previous, node.next) = (last, NOBODY);
    }

    fn unlink(&mut self, key: u32) {
        let Node { mark, previous, next, .. } = self.nodes[key as usize];
        let list = &mut self.lists[mark as usize];
        list.count -= 1;
        match self.nodes.get_mut(previous as usize) {
            Some(node) => node.next = next,
            None => list.first = next,
        }
        match self.nodes.get_mut(next as usize) {
            Some(node) => node.previous = previous,
            None => list.last = previous,
        }
    }
}
