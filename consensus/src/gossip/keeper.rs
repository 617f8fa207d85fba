//! Keeps chitchat running and compares what it holds with what is believed.

mod view;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use weft_proto::UnixMillis;
use weft_proto::facts::NodeFacts;
use weft_proto::identity::NodeName;

use view::View;

use super::parts::{self, FACTS_BYTES_MAX, KEYS, VALUE_BYTES_MAX};
use super::records::{self, Offer, Records};
use super::transport::{Inbox, Outboxes, Post};
use super::vet::Gate;
use super::{GossipSettings, LiveFacts, Signer, Verifier};

/// The task that runs chitchat, life after life.
pub(super) struct Keeper {
    settings: GossipSettings,
    signer: Arc<dyn Signer>,
    verifier: Arc<dyn Verifier>,
    inbox: Arc<Inbox>,
    outboxes: Arc<Outboxes>,
    own: Arc<watch::Sender<NodeFacts>>,
    /// The newest own facts that fit, signed, in parts.
    sealed: Vec<String>,
    too_large: Arc<AtomicUsize>,
    live: watch::Sender<LiveFacts>,
    records: Records,
    /// Where live nodes were in this life: seeds of the next.
    peers: BTreeSet<SocketAddr>,
    /// Nodes that are live until they have had time to be heard: those of the last life in a new one, and those from
    /// before this process was stopped.
    held: BTreeSet<NodeName>,
    held_until: Instant,
    /// When it was last looked who is live.
    examined: Instant,
}

/// From one start of chitchat to its end.
struct Life {
    handle: ChitchatHandle,
    gate: Arc<Mutex<Gate>>,
    began: Instant,
    /// The values that were last put into chitchat.
    set: Vec<String>,
    /// Values as chitchat takes them, before a later one, perhaps a forged one, hides them.
    heard: mpsc::Receiver<(ChitchatId, String)>,
}

/// Why a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// chitchat's task is gone.
    Died,
    /// Others claim more of this node than it has said; this is the highest generation it signed.
    Forged(UnixMillis),
    /// It holds keys that no honest mesh would give it.
    Strange,
}

impl Keeper {
    /// A keeper that will gossip `own` and publish to `live`.
    pub(super) fn new(
        settings: GossipSettings,
        (signer, verifier): (Arc<dyn Signer>, Arc<dyn Verifier>),
        (inbox, outboxes): (Inbox, Outboxes),
        own: Arc<watch::Sender<NodeFacts>>,
        live: watch::Sender<LiveFacts>,
    ) -> Self {
        // What a node said last is heard before it is known to live.
        let held = settings.remembered.keys().cloned().collect();
        Self {
            settings,
            signer,
            verifier,
            inbox: Arc::new(inbox),
            outboxes: Arc::new(outboxes),
            own,
            sealed: Vec::new(),
            too_large: Arc::default(),
            live,
            records: Records::default(),
            peers: BTreeSet::new(),
            held,
            held_until: Instant::now() + HOLD_TIME,
            examined: Instant::now(),
        }
    }

