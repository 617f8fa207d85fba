//! Running a node as a process of this host, from its configuration to its end by a signal.

use std::fs;
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::api::{self, schema::TokenRequest};
use crate::cli::kept::{Said, begun, keep};
use crate::config::{Config, DNS_ADDRESS, Dns, Start};
use crate::dns;
use crate::node::{Host, Node, Registrar};
use crate::os::disk::SledDisk;
use crate::os::holder::Holder;
use crate::os::intercept::InterceptFile;
use crate::os::leaving::{self, Leaving};
use crate::os::listen::ListenFile;
use crate::os::notify;
use crate::os::services::ServicesDirectory;
use crate::os::shelf::Shelf;
use crate::os::units;
use crate::os::{self, HostWorld};
use crate::registry::Local;
use crate::start::start;
use crate::{health, records};

/// Threads of the control plane, which sleeps most of the time: two would wake each other at every message.
const CONTROL_THREADS: usize = 1;
/// How long the data plane may take to finish its exchanges.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(12);
/// How long what the control plane does at the moment may take to end.
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(2);
/// How long exchanges may last beyond a restart of the node.
const STAY_MAX: Duration = Duration::from_secs(600);
/// What the first join line of a new mesh allows.
const FIRST_TOKEN_LIFETIME_S: u64 = 24 * 60 * 60;
const FIRST_TOKEN_USES: u32 = 10;

/// Runs a node until SIGTERM or SIGINT. What was said of this host is kept for the next start.
pub fn run(config: Config, said: &[Said]) -> anyhow::Result<()> {
    os::use_small_pages();
    os::raise_file_limit();
    os::prepare_directory(&config.data_dir).map_err(|error| anyhow!(error))?;
    let address = advertised(&config)?;
    keep(&config.data_dir, said).with_context(|| format!("{} cannot be written", config.data_dir.display()))?;
    // First, since a node that runs on this directory has its ports too.
    let disk = SledDisk::open(&config.data_dir.join("store")).context("the store cannot be opened")?;
    let shelf = Shelf::open();
    claim_ports(&config, &shelf)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("weft-control")
        .enable_all()
        .build()?;
    let holder = Holder::begin();
    let world = HostWorld::new(Arc::new(disk), shelf.clone())?;
    let ended = runtime.block_on(run_on(config, address, world, (shelf, holder.as_ref())));
    // The store is free from here on.
    runtime.shutdown_timeout(RUNTIME_TIMEOUT);
    if let Some(holder) = &holder {
        holder.end(u8::from(ended.is_err()));
    }
    ended?.map_or(Ok(()), Leaving::stay)
}

