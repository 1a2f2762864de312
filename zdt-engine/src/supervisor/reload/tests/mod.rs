//! The reload machine against scripted and random worlds.

mod strategies;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::control::{FromWorker, HandoffReport, Hello, IncomingReport, ToWorker, VersionRange};
use crate::supervisor::WorkerId;

fn hello(reads: u16, writes: u16) -> Hello {
    let range = |newest| VersionRange { oldest: newest, newest };
    Hello {
        protocol: range(1),
        state_reads: VersionRange { oldest: 1, newest: reads },
        state_writes: range(writes),
        build: "test".to_owned(),
        pid: 1,
    }
}

fn options() -> Options {
    Options {
        ready_timeout: Duration::from_secs(30),
        settle: Duration::from_millis(10),
        handoff_timeout: Duration::from_secs(30),
        answer_timeout: Duration::from_secs(5),
        probation: Duration::ZERO,
        drain: Duration::from_secs(30),
        migrate: true,
        allow_no_rollback: false,
        rolling: None,
        canary: None,
    }
}

fn rolling(batch: u32, pause_ms: u64) -> Options {
    let pause = Duration::from_millis(pause_ms);
    Options { rolling: Some(Rolling { batch, pause }), ..options() }
}

fn canary() -> Options {
    let canary = CanaryOptions {
        permille: 50,
        watch: Duration::from_secs(30),
        min_requests: 10,
        more_errors_permille: 10,
        slower_percent: 100,
        slower_us: 5_000,
    };
    Options { canary: Some(canary), ..options() }
}

/// Workers that do what they are told, as far as they live, and everything that was ever done.
struct World {
    machine: Machine,
    now: Instant,
    blue: Vec<WorkerId>,
    green: Vec<WorkerId>,
    dead: BTreeSet<WorkerId>,
    /// Answers that are on their way.
    answers: VecDeque<Event>,
    done: Vec<Action>,
    green_hello: Hello,
    /// How many of 1,000 requests the canary fails, and how many it serves between two looks.
    canary_fails: u64,
    canary_serves: u64,
    samples: u64,
}

impl World {
    fn new(options: Options, blues: u32, greens: u32, green_hello: Hello) -> World {
        let now = Instant::now();
        let blue: Vec<WorkerId> = (1..=blues).collect();
        let places = Places { blue: blues, green: greens };
        let members = blue.iter().map(|&id| (id, id - 1, hello(1, 1)));
        let (machine, actions) = Machine::start(7, options, places, members, now);
        let mut world = World {
            machine,
            now,
            blue,
            green: (101..=100 + greens).collect(),
            dead: BTreeSet::new(),
            answers: VecDeque::new(),
            done: Vec::new(),
            green_hello,
            canary_fails: 0,
            canary_serves: 100,
            samples: 0,
        };
        world.carry_out(actions);
        world
    }

    fn alive(&self, worker: WorkerId) -> bool {
        !self.dead.contains(&worker)
    }

