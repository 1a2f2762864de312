//! The reload machine's outside: events, actions, options, and the state that all stages share.
//!
//! Must not know: descriptors, sockets, maps, clocks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::canary::{CanaryOptions, Sample};
use super::ending::Committing;
use super::moving::{HandingOff, Settling};
use super::rollback::RollingBack;
use super::stages::{Stage, Starting};
use super::{Facts, Outcome};
use crate::control::{FromWorker, HandoffReport, Hello, IncomingReport, ToWorker, total};
use crate::supervisor::WorkerId;
use crate::supervisor::sockets::plan::{self, Batch, ChannelPlan};

/// What a reload is asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Until green is greeted, ready and proven.
    pub ready_timeout: Duration,
    /// From the flip until blue stops accepting.
    pub settle: Duration,
    /// For the handoff, and for the handing back.
    pub handoff_timeout: Duration,
    /// For each answer that takes a worker no time: channels, cancellation, commit.
    pub answer_timeout: Duration,
    /// Green must stay healthy for this long before the commit.
    pub probation: Duration,
    /// How long what stays behind may last.
    pub drain: Duration,
    /// Whether connections are handed off at all.
    pub migrate: bool,
    /// Go on although green cannot write what blue reads.
    pub allow_no_rollback: bool,
    /// In steps, instead of all at once.
    pub rolling: Option<Rolling>,
    /// First a share of the new connections only, and a comparison.
    pub canary: Option<CanaryOptions>,
}

/// See [`Options::rolling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rolling {
    /// Places of green that a step starts.
    pub batch: u32,
    /// Between two steps.
    pub pause: Duration,
}

/// How many places there are, for the steps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places {
    /// Of the outgoing generation.
    pub blue: u32,
    /// Of the incoming one.
    pub green: u32,
}

impl Options {
    pub(super) fn drain_ms(&self) -> u64 {
        u64::try_from(self.drain.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A point that the supervisor's successor must know about, written down before what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Green is being started; nobody depends on it.
    Preparing,
    /// Green may be serving clients from now on.
    Flipped,
    /// Blue is taking everything back.
    RollingBack,
    /// Blue takes nothing back any more.
    Committed,
}

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The green processes run.
    Spawned {
        /// In the order of their index.
        green: Vec<WorkerId>,
    },
    /// A green worker has greeted and been configured.
    Greeted {
        /// The worker.
        worker: WorkerId,
        /// What it said.
        hello: Hello,
    },
    /// A worker accepts from every listener it was given, and its service is ready.
    Armed {
        /// The worker.
        worker: WorkerId,
    },
    /// A connection of the supervisor's own has reached every listener of this green worker.
    Proven {
        /// The worker.
        worker: WorkerId,
    },
    /// The flip is done.
    Flipped,
    /// It could not be done, and nothing has changed.
    NotFlipped {
        /// What, where, what to do.
        message: String,
    },
    /// A message of the handoff from a worker.
    Message {
        /// The worker.
        worker: WorkerId,
        /// What it said.
        message: Box<FromWorker>,
    },
    /// A worker that died before the flip serves again.
    BlueJoined {
        /// The new worker.
        worker: WorkerId,
        /// Its place.
        index: u32,
        /// What it said.
        hello: Hello,
    },
    /// A worker's process is gone.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// How, for people.
        how: String,
    },
    /// An action could not be carried out.
    Failed {
        /// What, where, what to do.
        message: String,
    },
    /// The successor would know of this point now.
    Persisted(Mark),
    /// What both generations have done so far.
    Sampled(Sample),
    /// A newer reload wants to run; heeded before the flip.
    Supersede,
    /// The supervisor stops; heeded before the flip, and by a canary.
    Stop,
    /// An operator wants the outgoing generation back; heeded before the commit.
    RollBack,
    /// Time passed.
    Tick,
}

/// Something is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write down that this point is reached, before what follows; answered by
    /// [`Event::Persisted`].
    Persist(Mark),
    /// Start the green processes of a step; answered by [`Event::Spawned`].
    Spawn(Batch),
    /// Give a green worker its listeners; answered by [`Event::Armed`].
    Listen(WorkerId),
    /// Prove that new connections would reach it; answered by [`Event::Proven`].
    Prove(WorkerId),
    /// So many of 1,000 new connections go to green, and none to what this step replaces once it is
    /// all of them; answered by [`Event::Flipped`].
    Flip {
        /// The step.
        batch: Batch,
        /// Green's share.
        permille: u16,
    },
    /// New connections go to blue again.
    FlipBack,
    /// The green workers of this step also accept from the listeners of what they replace.
    ShareListeners(Batch),
    /// Ask both generations what they have done; answered by [`Event::Sampled`].
    Sample,
    /// Join these workers.
    OpenChannels(Vec<ChannelPlan>),
    /// A message without descriptors.
    Send(WorkerId, ToWorker),
    /// End a worker that holds nothing of anybody's.
    Kill(WorkerId),
    /// All handoff messages are sent.
    HandoffBegun,
    /// The reload is over, one way or another; nothing follows.
    Finish(Outcome),
}

