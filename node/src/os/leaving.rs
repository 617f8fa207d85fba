//! Exchanges that outlive a restart of the node: they stay in the process that carries them while the next one runs. They end by themselves, with the
//! bound, and at once where documents or revocations have changed since, by which nobody judges them here: the next process holds one end of a
//! line for that, which the service manager has kept for it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::digest::{Context as Digest, SHA256};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use weft_consensus::state::State;
use weft_proxy::net::host::HostNet;
use weft_proxy::plane::Plane;

use super::HostWorld;
use super::shelf::{LEAVING, Shelf};
use crate::node::Node;

/// What of a node stays.
pub(crate) struct Leaving {
    plane: Arc<Plane<HostNet>>,
    /// Its workers, each of which says when it has ended.
    finished: mpsc::Receiver<()>,
    workers: usize,
    /// Ends where what is open is to end.
    line: UnixStream,
}

impl Leaving {
    /// Leaves, once no exchange comes any more, what is open by what the state says.
    pub(crate) async fn of(
        node: &Node<HostWorld>,
        shelf: &Shelf,
        (finished, workers): (mpsc::Receiver<()>, usize),
    ) -> io::Result<Self> {
        let (line, kept) = UnixStream::pair()?;
        let state = node.state();
        // What has not been judged by all that is known is judged anew, which the next process can't but by its end.
        let judged = if node.enforced.borrow().index >= state.index { judged_by(&state) } else { "not".to_owned() };
        let name = format!("{LEAVING}{}-{}-{judged}", std::process::id(), state.index);
        shelf.keep(&name, kept.as_fd());
        let plane = node.plane().clone();
        timeout(ALONE_TIMEOUT, plane.alone()).await.map_err(io::Error::from)?;
        Ok(Self { plane, finished, workers, line })
    }

    /// Stays until all of it has ended.
    pub(crate) fn stay(mut self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(async {
            self.line.set_nonblocking(true)?;
            let mut line = tokio::net::UnixStream::from_std(self.line)?;
            let (mut terminate, mut buffer) = (signal(SignalKind::terminate())?, [0; 1]);
            let ended = async {
                for _ in 0..self.workers {
                    self.finished.recv().await;
                }
            };
            tokio::select! {
                biased;
                _ = ended => return Ok(()),
                _ = line.read(&mut buffer) => tracing::info!("what was open when the node was started again ends: what it is judged by has changed"),
                _ = terminate.recv() => {}
            }
            self.plane.cut();
            let ended = async { while self.finished.recv().await.is_some() {} };
            let _ = timeout(CUT_TIMEOUT, ended).await;
            Ok(())
        })
    }
}

/// Ends what is left of processes before this one, as soon as it would have to be judged anew.
pub(crate) fn watch(node: &Arc<Node<HostWorld>>, shelf: &Arc<Shelf>) {
    for (name, line) in shelf.take_all(LEAVING) {
        let (node, shelf) = (node.clone(), shelf.clone());
        tokio::spawn(async move {
            if let Err(error) = held(&node, &name, UnixStream::from(line)).await {
                tracing::warn!(%error, "what was open when the node was started again is ended");
            }
            shelf.forget(&name);
        });
    }
}

/// Returns where it is to end, or has.
async fn held(node: &Node<HostWorld>, name: &str, line: UnixStream) -> io::Result<()> {
    line.set_nonblocking(true)?;
    let mut line = tokio::net::UnixStream::from_std(line)?;
    let (mut enforced, mut buffer) = (node.enforced.clone(), [0; 1]);
    let mut said = name.rsplit('-');
    let (judged, index) = (said.next().unwrap_or_default(), said.next().and_then(|index| index.parse().ok()));
    loop {
        // A node that starts does not know at once all that it has known.
        let knows = enforced.borrow_and_update().index >= index.unwrap_or(0);
        if knows && judged_by(&node.state()) != judged {
            return Ok(());
        }
        tokio::select! {
            biased;
            _ = line.read(&mut buffer) => return Ok(()),
            changed = enforced.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// What exchanges are judged by, in few letters: whatever may deny one that was allowed changes it.
fn judged_by(state: &State) -> String {
    let mut digest = Digest::new(&SHA256);
    let mut add = |text: &[u8]| {
        digest.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(text);
    };
    add(&[u8::from(state.deny_by_default)]);
    for (key, resource) in &state.resources {
        add(key.to_string().as_bytes());
        add(&resource.version.to_be_bytes());
    }
    add(b"revoked");
    state.revoked.keys().for_each(|serial| add(serial));
    state.roots.iter().for_each(|root| add(root));
    let all = digest.finish();
    all.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// How long it may take until nothing comes any more: longer than requests are waited for.
const ALONE_TIMEOUT: Duration = Duration::from_secs(12);
/// How long what is cut may take to end.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);
