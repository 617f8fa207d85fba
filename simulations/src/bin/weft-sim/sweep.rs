//! Many runs, each in a process of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Options;

#[derive(Debug, Args)]
pub(crate) struct SweepOptions {
    /// Runs at once [default: all cores]
    #[arg(long)]
    jobs: Option<usize>,
    /// Start no more seeds after so many seconds
    #[arg(long, value_name = "SECONDS")]
    within: Option<u64>,
    /// Run each seed twice and compare the traces; those that differ count as broken
    #[arg(long)]
    twice: bool,
    /// Keep what happened in the first five broken seeds there, as seed-N.txt and seed-N.html
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Seeds that have broken, of which the first are kept.
const KEPT: usize = 5;

/// A process a seed: hash maps and tokio draw from counters of the whole process.
#[expect(clippy::disallowed_methods, reason = "seeds are counted by real time")]
pub(crate) fn sweep(from: u64, to: u64, how: &SweepOptions, options: &Options) -> Result<bool, String> {
    drop(options.setup(from)?);
    let jobs = how.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1);
    let mut running: BTreeMap<u64, Vec<Child>> = BTreeMap::new();
    let (mut next, mut done, mut broken) = (from, 0u64, Vec::new());
    let started = Instant::now();
    // On a terminal only.
    let bar = ProgressBar::new(to - from + 1);
    let style = "{bar:30} {pos} of {len} seeds, {msg} broken, {elapsed} gone, {eta} to go";
    bar.set_style(ProgressStyle::with_template(style).map_err(|error| error.to_string())?);
    bar.set_message("0");
    let is_late = || how.within.is_some_and(|within| started.elapsed().as_secs() >= within);
    while (next <= to && !is_late()) || !running.is_empty() {
        while next <= to && running.len() < jobs && !is_late() {
            let children = (0..=u64::from(how.twice)).map(|_| start(next, options)).collect::<Result<_, _>>()?;
            running.insert(next, children);
            next += 1;
        }
        let Some((seed, children)) = running.pop_first() else { break };
        done += 1;
        if let Some(told) = ended(seed, children)? {
            bar.suspend(|| println!("{told}"));
            if let Some(directory) = how.keep.as_ref().filter(|_| broken.len() < KEPT) {
                keep(directory, seed, options)?;
            }
            broken.push(seed);
        }
        bar.set_message(broken.len().to_string());
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!(
        "{done} seeds, {} broken{}",
        broken.len(),
        broken.iter().map(|seed| format!(" {seed}")).collect::<String>()
    );
    Ok(broken.is_empty())
}

fn start(seed: u64, options: &Options) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg("run").arg(format!("--seed={seed}")).args(options.arguments());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    child.map_err(|error| format!("a run cannot be started: {error}"))
}

/// What the runs of a seed told, where something broke or they differ.
fn ended(seed: u64, runs: Vec<Child>) -> Result<Option<String>, String> {
    let mut all = Vec::new();
    for run in runs {
        let output = run.wait_with_output().map_err(|error| error.to_string())?;
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let silent = told.is_empty();
            return Ok(Some(if silent {
                format!("seed {seed}: the process ended with {}", output.status)
            } else {
                told
            }));
        }
        all.push(told);
    }
    let same = all.iter().all(|told| *told == all[0]);
    Ok((!same).then(|| format!("seed {seed} does not repeat itself:\n{}", all.join("\n"))))
}

/// Keeps what happened in a seed, as text and as a page.
fn keep(directory: &Path, seed: u64, options: &Options) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{}: {error}", directory.display());
    std::fs::create_dir_all(directory).map_err(told)?;
    let text = std::fs::File::create(directory.join(format!("seed-{seed}.txt"))).map_err(told)?;
    let mut command = Command::new(std::env::current_exe().map_err(told)?);
    let page = directory.join(format!("seed-{seed}.html"));
    command.arg("explain").arg(seed.to_string()).arg("--html").arg(page).args(options.arguments());
    command.stdout(text).stderr(Stdio::null()).status().map_err(told).map(drop)
}
