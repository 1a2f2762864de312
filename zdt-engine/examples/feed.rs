//! An application whose threads send to WebSockets: everybody at `/feed` gets the numbers that a
//! thread counts up, one every millisecond.
//!
//! A session gives the thread a [`Pusher`]. When its connection moves to another process the session
//! is dropped here and gives a new one to the thread there; numbers that were pushed meanwhile follow
//! the connection.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use zdt_engine::service::{
    Busy, Context, Outcome, Pusher, Request, RestoreError, SavedSession, Service, Session,
};

/// One receiver of the feed: its count goes on as long as the session has this.
struct Subscription {
    pusher: Pusher,
    next: AtomicU64,
    /// Held while a number is pushed, so that an end is between two of them.
    ended: Mutex<bool>,
}

static SUBSCRIPTIONS: Mutex<Vec<Arc<Subscription>>> = Mutex::new(Vec::new());

fn subscribe(pusher: Pusher, next: u64) -> Arc<Subscription> {
    static THREAD: Once = Once::new();
    THREAD.call_once(|| {
        std::thread::spawn(|| {
            loop {
                let subscriptions = SUBSCRIPTIONS.lock().expect("not poisoned").clone();
                for one in subscriptions {
                    let ended = one.ended.lock().expect("not poisoned");
                    let number = one.next.load(Ordering::Relaxed);
                    if !*ended && one.pusher.push(number.to_string().into_bytes()).is_ok() {
                        one.next.store(number + 1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    });
    let subscription =
        Arc::new(Subscription { pusher, next: AtomicU64::new(next), ended: Mutex::new(false) });
    SUBSCRIPTIONS.lock().expect("not poisoned").push(Arc::clone(&subscription));
    subscription
}

struct Feed;

/// Knows its subscription; a restored one makes it anew when its connection resumes.
struct Receiver {
    subscription: Option<Arc<Subscription>>,
    /// Where a restored one goes on.
    next: u64,
}

impl Service for Feed {
    fn on_request(&mut self, request: &Request<'_>, context: &mut Context<'_>) -> Outcome {
        if request.path != "/feed" || !request.is_websocket {
            context.respond(404, &[], b"only a WebSocket at /feed is here\n");
            return Outcome::Done;
        }
        context.accept_websocket(None);
        let subscription = Some(subscribe(context.pusher(), 1));
        Outcome::Session(Box::new(Receiver { subscription, next: 1 }))
    }

    fn restore(&mut self, saved: &SavedSession<'_>) -> Result<Box<dyn Session>, RestoreError> {
        if (saved.kind, saved.version) != ("receiver", 1) {
            return Err(RestoreError::UnknownKind);
        }
        let next = saved.bytes.try_into().map_err(|_| RestoreError::Malformed)?;
        let next = u64::from_le_bytes(next);
        Ok(Box::new(Receiver { subscription: None, next }))
    }
}

impl Session for Receiver {
    fn on_push(&mut self, bytes: &[u8], context: &mut Context<'_>) {
        context.send_text(&String::from_utf8_lossy(bytes));
    }

    fn on_resume(&mut self, context: &mut Context<'_>) {
        if let Some(subscription) = &self.subscription {
            // Nobody took it: go on as before.
            *subscription.ended.lock().expect("not poisoned") = false;
            return;
        }
        self.subscription = Some(subscribe(context.pusher(), self.next));
    }

    fn kind(&self) -> &'static str {
        "receiver"
    }

    fn save(&self, bytes: &mut Vec<u8>) -> Result<(), Busy> {
        // From here on the thread of the next process counts; what this one has pushed follows.
        let next = match &self.subscription {
            Some(subscription) => {
                *subscription.ended.lock().expect("not poisoned") = true;
                subscription.next.load(Ordering::Relaxed)
            }
            None => self.next,
        };
        bytes.extend_from_slice(&next.to_le_bytes());
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(subscription) = self.subscription.take() {
            let mut all = SUBSCRIPTIONS.lock().expect("not poisoned");
            all.retain(|one| !Arc::ptr_eq(one, &subscription));
        }
    }
}

fn main() -> ExitCode {
    zdt_engine::run("feed", || Box::new(Feed))
}
