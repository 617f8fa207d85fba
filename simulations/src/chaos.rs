//! Real chaos: processes of `weft` in network namespaces of their own, with real callers and applications, through kills,
//! cuts, loss, delay, full disks and wrong clocks; what must hold is read from the nodes' own interfaces.

mod calm;
mod form;
pub mod inhabitant;
mod look;
pub mod relay;
mod stage;
mod strike;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use weft::api::schema::{ApplyRequest, Text};
use weft::client::{Client, ClientError};

use crate::application::Seen;
use crate::dice::Dice;
use crate::faults::{Fault, FaultKind, Kinds, plan};
use crate::invariants::Breach;
use crate::invariants::claims::Claims;
use crate::invariants::durability::Durability;
use crate::invariants::leadership::Leadership;
use crate::invariants::once::Once;
use crate::invariants::reads::Reads;
use crate::load::Load;
use crate::mesh::Mesh;
use crate::mesh::assertion::Caller;
use crate::run::Report;
use crate::trace::{Kind, Trace};
use inhabitant::{Order, Told, unix_millis};
use stage::Stage;

pub use stage::clear_all;
pub(crate) use stage::{tool, tool_now};

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Faults and load are drawn from it; what comes of them is real and differs.
    pub seed: u64,
    /// Hosts.
    pub nodes: usize,
    /// Minutes of faults and load.
    pub minutes: u64,
    /// Faults that may be drawn.
    pub faults: Vec<FaultKind>,
    /// What runs, and what must hold of it.
    pub mesh: Arc<Mesh>,
    /// The program that is put through it.
    pub weft: PathBuf,
}

/// Faults that real hosts can be struck with.
pub const KINDS: [FaultKind; 12] = [
    FaultKind::Kill,
    FaultKind::Partition,
    FaultKind::OneWay,
    FaultKind::Isolate,
    FaultKind::Loss,
    FaultKind::Delay,
    FaultKind::Freeze,
    FaultKind::Clock,
    FaultKind::FullDisk,
    FaultKind::Blackout,
    FaultKind::Storm,
    FaultKind::Application,
];

/// Time between calls, and between decisions, in milliseconds. Decisions are further apart than looks are, so that none
/// comes and goes unseen.
const CALL_GAP: (u64, u64) = (10, 60);
const DECISION_GAP: (u64, u64) = (1_500, 5_000);
/// From one look at the nodes to the next.
const CYCLE: Duration = Duration::from_millis(100);
/// After how long a service manager starts a process again that has ended by itself.
const RESTART: u64 = 1_000;

/// What operators were told.
enum Answer {
    Acknowledged { switch: usize, present: bool, index: u64 },
    Refused { switch: usize, present: bool },
    Nothing,
    Waited { index: u64, began: u64, absent: Vec<String> },
    Read { host: usize, wanted: u64, index: u64 },
}

struct Chaos {
    setup: Setup,
    stage: Stage,
    line: String,
    /// Unix time of the beginning, in milliseconds.
    began: u64,
    dice: Dice,
    trace: Trace,
    load: Load,
    claims: Claims,
    once: Once,
    reads: Reads,
    leadership: Leadership,
    durability: Durability,
    told: mpsc::UnboundedReceiver<(usize, Told)>,
    answers: (mpsc::UnboundedSender<Answer>, mpsc::UnboundedReceiver<Answer>),
    /// When each host's process was started.
    started: Vec<u64>,
    restarts: Vec<(u64, usize)>,
    storms: Vec<usize>,
    frozen: Vec<usize>,
    /// When the nodes were last looked at.
    looked: u64,
    outcomes: [u64; 3],
    decisions: (u64, u64),
    losses: BTreeMap<usize, String>,
}

/// Why a run did not come to its end.
enum Stop {
    /// An invariant broke.
    Broken(Breach),
    /// Something is wrong with the stage, and says nothing of the nodes.
    Stage(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Stage(why)
    }
}

impl From<Breach> for Stop {
    fn from(breach: Breach) -> Self {
        Self::Broken(breach)
    }
}

