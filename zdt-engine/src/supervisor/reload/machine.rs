//! The reload machine's outside: events, actions, options, and the state that all stages share.
//!
//! Must not know: descriptors, sockets, maps, clocks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::rollback::RollingBack;
use super::stages::{HandingOff, Settling, Stage, Starting};
use super::{Facts, Outcome};
use crate::control::{FromWorker, HandoffReport, Hello, IncomingReport, ToWorker};
use crate::supervisor::WorkerId;
use crate::supervisor::plan::{self, ChannelPlan};

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
    /// A newer reload wants to run; heeded before the flip.
    Supersede,
    /// The supervisor stops; heeded before the flip.
    Stop,
    /// Time passed.
    Tick,
}

/// Something is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write down that this point is reached, before what follows; answered by
    /// [`Event::Persisted`].
    Persist(Mark),
    /// Start the green processes; answered by [`Event::Spawned`].
    Spawn,
    /// Give a green worker its listeners; answered by [`Event::Armed`].
    Listen(WorkerId),
    /// Prove that new connections would reach it; answered by [`Event::Proven`].
    Prove(WorkerId),
    /// New connections go to green; answered by [`Event::Flipped`].
    Flip,
    /// New connections go to blue again.
    FlipBack,
    /// Green also accepts from the listeners of the generations before it.
    ShareListeners,
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
    pub hello: Option<Hello>,
    pub alive: bool,
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
    pub handoff_begun: bool,
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
        live(&self.blue)
    }

    pub fn live_green(&self) -> Vec<WorkerId> {
        live(&self.green)
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

fn live(side: &BTreeMap<WorkerId, Member>) -> Vec<WorkerId> {
    side.iter().filter(|(_, member)| member.alive).map(|(&worker, _)| worker).collect()
}

/// Where a new supervisor takes up a reload that its predecessor had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Flipped, and no channel is open.
    Flipped,
    /// Flipped, all channels are open; the handoff may or may not have begun.
    HandingOff,
    /// Blue is to take back what it can, over whatever channels there are.
    RollingBack,
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
        blue: impl IntoIterator<Item = (WorkerId, Hello)>,
        now: Instant,
    ) -> (Machine, Vec<Action>) {
        let mut shared = new_shared(id, options, blue, []);
        shared.act(Action::Persist(Mark::Preparing));
        shared.act(Action::Spawn);
        let deadline = now + shared.options.ready_timeout;
        let mut machine = Machine { shared, stage: Stage::Starting(Starting { deadline }) };
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
        let mut shared = new_shared(id, options, blue, green);
        if at != Resume::Flipped {
            shared.plan = plan::channels(&shared.live_blue(), &shared.live_green());
        }
        let stage = match at {
            Resume::Flipped => Settling::begin(&mut shared, now),
            Resume::HandingOff => {
                shared.channels_opened = true;
                HandingOff::begin(&mut shared, now)
            }
            Resume::RollingBack => {
                shared.channels_opened = true;
                shared.handoff_begun = true;
                let why = "the supervisor died during the handoff, which its successor undid";
                RollingBack::begin(&mut shared, why.to_owned(), now)
            }
            Resume::Committed => {
                shared.channels_opened = true;
                super::stages::Committing::begin(&mut shared, now)
            }
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

    /// True until the flip.
    pub fn is_before_flip(&self) -> bool {
        matches!(self.stage, Stage::Starting(_) | Stage::Proving(_))
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
        let reports = self.shared.facts.reports.values();
        reports
            .fold((0, 0), |(moved, left), report| (moved + report.moved, left + report.remaining))
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.shared.actions)
    }
}

fn new_shared(
    id: u64,
    options: Options,
    blue: impl IntoIterator<Item = (WorkerId, Hello)>,
    green: impl IntoIterator<Item = (WorkerId, Hello)>,
) -> Shared {
    let member = |(worker, hello)| (worker, Member { hello: Some(hello), alive: true });
    Shared {
        id,
        options,
        blue: blue.into_iter().map(member).collect(),
        green: green.into_iter().map(member).collect(),
        facts: Facts::default(),
        plan: Vec::new(),
        channels_opened: false,
        handoff_begun: false,
        actions: Vec::new(),
    }
}
