//! Room for connections. A process may open only so many files, and some are the store's, the control plane's and the
//! links': connections of applications leave those free, however many come.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// The connections that are open, and how many may be.
#[derive(Debug)]
pub(crate) struct Room {
    most: usize,
    open: AtomicUsize,
    refused: AtomicUsize,
    full: AtomicBool,
    /// By whose they are, the connections that were taken while room was short.
    by_owner: Mutex<BTreeMap<Owner, usize>>,
}

/// Whose a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// A user of this host; none where that is not known.
    User(Option<u32>),
    /// Somebody outside, by where it comes from.
    Address(IpAddr),
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    room: Arc<Room>,
    /// Whose it is, where room was short.
    owner: Option<Owner>,
}

impl Room {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            open: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            full: AtomicBool::new(false),
            by_owner: Mutex::default(),
        })
    }

    /// A place for a connection; none where there is no room. Of the half that is taken last nobody gets more than half.
    pub(crate) fn take(self: &Arc<Self>, owner: impl FnOnce() -> Owner) -> Option<Taken> {
        let mut taken = Taken { room: self.clone(), owner: None };
        let open = self.open.fetch_add(1, Ordering::Relaxed);
        if open < self.most && (open * 2 < self.most || taken.share(owner(), self.most.div_ceil(4))) {
            return Some(taken);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        if open < self.most {
            return None;
        }
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

impl Taken {
    /// Counts it as the owner's; false where that has its share.
    fn share(&mut self, owner: Owner, most: usize) -> bool {
        let mut by_owner = self.room.by_owner.lock();
        let open = by_owner.entry(owner).or_default();
        if *open >= most {
            return false;
        }
        *open += 1;
        self.owner = Some(owner);
        true
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let room = &self.room;
        if let Some(owner) = self.owner {
            let mut by_owner = room.by_owner.lock();
            if let Some(open) = by_owner.get_mut(&owner) {
                *open -= 1;
                if *open == 0 {
                    by_owner.remove(&owner);
                }
            }
        }
        let before = room.open.fetch_sub(1, Ordering::Relaxed);
        if before * 10 < room.most * 9 && room.full.swap(false, Ordering::Relaxed) {
            tracing::info!("connections are taken again");
        }
    }
}

/// Connections on the mesh port whose other end is not known yet. They are few, of one address above all: whoever can
/// reach the port could else take every file that the process may open.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    by_address: Mutex<BTreeMap<IpAddr, usize>>,
    open: AtomicUsize,
}

/// A stranger's place, until it is known or gone.
#[derive(Debug)]
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    /// A place for a connection from this address; none where there is no room.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let mut by_address = self.by_address.lock();
        let open = self.open.load(Ordering::Relaxed);
        let of_address = by_address.entry(address).or_default();
        if open >= STRANGERS_MAX || *of_address >= STRANGERS_EACH_MAX {
            return None;
        }
        *of_address += 1;
        self.open.store(open + 1, Ordering::Relaxed);
        Some(Stranger { strangers: self.clone(), address })
    }

    /// How long one may take to make itself known: less while room is short.
    pub(crate) fn patience(&self) -> Duration {
        if self.open.load(Ordering::Relaxed) * 2 > STRANGERS_MAX { PATIENCE_SHORT } else { PATIENCE }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut by_address = self.strangers.by_address.lock();
        self.strangers.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(open) = by_address.get_mut(&self.address) {
            *open -= 1;
            if *open == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// Most strangers at once, and of one address.
const STRANGERS_MAX: usize = 256;
const STRANGERS_EACH_MAX: usize = 128;
/// Bound on a handshake, and the same while more than half of the room is taken.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_SHORT: Duration = Duration::from_secs(2);
/// How long a connection may say nothing before it is closed.
const SILENCE: Duration = Duration::from_secs(60);
/// The same while more than half of the room is taken.
const SILENCE_SHORT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_the_room_of_all_strangers() {
        let strangers = Arc::<Strangers>::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let ones: Vec<Stranger> = std::iter::from_fn(|| strangers.take(one)).collect();
        assert_eq!((ones.len(), strangers.patience()), (STRANGERS_EACH_MAX, PATIENCE));
        let others: Vec<Stranger> = std::iter::from_fn(|| strangers.take(other)).collect();
        assert_eq!((others.len(), strangers.patience()), (STRANGERS_MAX - STRANGERS_EACH_MAX, PATIENCE_SHORT));
        drop((ones, others));
        assert!(strangers.take(one).is_some() && strangers.by_address.lock().is_empty());
    }

    #[test]
    fn there_is_room_again_when_enough_have_gone() {
        let room = Room::new(12);
        let mut all: Vec<Taken> = std::iter::from_fn(|| room.take(|| Owner::User(Some(1)))).collect();
        assert_eq!((all.len(), room.refused(), room.silence_max()), (9, 1, SILENCE_SHORT), "others have room");
        all.extend(std::iter::from_fn(|| room.take(|| Owner::User(Some(2)))));
        assert_eq!((all.len(), room.refused()), (12, 2));
        assert!(room.problem().is_some());
        all.truncate(4);
        assert!(room.problem().is_none() && room.take(|| Owner::User(Some(1))).is_some());
        assert_eq!(room.by_owner.lock().len(), 0);
        assert_eq!(room.silence_max(), SILENCE);
    }
}
