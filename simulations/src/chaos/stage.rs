//! What real hosts are made of: network namespaces around a relay, small disks, processes. What is made is written down
//! first, and nothing else is ever touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::inhabitant::{Order, Told};
use super::relay::{self, Delay};
use crate::host::user;
use crate::mesh::Mesh;

/// Where it is written down what was made, a file a run, named by its process.
const RECORDS: &str = "/run/weft-chaos";
/// Size of a host's disk.
const DISK: &str = "size=96m";
/// Bound on what a tool of the system may take.
const TOOL_TIMEOUT: Duration = Duration::from_secs(20);
/// The library by which a process gets another clock, where it is installed.
const CLOCK_LIBRARIES: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];

/// Programs that a run needs, each with the Debian package that has it.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("dd", "coreutils"),
    ("kill", "procps"),
];

/// The hosts, and what is between them. All of it is taken away when it is dropped.
pub(super) struct Stage {
    prefix: String,
    directory: PathBuf,
    weft: PathBuf,
    hosts: Vec<Place>,
    relay: Option<(Child, ChildStdin)>,
    told: mpsc::UnboundedSender<(usize, Told)>,
}

/// One host.
#[derive(Default)]
struct Place {
    weft: Option<Child>,
    /// The process that runs the applications and calls as nobody in particular, then one a service.
    inhabitants: Vec<(Option<usize>, Child, ChildStdin)>,
}

