//! What is wrong with the values themselves, found without looking at the machine.
//!
//! Must not know: sockets, processes, files.

use super::{Fault, MAX_WORKERS, Settings};
use crate::config::MAX_CONCURRENT_STREAMS;

/// A worker without connections, its rings in a handoff, and room for its service.
const MIN_WORKER_BYTES: u64 = 32 << 20;
/// What a worker has open without a connection, in a handoff with many channels.
const MIN_WORKER_FILES: u64 = 256;

impl Settings {
    /// What is wrong with the values themselves: the name of the setting, and why.
    ///
    /// # Errors
    /// The first one found.
    pub fn check(&self) -> Result<(), Fault> {
        if self.listen.is_empty() {
            return Err(("listen", "needs at least one address, such as 127.0.0.1:8080".into()));
        }
        for (index, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen[..index].contains(address) {
                return Err(("listen", format!("{address} is there twice")));
            }
        }
        if self.workers > MAX_WORKERS {
            return Err(("workers", format!("at most {MAX_WORKERS}, not {}", self.workers)));
        }
        self.check_admin()?;
        self.check_proxy_protocol()?;
        self.check_parking()?;
        if self.service.is_empty() {
            return Err(("service", "is empty; `demo` is built in".into()));
        }
        if self.backlog == 0 {
            return Err(("backlog", "must be at least 1".into()));
        }
        let buffers = &self.receive_buffers;
        if !buffers.count.is_power_of_two() || buffers.count > 32_768 {
            return Err((
                "receive_buffers.count",
                format!("must be a power of two up to 32768, not {}", buffers.count),
            ));
        }
        if buffers.bytes < 1_024 {
            return Err(("receive_buffers.bytes", "must be at least 1024".into()));
        }
        self.routes()?;
        let hold = &self.gateway.hold;
        if hold.time_ms == 0 || hold.bytes == 0 || hold.replay_concurrency == 0 {
            return Err((
                "gateway.hold",
                "bounds must be at least 1; `enabled = false` holds nothing".into(),
            ));
        }
        if hold.spill_dir.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(("gateway.hold.spill_dir", "must be an absolute path".into()));
        }
        self.gateway.health.check()?;
        self.tls.check(&self.listen)?;
        let http2 = &self.http2;
        if !(1..=MAX_CONCURRENT_STREAMS).contains(&http2.max_concurrent_streams) {
            return Err((
                "http2.max_concurrent_streams",
                format!(
                    "must be 1 to {MAX_CONCURRENT_STREAMS}, not {}",
                    http2.max_concurrent_streams
                ),
            ));
        }
        for (name, bytes, least) in [
            ("http2.stream_window_bytes", http2.stream_window_bytes, 1_024),
            ("http2.connection_window_bytes", http2.connection_window_bytes, 65_535),
        ] {
            if !(least..1 << 31).contains(&bytes) {
                return Err((
                    name,
                    format!("must be {least} to {}, not {bytes}", (1u32 << 31) - 1),
                ));
            }
        }
        if http2.stream_buffer_bytes < 1_024 {
            return Err(("http2.stream_buffer_bytes", "must be at least 1024".into()));
        }
        let least = self.limits.max_message_bytes.saturating_mul(2);
        if (1..least).contains(&self.limits.worker_buffer_bytes) {
            let why = format!("must be 0, or at least {least}, twice limits.max_message_bytes");
            return Err(("limits.worker_buffer_bytes", why));
        }
        if self.handoff.window == 0 {
            return Err(("handoff.window", "must be at least 1".into()));
        }
        let heartbeat_ms = self.supervision.heartbeat_timeout_ms;
        let limits = &self.worker_limits;
        if limits.memory_bytes != 0 && limits.memory_bytes < MIN_WORKER_BYTES {
            let why =
                format!("must be at least {MIN_WORKER_BYTES}, which a worker starts with, or 0");
            return Err(("worker_limits.memory_bytes", why));
        }
        if limits.open_files != 0 && limits.open_files < MIN_WORKER_FILES {
            let why = format!("must be at least {MIN_WORKER_FILES}, or 0");
            return Err(("worker_limits.open_files", why));
        }
        if heartbeat_ms != 0 && heartbeat_ms < 2_000 {
            let why =
                "must be at least 2000 (a worker's loop comes round once a second), or 0".into();
            return Err(("supervision.heartbeat_timeout_ms", why));
        }
        if self.supervision.green_nice > 19 {
            let why = format!("at most 19, not {}", self.supervision.green_nice);
            return Err(("supervision.green_nice", why));
        }
        if self.respawn.window_ms == 0 {
            return Err(("respawn.window_ms", "must be at least 1".into()));
        }
        for (setting, value) in [
            ("reload.ready_timeout_ms", self.reload.ready_timeout_ms),
            ("reload.handoff_timeout_ms", self.reload.handoff_timeout_ms),
        ] {
            if value == 0 {
                return Err((setting, "a time-out of 0 ms would fail every reload".into()));
            }
        }
        if self.reload.rolling_batch == 0 {
            return Err(("reload.rolling_batch", "must be at least 1".into()));
        }
        Ok(())
    }

    fn check_proxy_protocol(&self) -> Result<(), Fault> {
        let of = &self.proxy_protocol;
        if let Some(other) = of.listeners.iter().find(|one| !self.listen.contains(one)) {
            let why = format!("{other} is not among the addresses of `listen`");
            return Err(("proxy_protocol.listeners", why));
        }
        if !of.listeners.is_empty() && of.trusted.is_empty() {
            let why =
                "name the proxies in front, such as \"10.0.0.0/8\"; nobody else may connect there";
            return Err(("proxy_protocol.trusted", why.into()));
        }
        if of.header_timeout_ms == 0 {
            return Err(("proxy_protocol.header_timeout_ms", "must be at least 1".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_name_the_setting() {
        let name = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().0
        };
        assert_eq!(name(|s| s.listen.clear()), "listen");
        assert_eq!(name(|s| s.listen = vec![s.listen[0], s.listen[0]]), "listen");
        assert_eq!(name(|s| s.workers = MAX_WORKERS + 1), "workers");
        assert_eq!(name(|s| s.admin = "0.0.0.0:9180".parse().unwrap()), "admin");
        assert_eq!(name(|s| s.admin_token = Some("short".to_owned().into())), "admin_token");
        assert_eq!(name(|s| s.receive_buffers.count = 100), "receive_buffers.count");
        assert_eq!(name(|s| s.handoff.window = 0), "handoff.window");
        assert_eq!(name(|s| s.reload.handoff_timeout_ms = 0), "reload.handoff_timeout_ms");
        assert_eq!(
            name(|s| s.supervision.heartbeat_timeout_ms = 500),
            "supervision.heartbeat_timeout_ms"
        );
        assert_eq!(name(|s| s.supervision.green_nice = 20), "supervision.green_nice");
        assert_eq!(name(|s| s.worker_limits.memory_bytes = 1), "worker_limits.memory_bytes");
        assert_eq!(name(|s| s.worker_limits.open_files = 1), "worker_limits.open_files");
    }
}
