//! Sockets that outlive the process: the service manager keeps them (sd_notify(3), `FDSTORE`) and gives them to the process
//! that follows, so that whoever connects in between waits, and is not refused. Those that it has opened itself, by a unit of
//! its own (systemd.socket(5)), are used in the same way. Without a service manager there is none.

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
            Ok(given) => given.map(|(number, name)| (name, own(number))).collect(),
            Err(error) => {
                tracing::warn!(%error, "what the process before this one has left cannot be taken");
                Vec::new()
            }
        };
        Arc::new(Self { left: Mutex::new(left), works, ..Self::default() })
    }

    /// Whether there is a listener at the address: left by the process before this one, or opened by the service manager.
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.left.lock().iter().any(|(name, socket)| takes(name, socket, address))
    }

    /// What the process before this one has left by that name.
    pub(crate) fn take(&self, name: &str) -> Option<OwnedFd> {
        let mut left = self.left.lock();
        let at = left.iter().position(|(own, _)| own == name)?;
        Some(left.swap_remove(at).1)
    }

    /// All of that whose names begin so.
    pub(crate) fn take_all(&self, prefix: &str) -> Vec<(String, OwnedFd)> {
        self.take_where(|name| name.starts_with(prefix))
    }

    fn take_where(&self, meant: impl Fn(&str) -> bool) -> Vec<(String, OwnedFd)> {
        let mut left = self.left.lock();
        let (taken, others) = std::mem::take(&mut *left).into_iter().partition(|(name, _)| meant(name));
        *left = others;
        taken
    }

    /// Keeps a socket by a name.
    pub(crate) fn keep(&self, name: &str, socket: BorrowedFd<'_>) {
        if !self.works {
            return;
        }
        let mut state = vec![NotifyState::FdStore, NotifyState::FdName(name)];
        if name == CAPTURE_PORT {
            // A socket that neither listens nor is connected looks as if its other end had gone, and would be let go of.
            state.push(NotifyState::Custom("FDPOLL=0"));
        }
        if let Err(error) = sd_notify::notify_with_fds(&state, &[socket]) {
            tracing::warn!(%error, "a socket is not kept for the process after this one");
        }
    }

    /// The process stops: what is open stays kept.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Relaxed);
    }

    /// Forgets what nobody has taken: whoever waits there would wait for ever. What the service manager has opened stays.
    pub(crate) fn clear(&self) {
        for (name, _) in self.take_where(is_ours) {
            self.forget(&name);
        }
    }

    /// Keeps it no more.
    pub(crate) fn forget(&self, name: &str) {
        if self.works && is_ours(name) && !self.stops.load(Ordering::Relaxed) {
            // Whoever kept it is gone then.
            let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
    }
}

impl host::Shelf for Shelf {
    fn take(&self, address: SocketAddr) -> Option<(String, TcpListener)> {
        let mut left = self.left.lock();
        let place = left.iter().position(|(name, socket)| takes(name, socket, address))?;
        let (name, socket) = match is_ours(&left[place].0) {
            true => left.swap_remove(place),
            // Every core takes from it, and again after it was let go.
            false => (left[place].0.clone(), left[place].1.try_clone().ok()?),
        };
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

/// Whether connections to the address come in there.
fn takes(name: &str, socket: &OwnedFd, address: SocketAddr) -> bool {
    let Some(own) = at(socket) else { return false };
    if is_ours(name) {
        return name.starts_with(LISTENER) && own == address;
    }
    let same_kind = own.is_ipv4() == address.is_ipv4();
    let both = own.is_ipv6() && !SockRef::from(&socket.as_fd()).only_v6().unwrap_or(true);
    let listens = SockRef::from(&socket.as_fd()).is_listener().unwrap_or(false);
    listens
        && own.port() == address.port()
        && (own.ip() == address.ip() || own.ip().is_unspecified() && (same_kind || both))
}

/// Whether this process or one before it has given it the name, and not the service manager.
fn is_ours(name: &str) -> bool {
    name.starts_with(LISTENER) || name.starts_with(LEAVING) || [CAPTURE_PORT, CAPTURE_OWNER].contains(&name)
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
/// The same of lines to processes that have left exchanges open.
pub(super) const LEAVING: &str = "leaving-";
/// Names of what the redirection of loopback addresses keeps.
pub(super) const CAPTURE_PORT: &str = "capture-port";
pub(super) const CAPTURE_OWNER: &str = "capture-table";

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

    #[test]
    fn what_the_service_manager_listens_on_is_taken_by_every_core() {
        let listener = TcpListener::bind("[::]:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let other = TcpListener::bind("127.0.0.1:0").expect("a port");
        let elsewhere = other.local_addr().expect("bound");
        let left = vec![("weft-gateway.socket".into(), listener.into()), ("weft-gateway.socket".into(), other.into())];
        let shelf = Shelf { left: Mutex::new(left), ..Shelf::default() };
        let takes = |address: SocketAddr| host::Shelf::take(&shelf, address).is_some();
        for ip in ["0.0.0.0", "192.0.2.1", "::", "2001:db8::1"] {
            let address = SocketAddr::new(ip.parse().expect(ip), port);
            assert!(shelf.has(address) && takes(address) && takes(address), "{address}");
        }
        shelf.clear();
        assert!(takes(elsewhere) && !takes(SocketAddr::new([127, 0, 0, 2].into(), elsewhere.port())));
    }
}
