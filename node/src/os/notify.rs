//! What the service manager is told (sd_notify(3)): nothing where there is none.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::HostWorld;
use super::shelf::Shelf;
use crate::node::Node;

/// How often it is looked whether the node is ready.
const READY_INTERVAL: Duration = Duration::from_millis(50);
/// How often it is told how the node is.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How long a worker may be silent: three of the times at which each says that it lives.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Tells when the node is ready, how it is, and that it lives, which is told no more once a worker hangs.
/// `main` is the process that the service manager is to take for the node's, where it is another one.
pub(crate) async fn tell(node: Arc<Node<HostWorld>>, shelf: Arc<Shelf>, main: Option<u32>) {
    let mut ticks = interval(READY_INTERVAL);
    // What was listened on before is taken over first: let go of, it could not be listened on again at once.
    while !(node.is_ready() && node.plane().is_listening()) {
        ticks.tick().await;
    }
    shelf.clear();
    let main = main.map(NotifyState::MainPid);
    say(&main.into_iter().chain([NotifyState::Ready]).collect::<Vec<_>>());
    // Twice within the time that is given.
    let watched = sd_notify::watchdog_enabled().map(|bound| bound / 2);
    let mut ticks = interval(watched.map_or(STATUS_INTERVAL, |watched| watched.min(STATUS_INTERVAL)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut beats, mut since) = (Vec::new(), Instant::now());
    let mut told = String::new();
    loop {
        ticks.tick().await;
        let now = node.plane().beats();
        if now.iter().zip(&beats).all(|(now, before)| now != before) {
            (beats, since) = (now, Instant::now());
        }
        if watched.is_some() && since.elapsed() < SILENCE_MAX {
            say(&[NotifyState::Watchdog]);
        }
        // A line to the manager is an assignment, and texts of problems hold what others have said.
        let status: String = status(&node).chars().map(|one| if one.is_control() { ' ' } else { one }).collect();
        if status != told {
            say(&[NotifyState::Status(&status)]);
            told = status;
        }
    }
}

/// The node stops, and has so long for it.
pub(crate) fn stopping(bound: Duration) {
    let micros = u32::try_from(bound.as_micros()).unwrap_or(u32::MAX);
    say(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

fn status(node: &Node<HostWorld>) -> String {
    let nodes = match node.live().len() {
        1 => "1 node".to_owned(),
        live => format!("{live} nodes"),
    };
    let amiss = match &node.problems()[..] {
        [] => "all is well".to_owned(),
        [one] => one.text.clone(),
        [first, rest @ ..] => format!("{}; and {} more", first.text, rest.len()),
    };
    format!("node {} of {}, {nodes} live; {amiss}", node.name(), node.trust_domain())
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}
