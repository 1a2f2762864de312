//! An application with a service of its own: a WebSocket at `/sum` that adds up what it is sent.
//!
//! `cargo run --release --example adder -- serve --run-dir /tmp/adder`, then, while a client is
//! connected, `cargo run --release --example adder -- reload --run-dir /tmp/adder`: the sum goes on.

use std::process::ExitCode;

use zdt_engine::service::{
    Busy, Context, Message, Outcome, Request, RestoreError, SavedSession, Service, Session,
};

struct Adder;

/// All that a session knows; what is not in here does not survive a deploy.
struct Sum(i64);

impl Service for Adder {
    fn on_request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Outcome {
        if request.path != "/sum" || !request.is_websocket {
            context.respond(404, &[], b"only a WebSocket at /sum is here\n");
            return Outcome::Done;
        }
        context.accept_websocket(None);
        Outcome::Session(Box::new(Sum(0)))
    }

    fn restore(&mut self, saved: &SavedSession<'_>) -> Result<Box<dyn Session>, RestoreError> {
        match (saved.kind, saved.version) {
            ("sum", 1) => {
                let bytes = saved.bytes.try_into().map_err(|_| RestoreError::Malformed)?;
                Ok(Box::new(Sum(i64::from_le_bytes(bytes))))
            }
            _ => Err(RestoreError::UnknownKind),
        }
    }
}

impl Session for Sum {
    fn on_message(&mut self, message: Message<'_>, context: &mut Context<'_>) {
        match message.as_text().and_then(|text| text.trim().parse::<i64>().ok()) {
            Some(number) => {
                self.0 = self.0.wrapping_add(number);
                context.send_text(&self.0.to_string());
            }
            None => context.send_text("not a number"),
        }
    }

    fn kind(&self) -> &'static str {
        "sum"
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        bytes.extend_from_slice(&self.0.to_le_bytes());
        Ok(())
    }
}

fn main() -> ExitCode {
    zdt_engine::run("adder", || Box::new(Adder))
}