/// Runs. `keep` is where the nodes' logs are left.
pub async fn run(setup: Setup, keep: Option<PathBuf>) -> Result<Report, String> {
    if !setup.mesh.is_plain() {
        return Err(format!("{} has gateways or servers outside, which only the simulation knows", setup.mesh.name));
    }
    let (sender, told) = mpsc::unbounded_channel();
    let stage = Stage::make(&setup.weft, &setup.mesh, setup.nodes, sender).await?;
    let mut chaos = Chaos {
        stage,
        line: String::new(),
        began: unix_millis(),
        dice: Dice::new(setup.seed, "load"),
        trace: Trace::default(),
        load: Load::new(setup.mesh.clone(), setup.nodes),
        claims: Claims::new(setup.mesh.clone()),
        once: Once::default(),
        reads: Reads::default(),
        leadership: Leadership::default(),
        durability: Durability::default(),
        told,
        answers: mpsc::unbounded_channel(),
        started: vec![0; setup.nodes],
        restarts: Vec::new(),
        storms: Vec::new(),
        frozen: Vec::new(),
        looked: 0,
        outcomes: [0; 3],
        decisions: (0, 0),
        losses: BTreeMap::new(),
        setup,
    };
    let mut faults = 0;
    let outcome = tokio::select! {
        outcome = chaos.live(&mut faults) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Stop::Stage("interrupted".into())),
    };
    if let Some(directory) = keep {
        chaos.keep_logs(&directory)?;
    }
    let breach = match outcome {
        Ok(()) => None,
        Err(Stop::Broken(breach)) => Some((chaos.now(), breach)),
        Err(Stop::Stage(why)) => return Err(why),
    };
    if let Some((at, breach)) = &breach {
        chaos.trace.add(*at, None, Kind::Broken, breach.to_string());
    }
    let assertions = crate::run::tell_assertions(&chaos.setup.mesh, chaos.claims.tallies(), &chaos.losses);
    let simulated = chaos.now();
    let Chaos { trace, decisions, outcomes: calls, .. } = chaos;
    Ok(Report { trace, breach, simulated, decisions, calls, faults, assertions })
}

impl Chaos {
    /// Milliseconds since the beginning.
    fn now(&self) -> u64 {
        unix_millis().saturating_sub(self.began)
    }

    fn client(&self, host: usize) -> Client {
        Client::new(&self.stage.data_dir(host))
    }

    async fn live(&mut self, faults: &mut usize) -> Result<(), Stop> {
        self.form().await?;
        self.furnish().await?;
        let from = self.now();
        let end = from + self.setup.minutes * 60_000;
        let planned = plan(self.setup.seed, (&self.setup.faults, Kinds::All), from, end);
        *faults = planned.len();
        self.suffer(planned, end).await?;
        self.heal().await?;
        self.serve().await?;
        self.lose_each().await
    }

    /// Faults and load.
    async fn suffer(&mut self, faults: Vec<Fault>, end: u64) -> Result<(), Stop> {
        let mut coming = faults.into_iter().peekable();
        let mut ending: Vec<(u64, Fault)> = Vec::new();
        let (mut next_call, mut next_decision) = (self.now(), self.now());
        // On a terminal only.
        let bar = ProgressBar::new(end / 1000);
        bar.set_style(ProgressStyle::with_template("{pos} of {len} s, {msg}").map_err(|error| error.to_string())?);
        while self.now() < end {
            let now = self.now();
            while let Some(fault) = coming.next_if(|fault| fault.at <= now) {
                self.begin(&fault).await?;
                ending.push((now + fault.lasts, fault));
            }
            let (over, still): (Vec<_>, Vec<_>) = ending.into_iter().partition(|(at, _)| *at <= now);
            ending = still;
            for (_, fault) in over {
                self.end(&fault).await?;
            }
            while next_call <= now {
                next_call += self.dice.range(CALL_GAP.0, CALL_GAP.1);
                if let Some(number) = self.load.draw(&mut self.dice, now) {
                    self.make(number).await?;
                }
            }
            if now >= next_decision {
                next_decision = now + self.dice.range(DECISION_GAP.0, DECISION_GAP.1);
                let (host, switch) =
                    (self.dice.below(self.setup.nodes), self.dice.below(self.setup.mesh.switches.len()));
                let (present, wait) = (self.dice.chance(2), self.dice.chance(3));
                self.decide(host, switch, (present, wait));
                self.read();
            }
            self.cycle().await?;
            let [allowed, denied, failed] = self.outcomes;
            let (passed, decisions) = (self.now() / 1000, self.decisions.0);
            bar.set_position(passed);
            bar.set_message(format!(
                "{decisions} decisions, {allowed} calls allowed, {denied} denied, {failed} failed"
            ));
        }
        bar.finish_and_clear();
        for (_, fault) in ending {
            self.end(&fault).await?;
        }
        Ok(())
    }

