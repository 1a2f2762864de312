//! A request in progress as bytes, for another worker: what has been sent, what is to be sent, what
//! has arrived, how long it has been held. Its upstream's socket travels beside it, and the file with what
//! of its body has no place in memory.
//!
//! Must not know: how it travels.

use bytemuck::{Pod, Zeroable};

use super::core::Core;
use super::exchange::{Exchange, Leaving, Link, LinkStage, NONE, Stage, Tunnel};
use super::frames::{Frames, SAVED_BYTES};
use super::head::Framing;
use super::spill::{Doing, Spill};
use crate::config::UpstreamAddress;
use crate::proto::http1::client::{ClientHead, Http1Client};
use crate::queue::Priority;
use crate::service::{Busy, RestoreError};

/// Most bytes of any one part.
const MAX_PART_BYTES: usize = 32 << 20;

/// Most bytes of a file that travels; nobody's bounds are that wide.
const MAX_FILE_BYTES: u64 = 1 << 40;

const WAITING: u8 = 0;
const SENT: u8 = 1;
const RESPONDING: u8 = 2;
const TUNNEL: u8 = 3;
const RECONNECTING: u8 = 4;
/// Since version 2: its client is still to be told.
const FAILED: u8 = 5;

const KEPT: u16 = 1;
const BODY_DONE: u16 = 1 << 1;
const HEAD: u16 = 1 << 2;
const REPEATABLE: u16 = 1 << 3;
const MAY_HAVE_BEEN_SENT: u16 = 1 << 4;
const WEBSOCKET: u16 = 1 << 5;
const HALF_CLOSED: u16 = 1 << 6;
const ENDED: u16 = 1 << 7;
const SEND_IS_SHUT: u16 = 1 << 8;
/// Since version 2, like those behind it.
const RESET: u16 = 1 << 9;
const ANSWERED: u16 = 1 << 10;
const UNANSWERED: u16 = 1 << 11;
const ALL_FLAGS: u16 = (1 << 12) - 1;

/// Fixed part; then route, upstream's URL, out, sent, pending, tunnel head, trailers (JSON), and, since version 3, what
/// of its body is not in memory: [`SpillHead`] and what comes behind the file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct ExchangeHead {
    held_ms: u64,
    connection: u64,
    stream: u64,
    client: ClientHead,
    lengths: [u32; 7],
    flags: u16,
    stage: u8,
    framing: u8,
    attempts: u8,
    priority: u8,
    leaving: u8,
    padding: u8,
    up: [u8; SAVED_BYTES],
    down: [u8; SAVED_BYTES],
    /// 1 if a socket travels along.
    has_link: u32,
    /// Of the tunnel's head so many bytes at its end are what the client sent too early; since version 2.
    early_bytes: u32,
    /// Of what has a file; since version 3.
    spill_bytes: u32,
    reserved: [u32; 2],
}

/// From where to where the file beside the connection is still to be sent; from 0 to 0 if there is none.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct SpillHead {
    read: u64,
    written: u64,
}

const _: () = assert!(size_of::<ExchangeHead>() == 24 + 32 + 28 + 8 + 48 + 4 + 16);

impl Core {
    /// Version of what [`Core::save`] writes.
    pub fn version(&self, index: usize) -> u16 {
        let exchange = &self.exchanges[index];
        let has_early = exchange.tunnel.as_ref().is_some_and(|tunnel| !tunnel.early.is_empty());
        let is_reset = exchange.link.is_some_and(|link| self.links[link].reset);
        match has_early || is_reset || exchange.stage == Stage::Failed {
            _ if exchange.spill.is_some() => 3,
            true => 2,
            false => 1,
        }
    }