    fn say(&mut self, worker: WorkerId, message: FromWorker) {
        if self.alive(worker) {
            self.answers.push_back(Event::Message { worker, message: Box::new(message) });
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(!self.finished(), "{action:?} after the end");
            self.done.push(action.clone());
            match action {
                Action::Persist(mark) => self.answers.push_back(Event::Persisted(mark)),
                Action::Spawn(batch) => {
                    let green: Vec<WorkerId> = batch.green.map(|index| 101 + index).collect();
                    self.answers.push_back(Event::Spawned { green: green.clone() });
                    for worker in green {
                        let hello = self.green_hello.clone();
                        self.answers.push_back(Event::Greeted { worker, hello });
                    }
                }
                Action::Listen(worker) => self.answers.push_back(Event::Armed { worker }),
                Action::Prove(worker) => self.answers.push_back(Event::Proven { worker }),
                Action::Flip { .. } => self.answers.push_back(Event::Flipped),
                Action::Sample => {
                    let mut sample = Sample::default();
                    let (all, own) = (1_000 * self.samples, self.canary_serves * self.samples);
                    sample.blue.add(all, 0, &[0, all]);
                    sample.green.add(own, own * self.canary_fails / 1_000, &[0, own]);
                    self.samples += 1;
                    self.answers.push_back(Event::Sampled(sample));
                }
                Action::OpenChannels(plan) => {
                    for channel in plan {
                        for worker in [channel.blue, channel.green] {
                            let channel = channel.channel;
                            self.say(worker, FromWorker::ChannelReady { reload: 7, channel });
                        }
                    }
                }
                Action::Send(worker, message) => match message {
                    ToWorker::StopAccepting { reload } | ToWorker::CancelHandoff { reload } => {
                        let report = HandoffReport { reload, moved: 3, ..HandoffReport::default() };
                        self.say(worker, FromWorker::Empty(report));
                    }
                    ToWorker::Commit { reload, .. } => {
                        let incoming = IncomingReport { adopted: 3, ..IncomingReport::default() };
                        self.say(worker, FromWorker::Committed { reload, incoming });
                    }
                    _ => {}
                },
                Action::Kill(worker) => {
                    assert!(self.green.contains(&worker), "blue is never killed");
                    self.dead.insert(worker);
                }
                Action::FlipBack
                | Action::ShareListeners(_)
                | Action::HandoffBegun
                | Action::Finish(_) => {}
            }
        }
    }

    fn feed(&mut self, event: Event) {
        if let Event::Exited { worker, .. } = &event {
            self.dead.insert(*worker);
        }
        let actions = self.machine.handle(self.now, event);
        self.carry_out(actions);
    }

    fn kill(&mut self, worker: WorkerId) {
        if self.alive(worker) {
            self.feed(Event::Exited { worker, how: "was killed".to_owned() });
        }
    }

    /// Delivers the next answer of a worker that lives; otherwise lets time pass to the deadline.
    fn step(&mut self) {
        while let Some(event) = self.answers.pop_front() {
            let from = match &event {
                Event::Message { worker, .. }
                | Event::Greeted { worker, .. }
                | Event::Armed { worker }
                | Event::Proven { worker } => Some(*worker),
                _ => None,
            };
            if from.is_none_or(|worker| self.alive(worker)) {
                return self.feed(event);
            }
        }
        if let Some(deadline) = self.machine.deadline() {
            self.now = self.now.max(deadline);
            self.feed(Event::Tick);
        }
    }

    fn run(&mut self) -> Outcome {
        for _ in 0..10_000 {
            if self.finished() {
                break;
            }
            self.step();
        }
        self.outcome()
    }

    fn run_to(&mut self, stage: &str) {
        for _ in 0..10_000 {
            if self.machine.stage_name() == stage {
                return;
            }
            self.step();
        }
        panic!("never reached {stage}, is {}", self.machine.stage_name());
    }

    fn finished(&self) -> bool {
        matches!(self.done.last(), Some(Action::Finish(_)))
    }

    fn outcome(&self) -> Outcome {
        match self.done.last() {
            Some(Action::Finish(outcome)) => outcome.clone(),
            other => panic!("not finished: {other:?} in {}", self.machine.stage_name()),
        }
    }

    fn position(&self, wanted: impl Fn(&Action) -> bool) -> Option<usize> {
        self.done.iter().position(wanted)
    }

    fn sent(&self, wanted: impl Fn(&WorkerId, &ToWorker) -> bool) -> usize {
        self.done
            .iter()
            .filter(|action| matches!(action, Action::Send(worker, m) if wanted(worker, m)))
            .count()
    }
}

fn is_flip(action: &Action) -> bool {
    matches!(action, Action::Flip { .. })
}

fn world(blues: u32, greens: u32) -> World {
    World::new(options(), blues, greens, hello(1, 1))
}

