//! Real chaos.

use std::path::PathBuf;

use clap::Args;
use weft_simulations::chaos;
use weft_simulations::trace::Kind;

use crate::{DEFAULT_SCENARIO, faults, line, mesh, real, weft, write_page};

#[derive(Debug, Args)]
pub(crate) struct ChaosOptions {
    /// Which faults and which load are drawn; what comes of them is real and differs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Hosts, 1 to 32
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=32))]
    nodes: u64,
    /// Minutes of faults and load
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    minutes: u64,
    /// Faults that may be drawn, comma-separated, or `none` [default: all that real hosts can be struck with]
    #[arg(long, value_name = "LIST")]
    faults: Option<String>,
    /// What runs, of the meshes that come with the program: routes, shop, tiers
    #[arg(long, value_name = "NAME", default_value = DEFAULT_SCENARIO, conflicts_with = "mesh")]
    scenario: String,
    /// What runs: YAML files with a document of kind Simulation, and resources as for `weft apply`
    #[arg(long, value_name = "FILE")]
    mesh: Vec<PathBuf>,
    /// The program that is put through it [default: `weft` beside this one, or in the path]
    #[arg(long, value_name = "FILE")]
    weft: Option<PathBuf>,
    /// Where to write the timeline as an HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where to leave the nodes' logs
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Only take away what runs have left behind that were ended in the middle
    #[arg(long)]
    clean: bool,
}

/// Puts real processes through it.
pub(crate) fn chaos(options: &ChaosOptions) -> Result<bool, String> {
    println!("{} runs that were ended in the middle are cleared away", chaos::clear_all());
    if options.clean {
        return Ok(true);
    }
    let setup = chaos::Setup {
        seed: options.seed,
        nodes: usize::try_from(options.nodes).unwrap_or(1),
        minutes: options.minutes,
        faults: faults(options.faults.as_deref(), &chaos::KINDS)?,
        mesh: mesh(&options.mesh, &options.scenario)?,
        weft: weft(options.weft.clone())?,
    };
    if let Some(kind) = setup.faults.iter().find(|kind| !chaos::KINDS.contains(kind)) {
        let names = chaos::KINDS.map(|kind| kind.to_string()).join(", ");
        return Err(format!("{kind} is not for real hosts; there are: {names}"));
    }
    let nodes = setup.nodes;
    let report = real(chaos::run(setup, options.keep.clone()))?;
    let quiet = |kind| matches!(kind, Kind::Allowed | Kind::Denied);
    report.trace.events().iter().filter(|event| !quiet(event.kind)).for_each(|event| println!("{event}"));
    report.assertions.iter().for_each(|line| println!("{line}"));
    println!("{}", line(options.seed, &report));
    write_page(options.html.as_deref(), options.seed, nodes, &report)?;
    Ok(report.breach.is_none())
}
