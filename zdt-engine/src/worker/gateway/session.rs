//! The client's side of the gateway: a service whose sessions are exchanges.
//!
//! Must not know: sockets.

use std::rc::Rc;

use super::Shared;
use super::core::Core;
use super::exchange::{Refusal, Stage};
use crate::service::{
    Busy, Context, Outcome, Request, RestoreError, SavedSession, Service, Session,
};

/// Kind of the sessions.
pub const KIND: &str = "zdt.proxy";

/// Versions of what they save. The second one has more to say than builds before it know, and is written
/// only where there is more to say; the third one only where a file travels, or is to be made.
pub const VERSIONS: std::ops::RangeInclusive<u16> = 1..=3;

/// The service over that core.
pub fn service(core: Shared) -> Box<dyn Service> {
    Box::new(Proxy(core))
}

struct Proxy(Shared);

impl Service for Proxy {
    fn on_request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Outcome {
        let begun = self.0.borrow_mut().begin(request, context);
        match begun {
            Ok(exchange) => {
                let mut core = self.0.borrow_mut();
                let is_taken = core.takes_body(exchange);
                let known = &mut core.exchanges[exchange];
                known.input_held |= matches!(known.stage, Stage::Held(_)) && !is_taken;
                if known.input_held {
                    context.hold_input(true);
                }
                drop(core);
                Outcome::Session(Box::new(ProxySession { core: Rc::clone(&self.0), exchange }))
            }
            Err(Refusal { status, reason }) => {
                answer(context, status, &reason);
                Outcome::Done
            }
        }
    }

    fn restore(&mut self, saved: &SavedSession<'_>) -> Result<Box<dyn Session>, RestoreError> {
        if saved.kind != KIND || !VERSIONS.contains(&saved.version) {
            return Err(RestoreError::UnknownKind);
        }
        let exchange = self.0.borrow_mut().restore(saved.bytes)?;
        Ok(Box::new(ProxySession { core: Rc::clone(&self.0), exchange }))
    }
}

/// An answer of the gateway's own: it says why.
pub fn answer(context: &mut Context<'_>, status: u16, reason: &str) {
    let body = format!("{status}: {reason}\n");
    let plain: (&str, &[u8]) = ("Content-Type", b"text/plain; charset=utf-8");
    if status == 503 {
        context.respond(status, &[plain, ("Retry-After", b"1")], body.as_bytes());
    } else {
        context.respond(status, &[plain], body.as_bytes());
    }
}

struct ProxySession {
    core: Shared,
    exchange: usize,
}

impl ProxySession {
    fn core(&self) -> std::cell::RefMut<'_, Core> {
        self.core.borrow_mut()
    }
}

impl Session for ProxySession {
    fn on_body(&mut self, bytes: &[u8], context: &mut Context<'_>) {
        let mut core = self.core();
        core.on_body(self.exchange, bytes);
        if core.exchanges[self.exchange].input_held {
            context.hold_input(true);
        }
    }

    fn on_body_end(&mut self, _context: &mut Context<'_>) {
        self.core().on_body_end(self.exchange);
    }

    fn on_tunnel(&mut self, bytes: &[u8], context: &mut Context<'_>) {
        self.on_body(bytes, context);
    }

    fn on_half_close(&mut self, _context: &mut Context<'_>) {
        self.core().on_half_close(self.exchange);
    }

    fn on_room(&mut self, _context: &mut Context<'_>) {
        self.core().on_room(self.exchange);
    }

    fn on_resume(&mut self, context: &mut Context<'_>) {
        let mut core = self.core();
        core.resume(self.exchange);
        if core.exchanges[self.exchange].input_held {
            context.hold_input(true);
        }
    }

    fn kind(&self) -> &'static str {
        KIND
    }

    fn version(&self) -> u16 {
        self.core().version(self.exchange)
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        self.core().save(self.exchange, bytes)
    }
}

impl Drop for ProxySession {
    /// However it ends: answered, given up, or moved to another worker.
    fn drop(&mut self) {
        self.core().release(self.exchange);
    }
}
