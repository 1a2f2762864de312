//! A canary: green gets a share of the new connections, and goes on only if it does its work no worse
//! than blue does at the same time.
//!
//! Must not know: where the figures come from; descriptors, sockets, maps, clocks.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::machine::{Action, Event, Shared};
use super::stages::{Flipping, Stage, after_flip, fail, is_due};
use crate::control::SERVICE_TIME_BUCKETS;

/// Between two looks at the figures: what is bad enough ends the canary before its time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For the figures of workers that are slow to answer.
const SAMPLE_PATIENCE: Duration = Duration::from_secs(2);

/// What is asked of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanaryOptions {
    /// How many of 1,000 new connections go to green.
    pub permille: u16,
    /// How long both are watched.
    pub watch: Duration,
    /// Fewer requests and messages than this in green say nothing: it is undone.
    pub min_requests: u64,
    /// Green may fail so many more of 1,000 requests than blue.
    pub more_errors_permille: u64,
    /// Green's 99th percentile may be so much longer than blue's, in per cent.
    pub slower_percent: u64,
    /// A difference below this is noise.
    pub slower_us: u64,
}

/// What the workers of one generation have done since they were started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests and messages.
    pub requests: u64,
    /// Those that failed: answers of 500 and above, and WebSockets closed by an error of the server.
    pub errors: u64,
    /// How long the service took for each (or for some of them): entry k counts what took less than
    /// 2^k microseconds, and not less than half of that.
    pub latency: Vec<u64>,
}

impl Figures {
    /// Adds those of another worker, which may say what it likes.
    pub fn add(&mut self, requests: u64, errors: u64, latency: &[u64]) {
        self.requests = self.requests.saturating_add(requests);
        self.errors = self.errors.saturating_add(errors);
        self.latency.resize(SERVICE_TIME_BUCKETS, 0);
        for (sum, count) in self.latency.iter_mut().zip(latency) {
            *sum = sum.saturating_add(*count);
        }
    }

    /// What has come since `earlier`. A worker that died in between takes its share along, so that
    /// no figure falls below zero.
    fn since(&self, earlier: &Figures) -> Figures {
        let before = |bucket: usize| earlier.latency.get(bucket).copied().unwrap_or(0);
        Figures {
            requests: self.requests.saturating_sub(earlier.requests),
            errors: self.errors.saturating_sub(earlier.errors),
            latency: (0..)
                .zip(&self.latency)
                .map(|(bucket, count)| count.saturating_sub(before(bucket)))
                .collect(),
        }
    }

    fn errors_permille(&self) -> u64 {
        self.errors.saturating_mul(1_000) / self.requests.max(1)
    }

    /// The bound of the bucket in which the 99th percentile lies.
    fn p99_us(&self) -> u64 {
        let total = self.latency.iter().fold(0u64, |sum, &count| sum.saturating_add(count));
        let mut left = total - total / 100;
        for (bucket, &count) in self.latency.iter().enumerate() {
            left = left.saturating_sub(count);
            if left == 0 {
                return 1 << bucket;
            }
        }
        0
    }
}

/// Both generations at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// The outgoing one.
    pub blue: Figures,
    /// The incoming one.
    pub green: Figures,
}

/// What a canary has shown, for the verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CanaryReport {
    /// How many of 1,000 new connections went to green.
    pub permille: u16,
    /// The outgoing generation.
    pub blue: CanarySide,
    /// The incoming one.
    pub green: CanarySide,
}

/// One side of a [`CanaryReport`], from the first look to the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CanarySide {
    /// Requests and messages.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// 99 of 100 took the service less, in microseconds; a power of two.
    pub p99_us: u64,
}

impl CanaryReport {
    fn new(permille: u16, first: &Sample, last: &Sample) -> CanaryReport {
        let side = |first: &Figures, last: &Figures| {
            let done = last.since(first);
            CanarySide { requests: done.requests, errors: done.errors, p99_us: done.p99_us() }
        };
        CanaryReport {
            permille,
            blue: side(&first.blue, &last.blue),
            green: side(&first.green, &last.green),
        }
    }
}

