//! Certificates that the mesh orders from an ACME server (RFC 8555) and renews. The leader orders, one after the other; the state
//! carries what is to be proved to every gateway, and the certificate, with its key sealed, to those that need it.

mod account;
mod client;
mod order;
pub(crate) mod wish;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use weft_consensus::status::Role;
use weft_proto::Index;
use weft_proto::command::{Command, ResourceAction, ResourceChange};
use weft_proto::kinds::Spec;
use weft_proto::kinds::order::{Order, OrderState};
use weft_proto::resource::{Resource, ResourceKey};

use crate::node::Node;
use crate::world::World;
use wish::{Wish, wishes};

/// How often the leader looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest text about a failure that is kept, in characters: it is the server's.
const REASON_MAX: usize = 500;
/// Shortest time between two orders of a certificate.
const AGAIN_MIN: Duration = Duration::from_secs(5);
/// Bound on the proof that this node leads still.
const LEADING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on an order from its begin to its end.
const ORDER_TIMEOUT: Duration = Duration::from_secs(300);

/// Keeps certificates that are to be ordered, and those that were. Runs on every node, and acts on the leader.
pub(crate) async fn keep<W: World>(node: Arc<Node<W>>) {
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tried: BTreeMap<ResourceKey, Instant> = BTreeMap::new();
    loop {
        ticks.tick().await;
        if node.raft_status().role != Role::Leader || !node.vault.opens() {
            continue;
        }
        let state = node.state();
        let left: Vec<ResourceChange> = wish::left_over(&state).into_iter().map(delete).collect();
        if !left.is_empty()
            && let Err(error) = change(&node, left).await
        {
            tracing::warn!(error, "orders of certificates that nobody wants any more stay for now");
        }
        let now = node.world.now();
        // Whatever a clock or a server says: one certificate is not ordered again at once.
        tried.retain(|_, at| at.elapsed() < AGAIN_MIN);
        let is_due = |wish: &Wish| wish.due().0 <= now && !tried.contains_key(&wish.key);
        let Some(wish) = wishes(&state).into_iter().find(is_due) else { continue };
        // A leader that a majority does not follow any more would order again and again what it cannot keep.
        if node.replica.read_index(LEADING_TIMEOUT).await.is_ok() {
            attend(&node, &wish).await;
        }
        tried.insert(wish.key, Instant::now());
    }
}

/// Orders a certificate; where that fails it is said in the state, so that whoever leads then waits.
async fn attend<W: World>(node: &Node<W>, wish: &Wish) {
    let (key, why) = (&wish.key, wish.due().1);
    tracing::info!(certificate = %key, why, "a certificate is ordered");
    let ordered = tokio::time::timeout(ORDER_TIMEOUT, order::order(node, wish)).await;
    let reason: String = match ordered {
        Ok(Ok(())) => return tracing::info!(certificate = %key, "a certificate has been issued"),
        Ok(Err(error)) => error.chars().take(REASON_MAX).collect(),
        Err(_) => format!("it took longer than {} s", ORDER_TIMEOUT.as_secs()),
    };
    let order = Order {
        certificate: wish.version,
        issuer: wish.issuer,
        state: OrderState::Errored,
        reason,
        failures: wish.failures() + 1,
        tried: node.world.now(),
        challenges: Vec::new(),
    };
    let (error, failures) = (&order.reason, order.failures);
    tracing::warn!(certificate = %key, error, failures, "a certificate could not be ordered");
    if let Err(error) = change(node, vec![put(wish.order_key(), &order)]).await {
        tracing::warn!(certificate = %key, error, "nor could that be said to others");
    }
}

/// Changes documents: all or none.
async fn change<W: World>(node: &Node<W>, changes: Vec<ResourceChange>) -> Result<Index, String> {
    let decided = node.decide(Command::ChangeResources(changes)).await;
    decided.map(|(index, _)| index).map_err(|failure| failure.error.message)
}

fn delete(key: ResourceKey) -> ResourceChange {
    ResourceChange { action: ResourceAction::Delete(key), expected: None }
}

fn put<S: Spec + serde::Serialize>(key: ResourceKey, spec: &S) -> ResourceChange {
    let resource = Resource {
        key,
        api_version: S::KIND.api_versions().next().unwrap_or_default(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        spec: serde_json::to_value(spec).unwrap_or_default().to_string(),
        created: 0,
        version: 0,
    };
    ResourceChange { action: ResourceAction::Put(resource), expected: None }
}
