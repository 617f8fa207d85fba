//! One core at work: its listeners, its links, what it does when the table changes and when the node drains.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::accept::http1::LEAVING;
use crate::accept::links;
use crate::accept::listeners::Listeners;
use crate::core::Core;
use crate::net::Net;
use crate::quic::QuicServer;
use crate::revoke;
use crate::shared::Problems;
use crate::task::Aborting;

/// Serves until the node drains and its exchanges have ended, or their time is over. The first core tells what does not work.
pub(crate) async fn run<N: Net>(core: Arc<Core<N>>, problems: &Problems) {
    let (mut tables, mut draining) = (core.shared.tables.subscribe(), core.shared.draining.subscribe());
    let mut listeners = Listeners::default();
    let quic = listen_quic(&core);
    let mut listening = false;
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tables.borrow_and_update();
        if take_up(&core, &mut listeners, problems) && !std::mem::replace(&mut listening, true) {
            core.shared.listening.fetch_add(1, Ordering::Relaxed);
        }
        tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => break,
            changed = tables.changed() => if changed.is_err() { break },
            _ = ticks.tick() => {
                core.dialer.sweep();
                core.shared.beats[core.place.core].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let mut servers = listeners.close();
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    let mut ticks = interval(DRAIN_LOOK_INTERVAL);
    let left = Instant::now() + LEAVING;
    while core.holds.any() && timeout_at(left, ticks.tick()).await.is_ok() {}
    let stays = core.shared.stays.get();
    // What came over QUIC goes with the port, which the process after this one has next.
    let waits = || stays.is_none() || core.serves_over_quic();
    while waits() && core.holds.open() > 0 && timeout_at(deadline, ticks.tick()).await.is_ok() {}
    let (task, mesh) = quic.unzip();
    drop(task);
    if stays.is_some() {
        servers.extend(mesh);
        join_all(servers.into_iter().map(QuicServer::leave)).await;
    }
    core.shared.alone.send_modify(|alone| *alone += 1);
    let Some(bound) = stays else { return };
    // Once more: a table may have come as the node began to leave.
    revoke::judge_again(&core.holds, &core.shared.table.load_full());
    let (last, mut ticks) = (Instant::now() + *bound, interval(STAY_LOOK_INTERVAL));
    while core.holds.open() > 0 && timeout_at(last, ticks.tick()).await.is_ok() {}
}

/// Brings listeners and open exchanges in step with the newest table; whether that is one in force.
fn take_up<N: Net>(core: &Arc<Core<N>>, listeners: &mut Listeners, problems: &Problems) -> bool {
    let table = core.shared.table.load_full();
    let found = listeners.update(core, &table);
    if core.place.core == 0 {
        *problems.lock() = found;
    }
    core.dialer.retire_links(&table);
    let ended = revoke::judge_again(&core.holds, &table);
    if ended > 0 {
        tracing::info!(ended, "open exchanges are denied by the newest policies");
    }
    table.is_in_force()
}

fn listen_quic<N: Net>(core: &Arc<Core<N>>) -> Option<(Aborting, QuicServer)> {
    let shared = &core.shared;
    match QuicServer::bind(&shared.net, shared.settings.mesh_address, &shared.identities) {
        Ok(server) => {
            let task = tokio::spawn(links::serve_quic(core.clone(), server.clone()));
            Some((Aborting(task.abort_handle()), server))
        }
        Err(error) => {
            tracing::warn!(%error, "no QUIC on this node: its mesh port cannot be opened for UDP");
            None
        }
    }
}

/// How often idle connections are swept and listeners that failed are tried again.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long exchanges may take to end when the node drains.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(20);
const STAY_LOOK_INTERVAL: Duration = Duration::from_millis(500);