    /// Writes an exchange down. It must be frozen.
    pub fn save(&mut self, index: usize, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        let exchange = &self.exchanges[index];
        let mut held = Vec::new();
        let (stage, held_ms) = match exchange.stage {
            Stage::Held(id) => {
                let Some(known) = self.queue.peek(self.now_ms, id) else {
                    return Err(Busy("upstream-answered"));
                };
                self.queue.read(id, &mut held);
                held.extend_from_slice(&exchange.out);
                (WAITING, known.age_ms)
            }
            Stage::Opening => (WAITING, exchange.held_ms),
            Stage::Sent => (SENT, 0),
            Stage::Responding => (RESPONDING, 0),
            Stage::Tunnel => (TUNNEL, 0),
            Stage::Reconnecting => (RECONNECTING, 0),
            Stage::Failed => (FAILED, 0),
        };
        let exchange = &self.exchanges[index];
        // One that is not connected yet is made anew elsewhere. (A handoff saves only what is quiet.)
        let link = exchange.link.map(|link| &self.links[link]);
        let link = link.filter(|link| link.stage == LinkStage::Ready);
        let flag = |is_set: bool, bit: u16| if is_set { bit } else { 0 };
        let url = link.and(exchange.upstream).map(|upstream| {
            let upstream = &self.table.upstreams[upstream];
            serde_json::to_vec(&(&upstream.url, &upstream.address)).unwrap_or_default()
        });
        let trailers = match &exchange.failure {
            Some((status, reason)) if stage == FAILED => {
                serde_json::to_vec(&[(reason, status.to_le_bytes())])
            }
            None if stage == FAILED => return Err(Busy("upstream-answered")),
            _ => serde_json::to_vec(&exchange.trailers),
        };
        let trailers = trailers.unwrap_or_default();
        let tunnel = exchange.tunnel.as_deref().cloned().unwrap_or_default();
        let opening = [&tunnel.head[..], &tunnel.early].concat();
        let parts: [&[u8]; 7] = [
            self.table.routes[exchange.route].name.as_bytes(),
            url.as_deref().unwrap_or_default(),
            if held.is_empty() { &exchange.out } else { &held },
            &exchange.sent,
            link.map_or(&[], |link| &link.pending),
            &opening,
            &trailers,
        ];
        let spill = exchange.spill.map(|spill| &self.spills.files[spill]);
        if spill.is_some_and(|spill| spill.doing != Doing::Nothing) {
            return Err(Busy("spilling")); // a handoff waits for it
        }
        let spill = spill.map_or(Vec::new(), |spill| {
            let Spill { read, written, .. } = *spill;
            let head = match written - read {
                0 => SpillHead { read: 0, written: 0 },
                _ => SpillHead { read, written },
            };
            [bytemuck::bytes_of(&head), &spill.tail].concat()
        });
        let in_all = parts.iter().map(|part| part.len()).sum::<usize>() + spill.len();
        if in_all > MAX_PART_BYTES {
            return Err(Busy("record-too-large"));
        }
        let head = ExchangeHead {
            held_ms,
            connection: exchange.connection,
            stream: exchange.stream,
            client: link.map_or_else(|| Http1Client::new().save(), |link| link.machine.save()),
            lengths: parts.map(|part| part.len() as u32),
            flags: flag(exchange.is_kept, KEPT)
                | flag(exchange.body_done, BODY_DONE)
                | flag(exchange.is_head, HEAD)
                | flag(exchange.is_repeatable, REPEATABLE)
                | flag(exchange.may_have_been_sent, MAY_HAVE_BEEN_SENT)
                | flag(exchange.wants_websocket, WEBSOCKET)
                | flag(exchange.half_closed, HALF_CLOSED)
                | flag(tunnel.unanswered, UNANSWERED)
                | flag(link.is_some_and(|link| link.ended), ENDED)
                | flag(link.is_some_and(|link| link.send_is_shut), SEND_IS_SHUT)
                | flag(link.is_some_and(|link| link.reset), RESET)
                | flag(stage == FAILED && exchange.is_answered, ANSWERED),
            stage,
            framing: match exchange.framing {
                Framing::None => 0,
                Framing::Sized => 1,
                Framing::Chunked => 2,
            },
            attempts: exchange.attempts,
            priority: exchange.priority.level() as u8,
            leaving: match tunnel.leaving {
                Leaving::No => 0,
                Leaving::Close => 1,
                Leaving::Reconnect | Leaving::ReconnectNow => 2,
            },
            padding: 0,
            up: tunnel.up.save(),
            down: tunnel.down.save(),
            has_link: u32::from(link.is_some()),
            early_bytes: tunnel.early.len() as u32,
            spill_bytes: spill.len() as u32,
            reserved: [0; 2],
        };
        bytes.extend_from_slice(bytemuck::bytes_of(&head));
        for part in parts {
            bytes.extend_from_slice(part);
        }
        bytes.extend_from_slice(&spill);
        Ok(())
    }

    /// Makes an exchange from what [`Core::save`] wrote. It is frozen, and its link, if it has one, is
    /// without a socket until [`Core::attach`].
    pub fn restore(&mut self, bytes: &[u8]) -> Result<usize, RestoreError> {
        self.try_restore(bytes).ok_or(RestoreError::Malformed)
    }

