//! `weft-sim`: disasters on demand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use weft_simulations::faults::{FaultKind, KINDS};
use weft_simulations::run::{Bug, Report, Setup, run};
use weft_simulations::timeline;
use weft_simulations::trace::Kind;

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
        /// Runs at once [default: all cores]
        #[arg(long)]
        jobs: Option<usize>,
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

const LYING_DISK: &str = "lying-disk";

/// The bugs that this build can plant.
fn bugs() -> Vec<&'static str> {
    #[cfg(feature = "planted")]
    let own = weft_proto::planted::BUGS.map(|(name, _)| name);
    #[cfg(not(feature = "planted"))]
    let own = [];
    [LYING_DISK].into_iter().chain(own).collect()
}

impl Options {
    fn setup(&self, seed: u64) -> Result<Setup, String> {
        let faults = match self.faults.as_deref() {
            None => KINDS.to_vec(),
            Some("none") => Vec::new(),
            Some(list) => list.split(',').map(|name| name.trim().parse::<FaultKind>()).collect::<Result<_, _>>()?,
        };
        let nodes = usize::try_from(self.nodes).unwrap_or(1);
        Ok(Setup { seed, nodes, minutes: self.minutes, faults, bug: self.bug.map(|Named(_, bug)| bug) })
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--nodes={}", self.nodes), format!("--minutes={}", self.minutes)];
        arguments.extend(self.faults.iter().map(|list| format!("--faults={list}")));
        arguments.extend(self.bug.iter().map(|Named(name, _)| format!("--bug={name}")));
        arguments
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Cmd::Run { seed, options, trace } => one(seed, &options, trace),
        Cmd::Replay { seed, options } => one(seed, &options, true),
        Cmd::Sweep { from, to, jobs, options } => sweep(from, to, jobs, &options),
        Cmd::Explain { seed, html, options } => explain(seed, html.as_deref(), &options),
        Cmd::Shrink { seed, options } => shrink(seed, options),
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

fn one(seed: u64, options: &Options, trace: bool) -> Result<bool, String> {
    let report = run(options.setup(seed)?);
    if trace {
        report.trace.events().iter().for_each(|event| println!("{event}"));
    }
    println!("{}", line(seed, &report));
    Ok(report.breach.is_none())
}

fn explain(seed: u64, html: Option<&Path>, options: &Options) -> Result<bool, String> {
    let report = run(options.setup(seed)?);
    let quiet = |kind| matches!(kind, Kind::Allowed | Kind::Denied);
    report.trace.events().iter().filter(|event| !quiet(event.kind)).for_each(|event| println!("{event}"));
    println!("{}", line(seed, &report));
    if let Some(path) = html {
        let page = timeline::page(seed, usize::try_from(options.nodes).unwrap_or(1), &report);
        std::fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report.breach.is_none())
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
            Options { nodes, minutes, faults, bug: options.bug }
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

/// A process a seed: hash maps and tokio draw from counters of the whole process.
#[expect(clippy::disallowed_methods, reason = "seeds are counted by real time")]
fn sweep(from: u64, to: u64, jobs: Option<usize>, options: &Options) -> Result<bool, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1);
    let mut running: BTreeMap<u64, Child> = BTreeMap::new();
    let (mut next, mut done, mut broken) = (from, 0u64, Vec::new());
    let started = Instant::now();
    while next <= to || !running.is_empty() {
        while next <= to && running.len() < jobs {
            let mut command = Command::new(&program);
            command.arg("run").arg(format!("--seed={next}")).args(options.arguments());
            let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            running.insert(next, child.map_err(|error| format!("a run cannot be started: {error}"))?);
            next += 1;
        }
        let Some((seed, child)) = running.pop_first() else { break };
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        done += 1;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let text =
                if text.is_empty() { format!("seed {seed}: the process ended with {}", output.status) } else { text };
            println!("{text}");
            broken.push(seed);
        }
        let rate = f64::from(u32::try_from(done).unwrap_or(u32::MAX)) / started.elapsed().as_secs_f64().max(0.001);
        eprint!("\r{done} of {} seeds, {} broken, {rate:.1} seeds/s ", to - from + 1, broken.len());
    }
    eprintln!();
    println!(
        "{done} seeds, {} broken{}",
        broken.len(),
        broken.iter().map(|seed| format!(" {seed}")).collect::<String>()
    );
    Ok(broken.is_empty())
}
