//! The relay between real hosts: what travels from one to another comes through here and can be held up.
//!
//! A node `i` is known to the others as `10.77.0.(100 + i)`, an address of the relay. A connection from node `i` to node `j`
//! arrives at the relay for `j` and goes on from the relay's address for `i`, so whoever sees packets at the relay knows
//! which way between which nodes they take.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::dice::Dice;
use crate::host::MESH_PORT;

/// How long what comes through is held up, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delay {
    /// At least.
    pub least: u64,
    /// Less than.
    pub most: u64,
}

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Chunks of a stream under way before its sender waits.
const CHUNKS_MAX: usize = 64;
/// Longest datagram.
const DATAGRAM_MAX: usize = 65_535;
/// How long a pair of addresses without datagrams is remembered.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Where a host itself is.
pub fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 1 + u8::try_from(host).unwrap_or(0))
}

/// Where the others find it.
pub fn alias(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 100 + u8::try_from(host).unwrap_or(0))
}

#[derive(Default)]
struct Held {
    least: AtomicU64,
    most: AtomicU64,
    dice: Mutex<Option<Dice>>,
}

impl Held {
    fn until(&self) -> Instant {
        let (least, most) = (self.least.load(Ordering::Relaxed), self.most.load(Ordering::Relaxed));
        let mut dice = self.dice.lock();
        let dice = dice.get_or_insert_with(|| Dice::new(u64::from(std::process::id()), "relay"));
        Instant::now() + Duration::from_millis(if most > least { dice.range(least, most) } else { least })
    }
}

/// Relays between so many hosts until the input ends; each line of it is a new [`Delay`].
pub async fn serve(hosts: usize) -> Result<(), String> {
    let held = Arc::new(Held::default());
    for host in 0..hosts {
        let at = SocketAddr::new(IpAddr::V4(alias(host)), MESH_PORT);
        let listener = TcpListener::bind(at).await.map_err(|error| format!("{at}: {error}"))?;
        tokio::spawn(streams(listener, host, held.clone()));
        let socket = UdpSocket::bind(at).await.map_err(|error| format!("{at}: {error}"))?;
        tokio::spawn(datagrams(Arc::new(socket), host, held.clone()));
    }
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let delay: Delay = serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}"))?;
        held.least.store(delay.least, Ordering::Relaxed);
        held.most.store(delay.most, Ordering::Relaxed);
    }
    Ok(())
}

/// The alias of whoever has that address.
fn known_as(from: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V4(from) = from else { return None };
    from.octets()[3].checked_sub(1).map(|host| alias(usize::from(host)))
}

async fn streams(listener: TcpListener, host: usize, held: Arc<Held>) {
    loop {
        let Ok((near, from)) = listener.accept().await else { continue };
        let Some(as_whom) = known_as(from.ip()) else { continue };
        let held = held.clone();
        tokio::spawn(async move {
            // A host that is gone takes no connection, and whoever asks for one learns that.
            let Ok(far) = connect(as_whom, host).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near_in, far_out, held.clone()));
            carry(far_in, near_out, held).await;
        });
    }
}

async fn connect(as_whom: Ipv4Addr, host: usize) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(as_whom), 0))?;
    socket.connect(SocketAddr::new(IpAddr::V4(address(host)), MESH_PORT)).await
}

/// Carries one direction, in order.
async fn carry(mut from: impl AsyncRead + Unpin + Send + 'static, mut to: impl AsyncWrite + Unpin, held: Arc<Held>) {
    let (sender, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let reading = async move {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            if sender.send((held.until(), chunk[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

/// Carries datagrams to a host, and back from it; each is held up on its own, so they overtake each other.
async fn datagrams(socket: Arc<UdpSocket>, host: usize, held: Arc<Held>) {
    let mut pairs: HashMap<SocketAddr, mpsc::UnboundedSender<Vec<u8>>> = HashMap::new();
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
        let pair = pairs.get(&from).filter(|pair| !pair.is_closed()).cloned();
        let pair = match pair {
            Some(pair) => pair,
            None => {
                pairs.retain(|_, pair| !pair.is_closed());
                let Some(pair) = pair_of(&socket, from, host, &held).await else { continue };
                pairs.insert(from, pair.clone());
                pair
            }
        };
        let (at, data) = (held.until(), datagram[..length].to_vec());
        tokio::spawn(async move {
            sleep_until(at).await;
            // Datagrams may be lost.
            let _ = pair.send(data);
        });
    }
}

async fn pair_of(
    socket: &Arc<UdpSocket>,
    from: SocketAddr,
    host: usize,
    held: &Arc<Held>,
) -> Option<mpsc::UnboundedSender<Vec<u8>>> {
    let far = UdpSocket::bind(SocketAddr::new(IpAddr::V4(known_as(from.ip())?), 0)).await.ok()?;
    far.connect(SocketAddr::new(IpAddr::V4(address(host)), MESH_PORT)).await.ok()?;
    let (sender, mut outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
    let (socket, held) = (socket.clone(), held.clone());
    tokio::spawn(async move {
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            tokio::select! {
                data = outgoing.recv() => match data {
                    Some(data) => drop(far.send(&data).await),
                    None => return,
                },
                received = far.recv(&mut datagram) => {
                    // An error tells of a datagram that nobody took, which is no reason to stop.
                    let Ok(length) = received else { continue };
                    let (at, data, socket) = (held.until(), datagram[..length].to_vec(), socket.clone());
                    tokio::spawn(async move {
                        sleep_until(at).await;
                        let _ = socket.send_to(&data, from).await;
                    });
                }
                () = sleep(FORGOTTEN) => return,
            }
        }
    });
    Some(sender)
}