/// A worker as the machine sees it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Its place.
    pub index: u32,
    pub hello: Option<Hello>,
    pub alive: bool,
    /// It was told to hand its connections off.
    pub hands_off: bool,
}

impl Member {
    pub fn new(index: u32, hello: Option<Hello>) -> Member {
        Member { index, hello, alive: true, hands_off: false }
    }
}

/// State that outlives every single stage.
#[derive(Debug)]
pub(super) struct Shared {
    pub id: u64,
    pub options: Options,
    pub blue: BTreeMap<WorkerId, Member>,
    pub green: BTreeMap<WorkerId, Member>,
    pub facts: Facts,
    pub plan: Vec<ChannelPlan>,
    pub channels_opened: bool,
    /// The steps; never empty.
    pub batches: Vec<Batch>,
    /// The one that is being done.
    pub at: usize,
    /// Steps of which clients may have been served by green.
    pub flipped: usize,
    /// Steps of which blue gets nothing new any more. A canary's blue does, although it has flipped.
    pub closed: usize,
    pub actions: Vec<Action>,
}

impl Shared {
    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub fn send(&mut self, worker: WorkerId, message: ToWorker) {
        self.act(Action::Send(worker, message));
    }

    pub fn live_blue(&self) -> Vec<WorkerId> {
        live(self.blue.iter())
    }

    pub fn live_green(&self) -> Vec<WorkerId> {
        live(self.green.iter())
    }

    /// The step that is being done.
    pub fn batch(&self) -> &Batch {
        &self.batches[self.at]
    }

    /// The live outgoing workers of this step.
    pub fn batch_blue(&self) -> Vec<WorkerId> {
        let places = &self.batch().blue;
        live(self.blue.iter().filter(|(_, member)| places.contains(&member.index)))
    }

    /// The live incoming workers of this step.
    pub fn batch_green(&self) -> Vec<WorkerId> {
        let places = &self.batch().green;
        live(self.green.iter().filter(|(_, member)| places.contains(&member.index)))
    }

    /// The live incoming workers that clients may have reached.
    pub fn live_flipped(&self) -> Vec<WorkerId> {
        let steps = &self.batches[..self.flipped.min(self.batches.len())];
        let reached = |member: &Member| steps.iter().any(|step| step.green.contains(&member.index));
        live(self.green.iter().filter(|(_, member)| reached(member)))
    }

    /// The live outgoing workers that were told to hand their connections off.
    pub fn live_handing_off(&self) -> Vec<WorkerId> {
        live(self.blue.iter().filter(|(_, member)| member.hands_off))
    }

    /// True if a worker at this place of blue may still come and be handed over like the others.
    pub fn may_join(&self, index: u32) -> bool {
        self.batches.iter().skip(self.closed).any(|batch| batch.blue.contains(&index))
    }

    pub fn is_green(&self, worker: WorkerId) -> bool {
        self.green.contains_key(&worker)
    }

    pub fn note_report(&mut self, worker: WorkerId, report: HandoffReport) {
        self.facts.reports.insert(worker, report);
    }

    pub fn note_incoming(&mut self, worker: WorkerId, report: IncomingReport) {
        self.facts.incoming.insert(worker, report);
    }

    fn mark_dead(&mut self, worker: WorkerId) {
        for side in [&mut self.blue, &mut self.green] {
            if let Some(member) = side.get_mut(&worker) {
                member.alive = false;
            }
        }
    }
}

fn live<'a>(side: impl Iterator<Item = (&'a WorkerId, &'a Member)>) -> Vec<WorkerId> {
    side.filter(|(_, member)| member.alive).map(|(&worker, _)| worker).collect()
}

/// Where a new supervisor takes up a reload that its predecessor had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Flipped, and no channel is open.
    Flipped,
    /// Flipped, all channels are open; the handoff may or may not have begun.
    HandingOff,
    /// Blue is to take back what it can.
    RollingBack {
        /// Over whatever channels there are; without any, new ones are opened.
        channels: bool,
    },
    /// Decided; the workers are told (once more).
    Committed,
}

/// One reload.
#[derive(Debug)]
pub struct Machine {
    shared: Shared,
    stage: Stage,
}

