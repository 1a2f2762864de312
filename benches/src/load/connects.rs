//! Connections as fast as they go: connect, say nothing, finish, wait until the server closes as
//! well, again. Every round trip proves that a worker has accepted the connection.
//!
//! Must not know: which server answers, how connections are steered.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::io::{Client, ConnId, ConnectOptions, End, Handler, Io};
use crate::load::closed::Sample;
use crate::process::total_cpu_ns;

struct Load {
    concurrency: usize,
    started: u64,
    closed: u64,
    failure: Option<String>,
}

impl Handler for Load {
    fn on_connected(&mut self, io: &mut Io, id: ConnId) {
        io.finish_sending(id);
    }

    fn on_data(&mut self, _: &mut Io, _: ConnId, _: &[u8]) {
        self.failure.get_or_insert("the server talks without being asked".to_owned());
    }

    fn on_end(&mut self, io: &mut Io, id: ConnId, end: End) {
        io.abort(id);
        match end {
            End::Fin => self.closed += 1,
            other => {
                self.failure.get_or_insert(format!("{other:?}"));
            }
        }
    }
}

impl Load {
    fn refill(&mut self, io: &mut Io) -> Result<()> {
        while io.open() < self.concurrency {
            // Sixteen source addresses, so that no port is needed again while it rests.
            let source = Ipv4Addr::new(127, 0, 1, (self.started % 16) as u8 + 1);
            io.connect(ConnectOptions { source: Some(source), ..ConnectOptions::default() })?;
            self.started += 1;
        }
        Ok(())
    }
}

/// Connects for `warm_up` and `window` with so many connections under way at any time.
pub fn run(
    address: SocketAddrV4,
    concurrency: usize,
    warm_up: Duration,
    window: Duration,
    server_pids: &[u32],
) -> Result<Sample> {
    let mut client = Client::new(address, 128, 4096)?;
    let mut load = Load { concurrency, started: 0, closed: 0, failure: None };
    let mut turn_until = |load: &mut Load, end: Instant| -> Result<()> {
        while Instant::now() < end && load.failure.is_none() {
            load.refill(&mut client.io)?;
            client.turn(load, Duration::from_millis(5))?;
        }
        Ok(())
    };
    turn_until(&mut load, Instant::now() + warm_up)?;
    let own = [std::process::id()];
    let (before, start) = (load.closed, Instant::now());
    let (cpu, own_cpu) = (total_cpu_ns(server_pids), total_cpu_ns(&own));
    turn_until(&mut load, start + window)?;
    let sample = Sample {
        replies: load.closed - before,
        seconds: start.elapsed().as_secs_f64(),
        server_cpu_s: (total_cpu_ns(server_pids) - cpu) as f64 / 1e9,
        client_cpu_s: (total_cpu_ns(&own) - own_cpu) as f64 / 1e9,
    };
    client.close_all()?;
    match load.failure {
        Some(failure) => bail!("{failure}"),
        None if sample.replies == 0 => bail!("no connection was closed by the server"),
        None => Ok(sample),
    }
}
