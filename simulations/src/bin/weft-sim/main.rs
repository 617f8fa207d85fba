//! `weft-sim`: disasters on demand.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use weft_simulations::chaos;
use weft_simulations::faults::{FaultKind, KINDS};
use weft_simulations::mesh::Mesh;
use weft_simulations::run::{Bug, Report, Setup, run};
use weft_simulations::tasks::application::{self, Behaviour};
use weft_simulations::tasks::ask;
use weft_simulations::timeline;
use weft_simulations::trace::Kind;

mod chaos_run;
mod sweep;
mod tasks_run;

use chaos_run::{ChaosOptions, chaos};
use sweep::{SweepOptions, sweep};
use tasks_run::tasks;

/// Runs the shipped node through disasters that follow from a seed.
#[derive(Debug, Parser)]
#[command(name = "weft-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// One run; exit code 1 where an invariant broke
    Run {
        /// Everything random follows from it
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        options: Options,
        /// Print what happened, event by event
        #[arg(long)]
        trace: bool,
    },
    /// Many runs, each in a process of its own; exit code 1 where any broke
    Sweep {
        /// First seed
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Last seed
        #[arg(long)]
        to: u64,
        #[command(flatten)]
        how: SweepOptions,
        #[command(flatten)]
        options: Options,
    },
    /// A run again, event by event
    Replay {
        /// The seed
        seed: u64,
        #[command(flatten)]
        options: Options,
    },
    /// A run as a timeline: what mattered as text, all of it as one HTML file
    Explain {
        /// The seed
        seed: u64,
        /// Where to write the HTML file
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        #[command(flatten)]
        options: Options,
    },
    /// Real processes in network namespaces, with real faults; for root. Exit code 1 where an invariant broke
    Chaos {
        #[command(flatten)]
        options: ChaosOptions,
    },
    /// Tasks of Istio's documentation as cases, on real nodes in network namespaces; for root. Exit code 1 where one failed
    Tasks {
        /// Files, or folders of them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The program that is put through it [default: `weft` beside this one, or in the path]
        #[arg(long, value_name = "FILE")]
        weft: Option<PathBuf>,
        /// Tell of what failed alone
        #[arg(long)]
        quiet: bool,
    },
    /// What runs on a host of a task
    #[command(hide = true)]
    Behave {
        /// Its service
        #[arg(long)]
        service: String,
        /// Its version
        #[arg(long)]
        version: String,
        /// Where it listens
        #[arg(long, default_value = "127.0.0.1")]
        address: IpAddr,
        /// At which port
        #[arg(long)]
        port: u16,
        /// Whether it only says that it is at the same name over TLS
        #[arg(long)]
        moved: bool,
        /// Where it writes what it has seen
        #[arg(long)]
        seen: PathBuf,
        /// Its certificate, where it ends TLS itself
        #[arg(long, requires = "key")]
        certificate: Option<PathBuf>,
        /// The key of that
        #[arg(long)]
        key: Option<PathBuf>,
        /// The authority of its callers' certificates, where it answers nobody else
        #[arg(long)]
        callers: Option<PathBuf>,
        /// What it answers, whatever it is asked for
        #[arg(long)]
        page: Option<String>,
    },
    /// Who calls on a host of a task
    #[command(hide = true)]
    Ask,
    /// What lives on a host of real chaos
    #[command(hide = true)]
    Inhabit,
    /// What is between the hosts of real chaos
    #[command(hide = true)]
    Relay {
        /// How many they are
        hosts: usize,
    },
    /// The smallest run of a seed that breaks the same invariant: fewer hosts, minutes, kinds of faults
    Shrink {
        /// The seed
        seed: u64,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, Clone, Args)]
struct Options {
    /// Hosts, 1 to 64
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=64))]
    nodes: u64,
    /// Simulated minutes of faults and load
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    minutes: u64,
    /// Faults that may be drawn, comma-separated, or `none` [default: all]
    #[arg(long, value_name = "LIST")]
    faults: Option<String>,
    /// What runs, of the meshes that come with the program: gateways, routes, shop, tiers
    #[arg(long, value_name = "NAME", default_value = DEFAULT_SCENARIO, conflicts_with = "mesh")]
    scenario: String,
    /// What runs: YAML files with a document of kind Simulation, and resources as for `weft apply`
    #[arg(long, value_name = "FILE")]
    mesh: Vec<PathBuf>,
    /// Plant a bug that the invariants must find: lying-disk, or one of the node's own in a build with the feature
    /// `planted`
    #[arg(long, value_name = "NAME", value_parser = bug)]
    bug: Option<Named>,
}