    fn try_restore(&mut self, bytes: &[u8]) -> Option<usize> {
        let (head, mut rest) = bytes.split_at_checked(size_of::<ExchangeHead>())?;
        let head: ExchangeHead = bytemuck::pod_read_unaligned(head);
        let mut parts: [&[u8]; 7] = [&[]; 7];
        for (part, length) in parts.iter_mut().zip(head.lengths) {
            let (this, behind) = rest.split_at_checked(length as usize)?;
            *part = this;
            rest = behind;
        }
        let (spill, rest) = rest.split_at_checked(head.spill_bytes as usize)?;
        if !rest.is_empty() || head.flags & !ALL_FLAGS != 0 || head.padding != 0 {
            return None;
        }
        let [route, url, out, sent, pending, tunnel_head, trailers] = parts;
        let has = |bit: u16| head.flags & bit != 0;
        let has_link = match head.has_link {
            0 => false,
            1 => true,
            _ => return None,
        };
        let stage = match (head.stage, has_link) {
            (WAITING, false) => Stage::Opening,
            (SENT, true) => Stage::Sent,
            (RESPONDING, true) => Stage::Responding,
            (TUNNEL, true) => Stage::Tunnel,
            (RECONNECTING, _) => Stage::Reconnecting,
            (FAILED, false) => Stage::Failed,
            _ => return None,
        };
        let leaving = match head.leaving {
            0 => Leaving::No,
            1 => Leaving::Close,
            2 => Leaving::Reconnect,
            _ => return None,
        };
        let opening_bytes = tunnel_head.len().checked_sub(head.early_bytes as usize)?;
        let (tunnel_head, early) = tunnel_head.split_at(opening_bytes);
        let is_tunnel = matches!(stage, Stage::Tunnel | Stage::Reconnecting);
        if (is_tunnel && tunnel_head.len() < 2) || head.client.padding != [0; 7] {
            return None;
        }
        let tunnel = (has(WEBSOCKET) && tunnel_head.len() >= 2).then(|| {
            Some(Box::new(Tunnel {
                head: tunnel_head.to_vec(),
                up: Frames::restore(&head.up)?,
                down: Frames::restore(&head.down)?,
                leaving,
                early: early.to_vec(),
                unanswered: has(UNANSWERED),
            }))
        });
        let tunnel = match tunnel {
            Some(None) => return None,
            Some(tunnel) => tunnel,
            None => None,
        };
        let spill = match spill.split_first_chunk::<{ size_of::<SpillHead>() }>() {
            Some((head, tail)) => {
                let SpillHead { read, written }: SpillHead = bytemuck::pod_read_unaligned(head);
                let has_any = stage != Stage::Failed && !is_tunnel;
                let is_sound = (read < written || written == 0) && written <= MAX_FILE_BYTES;
                let is_sound = is_sound && read <= written;
                (has_any && is_sound).then_some(Some((read, written, tail)))?
            }
            None if spill.is_empty() => None,
            None => return None,
        };
        let machine = Http1Client::restore(&head.client).ok()?;
        // A route that is not there any more has had its requests accepted: the last one answers them.
        let name = std::str::from_utf8(route).ok()?;
        let known = self.table.routes.iter().position(|route| route.name == name);
        let route = known.or(self.table.routes.len().checked_sub(1))?;
        let upstream = if has_link {
            let (url, address): (String, UpstreamAddress) = serde_json::from_slice(url).ok()?;
            Some(self.table.by_url(&url, address))
        } else {
            None
        };
        let mut trailers: Vec<(String, Vec<u8>)> = serde_json::from_slice(trailers).ok()?;
        let failure = match stage {
            Stage::Failed => {
                let (reason, status) = trailers.pop()?;
                Some((u16::from_le_bytes(status.try_into().ok()?), reason))
            }
            _ => None,
        };
        let exchange = Exchange {
            serial: 0,
            key: usize::MAX,
            connection: head.connection,
            stream: head.stream,
            route,
            upstream,
            link: None,
            stage,
            out: out.to_vec(),
            sent: sent.to_vec(),
            is_kept: has(KEPT),
            framing: match head.framing {
                0 => Framing::None,
                1 => Framing::Sized,
                2 => Framing::Chunked,
                _ => return None,
            },
            body_done: has(BODY_DONE),
            is_head: has(HEAD),
            is_repeatable: has(REPEATABLE),
            may_have_been_sent: has(MAY_HAVE_BEEN_SENT),
            wants_websocket: has(WEBSOCKET),
            input_held: false,
            is_replay: false,
            attempts: head.attempts,
            met_stale: false,
            failed_at: None,
            priority: Priority::new(u64::from(head.priority)),
            active_ms: self.now_ms,
            held_ms: head.held_ms,
            is_adopted: true,
            spill: None,
            trailers,
            half_closed: has(HALF_CLOSED),
            frozen: true,
            is_answered: has(ANSWERED)
                || matches!(stage, Stage::Responding | Stage::Tunnel | Stage::Reconnecting),
            failure,
            next_of_client: NONE,
            tunnel,
        };
        let index = self.insert(exchange);
        if let Some((read, written, tail)) = spill {
            self.restore_spill(index, read, written, tail.to_vec());
        }
        if let Some(upstream) = upstream {
            self.table.upstreams[upstream].outstanding += 1;
            let link = self.links.insert(Link {
                socket: None,
                upstream,
                stage: LinkStage::Ready,
                machine,
                exchange: Some(index),
                pending: pending.to_vec(),
                sending: None,
                busy: false,
                receiving: false,
                paused: false,
                closing: false,
                ended: has(ENDED),
                reset: has(RESET),
                frozen: true,
                end_seen: false,
                failure: None,
                send_is_shut: has(SEND_IS_SHUT),
                since_ms: self.now_ms,
                is_reused: true,
                send_due: false,
            });
            self.exchanges[index].link = Some(link);
        }
        self.restored.push(index);
        Some(index)
    }
}

#[cfg(test)]
mod tests;
