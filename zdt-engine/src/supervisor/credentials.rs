//! Certificates and ticket keys on their way to workers: read when a generation begins, sealed for each
//! of its workers; tickets get other keys from time to time.
//!
//! Must not know: what TLS is.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::WorkerId;
use super::core::Core;
use super::takeover::adopt::Survivor;
use crate::config::{Settings, TlsConfig};
use crate::control::ToWorker;
use crate::credentials::{Credentials, TicketRing};
use crate::sys;

/// The ticket keys of all generations, and when they change.
#[derive(Debug)]
pub(super) struct Tickets {
    pub ring: TicketRing,
    changed: Instant,
}

impl Tickets {
    /// Keys that nobody has had.
    pub fn new(now: Instant) -> Self {
        Self { ring: TicketRing::new(), changed: now }
    }
}

/// Reads the files that new settings name. Until this has worked nothing old is given up.
///
/// # Errors
/// Which file, and what is wrong with it.
pub(super) fn read(settings: &Settings) -> Result<Option<Credentials>, String> {
    let credentials =
        Credentials::read(&settings.tls).map_err(|reason| format!("tls.certificates: {reason}"))?;
    let now_s = sys::wall_clock_s().cast_signed();
    for (path, validity) in credentials.iter().flat_map(Credentials::validities) {
        match validity {
            Some(validity) if validity.until_s < now_s => {
                tracing::warn!(file = %path.display(), "the certificate has expired");
            }
            Some(validity) if validity.from_s > now_s => {
                tracing::warn!(file = %path.display(), "the certificate is not valid yet");
            }
            _ => {}
        }
    }
    Ok(credentials)
}

impl Core {
    /// A sealed memory with what a worker of that generation needs; `None` if it speaks no TLS.
    pub fn credentials_for(&mut self, generation: u32) -> Result<Option<OwnedFd>, String> {
        let Some(of) = self.generations.get_mut(&generation) else { return Ok(None) };
        if of.config.tls.is_none() {
            return Ok(None);
        }
        if of.credentials.is_none() {
            // A generation that was taken over from an earlier supervisor, whose files may have
            // changed since.
            of.credentials = read(&self.settings)?;
        }
        let Some(credentials) = &of.credentials else {
            return Err("the settings name no certificate any more".to_owned());
        };
        let sealed = credentials.seal(&self.tickets.ring);
        sealed.map(Some).map_err(|error| format!("memory for certificates: {error}"))
    }

    fn serving_tls(&self) -> Option<&TlsConfig> {
        self.serving()?.config.tls.as_ref()
    }

    pub fn tickets_deadline(&self) -> Option<Instant> {
        let rotation = Duration::from_millis(self.serving_tls()?.ticket_rotation_ms);
        Some(self.tickets.changed + rotation)
    }

    /// Changes the key of new tickets when it is time.
    pub fn change_tickets_on_time(&mut self, now: Instant) {
        let (Some(due), Some(tls)) = (self.tickets_deadline(), self.serving_tls()) else { return };
        if now < due {
            return;
        }
        let lifetime = Duration::from_millis(tls.ticket_lifetime_ms);
        let rotation = Duration::from_millis(tls.ticket_rotation_ms);
        self.tickets.ring.rotate(lifetime, rotation);
        self.tickets.changed = now;
        self.tell_ticket_keys();
    }

    /// Takes over the keys that workers have from an earlier supervisor, so that sessions begun under
    /// it can be resumed.
    pub fn adopt_ticket_keys(&mut self, survivors: &mut [Survivor]) {
        for answer in survivors.iter_mut().filter_map(|survivor| survivor.answer.as_mut()) {
            let memory =
                if answer.adopted.has_ticket_keys { answer.descriptors.pop() } else { None };
            let Some(memory) = memory else { continue };
            match Credentials::receive(&memory) {
                // All have the same, but for one that missed the last change.
                Ok(found) => self.tickets.ring = TicketRing::with(found.ticket_keys.clone()),
                Err(error) => tracing::warn!(%error, "ticket keys of a worker"),
            }
        }
    }

    /// Tells every worker that speaks TLS the present keys.
    pub fn tell_ticket_keys(&mut self) {
        let workers: Vec<WorkerId> = self
            .generations
            .values()
            .filter(|generation| generation.config.tls.is_some())
            .flat_map(|generation| generation.workers())
            .filter(|id| self.workers.get(id).is_some_and(|worker| worker.hello.is_some()))
            .collect();
        if workers.is_empty() {
            return;
        }
        match Credentials::default().seal(&self.tickets.ring) {
            Ok(sealed) => {
                for worker in workers {
                    self.send_with(worker, &ToWorker::TicketKeys, &[sealed.as_fd()]);
                }
            }
            Err(error) => tracing::error!(%error, "memory for ticket keys"),
        }
    }
}