/// Reads the name of a bug; those of the node itself are only in builds that have them.
fn bug(name: &str) -> Result<Named, String> {
    if name == LYING_DISK {
        return Ok(Named(LYING_DISK, Bug::LyingDisk));
    }
    #[cfg(feature = "planted")]
    if let Some((name, bug)) = weft_proto::planted::BUGS.into_iter().find(|(known, _)| *known == name) {
        return Ok(Named(name, Bug::Planted(bug)));
    }
    Err(format!("{name:?} is no bug that this build can plant; there are: {}", bugs().join(", ")))
}

/// A bug with its name.
#[derive(Debug, Clone, Copy)]
struct Named(&'static str, Bug);

/// The mesh of a run that names none.
const DEFAULT_SCENARIO: &str = "shop";
const LYING_DISK: &str = "lying-disk";

/// The bugs that this build can plant.
fn bugs() -> Vec<&'static str> {
    #[cfg(feature = "planted")]
    let own = weft_proto::planted::BUGS.map(|(name, _)| name);
    #[cfg(not(feature = "planted"))]
    let own = [];
    [LYING_DISK].into_iter().chain(own).collect()
}

/// Reads a list of faults.
fn faults(list: Option<&str>, all: &[FaultKind]) -> Result<Vec<FaultKind>, String> {
    match list {
        None => Ok(all.to_vec()),
        Some("none") => Ok(Vec::new()),
        Some(list) => list.split(',').map(|name| name.trim().parse::<FaultKind>()).collect(),
    }
}

fn mesh(files: &[PathBuf], scenario: &str) -> Result<Arc<Mesh>, String> {
    if files.is_empty() { Mesh::scenario(scenario) } else { Mesh::read(files) }.map(Arc::new)
}

impl Options {
    fn setup(&self, seed: u64) -> Result<Setup, String> {
        Ok(Setup {
            seed,
            nodes: usize::try_from(self.nodes).unwrap_or(1),
            minutes: self.minutes,
            faults: faults(self.faults.as_deref(), &KINDS)?,
            mesh: mesh(&self.mesh, &self.scenario)?,
            bug: self.bug.map(|Named(_, bug)| bug),
        })
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--nodes={}", self.nodes), format!("--minutes={}", self.minutes)];
        arguments.extend(self.faults.iter().map(|list| format!("--faults={list}")));
        if self.mesh.is_empty() {
            arguments.push(format!("--scenario={}", self.scenario));
        }
        arguments.extend(self.mesh.iter().map(|file| format!("--mesh={}", file.display())));
        arguments.extend(self.bug.iter().map(|Named(name, _)| format!("--bug={name}")));
        arguments
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Cmd::Run { seed, options, trace } => one(seed, &options, trace),
        Cmd::Replay { seed, options } => one(seed, &options, true),
        Cmd::Sweep { from, to, how, options } => sweep(from, to, &how, &options),
        Cmd::Explain { seed, html, options } => explain(seed, html.as_deref(), &options),
        Cmd::Shrink { seed, options } => shrink(seed, options),
        Cmd::Chaos { options } => chaos(&options),
        Cmd::Tasks { files, weft, quiet } => tasks(&files, weft, quiet),
        Cmd::Behave { service, version, address, port, moved, seen, certificate, key, callers, page } => {
            let (listen, tls) = (SocketAddr::new(address, port), certificate.zip(key));
            let behaviour = Behaviour { service, version, listen, moved, seen, tls, callers, page };
            real(application::serve(behaviour)).map(|()| true)
        }
        Cmd::Ask => real(ask::ask()).map(|()| true),
        Cmd::Inhabit => real(chaos::inhabitant::live()).map(|()| true),
        Cmd::Relay { hosts } => real(chaos::relay::serve(hosts)).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// What is read before the run draws from the seed too: hash maps of this thread get their keys once.
fn run_seed(seed: u64, options: &Options) -> Result<Report, String> {
    weft_simulations::entropy::seed(seed);
    Ok(run(options.setup(seed)?))
}

fn one(seed: u64, options: &Options, trace: bool) -> Result<bool, String> {
    let report = run_seed(seed, options)?;
    if trace {
        report.trace.events().iter().for_each(|event| println!("{event}"));
    }
    tell(seed, options, &report);
    Ok(report.breach.is_none())
}

/// What became of the assertions, where they are those of somebody, and of the run.
fn tell(seed: u64, options: &Options, report: &Report) {
    if !options.mesh.is_empty() || options.scenario != DEFAULT_SCENARIO {
        report.assertions.iter().for_each(|line| println!("{line}"));
    }
    println!("{}", line(seed, report));
}

fn explain(seed: u64, html: Option<&Path>, options: &Options) -> Result<bool, String> {
    let report = run_seed(seed, options)?;
    let quiet = |kind| matches!(kind, Kind::Allowed | Kind::Denied);
    report.trace.events().iter().filter(|event| !quiet(event.kind)).for_each(|event| println!("{event}"));
    tell(seed, options, &report);
    write_page(html, seed, usize::try_from(options.nodes).unwrap_or(1), &report)?;
    Ok(report.breach.is_none())
}

/// Runs something that lives in real time.
fn real<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(future)
}

/// The program: the one that is named, else the one beside this, else that of the path.
fn weft(named: Option<PathBuf>) -> Result<PathBuf, String> {
    let beside = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("weft");
    Ok(named.unwrap_or_else(|| if beside.exists() { beside } else { PathBuf::from("weft") }))
}

fn write_page(file: Option<&Path>, seed: u64, nodes: usize, report: &Report) -> Result<(), String> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, timeline::page(seed, nodes, report)).map_err(|error| format!("{}: {error}", file.display()))
}

