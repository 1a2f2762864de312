//! The traffic against a faithful server, and against one with each kind of fault.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::*;
use crate::peers::demo::{Fault, serve};
use crate::peers::demo2;

struct For(Duration, Option<Instant>);

impl Controller for For {
    fn on_ready(&mut self) {
        self.1 = Some(Instant::now() + self.0);
    }
    fn go_on(&mut self) -> bool {
        self.1.is_none_or(|end| Instant::now() < end)
    }
}

fn traffic(fault: Fault) -> Outcome {
    traffic_over(fault, false)
}

fn traffic_over(fault: Fault, http2: bool) -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    std::thread::spawn(move || serve(listener, fault));
    let address = if http2 { demo2::front(address).unwrap() } else { address };
    let options = Options {
        websockets: 32,
        http2,
        kept: 4,
        fresh: 4,
        slow: 2,
        messages_per_s: 600.0,
        patience: Duration::from_secs(2),
        seed: fault as u64 + 1,
    };
    println!("{fault:?}, seed {}", options.seed);
    run(address, &options, &mut For(Duration::from_millis(1500), None))
        .unwrap_or_else(|error| panic!("{fault:?}: {error:#}"))
}

#[test]
fn a_faithful_server_is_clean() {
    let Outcome { tally, rtt_us, .. } = traffic(Fault::None);
    assert!(tally.is_clean(), "{tally:?}");
    assert!(tally.messages > 300 && tally.requests > 100, "{tally:?}");
    assert!(rtt_us.len() > 100);
}

#[test]
fn half_of_the_websockets_may_be_streams() {
    let Outcome { tally, http2_websockets, http2_connections, .. } =
        traffic_over(Fault::None, true);
    assert!(tally.is_clean(), "{tally:?}");
    assert!(tally.messages > 300 && tally.requests > 100, "{tally:?}");
    assert_eq!((http2_websockets, http2_connections), (16, 10));
}

/// The fault must show in the right count.
fn seen(fault: Fault, count: impl Fn(&Tally) -> u64) {
    seen_in(fault, &traffic(fault).tally, count);
}

/// The same where the fault may strike a stream.
fn seen_over_http2(fault: Fault, count: impl Fn(&Tally) -> u64) {
    seen_in(fault, &traffic_over(fault, true).tally, count);
}

fn seen_in(fault: Fault, tally: &Tally, count: impl Fn(&Tally) -> u64) {
    assert!(count(tally) > 0, "{fault:?} was not seen: {tally:?}");
    assert!(!tally.is_clean() && !tally.problems.is_empty());
}

#[test]
fn wrong_messages_are_seen() {
    seen(Fault::ChangeMessage, |tally| tally.corrupted);
    seen(Fault::LoseMessage, |tally| tally.lost);
    seen(Fault::DoubleMessage, |tally| tally.doubled);
    seen(Fault::SwapMessages, |tally| tally.reordered);
    seen(Fault::LosePong, |tally| tally.lost);
}

#[test]
fn wrong_messages_on_streams_are_seen() {
    seen_over_http2(Fault::ChangeMessage, |tally| tally.corrupted);
    seen_over_http2(Fault::LoseMessage, |tally| tally.lost);
    seen_over_http2(Fault::SkipTick, |tally| tally.wrong_counts);
    seen_over_http2(Fault::CloseWebSocket, |tally| tally.dropped);
}

#[test]
fn wrong_counts_are_seen() {
    seen(Fault::SkipCount, |tally| tally.wrong_counts);
    seen(Fault::RepeatCount, |tally| tally.wrong_counts);
    seen(Fault::SkipTick, |tally| tally.wrong_counts);
}

#[test]
fn ended_connections_are_seen() {
    seen(Fault::CloseWebSocket, |tally| tally.dropped);
    seen(Fault::Reset, |tally| tally.dropped.min(tally.failed_requests));
}

#[test]
fn wrong_answers_are_seen() {
    seen(Fault::MixUp, |tally| tally.mixed_up);
    seen(Fault::LoseAnswer, |tally| tally.failed_requests);
    seen(Fault::Unavailable, |tally| tally.failed_requests);
    seen(Fault::ChangeDownload, |tally| tally.corrupted);
    seen(Fault::ChangeBody, |tally| tally.corrupted);
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    drop(listener);
    let options = Options {
        websockets: 1,
        http2: false,
        kept: 0,
        fresh: 0,
        slow: 0,
        messages_per_s: 1.0,
        patience: Duration::ZERO,
        seed: 0,
    };
    assert!(run(address, &options, &mut For(Duration::ZERO, None)).is_err());
}