/// Runs a tool of the system.
pub(crate) async fn tool(words: &str) -> Result<(), String> {
    let mut parts = words.split(' ');
    let program = parts.next().unwrap_or_default();
    let output = Command::new(program).args(parts).stdin(Stdio::null()).output();
    let output = timeout(TOOL_TIMEOUT, output).await.map_err(|_| format!("{words}: no end"))?;
    let output = output.map_err(|error| format!("{program}: {error}; is it installed?"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{words}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The same where nothing can be waited for.
pub(crate) fn tool_now(words: &str) {
    let mut parts = words.split(' ');
    let mut command = std::process::Command::new(parts.next().unwrap_or_default());
    // What is gone already needs not be taken away.
    let _ = command.args(parts).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// Names all tools that are not on the path, before anything is made.
fn look_for_tools() -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    let missing: Vec<_> = TOOLS.into_iter().filter(|(name, _)| !is_there(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let named = |(name, package): &(&str, &str)| format!("{name} (Debian package {package})");
    Err(format!(
        "not on the path: {}; install them and run again",
        missing.iter().map(named).collect::<Vec<_>>().join(", ")
    ))
}

impl Stage {
    /// Makes namespaces, disks and the relay, and settles the inhabitants.
    pub(super) async fn make(
        weft: &Path,
        mesh: &Mesh,
        count: usize,
        told: mpsc::UnboundedSender<(usize, Told)>,
    ) -> Result<Self, String> {
        look_for_tools()?;
        let prefix = format!("weft-chaos-{}", std::process::id());
        let directory = std::env::temp_dir().join(&prefix);
        let told_of = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        fs::create_dir_all(RECORDS).map_err(|error| format!("{RECORDS}: {error}; real chaos is for root"))?;
        fs::write(Path::new(RECORDS).join(std::process::id().to_string()), count.to_string())
            .map_err(|error| told_of(Path::new(RECORDS), error))?;
        fs::create_dir(&directory).map_err(|error| told_of(&directory, error))?;
        let hosts = (0..count).map(|_| Place::default()).collect();
        let mut stage = Self { prefix, directory, weft: weft.to_owned(), hosts, relay: None, told };
        stage.wire().await?;
        for host in 0..count {
            stage.settle(host, mesh).await?;
        }
        Ok(stage)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-n{host}", self.prefix)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    /// A host's directory.
    pub(super) fn directory(&self, host: usize) -> PathBuf {
        self.directory.join(format!("n{host}"))
    }

    /// Where a host's node keeps its state.
    pub(super) fn data_dir(&self, host: usize) -> PathBuf {
        self.directory(host).join("disk/data")
    }

    async fn wire(&mut self) -> Result<(), String> {
        let hub = self.hub();
        tool(&format!("ip netns add {hub}")).await?;
        tool(&format!("ip -n {hub} link set lo up")).await?;
        tool(&format!("ip -n {hub} link add br0 type bridge")).await?;
        tool(&format!("ip -n {hub} link set br0 up")).await?;
        for host in 0..self.hosts.len() {
            let (name, disk) = (self.namespace(host), self.directory(host).join("disk"));
            tool(&format!("ip netns add {name}")).await?;
            tool(&format!("ip link add eth0 netns {name} type veth peer name n{host} netns {hub}")).await?;
            tool(&format!("ip -n {hub} link set n{host} master br0 up")).await?;
            tool(&format!("ip -n {name} addr add {}/24 dev eth0", relay::address(host))).await?;
            tool(&format!("ip -n {name} link set eth0 up")).await?;
            tool(&format!("ip -n {name} link set lo up")).await?;
            tool(&format!("ip -n {hub} addr add {}/24 dev br0", relay::alias(host))).await?;
            fs::create_dir_all(&disk).map_err(|error| format!("{}: {error}", disk.display()))?;
            tool(&format!("mount -t tmpfs -o {DISK} tmpfs {}", disk.display())).await?;
        }
        for line in ["add table inet chaos", "add chain inet chaos in { type filter hook input priority 0 ; }"] {
            tool(&format!("ip netns exec {hub} nft {line}")).await?;
        }
        let count = self.hosts.len().to_string();
        let mut child = self.inside(&hub, None, &["relay", &count])?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("the relay has no pipes".into()) };
        let mut first = BufReader::new(output).lines();
        let ready = timeout(TOOL_TIMEOUT, first.next_line()).await;
        if !matches!(ready, Ok(Ok(Some(_)))) {
            return Err("the relay does not start".into());
        }
        self.relay = Some((child, input));
        Ok(())
    }

    /// This program in a namespace, as a user where one is named.
    fn inside(&self, namespace: &str, user: Option<u32>, arguments: &[&str]) -> Result<Child, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]);
        if let Some(user) = user {
            command.args(["setpriv", &format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        }
        command.arg(program).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn().map_err(|error| format!("ip: {error}; is it installed?"))
    }

    async fn settle(&mut self, host: usize, mesh: &Mesh) -> Result<(), String> {
        let count = self.hosts.len();
        let here: Vec<usize> = (0..mesh.services.len()).filter(|service| mesh.runs_on(*service, host, count)).collect();
        let callers = here.iter().map(|service| Some(*service));
        for service in [None].into_iter().chain(callers) {
            let mut child = self.inside(&self.namespace(host), service.map(user), &["inhabit"])?;
            let (input, output) = (child.stdin.take(), child.stdout.take());
            let (Some(mut input), Some(output)) = (input, output) else { return Err("no pipes".into()) };
            let applications = if service.is_none() { here.clone() } else { Vec::new() };
            say(&mut input, &Order::Settle(mesh.services.clone(), applications)).await?;
            let told = self.told.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(output).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Ok(one) = serde_json::from_str(&line) {
                        // Nobody listens any more at the end.
                        let _ = told.send((host, one));
                    }
                }
            });
            self.hosts[host].inhabitants.push((service, child, input));
        }
        Ok(())
    }

    /// Tells an inhabitant: the one of a service, or the one that belongs to none.
    pub(super) async fn order(&mut self, host: usize, service: Option<usize>, order: &Order) -> Result<(), String> {
        let found = self.hosts[host].inhabitants.iter_mut().find(|(of, ..)| *of == service);
        let (.., input) = found.ok_or_else(|| format!("nobody on n{host} calls as service {service:?}"))?;
        say(input, order).await
    }

    /// Starts a host's node. It resumes from its disk where there is something.
    pub(super) fn start(&mut self, host: usize, how: &[&str]) -> Result<(), String> {
        let directory = self.directory(host);
        let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("weft.log"));
        let out = fs::OpenOptions::new().create(true).append(true).open(directory.join("weft.out"));
        let (log, out) = (log.map_err(|error| error.to_string())?, out.map_err(|error| error.to_string())?);
        let (namespace, alias) = (self.namespace(host), format!("{}:{}", relay::alias(host), crate::host::MESH_PORT));
        let zone = format!("zone-{}", host % 3);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace]).arg(&self.weft).arg("--data-dir").arg(self.data_dir(host));
        command.args(["up", "--name", &format!("n{host}"), "--advertise", &alias, "--zone", &zone]).args(how);
        if let Some(library) = CLOCK_LIBRARIES.into_iter().find(|library| Path::new(library).exists()) {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", directory.join("clock"));
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            self.skew(host, 0)?;
        }
        command.stdin(Stdio::null()).stdout(out).stderr(log).kill_on_drop(true);
        self.hosts[host].weft = Some(command.spawn().map_err(|error| format!("ip: {error}"))?);
        Ok(())
    }

    /// Whether a host's node has ended by itself since it was last asked.
    pub(super) fn has_ended(&mut self, host: usize) -> Option<String> {
        let status = self.hosts[host].weft.as_mut()?.try_wait().ok().flatten()?;
        self.hosts[host].weft = None;
        Some(status.to_string())
    }

    /// Whether a host's node is there.
    pub(super) fn is_up(&self, host: usize) -> bool {
        self.hosts[host].weft.is_some()
    }

    /// `kill -9`
    pub(super) async fn kill(&mut self, host: usize) {
        if let Some(mut weft) = self.hosts[host].weft.take() {
            // One that has just ended by itself is dead all the same.
            let _ = weft.kill().await;
        }
    }

    /// `SIGSTOP`, or `SIGCONT`.
    pub(super) async fn freeze(&mut self, host: usize, stop: bool) -> Result<(), String> {
        let Some(id) = self.hosts[host].weft.as_ref().and_then(Child::id) else { return Ok(()) };
        tool(&format!("kill -{} {id}", if stop { "STOP" } else { "CONT" })).await
    }

    /// Sets a host's clock off by so many seconds.
    pub(super) fn skew(&self, host: usize, seconds: i64) -> Result<(), String> {
        let file = self.directory(host).join("clock");
        // The library reads it at every look at the clock, so it has to be whole at any moment.
        let next = file.with_extension("next");
        let written = fs::write(&next, format!("{seconds:+}\n")).and_then(|()| fs::rename(&next, &file));
        written.map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Fills a host's disk, or gives the room back.
    pub(super) async fn fill_up(&self, host: usize, full: bool) -> Result<(), String> {
        let file = self.directory(host).join("disk/ballast");
        if full {
            // It ends by failing, which is what it is for.
            let _ = tool(&format!("dd if=/dev/zero of={} bs=64k", file.display())).await;
            return Ok(());
        }
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", file.display())),
            _ => Ok(()),
        }
    }

    /// How long packets are held up between hosts.
    pub(super) async fn delay(&mut self, delay: Delay) -> Result<(), String> {
        let Some((_, input)) = &mut self.relay else { return Ok(()) };
        let line = serde_json::to_string(&delay).map_err(|error| error.to_string())?;
        let written = input.write_all(format!("{line}\n").as_bytes()).await;
        written.map_err(|error| format!("the relay: {error}"))
    }

    /// What is dropped: ways from host to host, and of a thousand packets so many.
    pub(super) async fn drop_packets(&self, ways: &[(usize, usize)], loss: u64) -> Result<(), String> {
        let nft = |line: String| {
            let words = format!("ip netns exec {} nft {line}", self.hub());
            async move { tool(&words).await }
        };
        nft("flush chain inet chaos in".into()).await?;
        for (from, to) in ways {
            let (from, to) = (relay::address(*from), relay::alias(*to));
            nft(format!("add rule inet chaos in ip saddr {from} ip daddr {to} drop")).await?;
        }
        if loss > 0 {
            nft(format!("add rule inet chaos in ip protocol {{ tcp, udp }} numgen random mod 1000 < {loss} drop"))
                .await?;
        }
        Ok(())
    }
}