impl Machine {
    /// Begins a reload (or the first start, if there is no blue).
    pub fn start(
        id: u64,
        options: Options,
        places: Places,
        blue: impl IntoIterator<Item = (WorkerId, u32, Hello)>,
        now: Instant,
    ) -> (Machine, Vec<Action>) {
        let mut shared = new_shared(id, options);
        shared.blue = blue
            .into_iter()
            .map(|(worker, index, hello)| (worker, Member::new(index, Some(hello))))
            .collect();
        // Nothing is to be taken over in steps where nobody serves.
        let size = match shared.options.rolling {
            Some(rolling) if !shared.blue.is_empty() => rolling.batch,
            _ => places.green,
        };
        shared.batches = plan::batches(places.blue, places.green, size);
        shared.act(Action::Persist(Mark::Preparing));
        let stage = Starting::begin(&mut shared, now);
        let mut machine = Machine { shared, stage };
        let actions = machine.take_actions();
        (machine, actions)
    }

    /// Takes up a reload that another supervisor had begun.
    pub fn resume(
        id: u64,
        options: Options,
        blue: impl IntoIterator<Item = (WorkerId, Hello)>,
        green: impl IntoIterator<Item = (WorkerId, Hello)>,
        at: Resume,
        now: Instant,
    ) -> (Machine, Vec<Action>) {
        // Whatever it was, its steps have been done, or are undone all at once.
        let mut shared = new_shared(id, Options { rolling: None, canary: None, ..options });
        (shared.flipped, shared.closed) = (1, 1);
        let member = |(worker, hello)| (worker, Member::new(0, Some(hello)));
        shared.blue = blue.into_iter().map(member).collect();
        shared.green = green.into_iter().map(member).collect();
        shared.channels_opened =
            !matches!(at, Resume::Flipped | Resume::RollingBack { channels: false });
        if shared.channels_opened {
            shared.plan = plan::channels(&shared.live_blue(), &shared.live_green());
        }
        let stage = match at {
            Resume::Flipped => Settling::begin(&mut shared, now),
            Resume::HandingOff => HandingOff::begin(&mut shared, now),
            Resume::RollingBack { .. } => {
                for member in shared.blue.values_mut() {
                    member.hands_off = true;
                }
                let why = "the supervisor died during the reload, which its successor undid";
                RollingBack::begin(&mut shared, why.to_owned(), now)
            }
            Resume::Committed => Committing::begin(&mut shared, now),
        };
        let mut machine = Machine { shared, stage };
        let actions = machine.take_actions();
        (machine, actions)
    }

    /// Takes an event; returns what is to be done, in order.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match &event {
            Event::Exited { worker, .. } => self.shared.mark_dead(*worker),
            Event::Message { worker, message } => match message.as_ref() {
                FromWorker::Progress(report) | FromWorker::Empty(report)
                    if report.reload == self.shared.id =>
                {
                    self.shared.note_report(*worker, report.clone());
                }
                FromWorker::Committed { reload, incoming } if *reload == self.shared.id => {
                    self.shared.note_incoming(*worker, incoming.clone());
                }
                _ => {}
            },
            Event::BlueJoined { worker, index, hello } if self.shared.may_join(*index) => {
                let member = Member::new(*index, Some(hello.clone()));
                self.shared.blue.insert(*worker, member);
            }
            _ => {}
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Finished);
        self.stage = stage.handle(&mut self.shared, now, event);
        self.take_actions()
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.stage.deadline()
    }

    /// The number of the reload.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The stage, for logs and for whoever waits.
    pub fn stage_name(&self) -> &'static str {
        self.stage.name()
    }

    /// True until the (first) flip.
    pub fn is_before_flip(&self) -> bool {
        self.shared.flipped == 0 && !self.is_finished()
    }

    /// True as long as a worker that is restarted at this place of blue takes part like the others.
    pub fn may_join(&self, index: u32) -> bool {
        !self.is_finished() && self.shared.may_join(index)
    }

    /// True once blue is what will serve, whatever happens.
    pub fn is_rolling_back(&self) -> bool {
        matches!(self.stage, Stage::RollingBack(_) | Stage::Returning(_) | Stage::Undoing(_))
    }

    /// True once green is what will serve, whatever happens.
    pub fn is_committed(&self) -> bool {
        matches!(self.stage, Stage::Committing(_))
    }

    /// True once [`Action::Finish`] was returned.
    pub fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Finished)
    }

    /// What is known for the verdict.
    pub(in crate::supervisor) fn facts(&self) -> &Facts {
        &self.shared.facts
    }

    /// Connections that have moved, and that are still to move, by the latest reports.
    pub fn progress(&self) -> (u64, u64) {
        let reports = || self.shared.facts.reports.values();
        let moved = total(reports().map(|report| report.moved));
        (moved, total(reports().map(|report| report.remaining)))
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.shared.actions)
    }
}

fn new_shared(id: u64, options: Options) -> Shared {
    Shared {
        id,
        options,
        blue: BTreeMap::new(),
        green: BTreeMap::new(),
        facts: Facts::default(),
        plan: Vec::new(),
        channels_opened: false,
        batches: vec![Batch::all(u32::MAX)],
        at: 0,
        flipped: 0,
        closed: 0,
        actions: Vec::new(),
    }
}
