//! Room for connections. A process may open only so many files, and some are the store's, the control plane's and the
//! links': connections of applications leave those free, however many come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The connections that are open, and how many may be.
#[derive(Debug)]
pub(crate) struct Room {
    most: usize,
    open: AtomicUsize,
    refused: AtomicUsize,
    full: AtomicBool,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Taken(Arc<Room>);

impl Room {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            open: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            full: AtomicBool::new(false),
        })
    }

    /// A place for a connection; none where there is no room.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Taken> {
        let taken = Taken(self.clone());
        if self.open.fetch_add(1, Ordering::Relaxed) < self.most {
            return Some(taken);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                most = self.most,
                "no more connections are taken: raise the limit of open files (LimitNOFILE)"
            );
        }
        None
    }

    /// Connections that were refused.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// What is wrong while there is no room.
    pub(crate) fn problem(&self) -> Option<String> {
        let text = || {
            format!(
                "{} connections of applications are open and no more are taken: raise the limit of open files (LimitNOFILE)",
                self.most
            )
        };
        self.full.load(Ordering::Relaxed).then(text)
    }

    /// How long a connection may say nothing: less while room is short, so that those who say nothing make room for those
    /// who do.
    pub(crate) fn silence_max(&self) -> Duration {
        if self.open.load(Ordering::Relaxed) * 2 > self.most { SILENCE_SHORT } else { SILENCE }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let room = &self.0;
        let before = room.open.fetch_sub(1, Ordering::Relaxed);
        if before * 10 < room.most * 9 && room.full.swap(false, Ordering::Relaxed) {
            tracing::info!("connections are taken again");
        }
    }
}

/// How long a connection may say nothing before it is closed.
const SILENCE: Duration = Duration::from_secs(60);
/// The same while more than half of the room is taken.
const SILENCE_SHORT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_again_when_enough_have_gone() {
        let room = Room::new(10);
        let mut all: Vec<Taken> = std::iter::from_fn(|| room.take()).collect();
        assert_eq!((all.len(), room.refused(), room.silence_max()), (10, 1, SILENCE_SHORT));
        assert!(room.problem().is_some());
        all.truncate(4);
        assert!(room.problem().is_none() && room.take().is_some());
        assert_eq!(room.silence_max(), SILENCE);
    }
}