/// Runs the node until it is to end; answers what stays of it then.
async fn run_on(
    config: Config,
    address: SocketAddr,
    world: HostWorld,
    (shelf, holder): (Arc<Shelf>, Option<&Holder>),
) -> anyhow::Result<Option<Leaving>> {
    let (local, _) = watch::channel(Arc::new(Local::default()));
    let directory = ServicesDirectory::open(config.data_dir.join("services.d"), &config.gateways, local.clone())
        .context("services.d cannot be made")?;
    directory.read();
    units::first(&local).await;
    let (adder, remover) = (directory.clone(), directory.clone());
    let asked = ListenFile::open(config.data_dir.join("listen"), local.clone()).context("the file listen")?;
    let sent = InterceptFile::open(config.data_dir.join(crate::intercept::FILE), local.clone())
        .context("what is intercepted")?;
    let host = Host {
        address,
        local,
        registrar: Registrar {
            register: Box::new(move |spec| adder.add(spec)),
            unregister: Box::new(move |service, only| remover.remove(service, only)),
            listen: Box::new(move |services, remove| asked.change(services, remove)),
            intercept: Box::new(move |kept| sent.change(kept)),
        },
    };
    let founding = matches!(config.start, Start::Found { .. });
    let (socket, metrics, data_dir) = (config.data_dir.join("weft.sock"), config.metrics, config.data_dir.clone());
    let (workers, dns) = (config.workers, config.dns);
    let (node, recorded) = start(config, world, host).await?;
    let finished = spawn_workers(&node, workers)?;
    tokio::spawn(directory.watch());
    tokio::spawn(units::watch(node.local.clone()));
    write_records(recorded, data_dir.join("access.log"))?;
    tokio::spawn(crate::telemetry::upkeep());
    // Who waits for readiness may ask by the socket next.
    serve_api(&node, &socket)?;
    serve_metrics(&node, metrics).await?;
    begun(&data_dir);
    answer_names(&node, dns).await?;
    leaving::watch(&node, &shelf);
    tokio::spawn(notify::tell(node.clone(), shelf.clone(), holder.map(|holder| holder.pid)));
    tracing::info!(node = %node.name(), mesh = %node.trust_domain(), %address, "node started");
    if founding {
        print_welcome(&node).await?;
    }
    let outcome = wait_for_end(&node, holder).await;
    shelf.stop();
    let stays = holder.is_some() && outcome.is_ok() && units::restarts().await;
    tracing::info!("stopping: exchanges in flight have {} s to finish", DRAIN_TIMEOUT.as_secs());
    notify::stopping(2 * DRAIN_TIMEOUT);
    let _ = fs::remove_file(&socket);
    if stays {
        node.plane().stay(STAY_MAX);
        node.stop().await;
        return Ok(Some(Leaving::of(&node, &shelf, (finished, workers)).await.context("what is open cannot stay")?));
    }
    node.stop().await;
    wait_for_workers(finished, workers).await;
    outcome.map(|()| None)
}

/// Writes access records as long as there are any, which may be longer than the node runs.
fn write_records(recorded: records::Recorded, path: PathBuf) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = move || runtime.block_on(records::write(recorded, path));
    std::thread::Builder::new().name("weft-records".into()).spawn(body)?;
    Ok(())
}

async fn serve_metrics(node: &Arc<Node<HostWorld>>, address: Option<SocketAddr>) -> anyhow::Result<()> {
    let Some(address) = address else { return Ok(()) };
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| in_use("--metrics", address))?;
    tokio::spawn(health::serve(node.clone(), listener));
    Ok(())
}

/// Answers names of services by DNS.
async fn answer_names(node: &Arc<Node<HostWorld>>, at: Dns) -> anyhow::Result<()> {
    let listening = match at {
        Dns::Off => return Ok(()),
        Dns::At(address) => dns::Listening::bind(address).await.with_context(|| in_use("--dns", address))?,
        Dns::Auto => match dns::Listening::bind(DNS_ADDRESS).await {
            Ok(listening) => listening,
            Err(error) => {
                tracing::info!(address = %DNS_ADDRESS, %error, "names are not answered by DNS on this node; --dns names another place");
                return Ok(());
            }
        },
    };
    let (plane, captured) = (node.plane().clone(), node.site.captures_all());
    tokio::spawn(listening.run(move || dns::Known { table: plane.table(), captured }));
    Ok(())
}

fn advertised(config: &Config) -> anyhow::Result<SocketAddr> {
    let port = config.listen.port();
    let Some(text) = &config.advertise else {
        let ip = if config.listen.ip().is_unspecified() { os::outward_address() } else { Some(config.listen.ip()) };
        let ip = ip.ok_or_else(|| {
            anyhow!("this host has no address that others could reach it at: name one with --advertise")
        })?;
        return Ok(SocketAddr::new(ip, port));
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    use std::net::ToSocketAddrs;
    let with_port = if text.contains(':') && !text.contains("::") { text.clone() } else { format!("{text}:{port}") };
    let resolved = with_port
        .to_socket_addrs()
        .with_context(|| format!("--advertise {text}: it is not an address and cannot be resolved"))?;
    let mut addresses: Vec<SocketAddr> = resolved.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| anyhow!("--advertise {text}: it resolves to no address"))
}