    /// Bytes of the own facts, where they are too many.
    pub(super) fn too_large(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.too_large)
    }

    /// Runs until told to stop, or until whoever could tell is gone.
    pub(super) async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let life = tokio::select! {
                biased;
                _ = &mut stopped => break,
                life = self.begin() => life,
            };
            let end = match life {
                Err(error) => {
                    tracing::error!(%error, "gossip did not start; it is tried again");
                    tokio::select! { biased; _ = &mut stopped => break, () = tokio::time::sleep(LIFE_TIME_MIN) => {} }
                    continue;
                }
                Ok(mut life) => {
                    let end = tokio::select! {
                        biased;
                        _ = &mut stopped => None,
                        end = self.live_through(&mut life) => Some(end),
                    };
                    let _ = tokio::time::timeout(SHUTDOWN_TIME_MAX, life.handle.shutdown()).await;
                    end.map(|end| (end, life.began + LIFE_TIME_MIN))
                }
            };
            let Some((end, next)) = end else { break };
            self.prepare_next(end);
            tokio::select! { biased; _ = &mut stopped => break, () = tokio::time::sleep_until(next) => {} }
        }
        self.outboxes.close();
    }

    async fn begin(&mut self) -> anyhow::Result<Life> {
        let facts = self.own.borrow().clone();
        self.seal(&facts);
        let id = ChitchatId::new(facts.name.as_str(), facts.generation, self.settings.address);
        let gate = Arc::new(Mutex::new(Gate::new(id.clone())));
        let post = Post {
            inbox: Arc::clone(&self.inbox),
            outboxes: Arc::clone(&self.outboxes),
            gate: Arc::clone(&gate),
            verifier: Arc::clone(&self.verifier),
        };
        let seeds = self.settings.seeds.iter().cloned();
        let config = ChitchatConfig {
            chitchat_id: id,
            cluster_id: self.settings.trust_domain.clone(),
            gossip_interval: self.settings.interval,
            listen_addr: self.settings.address,
            seed_nodes: seeds.chain(self.peers.iter().take(SEEDS_KEPT_MAX).map(ToString::to_string)).collect(),
            failure_detector_config: failure_detector(self.settings.interval),
            marked_for_deletion_grace_period: GRACE_PERIOD,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let values = KEYS.iter().zip(&self.sealed).map(|(key, value)| ((*key).to_owned(), value.clone()));
        let handle = chitchat::spawn_chitchat(config, values.collect(), &post).await?;
        let heard = listen(&*handle.chitchat().lock().await);
        Ok(Life { handle, gate, began: Instant::now(), set: self.sealed.clone(), heard })
    }

    async fn live_through(&mut self, life: &mut Life) -> End {
        let mut members = life.handle.chitchat().lock().await.live_nodes_watcher();
        let mut own = self.own.subscribe();
        own.mark_changed();
        let mut heard = Vec::new();
        let ended = life.handle.termination_watcher();
        tokio::pin!(ended);
        let mut rounds = tokio::time::interval(EXAMINE_EVERY);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = &mut ended => return End::Died,
                Ok(()) = own.changed() => {
                    let facts = own.borrow_and_update().clone();
                    self.seal(&facts);
                }
                Ok(()) = members.changed() => members.mark_unchanged(),
                _ = life.heard.recv_many(&mut heard, HEARD_MAX) => {}
                _ = rounds.tick() => {}
            }
            heard.drain(..).for_each(|(id, value)| self.offer(&id, &value));
            if let Some(end) = self.examine(life).await {
                return end;
            }
        }
    }

    fn offer(&mut self, id: &ChitchatId, value: &str) {
        if self.records.offer(id, value, &*self.verifier) == Offer::Refused {
            metrics::counter!("weft_gossip_refused_total", "reason" => "unverified").increment(1);
            tracing::debug!(node = %id.node_id, "facts were refused: not signed by their node, or not admitted yet");
        }
    }

    /// Signs `facts`, unless they have grown too large: then the last that fit stay in force.
    fn seal(&mut self, facts: &NodeFacts) {
        let sealed = records::seal(facts, &*self.signer);
        if sealed.len() <= FACTS_BYTES_MAX {
            self.sealed = parts::split(&sealed, facts.sequence);
            self.too_large.store(0, Ordering::Relaxed);
            return;
        }
        if self.too_large.swap(sealed.len(), Ordering::Relaxed) > 0 {
            return;
        }
        metrics::counter!("weft_gossip_too_large_total").increment(1);
        tracing::error!(
            bytes = sealed.len(),
            most = FACTS_BYTES_MAX,
            "this node's facts are too large for gossip and others see its former ones: run fewer services on it"
        );
    }

    /// Compares what chitchat holds with what is believed, and publishes who is live.
    async fn examine(&mut self, life: &mut Life) -> Option<End> {
        let mut view = View::default();
        {
            let chitchat = life.handle.chitchat();
            let mut chitchat = chitchat.lock().await;
            if let Some(end) = self.examine_own(life, &mut chitchat) {
                return Some(end);
            }
            let known = chitchat.node_states();
            let mut gate = life.gate.lock();
            gate.sign(self.records.generations());
            gate.retain(|id| known.contains_key(id));
            drop(gate);
            self.records.retain_refused(|id| known.contains_key(id));
            view.look(&chitchat, &self.records);
        }
        self.records.judge_again(&*self.verifier);
        view.unknown.iter().for_each(|(id, value)| self.offer(id, value));
        let own = self.own.borrow().clone();
        let later = view.own_later.iter().filter(|(id, value)| records::unseal(id, value, &*self.verifier).is_some());
        if let Some(generation) = later.map(|(id, _)| id.generation_id).max() {
            return Some(End::Forged(generation));
        }
        self.bear_a_stop();
        if Instant::now() < self.held_until {
            view.alive.extend(self.held.iter().cloned());
        }
        let mut live = self.records.live(&view.alive, self.settings.interval * FRESH_ROUNDS);
        if Instant::now() < self.held_until {
            let remembered = self.settings.remembered.iter();
            let unheard = remembered
                .filter(|(name, facts)| !self.records.knows(name) && self.verifier.stays(name, facts.raft_id));
            live.extend(unheard.map(|(name, facts)| (name.clone(), Arc::new(facts.clone()))));
        }
        let before = self.live.borrow().get(&own.name).filter(|before| ***before == own).cloned();
        live.insert(own.name.clone(), before.unwrap_or_else(|| Arc::new(own)));
        self.peers = view.addresses;
        self.live.send_if_modified(|before| {
            let changed = **before != live;
            if changed {
                *before = Arc::new(live);
            }
            changed
        });
        None
    }

    /// A process that was stopped takes everybody for dead when it goes on, though it was the one to be silent: whom it
    /// knew stays live for two rounds more.
    fn bear_a_stop(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.examined) > STOPPED {
            if now >= self.held_until {
                self.held.clear();
            }
            self.held.extend(self.live.borrow().keys().cloned());
            self.held_until = self.held_until.max(now + 2 * self.settings.interval + EXAMINE_EVERY);
        }
        self.examined = now;
    }

    /// Says what this node has to say, and notices when others speak in its name.
    fn examine_own(&self, life: &mut Life, chitchat: &mut Chitchat) -> Option<End> {
        let gate = life.gate.lock();
        let claim = gate.claim();
        if chitchat.node_states().values().any(|state| strange_keys(state) > 0) {
            return Some(End::Strange);
        }
        let generation = chitchat.self_chitchat_id().generation_id;
        let state = chitchat.self_node_state();
        let claimed = claim.heartbeat > u64::from(state.heartbeat()) || claim.version > state.max_version();
        if claimed || state.max_version() > VERSION_MAX {
            return Some(End::Forged(generation));
        }
        let forged = |(key, set): (&&str, &String)| state.get(key) != Some(set);
        if KEYS.iter().zip(&life.set).any(forged) {
            metrics::counter!("weft_gossip_forged_total").increment(1);
            tracing::warn!("another member overwrote this node's facts in gossip; they are restored");
        }
        // Parts that are of no use any more are emptied.
        let mut set = self.sealed.clone();
        set.resize(life.set.len().max(set.len()), String::new());
        for (key, value) in KEYS.iter().zip(&set) {
            state.set(*key, value);
        }
        life.set = set;
        None
    }

    fn prepare_next(&mut self, end: End) {
        let (reason, generation) = match end {
            End::Died => ("died", 0),
            End::Forged(generation) => ("forged", generation),
            End::Strange => ("strange", 0),
        };
        let culprit = if end == End::Died { self.inbox.shun_last() } else { None };
        metrics::counter!("weft_gossip_restarts_total", "reason" => reason).increment(1);
        tracing::warn!(reason, last_sender = ?culprit, "gossip starts again under a later generation");
        self.held = self.live.borrow().keys().cloned().collect();
        self.held_until = Instant::now() + LIFE_TIME_MIN + HOLD_TIME;
        // The same id again would be taken for the former life, whose counters it has not reached.
        // The step is this node's secret: who could guess it could speak first under the new id.
        let last = self.own.borrow().generation.max(generation);
        let secret = self.signer.sign(format!("the life after {last}").as_bytes());
        let step = secret.iter().fold(0u64, |step, byte| (step * 256 + u64::from(*byte)) % GENERATION_STEP_MAX);
        self.own.send_modify(|facts| {
            facts.generation = last + 1 + step;
            facts.sequence += 1;
        });
    }
}

