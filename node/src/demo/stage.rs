//! What the demo takes from the host: a directory, ports, processes. All of it is given back when the stage is dropped.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs, process};

use parking_lot::Mutex;
use tokio::time::interval;

use crate::client::Client;

/// The nodes' names.
pub(super) const NODES: [&str; 3] = ["a", "b", "c"];
/// Lowest port that is tried; below it are those of well-known servers.
const PORT_MIN: u16 = 20_000;
/// End of the ports that are tried where the kernel does not tell which it gives to outgoing connections.
const PORT_END: u16 = 32_768;
/// Ports between the beginnings of two demos of one process; one takes fewer.
const APART: u32 = 97;
/// Lines of each node's log that are shown after a failure.
const LOG_LINES: usize = 6;
/// How often it is looked whether a node has ended by itself.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How far from its end a log is read for them.
const LOG_LENGTH: u64 = 8 << 10;

/// The directory, the nodes and the ports.
pub(super) struct Stage {
    pub(super) directory: PathBuf,
    pub(super) nodes: [Node; 3],
    pub(super) ports: Ports,
}

impl Stage {
    /// Makes the directory and finds ports. Nothing runs yet.
    pub(super) fn open() -> Result<Self, String> {
        let directory = env::temp_dir().join(format!("weft-demo-{}", process::id()));
        let failed = |error: io::Error| format!("{} cannot be made: {error}", directory.display());
        let mut ports = Ports::new();
        let mut nodes = Vec::new();
        for name in NODES {
            let [listen, proxy, metrics] = [ports.take()?, ports.take()?, ports.take()?].map(local);
            let data_dir = directory.join(name);
            nodes.push(Node {
                name,
                client: Client::new(&data_dir),
                data_dir,
                listen,
                proxy,
                metrics,
                process: Process::default(),
            });
        }
        let nodes = nodes.try_into().map_err(|_| "there are three nodes".to_owned())?;
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        Ok(Self { directory, nodes, ports })
    }

    /// Ends when a node has ended that nobody has killed.
    pub(super) fn node_ended(&self) -> impl Future<Output = String> + use<> {
        let processes = self.nodes.each_ref().map(|node| (node.name, node.process.clone()));
        async move {
            let mut ticks = interval(LOOK_INTERVAL);
            loop {
                ticks.tick().await;
                for (name, process) in &processes {
                    if let Some(Ok(Some(status))) = process.lock().as_mut().map(Child::try_wait) {
                        return format!("node {name} has ended by itself ({status})");
                    }
                }
            }
        }
    }

    /// A failure with what the nodes last logged.
    pub(super) fn explain(&self, why: &str) -> String {
        let mut text = why.to_owned();
        for node in &self.nodes {
            let log = node.log_end();
            if !log.is_empty() {
                text.push_str(&format!("\nthe log of node {} ends with:\n{log}", node.name));
            }
        }
        text
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.nodes.iter().for_each(Node::kill);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One node and its process.
pub(super) struct Node {
    pub(super) name: &'static str,
    pub(super) client: Client,
    pub(super) proxy: SocketAddr,
    pub(super) listen: SocketAddr,
    data_dir: PathBuf,
    metrics: SocketAddr,
    process: Process,
}

/// None while it is not meant to run.
type Process = Arc<Mutex<Option<Child>>>;

impl Node {
    /// Starts its process, with further options of `weft up`.
    pub(super) fn start(&self, options: &[&str]) -> Result<(), String> {
        let failed = |error: io::Error| format!("node {} cannot be started: {error}", self.name);
        let log = OpenOptions::new().create(true).append(true).open(self.log()).map_err(failed)?;
        let loopback = if self.name == NODES[0] { "all" } else { "off" };
        let [listen, proxy, metrics] = [self.listen, self.proxy, self.metrics].map(|address| address.to_string());
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        command.arg("--data-dir").arg(&self.data_dir);
        command.args(["up", "--name", self.name, "--listen", &listen, "--advertise", &listen, "--proxy", &proxy]);
        command.args(["--metrics", &metrics, "--loopback", loopback, "--workers", "1", "--log-format", "text"]);
        command.args(options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // In a group of its own, so that Ctrl-C reaches the demo, which ends its nodes itself.
        command.process_group(0);
        *self.process.lock() = Some(command.spawn().map_err(failed)?);
        Ok(())
    }

    /// Ends its process as a crash would (SIGKILL).
    pub(super) fn kill(&self) {
        if let Some(mut child) = self.process.lock().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log(&self) -> PathBuf {
        self.data_dir.with_extension("log")
    }

    fn log_end(&self) -> String {
        let text = read_end(&self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        last.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LENGTH)))?;
    let mut bytes = Vec::new();
    file.take(LOG_LENGTH).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An address of this machine that no other machine reaches.
pub(super) fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Free ports outside the range from which the kernel serves outgoing connections, so that none is taken between its
/// finding and its use, or while a node is down.
pub(super) struct Ports {
    left: Box<dyn Iterator<Item = u16> + Send>,
}

impl Ports {
    pub(super) fn new() -> Self {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let end = range.split_whitespace().next().and_then(|port| port.parse().ok());
        let end = end.filter(|end| *end > PORT_MIN + 1000).unwrap_or(PORT_END);
        // Two demos at once begin at different places, be they of one process or of two.
        static BEGUN: AtomicU32 = AtomicU32::new(0);
        let place = process::id().wrapping_mul(61).wrapping_add(BEGUN.fetch_add(1, Ordering::Relaxed) * APART);
        let shift = u16::try_from(place % u32::from(end - PORT_MIN)).unwrap_or(0);
        Self { left: Box::new((PORT_MIN + shift..end).chain(PORT_MIN..PORT_MIN + shift)) }
    }

    /// The next free one.
    pub(super) fn take(&mut self) -> Result<u16, String> {
        self.left.by_ref().find(|port| is_free(*port)).ok_or_else(|| "this machine has no free port".to_owned())
    }

    /// The wished one where it is free, else the next.
    pub(super) fn take_preferred(&mut self, port: u16) -> Result<u16, String> {
        if is_free(port) { Ok(port) } else { self.take() }
    }
}

/// Free on every address, for TCP and UDP.
fn is_free(port: u16) -> bool {
    let every = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(every).is_ok() && UdpSocket::bind(every).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stage_notices_a_node_that_ends_by_itself_and_gives_back_what_it_took() {
        let stage = Stage::open().expect("a stage");
        let directory = stage.directory.clone();
        let [a, b, c] = &stage.nodes;
        fs::write(a.log(), "first\nlast\n").expect("written");
        assert_eq!(stage.explain("it broke"), "it broke\nthe log of node a ends with:\n  first\n  last");
        let child = Command::new("sleep").arg("600").spawn().expect("a process");
        let id = child.id();
        *a.process.lock() = Some(child);
        *b.process.lock() = Some(Command::new("sleep").arg("600").spawn().expect("a process"));
        b.kill();
        *c.process.lock() = Some(Command::new("true").spawn().expect("a process"));
        let noticed = tokio::time::timeout(Duration::from_secs(10), stage.node_ended()).await.expect("it is noticed");
        assert!(noticed.starts_with("node c has ended by itself"), "{noticed}");
        drop(stage);
        assert!(!directory.exists());
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn ports_differ_and_a_taken_one_is_passed_over() {
        let mut ports = Ports::new();
        let first = ports.take().expect("a port");
        let held = TcpListener::bind(local(first)).expect("it is free");
        let other = ports.take_preferred(first).expect("another port");
        assert_ne!(first, other);
        drop(held);
    }
}