    /// Has the call of that number made.
    async fn make(&mut self, number: u64) -> Result<(), String> {
        let Some(call) = self.load.get(number).cloned() else { return Ok(()) };
        let service = match call.from {
            Caller::Outside | Caller::Stranger => None,
            Caller::Service(service) => Some(service),
        };
        self.stage.order(call.host, service, &Order::Call(number, call.clone())).await
    }

    /// An operator reads at a node what has been decided everywhere.
    fn read(&mut self) {
        let host = self.dice.below(self.setup.nodes);
        let (client, answers, wanted) = (self.client(host), self.answers.0.clone(), self.reads.begin());
        tokio::spawn(async move {
            if let Ok(reached) = client.index().await {
                // Nobody listens any more at the end.
                let _ = answers.send(Answer::Read { host, wanted, index: reached.index });
            }
        });
    }

    /// An operator changes a policy at a node.
    fn decide(&mut self, host: usize, switch: usize, (present, wait): (bool, bool)) {
        let (document, client) = (self.setup.mesh.switches[switch].clone(), self.client(host));
        let (answers, began) = (self.answers.0.clone(), self.now());
        self.durability.began(&document.key, present);
        tokio::spawn(async move {
            let key = document.key;
            let outcome = if present {
                let request = ApplyRequest { texts: vec![Text { source: "chaos".into(), text: document.text }] };
                client.apply(&request, false).await
            } else {
                client.delete_resource(&key.kind.name, &key.namespace, &key.name, None).await
            };
            let answer = match &outcome {
                Ok(applied) => Answer::Acknowledged { switch, present, index: applied.index },
                Err(ClientError::Refused(why)) if matches!(why.reason.as_str(), "not-found" | "conflict") => {
                    Answer::Refused { switch, present }
                }
                Err(_) => Answer::Nothing,
            };
            // Nobody listens any more at the end.
            let _ = answers.send(answer);
            if let (Ok(applied), true) = (outcome, wait)
                && let Ok(enforced) = client.enforced(applied.index, Duration::from_secs(5)).await
                && enforced.lagging.is_empty()
            {
                let _ = answers.send(Answer::Waited { index: applied.index, began, absent: enforced.absent });
            }
        });
    }

    /// Looks at everything once: what was seen before the look is judged after it.
    async fn cycle(&mut self) -> Result<(), Stop> {
        let next = Instant::now() + CYCLE;
        self.revive().await?;
        let mut seen: Vec<(usize, Told)> = Vec::new();
        while let Ok(one) = self.told.try_recv() {
            seen.push(one);
        }
        let mut answers = Vec::new();
        while let Ok(answer) = self.answers.1.try_recv() {
            answers.push(answer);
        }
        self.look().await?;
        for answer in answers {
            self.answered(answer).await?;
        }
        for (host, Told { at, seen }) in seen {
            let at = at.saturating_sub(self.began);
            match seen {
                Seen::Arrived(arrived) => self.arrived(host, arrived, at)?,
                Seen::Answered(number, status) => self.call_ended(host, number, (at, status))?,
                Seen::Stranger(_) => {}
            }
        }
        // Nothing else happens until then, but for an interrupt.
        let _ = timeout(next.saturating_duration_since(Instant::now()), std::future::pending::<()>()).await;
        Ok(())
    }

    /// What has ended by itself is started again, as a service manager does it.
    async fn revive(&mut self) -> Result<(), String> {
        let now = self.now();
        for host in 0..self.setup.nodes {
            if let Some(status) = self.stage.has_ended(host) {
                self.trace.add(now, Some(host), Kind::Node, format!("ended by itself: {status}"));
                self.claims.ended(host);
                self.restarts.push((now + RESTART, host));
            }
        }
        for host in self.storm(now) {
            self.fall(host).await;
        }
        let due: Vec<usize> = self.restarts.extract_if(.., |(at, _)| *at <= now).map(|(_, host)| host).collect();
        due.into_iter().try_for_each(|host| self.rise(host))
    }

    fn keep_logs(&self, directory: &std::path::Path) -> Result<(), String> {
        let told = |error: std::io::Error| format!("{}: {error}", directory.display());
        std::fs::create_dir_all(directory).map_err(told)?;
        for host in 0..self.setup.nodes {
            let log = self.stage.directory(host).join("weft.log");
            std::fs::copy(log, directory.join(format!("n{host}.log"))).map_err(told)?;
        }
        Ok(())
    }
}