/// What a run of a seed breaks, told by a process of its own; none where all holds.
fn breaks(seed: u64, options: &Options) -> Result<Option<String>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg("run").arg(format!("--seed={seed}")).args(options.arguments()).stderr(Stdio::null());
    let output = command.output().map_err(|error| format!("a run cannot be started: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let broken = text.split_once("BROKEN at ").and_then(|(_, rest)| rest.split(": ").nth(1)).map(str::to_owned);
    Ok(broken.or_else(|| (!output.status.success()).then(|| "the process ended".to_owned())))
}

fn shrink(seed: u64, mut options: Options) -> Result<bool, String> {
    let Some(wanted) = breaks(seed, &options)? else {
        println!("seed {seed} breaks nothing with these options");
        return Ok(true);
    };
    let mut kinds: Vec<FaultKind> = options.setup(seed)?.faults;
    loop {
        let mut smaller: Vec<Options> = Vec::new();
        let fewer = |nodes, minutes, kinds: &[FaultKind]| {
            let names: Vec<String> = kinds.iter().map(ToString::to_string).collect();
            let faults = Some(if names.is_empty() { "none".to_owned() } else { names.join(",") });
            Options { nodes, minutes, faults, ..options.clone() }
        };
        if options.nodes > 1 {
            smaller.push(fewer(options.nodes - 1, options.minutes, &kinds));
        }
        if options.minutes > 1 {
            smaller.push(fewer(options.nodes, options.minutes / 2, &kinds));
        }
        for at in 0..kinds.len() {
            let mut rest = kinds.clone();
            rest.remove(at);
            smaller.push(fewer(options.nodes, options.minutes, &rest));
        }
        let mut found = None;
        for candidate in smaller {
            eprintln!("trying {}", candidate.arguments().join(" "));
            if breaks(seed, &candidate)?.as_ref() == Some(&wanted) {
                found = Some(candidate);
                break;
            }
        }
        let Some(next) = found else { break };
        kinds = next.setup(seed)?.faults;
        options = next;
    }
    println!("{wanted}: weft-sim replay {seed} {}", options.arguments().join(" "));
    Ok(false)
}

fn line(seed: u64, report: &Report) -> String {
    let outcome = match &report.breach {
        None => "ok".to_owned(),
        Some((at, breach)) => format!("BROKEN at {}.{:03} s: {breach}", at / 1000, at % 1000),
    };
    format!(
        "seed {seed} trace {:016x} {} s {} faults {} decisions ({} unknown) {} allowed {} denied {} failed: {outcome}",
        report.trace.hash(),
        report.simulated / 1000,
        report.faults,
        report.decisions.0,
        report.decisions.1,
        report.calls[0],
        report.calls[1],
        report.calls[2],
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