#[test]
fn a_reload_runs_in_the_order_of_the_design() {
    let mut world = world(2, 3);
    assert_eq!(world.run(), Outcome::Committed);
    let places = [
        world.position(|a| matches!(a, Action::Spawn(_))),
        world.position(|a| matches!(a, Action::Listen(_))),
        world.position(|a| matches!(a, Action::Prove(_))),
        world.position(|a| *a == Action::Persist(Mark::Flipped)),
        world.position(is_flip),
        world.position(|a| matches!(a, Action::OpenChannels(plan) if plan.len() == 3)),
        world.position(|a| matches!(a, Action::Send(1, ToWorker::Handoff { .. }))),
        world.position(|a| matches!(a, Action::Send(1, ToWorker::StopAccepting { .. }))),
        world.position(|a| *a == Action::Persist(Mark::Committed)),
        world.position(|a| {
            matches!(a, Action::Send(1, ToWorker::Commit { drain_ms: Some(30_000), .. }))
        }),
        world.position(|a| matches!(a, Action::Send(101, ToWorker::Commit { drain_ms: None, .. }))),
        world.position(|a| matches!(a, Action::Finish(_))),
    ];
    assert!(places.iter().all(Option::is_some), "{places:?}");
    assert!(places.is_sorted(), "{places:?}");
}

#[test]
fn the_first_start_has_nobody_to_take_over_from() {
    let mut world = world(0, 2);
    assert_eq!(world.run(), Outcome::Committed);
    assert_eq!(world.sent(|_, _| true), 0, "no handoff message to anybody");
}

#[test]
fn blue_goes_on_accepting_for_the_settle_time() {
    let mut world = world(1, 1);
    world.run_to("settling");
    let flipped = world.now;
    world.run_to("handing_off");
    assert!(world.now >= flipped + options().settle);
}

#[test]
fn green_that_dies_before_the_flip_changes_nothing() {
    for stage in ["starting", "proving"] {
        let mut world = world(2, 2);
        world.run_to(stage);
        world.kill(101);
        assert!(matches!(world.run(), Outcome::FailedBeforeFlip(_)), "{stage}");
        assert_eq!(world.position(is_flip), None);
        assert_eq!(world.sent(|worker, _| *worker < 100), 0, "blue heard nothing");
    }
}

#[test]
fn green_that_dies_after_the_flip_is_undone() {
    for stage in ["flipping", "settling", "handing_off", "deciding"] {
        let mut world = world(2, 2);
        world.run_to(stage);
        world.kill(102);
        assert!(matches!(world.run(), Outcome::RolledBack(_)), "{stage}");
        assert!(world.position(|a| *a == Action::FlipBack).is_some());
        // Blue stays without a drain, green drains.
        let commit = |drains: bool| move |m: &ToWorker| matches!(m, ToWorker::Commit { drain_ms, .. } if drain_ms.is_some() == drains);
        assert_eq!(world.sent(|worker, m| *worker < 100 && commit(false)(m)), 2);
        assert_eq!(world.sent(|worker, m| *worker == 101 && commit(true)(m)), 1);
    }
}

#[test]
fn a_rollback_runs_in_the_order_of_the_design() {
    let mut world = world(1, 1);
    world.run_to("handing_off");
    world.feed(Event::Failed { message: "because".to_owned() });
    assert_eq!(world.run(), Outcome::RolledBack("because".to_owned()));
    let sent = |to: WorkerId, wanted: fn(&ToWorker) -> bool| {
        world.position(|a| matches!(a, Action::Send(worker, m) if *worker == to && wanted(m)))
    };
    let places = [
        world.position(|a| *a == Action::Persist(Mark::RollingBack)),
        world.position(|a| *a == Action::FlipBack),
        sent(1, |m| matches!(m, ToWorker::CancelHandoff { .. })),
        sent(1, |m| matches!(m, ToWorker::ResumeAccepting)),
        sent(101, |m| matches!(m, ToWorker::Handoff { .. })),
        sent(101, |m| matches!(m, ToWorker::StopAccepting { .. })),
        sent(101, |m| matches!(m, ToWorker::Commit { .. })),
        sent(1, |m| matches!(m, ToWorker::Commit { .. })),
    ];
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
}