/// The values that chitchat takes for other nodes from now on; drops them when too many wait, as
/// an examination finds the newest anyway.
fn listen(chitchat: &Chitchat) -> mpsc::Receiver<(ChitchatId, String)> {
    let (sender, receiver) = mpsc::channel(HEARD_MAX);
    let own = chitchat.self_chitchat_id().node_id.clone();
    let listener = chitchat.subscribe_event(KEYS[0], move |event| {
        let whole = event.key.is_empty() && !parts::is_part(event.value);
        if whole && event.node.node_id != own && event.value.len() <= VALUE_BYTES_MAX {
            let _ = sender.try_send((event.node.clone(), event.value.to_owned()));
        }
    });
    listener.forever();
    receiver
}

/// Keys that no Weft node sets.
fn strange_keys(state: &NodeState) -> usize {
    state.key_values_including_deleted().filter(|(key, value)| !KEYS.contains(key) || value.is_deleted()).count()
}

/// Live means: heard of within 8 times the mean gap between heartbeats. chitchat hears of a node
/// many times a round, so that the measured mean says little; the few samples and the long prior
/// keep 8 means near 10 rounds, and let a node whose every heartbeat comes late have longer.
fn failure_detector(interval: Duration) -> FailureDetectorConfig {
    FailureDetectorConfig {
        phi_threshold: 8.0,
        sampling_window_size: 4,
        max_interval: Duration::from_secs(10),
        initial_interval: interval.mul_f64(1.6),
        dead_node_grace_period: GRACE_PERIOD,
    }
}

/// How long a dead member is remembered, so that stragglers don't bring it back. It is in digests for half of that.
const GRACE_PERIOD: Duration = Duration::from_secs(240);
/// How often refused facts are judged again when nothing else happens.
pub(super) const EXAMINE_EVERY: Duration = Duration::from_millis(500);
/// Lives that end sooner wait for this long, so that an attacker sets no pace.
const LIFE_TIME_MIN: Duration = Duration::from_secs(1);
/// Below [`LIFE_TIME_MIN`] in milliseconds, so that generations never overtake the wall clock.
const GENERATION_STEP_MAX: u64 = 900;
/// A gap between two looks that only a process has that was stopped.
const STOPPED: Duration = Duration::from_millis(1_500);
/// How long nodes of the former life stay live while a new one has not heard of them.
const HOLD_TIME: Duration = Duration::from_secs(5);
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(1);
/// Values that may wait to be judged.
const HEARD_MAX: usize = 256;
/// For how many rounds a node is live after it has said something new.
const FRESH_ROUNDS: u32 = 10;
/// Live nodes that a new life begins with, besides the configured seeds.
const SEEDS_KEPT_MAX: usize = 16;
/// A life that another member has pushed this far ends before versions could overflow.
const VERSION_MAX: u64 = 1 << 40;