/// What the comparison says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opinion {
    /// Green does no worse.
    Good,
    /// It does.
    Bad(String),
    /// There is nothing to compare.
    Unknown(String),
}

/// Compares what both have done between two samples.
pub(super) fn compare(options: &CanaryOptions, first: &Sample, last: &Sample) -> Opinion {
    let (blue, green) = (last.blue.since(&first.blue), last.green.since(&first.green));
    if green.requests < options.min_requests.max(1) {
        return Opinion::Unknown(format!(
            "the canary served {} requests, {} are needed to judge it: give it a larger share, or \
             more time (--canary, --for), or lower reload.canary_min_requests",
            green.requests,
            options.min_requests.max(1)
        ));
    }
    let (theirs, own) = (blue.errors_permille(), green.errors_permille());
    let rate = theirs.saturating_add(options.more_errors_permille);
    let allowed = green.requests.saturating_mul(rate) / 1_000;
    // One more is chance.
    if green.errors > allowed.saturating_add(1) {
        return Opinion::Bad(format!(
            "the canary failed {own} of 1,000 requests, the old workers {theirs}"
        ));
    }
    let (theirs, own) = (blue.p99_us(), green.p99_us());
    // Without anything to compare with, only errors count.
    if blue.requests > 0
        && own > theirs.saturating_add(options.slower_us)
        && own > theirs.saturating_mul(options.slower_percent.saturating_add(100)) / 100
    {
        return Opinion::Bad(format!(
            "the canary took up to {own} us for a request (99 %), the old workers {theirs} us"
        ));
    }
    Opinion::Good
}

/// Both generations serve; what they do is compared.
#[derive(Debug)]
pub(super) struct Watching {
    first: Option<Sample>,
    /// An answer is due.
    asked: bool,
    /// The next look, or the end of the patience with an answer.
    pub next: Instant,
    until: Instant,
}

impl Watching {
    pub fn begin(shared: &mut Shared, now: Instant) -> Stage {
        shared.act(Action::Sample);
        let watch = shared.options.canary.map_or(Duration::ZERO, |canary| canary.watch);
        let next = now + SAMPLE_PATIENCE;
        Stage::Watching(Watching { first: None, asked: true, next, until: now + watch })
    }