#[test]
fn blue_that_dies_after_the_flip_does_not_stop_the_reload() {
    for stage in ["flipping", "settling", "handing_off"] {
        let mut world = world(2, 2);
        world.run_to(stage);
        world.kill(1);
        assert_eq!(world.run(), Outcome::Committed, "{stage}");
    }
}

#[test]
fn without_blue_there_is_no_way_back() {
    let mut world = world(1, 2);
    world.run_to("handing_off");
    // Both in one turn: green's death is not known when blue's is.
    world.machine.handle(world.now, Event::Exited { worker: 1, how: "died".into() });
    world.dead.insert(1);
    world.kill(101);
    assert_eq!(world.run(), Outcome::Committed);
    assert_eq!(world.position(|a| *a == Action::FlipBack), None);
}

#[test]
fn a_flip_that_cannot_be_done_changes_nothing() {
    let mut world = world(2, 2);
    world.run_to("flipping");
    world.feed(Event::NotFlipped { message: "no".to_owned() });
    assert_eq!(world.outcome(), Outcome::FailedBeforeFlip("no".to_owned()));
    assert_eq!(world.sent(|_, _| true), 0);
    assert!(world.green.iter().all(|&worker| !world.alive(worker)), "green is ended");
}

#[test]
fn a_newer_reload_supersedes_before_the_flip_only() {
    let mut world = world(1, 1);
    world.run_to("proving");
    world.feed(Event::Supersede);
    assert_eq!(world.outcome(), Outcome::Superseded);
    assert!(world.dead.contains(&101), "green is ended");

    let mut world = self::world(1, 1);
    world.run_to("settling");
    world.feed(Event::Supersede);
    assert_eq!(world.run(), Outcome::Committed);
}

#[test]
fn formats_must_agree_in_both_directions() {
    let mut forward = World::new(options(), 1, 1, hello(0, 1));
    assert!(matches!(forward.run(), Outcome::FailedBeforeFlip(why) if why.contains("reads")));

    let mut no_way_back = World::new(options(), 1, 1, hello(2, 2));
    let outcome = no_way_back.run();
    assert!(
        matches!(&outcome, Outcome::FailedBeforeFlip(why) if why.contains("--no-rollback")),
        "{outcome:?}"
    );

    let allowed = Options { allow_no_rollback: true, ..options() };
    let mut allowed = World::new(allowed, 1, 1, hello(2, 2));
    assert_eq!(allowed.run(), Outcome::Committed);
    assert!(allowed.machine.facts().rollback_impossible);

    let draining = Options { migrate: false, ..options() };
    assert_eq!(World::new(draining, 1, 1, hello(0, 2)).run(), Outcome::Committed);
}

#[test]
fn blue_that_hangs_is_left_behind_and_blue_that_is_slow_is_not() {
    let mut world = world(2, 1);
    world.run_to("handing_off");
    world.answers.retain(|event| !matches!(event, Event::Message { worker: 1, .. }));
    assert_eq!(world.run(), Outcome::Committed);
    assert!(world.machine.facts().silent_blue.contains(&1));

    let mut world = self::world(2, 1);
    world.run_to("handing_off");
    world.answers.retain(|event| !matches!(event, Event::Message { worker: 1, .. }));
    let report = HandoffReport { reload: 7, remaining: 9, ..HandoffReport::default() };
    world.say(1, FromWorker::Progress(report));
    let outcome = world.run();
    assert!(matches!(&outcome, Outcome::RolledBack(why) if why.contains("longer")), "{outcome:?}");
}

