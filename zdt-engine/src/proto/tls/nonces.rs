//! Test builds only: tells an observer of every nonce before it is used, so that a test can prove over
//! all processes of an engine that none was used twice.
//!
//! Must not know: where that is written down.

use std::sync::OnceLock;

/// Gets a digest of the key and the sequence number.
pub type Observer = Box<dyn Fn(u64, u64) + Send + Sync>;

static OBSERVER: OnceLock<Observer> = OnceLock::new();

/// Sets the observer of this process, once.
pub fn observe(observer: Observer) {
    let _ = OBSERVER.set(observer);
}

pub(super) fn record(key: u64, sequence: u64) {
    if let Some(observer) = OBSERVER.get() {
        observer(key, sequence);
    }
}