    pub fn handle(mut self, shared: &mut Shared, now: Instant, event: Event) -> Stage {
        if let Some(why) = after_flip(shared, &event) {
            return fail(shared, why, now);
        }
        let Some(options) = shared.options.canary else { return Flipping::wholly(shared, now) };
        if shared.live_blue().is_empty() {
            // There is nobody left to compare with, or to go back to.
            return Flipping::wholly(shared, now);
        }
        match event {
            Event::Stop => {
                let why = "the supervisor was told to stop before the canary was over";
                return fail(shared, why.to_owned(), now);
            }
            Event::Sampled(sample) if self.asked => {
                self.asked = false;
                let over = now >= self.until;
                let opinion = self.first.as_ref().map(|first| compare(&options, first, &sample));
                let first = self.first.get_or_insert_with(|| sample.clone());
                let report = CanaryReport::new(options.permille, first, &sample);
                shared.facts.canary = Some(report);
                match opinion {
                    Some(Opinion::Bad(why)) => return fail(shared, why, now),
                    Some(Opinion::Unknown(why)) if over => return fail(shared, why, now),
                    Some(Opinion::Good) if over => return Flipping::wholly(shared, now),
                    _ => self.next = (now + LOOK_EVERY).min(self.until.max(now)),
                }
            }
            other if is_due(&other, now, self.next) => {
                if self.asked {
                    let why = "the workers did not say how the canary does".to_owned();
                    return fail(shared, why, now);
                }
                self.asked = true;
                self.next = now + SAMPLE_PATIENCE;
                shared.act(Action::Sample);
            }
            _ => {}
        }
        Stage::Watching(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options() -> CanaryOptions {
        CanaryOptions {
            permille: 50,
            watch: Duration::from_secs(30),
            min_requests: 10,
            more_errors_permille: 10,
            slower_percent: 100,
            slower_us: 5_000,
        }
    }

    fn figures(requests: u64, errors: u64, each_us: u64) -> Figures {
        let mut latency = vec![0; SERVICE_TIME_BUCKETS];
        latency[(64 - each_us.leading_zeros()) as usize] = requests;
        Figures { requests, errors, latency }
    }

    fn opinion(blue: Figures, green: Figures) -> Opinion {
        compare(&options(), &Sample::default(), &Sample { blue, green })
    }

    #[test]
    fn green_that_does_as_well_is_good() {
        assert_eq!(opinion(figures(1_000, 5, 100), figures(50, 0, 100)), Opinion::Good);
        assert_eq!(opinion(figures(1_000, 0, 100), figures(1_000, 10, 100)), Opinion::Good);
        assert_eq!(
            opinion(figures(0, 0, 1), figures(10, 0, 900_000)),
            Opinion::Good,
            "nobody else"
        );
        let noise = opinion(figures(1_000, 0, 100), figures(50, 0, 4_000));
        assert_eq!(noise, Opinion::Good, "a few milliseconds are noise");
    }

    #[test]
    fn errors_and_slowness_are_bad() {
        let failing = opinion(figures(1_000, 5, 100), figures(100, 3, 100));
        assert!(
            matches!(&failing, Opinion::Bad(why) if why.contains("30 of 1,000")),
            "{failing:?}"
        );
        let slow = opinion(figures(1_000, 0, 100), figures(100, 0, 20_000));
        assert!(matches!(&slow, Opinion::Bad(why) if why.contains("99 %")), "{slow:?}");
        let both_slow = opinion(figures(1_000, 0, 20_000), figures(100, 0, 20_000));
        assert_eq!(both_slow, Opinion::Good);
    }

    #[test]
    fn too_little_says_nothing() {
        let idle = opinion(figures(1_000, 0, 100), figures(9, 9, 100));
        assert!(matches!(&idle, Opinion::Unknown(why) if why.contains("9 requests")), "{idle:?}");
    }

    #[test]
    fn only_what_came_since_the_first_sample_counts() {
        let first = Sample { blue: figures(500, 500, 100), green: figures(5, 5, 100) };
        let mut last = first.clone();
        last.blue.add(100, 0, &figures(100, 0, 100).latency);
        last.green.add(20, 0, &figures(20, 0, 100).latency);
        assert_eq!(compare(&options(), &first, &last), Opinion::Good);
    }

    fn any_figures() -> impl Strategy<Value = Figures> {
        let latency = prop::collection::vec(any::<u64>(), 0..40);
        (any::<u64>(), any::<u64>(), latency).prop_map(|(requests, errors, latency)| {
            let mut figures = Figures::default();
            figures.add(requests, errors, &latency);
            figures.add(requests, errors, &latency);
            figures
        })
    }

    proptest! {
        #[test]
        fn whatever_workers_and_operators_say_there_is_an_opinion(
            blue in any_figures(),
            green in any_figures(),
            limits in prop::collection::vec(any::<u64>(), 4),
        ) {
            let options = CanaryOptions {
                min_requests: limits[0],
                more_errors_permille: limits[1],
                slower_percent: limits[2],
                slower_us: limits[3],
                ..options()
            };
            let (first, last) = (Sample::default(), Sample { blue, green });
            let opinion = compare(&options, &first, &last);
            let report = CanaryReport::new(50, &first, &last);
            if report.green.errors == 0 && report.green.p99_us <= report.blue.p99_us {
                prop_assert!(!matches!(opinion, Opinion::Bad(_)), "{:?}", report);
            }
        }

        #[test]
        fn a_percentile_lies_in_its_bucket(each_us in prop::collection::vec(1u64..1_000_000, 1..200)) {
            let mut figures = Figures::default();
            for &us in &each_us {
                let one = self::figures(1, 0, us);
                figures.add(1, 0, &one.latency);
            }
            let mut sorted = each_us;
            sorted.sort_unstable();
            let exact = sorted[sorted.len() - 1 - sorted.len() / 100];
            prop_assert!(exact < figures.p99_us() && figures.p99_us() <= 2 * exact);
        }
    }
}
