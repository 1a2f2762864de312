//! Connections of the generator that are streams: WebSockets on HTTP/2 connections, named and handled like any
//! other connection.
//!
//! Must not know: protocols, what is measured.

use std::io;

use hyper::http::Request;

use super::carrier::{Carrier, Event};
use super::{Client, ConnId, ConnectOptions, End, Handler, Io};

impl Client {
    /// Polls all HTTP/2 connections on which something was said, and tells the handler.
    pub(super) fn poll_carriers<H: Handler>(&mut self, handler: &mut H) {
        while let Some(id) = self.io.touched.pop() {
            self.io.poll_carrier(handler, id);
        }
    }
}

impl Io {
    /// Asks for a WebSocket on an HTTP/2 connection, which all streams of a `group` share. The handler is told by
    /// [`Handler::on_websocket`].
    pub fn open_websocket(&mut self, group: u32, request: Request<()>) -> io::Result<ConnId> {
        let carrier = match self.groups.get(&group) {
            Some(&carrier) if self.is_open(carrier) => carrier,
            _ => {
                let carrier = self.connect_carrier()?;
                self.groups.insert(group, carrier);
                carrier
            }
        };
        let index = self.vacant_slot();
        let slot = &mut self.slots[index as usize];
        slot.carried_by = Some(carrier);
        let id = ConnId { index, generation: slot.generation };
        if let Some(carrier) = &mut self.slots[carrier.index()].carrier {
            carrier.open(index, request);
        }
        self.touch(carrier);
        Ok(id)
    }

    fn connect_carrier(&mut self) -> io::Result<ConnId> {
        let id = self.connect(ConnectOptions::default())?;
        self.slots[id.index()].carrier = Some(Box::new(Carrier::new()));
        Ok(id)
    }

    /// To be polled before the next wait.
    fn touch(&mut self, carrier: ConnId) {
        if self.slots[carrier.index()].is_ready && !self.touched.contains(&carrier) {
            self.touched.push(carrier);
        }
    }

    /// The connection is made, and encrypted if it is to be.
    pub(super) fn on_ready<H: Handler>(&mut self, handler: &mut H, id: ConnId) {
        self.slots[id.index()].is_ready = true;
        if self.slots[id.index()].carrier.is_some() {
            self.poll_carrier(handler, id);
        } else {
            handler.on_connected(self, id);
        }
    }

    /// Bytes have arrived.
    pub(super) fn on_bytes<H: Handler>(&mut self, handler: &mut H, id: ConnId, data: &[u8]) {
        match &mut self.slots[id.index()].carrier {
            Some(carrier) => {
                carrier.receive(data);
                self.poll_carrier(handler, id);
            }
            None => handler.on_data(self, id, data),
        }
    }

    /// Nothing more arrives.
    pub(super) fn on_over<H: Handler>(&mut self, handler: &mut H, id: ConnId, end: End) {
        let Some(carrier) = &self.slots[id.index()].carrier else {
            return handler.on_end(self, id, end);
        };
        let streams: Vec<u32> = carrier.keys().collect();
        for index in streams {
            let stream = self.named(index);
            handler.on_end(self, stream, end);
        }
        self.close(id);
    }

    fn named(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.slots[index as usize].generation }
    }

    fn poll_carrier<H: Handler>(&mut self, handler: &mut H, id: ConnId) {
        let mut events = std::mem::take(&mut self.events);
        let mut wire = std::mem::take(&mut self.wire);
        let Some(carrier) = &mut self.slots[id.index()].carrier else { return };
        let result = carrier.poll(&mut wire, &mut events);
        self.send_bytes(id, &wire);
        wire.clear();
        self.wire = wire;
        for (index, event) in events.drain(..) {
            let stream = self.named(index);
            if self.slots[index as usize].carried_by != Some(id) {
                continue; // closed by what came before
            }
            match event {
                Event::Accepted(extensions) => handler.on_websocket(self, stream, &extensions),
                Event::Data(bytes) => handler.on_data(self, stream, &bytes),
                Event::Ended(reason) => {
                    eprintln!("# a WebSocket over HTTP/2 has ended: {reason}");
                    handler.on_end(self, stream, End::Fin);
                }
            }
        }
        self.events = events;
        if let Err(error) = result
            && self.is_open(id)
        {
            eprintln!("# an HTTP/2 connection is over: {error}");
            self.on_over(handler, id, End::Error(libc::EPROTO));
        }
    }

    /// Queues bytes on the stream's connection.
    pub(super) fn send_on_stream(&mut self, carrier: ConnId, index: u32, bytes: &[u8]) {
        if let Some(machine) = &mut self.slots[carrier.index()].carrier {
            machine.send(index, bytes);
        }
        self.touch(carrier);
    }

    /// Ends a stream, and its connection if it was the last one: `end` does that.
    pub(super) fn end_stream(&mut self, id: ConnId, end: impl FnOnce(&mut Self, ConnId)) {
        let slot = &mut self.slots[id.index()];
        let Some(carrier) = slot.carried_by.take() else { return };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push_back(id.index);
        let machine = &mut self.slots[carrier.index()].carrier;
        if machine.as_mut().is_some_and(|machine| machine.close(id.index)) {
            self.touch(carrier);
        } else {
            end(self, carrier);
        }
    }
}
