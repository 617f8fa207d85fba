//! The real world: the host's sockets, disk, clock and entropy. Nothing else in the node touches them.

mod capture;
pub mod disk;
pub(crate) mod holder;
pub mod intercept;
pub(crate) mod leaving;
pub mod listen;
mod listening;
mod netlink;
pub(crate) mod notify;
pub mod owner;
pub mod services;
pub(crate) mod shelf;
pub(crate) mod units;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use weft_consensus::disk::Disk;
use weft_proto::UnixMillis;
use weft_proto::loopback::ADDRESSES;
use weft_proxy::net::host::HostNet;
use weft_proxy::tls::Clock;

use crate::registry::Names;
use crate::world::World;
use capture::Capture;
use owner::Owners;
use shelf::Shelf;

/// The host that this process runs on.
#[derive(Clone)]
pub struct HostWorld {
    net: HostNet,
    disk: Arc<dyn Disk>,
    capture: Arc<OnceLock<Capture>>,
    shelf: Arc<Shelf>,
}

impl HostWorld {
    /// The host, with the node's store under the data directory.
    pub(crate) fn new(disk: Arc<dyn Disk>, shelf: Arc<Shelf>) -> io::Result<Self> {
        let owners = Owners::new()?;
        let net = HostNet::new(Arc::new(move |ours, theirs| owners.owner(ours, theirs))).with_shelf(shelf.clone());
        Ok(Self { net, disk, capture: Arc::default(), shelf })
    }
}

/// What this host knows of names.
pub(crate) const NAMES: Names<'static> = Names { user: &user, address: &address };

fn address(name: &str) -> Option<SocketAddr> {
    let mut all: Vec<SocketAddr> = std::net::ToSocketAddrs::to_socket_addrs(name).ok()?.collect();
    all.sort_by_key(SocketAddr::is_ipv6);
    all.first().copied()
}

impl World for HostWorld {
    type Net = HostNet;

    fn net(&self) -> &HostNet {
        &self.net
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn now(&self) -> UnixMillis {
        now()
    }

    fn clock(&self) -> Clock {
        // Whoever has it does not hold the disk.
        Arc::new(now)
    }

    fn listens(&self, address: SocketAddr) -> Option<bool> {
        listening::on(address)
    }

    fn capture(&self) -> Option<SocketAddr> {
        match Capture::open(ADDRESSES, &self.shelf) {
            Ok(opened) => {
                let address = self.capture.get_or_init(|| opened).address;
                self.net.capture(address);
                Some(address)
            }
            Err(error) => {
                tracing::info!(
                    %error,
                    "services' addresses are not captured on this host, which takes CAP_NET_ADMIN and one node a host; \
                     their ports are listened on as --loopback says"
                );
                None
            }
        }
    }

    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let length = std::fs::metadata(path)?.len();
        if length > FILE_LENGTH_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{length} bytes; at most {FILE_LENGTH_MAX}"),
            ));
        }
        std::fs::read(path)
    }

    fn fill(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the system's entropy source works");
    }
}

/// Longest file with a certificate or a key: 1 MiB.
const FILE_LENGTH_MAX: u64 = 1 << 20;

/// The wall clock.
#[expect(clippy::disallowed_methods, reason = "the real world is where the wall clock is read")]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether this host has IPv6: the kernel lists no addresses of it where it has none to give.
pub(crate) fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/net/if_inet6").is_ok_and(|addresses| !addresses.trim().is_empty())
}

/// Makes the data directory, readable by its owner only, or checks that it is.
pub fn prepare_directory(path: &Path) -> Result<(), String> {
    let shown = path.display();
    if !path.exists() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        return made.map_err(|error| format!("the data directory {shown} cannot be made: {error}"));
    }
    let metadata = std::fs::metadata(path).map_err(|error| format!("the data directory {shown}: {error}"))?;
    if !metadata.is_dir() {
        return Err(format!("{shown} is not a directory: choose another --data-dir"));
    }
    let me = nix::unistd::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(format!(
            "the data directory {shown} belongs to user {}, and weft runs as user {me}: run it as that user, or `chown -R {me} {shown}`",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(path, mode).map_err(|error| {
            format!(
                "the data directory {shown} holds keys and is open to other users; `chmod 700 {shown}` failed: {error}"
            )
        })?;
        tracing::warn!(directory = %shown, "the data directory was open to other users; its mode is 700 now");
    }
    Ok(())
}

/// The address that this host sends from when it reaches beyond itself. Nothing is sent to find out.
pub fn outward_address() -> Option<IpAddr> {
    const DOCUMENTATION_HOST: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 9);
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(DOCUMENTATION_HOST).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

/// Lets this process hold as many connections as the host allows it.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "the limit of open files could not be raised");
    }
}

/// Most connections of applications at once: half of the files that the process may open, since as many connections go out
/// to instances, less what the store, control and links need.
pub fn connections_max() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(FILES, |(_, hard)| hard);
    let limit = usize::try_from(limit.min(FILES_MAX)).unwrap_or(usize::MAX);
    limit.saturating_sub(FILES_KEPT.min(limit / 2)) / 2
}

/// What Linux allows a process unless it is set, and more than any host has use for.
const FILES: u64 = 4_096;
const FILES_MAX: u64 = 1 << 20;
/// Files kept for the store, control and links.
const FILES_KEPT: usize = 512;

/// Keeps memory in pages of 4 KiB: with huge ones a node at rest holds three times as much, most of it never touched.
pub fn use_small_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages could not be switched off");
    }
}

/// The number of a user of this host.
pub fn user(name: &str) -> Option<u32> {
    nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}