#[test]
fn green_that_hangs_does_not_keep_blue_from_serving() {
    let mut world = world(1, 1);
    world.run_to("handing_off");
    world.answers.clear();
    world.say(1, FromWorker::Progress(HandoffReport { reload: 7, ..HandoffReport::default() }));
    world.run_to("returning");
    world.answers.retain(|event| !matches!(event, Event::Message { worker: 101, .. }));
    assert!(matches!(world.run(), Outcome::RolledBack(_)));
    assert_eq!(world.sent(|worker, m| *worker == 1 && *m == ToWorker::ResumeAccepting), 1);
    assert!(world.alive(101), "nobody is killed because of a time-out");
}

#[test]
fn a_restarted_blue_takes_part_if_it_is_in_time() {
    let mut world = world(2, 1);
    world.run_to("proving");
    world.kill(1);
    world.feed(Event::BlueJoined { worker: 3, index: 0, hello: hello(1, 1) });
    assert_eq!(world.run(), Outcome::Committed);
    assert_eq!(world.sent(|worker, m| *worker == 3 && matches!(m, ToWorker::Handoff { .. })), 1);
    assert_eq!(world.sent(|worker, _| *worker == 1), 0);
}

#[test]
fn a_successor_takes_up_where_it_can() {
    for (at, outcome) in [
        (Resume::Flipped, Outcome::Committed),
        (Resume::HandingOff, Outcome::Committed),
        (Resume::Committed, Outcome::Committed),
    ] {
        let side =
            |ids: &[WorkerId]| ids.iter().map(|&id| (id, hello(1, 1))).collect::<BTreeMap<_, _>>();
        let now = Instant::now();
        let (machine, actions) =
            Machine::resume(7, options(), side(&[1, 2]), side(&[101]), at, now);
        let mut world = World { machine, now, ..self::world(2, 1) };
        (world.done, world.answers) = (Vec::new(), VecDeque::new());
        world.carry_out(actions);
        assert_eq!(world.run(), outcome, "{at:?}");
        assert_eq!(world.position(is_flip), None, "it has flipped already");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Answer,
    Reorder(usize),
    Lose(usize),
    Wait,
    Kill(usize),
    Fail,
    Supersede,
    Stop,
    RollBack,
    Join(u32),
    ChannelFailed(usize, u32),
}

/// Every strategy, with and without migration.
fn any_options() -> impl Strategy<Value = Options> {
    let strategy = prop_oneof![
        2 => Just(options()),
        2 => (1u32..3, 0u64..2).prop_map(|(batch, seconds)| rolling(batch, 1_000 * seconds)),
        2 => Just(canary()),
    ];
    let probation = prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(1))];
    (strategy, any::<bool>(), probation).prop_map(|(of, migrate, probation)| Options {
        migrate,
        probation,
        ..of
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => Just(Step::Answer),
        4 => (0usize..8).prop_map(Step::Reorder),
        2 => (0usize..8).prop_map(Step::Lose),
        2 => Just(Step::Wait),
        2 => (0usize..6).prop_map(Step::Kill),
        1 => Just(Step::Fail),
        1 => Just(Step::Supersede),
        1 => Just(Step::Stop),
        1 => Just(Step::RollBack),
        1 => (0u32..4).prop_map(Step::Join),
        1 => (0usize..6, 0u32..3).prop_map(|(worker, channel)| Step::ChannelFailed(worker, channel)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_happens_there_is_one_verdict_and_it_is_true(
        blues in 0u32..4,
        greens in 1u32..4,
        options in any_options(),
        canary_fails in prop_oneof![3 => Just(0u64), 1 => Just(500)],
        steps in prop::collection::vec(step(), 0..160),
    ) {
        let mut world = World::new(options, blues, greens, hello(1, 1));
        world.canary_fails = canary_fails;
        for step in steps {
            if world.finished() {
                break;
            }
            let everybody: Vec<WorkerId> =
                world.blue.iter().chain(&world.green).copied().collect();
            match step {
                Step::Answer => world.step(),
                Step::Reorder(at) => {
                    if let Some(event) = world.answers.remove(at) {
                        world.answers.push_back(event);
                    }
                }
                Step::Lose(at) => {
                    // Only what a worker says can fail to come; what the supervisor does itself cannot.
                    if matches!(world.answers.get(at), Some(Event::Message { .. })) {
                        world.answers.remove(at);
                    }
                }
                Step::Wait => {
                    world.now += Duration::from_millis(700);
                    world.feed(Event::Tick);
                }
                Step::Kill(at) => {
                    if let Some(&worker) = everybody.get(at) {
                        world.kill(worker);
                    }
                }
                Step::Fail => world.feed(Event::Failed { message: "failed".into() }),
                Step::Supersede => world.feed(Event::Supersede),
                Step::Stop => world.feed(Event::Stop),
                Step::RollBack => world.feed(Event::RollBack),
                Step::Join(index) => {
                    if world.machine.may_join(index) {
                        let worker = 50 + index;
                        world.blue.push(worker);
                        world.feed(Event::BlueJoined { worker, index, hello: hello(1, 1) });
                    }
                }
                Step::ChannelFailed(at, channel) => {
                    if let Some(&worker) = everybody.get(at) {
                        let reason = "failed".to_owned();
                        let message = FromWorker::ChannelFailed { reload: 7, channel, reason };
                        world.say(worker, message);
                    }
                }
            }
        }
        let outcome = world.run();
        let at = |wanted: &Action| world.position(|action| action == wanted);
        let ends = world.done.iter().filter(|a| matches!(a, Action::Finish(_))).count();
        prop_assert_eq!(ends, 1);
        let flip = world.position(is_flip);
        let back = at(&Action::FlipBack);
        let decided = at(&Action::Persist(Mark::Committed));
        let to_blue = |message: &ToWorker| {
            matches!(message, ToWorker::Commit { drain_ms: Some(_), .. })
        };
        let lets_blue_go = world.position(
            |a| matches!(a, Action::Send(worker, m) if *worker < 100 && to_blue(m)),
        );
        match outcome {
            Outcome::FailedBeforeFlip(_) | Outcome::Superseded | Outcome::Stopped => {
                prop_assert_eq!(flip, None);
                prop_assert_eq!(world.sent(|worker, _| *worker < 100), 0);
            }
            Outcome::RolledBack(_) => {
                prop_assert!(back > flip && flip.is_some());
                prop_assert_eq!(lets_blue_go, None, "blue is not let go and taken back");
            }
            Outcome::Committed => {
                prop_assert!(flip.is_some() && back.is_none());
                prop_assert!(decided > flip);
                prop_assert!(lets_blue_go.is_none() || lets_blue_go > decided);
                let served = world.green.iter().any(|&worker| world.alive(worker));
                // All of green may have died after the decision; before it, that is a rollback.
                prop_assert!(served || decided.is_some());
            }
        }
        // Green was proven, all of it, before the flip; so was every step of a rolling reload.
        for (at, action) in world.done.iter().enumerate() {
            if let Action::Flip { batch, permille } = action {
                let before = &world.done[..at];
                let proven = before.iter().filter(|a| matches!(a, Action::Prove(_))).count();
                prop_assert_eq!(proven, batch.green.end as usize);
                prop_assert!((1..=1_000).contains(permille));
            }
        }
        // Whoever was told to stop accepting was told to hand off before, and had somebody to do it to.
        for (at, action) in world.done.iter().enumerate() {
            if let Action::Send(worker, ToWorker::StopAccepting { .. }) = action {
                let joined = world.done[..at].iter().any(|a| {
                    matches!(a, Action::OpenChannels(plan)
                        if plan.iter().any(|ends| [ends.blue, ends.green].contains(worker)))
                });
                prop_assert!(joined || world.dead.len() >= greens.min(blues) as usize, "{worker}");
            }
        }
        // No two channels of a reload have the same number.
        let numbers: Vec<u32> = world.done.iter().filter_map(|action| match action {
            Action::OpenChannels(plan) => Some(plan.iter().map(|ends| ends.channel)),
            _ => None,
        }).flatten().collect();
        let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
        prop_assert_eq!(distinct.len(), numbers.len());
    }
}
