//! Sockets that outlive the process: the service manager keeps them (sd_notify(3), `FDSTORE`) and gives them to the process
//! that follows, so that whoever connects in between waits, and is not refused. Without a service manager there is none.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use sd_notify::NotifyState;
use socket2::SockRef;
use weft_proxy::net::host;

/// What is kept, and what the process before this one has left.
#[derive(Default)]
pub(crate) struct Shelf {
    left: Mutex<Vec<(String, OwnedFd)>>,
    /// Whether there is somebody to keep it.
    works: bool,
    count: AtomicU64,
    /// Whether the process stops: what is closed from then on is kept.
    stops: AtomicBool,
}

impl Shelf {
    /// With what the process before this one has left.
    pub(crate) fn open() -> Arc<Self> {
        let works = std::env::var_os("NOTIFY_SOCKET").is_some();
        let left = match sd_notify::listen_fds_with_names() {
            Ok(given) if works => given.map(|(number, name)| (name, own(number))).collect(),
            Ok(_) => Vec::new(),
            Err(error) => {
                tracing::warn!(%error, "what the process before this one has left cannot be taken");
                Vec::new()
            }
        };
        Arc::new(Self { left: Mutex::new(left), works, ..Self::default() })
    }

    /// Whether the process before this one has left a listener at the address.
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.left.lock().iter().any(|(name, socket)| is_listener(name) && at(socket) == Some(address))
    }

    /// What the process before this one has left by that name.
    pub(crate) fn take(&self, name: &str) -> Option<OwnedFd> {
        let mut left = self.left.lock();
        let at = left.iter().position(|(own, _)| own == name)?;
        Some(left.swap_remove(at).1)
    }

    /// Keeps a socket by a name.
    pub(crate) fn keep(&self, name: &str, socket: BorrowedFd<'_>) {
        if !self.works {
            return;
        }
        if let Err(error) = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[socket]) {
            tracing::warn!(%error, "a socket is not kept for the process after this one");
        }
    }

    /// The process stops: what is open stays kept.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Relaxed);
    }

    /// Forgets what nobody has taken: whoever waits there would wait for ever.
    pub(crate) fn clear(&self) {
        for (name, _) in std::mem::take(&mut *self.left.lock()) {
            self.forget(&name);
        }
    }

    fn forget(&self, name: &str) {
        if self.works && !self.stops.load(Ordering::Relaxed) {
            // Whoever kept it is gone then.
            let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
    }
}

impl host::Shelf for Shelf {
    fn take(&self, address: SocketAddr) -> Option<(String, TcpListener)> {
        let mut left = self.left.lock();
        let place = left.iter().position(|(name, socket)| is_listener(name) && at(socket) == Some(address))?;
        let (name, socket) = left.swap_remove(place);
        Some((name, TcpListener::from(socket)))
    }

    fn put(&self, listener: BorrowedFd<'_>) -> String {
        let (process, count) = (std::process::id(), self.count.fetch_add(1, Ordering::Relaxed));
        let name = format!("{LISTENER}{process}-{count}");
        self.keep(&name, listener);
        name
    }

    fn remove(&self, name: &str) {
        self.forget(name);
    }
}

fn is_listener(name: &str) -> bool {
    name.starts_with(LISTENER)
}

fn at(socket: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(&socket.as_fd()).local_addr().ok()?.as_socket()
}

/// Takes what the service manager has given to this process.
fn own(number: i32) -> OwnedFd {
    #[expect(
        unsafe_code,
        reason = "descriptors are given by their numbers alone (sd_listen_fds(3)); nothing safe takes them"
    )]
    // SAFETY: the service manager has opened it for this process, which takes each once, before anything else.
    unsafe {
        OwnedFd::from_raw_fd(number)
    }
}

/// How the names of listeners begin.
const LISTENER: &str = "listener-";

#[cfg(test)]
mod tests {
    use host::Shelf as _;

    use super::*;

    #[test]
    fn what_was_left_is_found_by_its_address_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let shelf = Shelf { left: Mutex::new(vec![("listener-1-0".into(), listener.into())]), ..Shelf::default() };
        assert!(shelf.has(address));
        assert!(Shelf::take(&shelf, "capture-table").is_none());
        let (name, taken) = host::Shelf::take(&shelf, address).expect("left");
        assert_eq!((name.as_str(), taken.local_addr().ok()), ("listener-1-0", Some(address)));
        assert!(!shelf.has(address) && host::Shelf::take(&shelf, address).is_none());
        // Nobody keeps anything here, and nobody minds.
        let name = shelf.put(taken.as_fd());
        shelf.remove(&name);
        shelf.clear();
    }
}