/// Tells of a port in use before any token is used.
fn claim_ports(config: &Config, shelf: &Shelf) -> anyhow::Result<()> {
    if !shelf.has(config.listen) {
        TcpListener::bind(config.listen).with_context(|| in_use("--listen", config.listen))?;
    }
    UdpSocket::bind(config.listen).with_context(|| in_use("--listen (UDP)", config.listen))?;
    let dns = if let Dns::At(address) = config.dns { Some(address) } else { None };
    for (option, address) in [("--proxy", config.proxy), ("--metrics", config.metrics), ("--dns", dns)] {
        if let Some(address) = address.filter(|address| !shelf.has(*address)) {
            TcpListener::bind(address).with_context(|| in_use(option, address))?;
        }
    }
    Ok(())
}

fn in_use(option: &str, address: SocketAddr) -> String {
    format!("{option} {address} cannot be listened on; choose another with {option}")
}

/// Each core of the data plane is a thread with a runtime of its own.
fn spawn_workers(node: &Arc<Node<HostWorld>>, workers: usize) -> anyhow::Result<mpsc::Receiver<()>> {
    let (done, finished) = mpsc::channel(workers.max(1));
    for index in 0..workers {
        let (plane, done) = (node.plane().clone(), done.clone());
        let body = move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(plane.run_worker(index)),
                Err(error) => tracing::error!(%error, "a worker's runtime cannot be made"),
            }
            let _ = done.blocking_send(());
        };
        std::thread::Builder::new().name(format!("weft-worker-{index}")).spawn(body)?;
    }
    Ok(finished)
}

async fn wait_for_workers(mut finished: mpsc::Receiver<()>, workers: usize) {
    let all = async {
        for _ in 0..workers {
            finished.recv().await;
        }
    };
    if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
        tracing::warn!("some exchanges were still open and are cut");
    }
}

fn serve_api(node: &Arc<Node<HostWorld>>, path: &Path) -> anyhow::Result<()> {
    // The store's lock has told that no other node uses this directory: a socket here is a leftover.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("{} cannot be listened on", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let node = node.clone();
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(api::serve(node.clone(), stream))),
                Err(error) => {
                    tracing::warn!(%error, "the API cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

/// Tells how the next host joins. The line is a secret: it goes to the operator's terminal, or to the file that the
/// operator has named for it. Elsewhere it is not made, since what is printed there ends in a log.
async fn print_welcome(node: &Arc<Node<HostWorld>>) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if !out.is_terminal() && !is_file_of_its_own() {
        writeln!(
            out,
            "Mesh {} is up; this is node {}. To let others join it, make a join line: weft token create",
            node.trust_domain(),
            node.name()
        )?;
        return Ok(out.flush()?);
    }
    let request =
        TokenRequest { lifetime_s: FIRST_TOKEN_LIFETIME_S, uses: FIRST_TOKEN_USES, services: vec!["*".into()] };
    let token = node.api_create_token(request).await.map_err(|failure| anyhow!(failure.error.message))?;
    writeln!(out, "Mesh {} is up; this is node {}. On each further host:\n", node.trust_domain(), node.name())?;
    writeln!(out, "  weft up --join '{}'\n", token.line)?;
    writeln!(out, "The line admits {FIRST_TOKEN_USES} nodes within 24 h. More: `weft token create`.")?;
    Ok(out.flush()?)
}

/// Whether standard output is a file that takes nothing else: the log of standard error, or a service manager's, does not
/// count.
fn is_file_of_its_own() -> bool {
    let file = |descriptor| fs::metadata(format!("/proc/self/fd/{descriptor}")).ok();
    let (Some(out), log) = (file(1), file(2)) else { return false };
    let shared = log.is_some_and(|log| (log.dev(), log.ino()) == (out.dev(), out.ino()));
    out.is_file() && !shared && std::env::var_os("NOTIFY_SOCKET").is_none()
}

async fn wait_for_end(node: &Arc<Node<HostWorld>>, holder: Option<&Holder>) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut failed = node.failed();
    tokio::select! {
        biased;
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = async { holder.expect("there is one").stopped().await }, if holder.is_some() => Ok(()),
        failure = failed.wait_for(Option::is_some) => match failure.ok().and_then(|failure| failure.clone()) {
            Some(why) => bail!("the replicated state has failed and this node serves no more from it: {why}"),
            None => Ok(()),
        },
    }
}
