//! The world a node lives in: network, disk, wall clock and randomness.
//!
//! Production and simulation call the same [`start`](crate::start()) with a world of their own. Monotonic time is tokio's.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use weft_consensus::disk::Disk;
use weft_proto::UnixMillis;
use weft_proxy::net::Net;
use weft_proxy::plane::Clock;

/// What a node takes from outside itself.
pub trait World: Clone + Send + Sync + 'static {
    /// Its sockets.
    type Net: Net;

    /// Sockets: streams and datagrams.
    fn net(&self) -> &Self::Net;

    /// The disk on which the node keeps everything that outlives its process.
    fn disk(&self) -> Arc<dyn Disk>;

    /// Wall clock.
    fn now(&self) -> UnixMillis;

    /// The wall clock, for those who know no world, and may last longer than the node.
    fn clock(&self) -> Clock {
        let world = self.clone();
        Arc::new(move || world.now())
    }

    /// Whether anything on this host listens on the address; none where that can't be told without connecting.
    fn listens(&self, _address: SocketAddr) -> Option<bool> {
        None
    }

    /// Sends what processes of this host send to services' loopback addresses to one listener, from now on; where that is
    /// to be. None where it can't be done: then services' ports have to be listened on.
    fn capture(&self) -> Option<SocketAddr> {
        None
    }

    /// Reads a small file of this host: a certificate, a key.
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("{}: this world has no files", path.display())))
    }

    /// Fills the bytes with randomness fit for secrets.
    fn fill(&self, bytes: &mut [u8]);
}

/// Wall clocks of hosts may differ by so many milliseconds: a fifth of what certificates are dated back.
pub(crate) const OFFSET_MAX_MS: u64 = 60_000;

/// Random bytes of a fixed length.
pub fn random<const N: usize>(world: &impl World) -> [u8; N] {
    let mut bytes = [0; N];
    world.fill(&mut bytes);
    bytes
}