async fn say(input: &mut ChildStdin, order: &Order) -> Result<(), String> {
    let line = serde_json::to_string(order).map_err(|error| error.to_string())?;
    let written = input.write_all(format!("{line}\n").as_bytes()).await;
    written.map_err(|error| format!("an inhabitant is gone: {error}"))
}

impl Drop for Stage {
    fn drop(&mut self) {
        let count = self.hosts.len();
        self.hosts.clear();
        self.relay = None;
        clear_away(&self.prefix, count);
        let _ = fs::remove_file(Path::new(RECORDS).join(std::process::id().to_string()));
    }
}

/// Takes away what a run of that prefix has made.
fn clear_away(prefix: &str, count: usize) {
    let directory = std::env::temp_dir().join(prefix);
    for host in 0..count {
        let name = format!("{prefix}-n{host}");
        end_all_in(&name);
        tool_now(&format!("umount {}", directory.join(format!("n{host}/disk")).display()));
        tool_now(&format!("ip netns del {name}"));
    }
    end_all_in(&format!("{prefix}-hub"));
    tool_now(&format!("ip netns del {prefix}-hub"));
    // Only where every disk has been taken off; else the next clearing does it.
    let _ = fs::remove_dir_all(&directory);
}

/// Ends every process in a namespace of ours.
fn end_all_in(namespace: &str) {
    let listed = std::process::Command::new("ip").args(["netns", "pids", namespace]).output();
    let Ok(listed) = listed else { return };
    for id in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
        tool_now(&format!("kill -9 {id}"));
    }
}

/// Takes away what runs have left behind that were ended in the middle; how many there were.
pub fn clear_all() -> usize {
    let Ok(records) = fs::read_dir(RECORDS) else { return 0 };
    let mut cleared = 0;
    for record in records.flatten() {
        let name = record.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() || Path::new("/proc").join(&name).exists() {
            continue;
        }
        let count = fs::read_to_string(record.path()).ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        clear_away(&format!("weft-chaos-{name}"), count);
        let _ = fs::remove_file(record.path());
        cleared += 1;
    }
    cleared
}
