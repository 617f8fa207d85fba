//! The command line: its commands, and how they end.
//!
//! `weft up` is the node itself; every other command asks a node that runs, through [`crate::client`].

mod analyze;
mod begin;
mod cert;
mod check;
mod debug;
mod file;
mod host;
mod intercept;
pub(crate) mod kept;
mod listen;
mod look;
mod node;
mod resource;
mod run;
mod service;
mod start;
mod systemd;
mod table;
mod token;
mod up;
mod values;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use weft_proto::UnixMillis;

use crate::client::{Client, ClientError};

/// Version of the binary.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Exit code of a failure.
const FAILURE: u8 = 1;
/// Exit code of a command line that makes no sense.
const USAGE: u8 = 2;
/// Exit code of a change that is committed and not in force everywhere within the time given.
const NOT_ENFORCED: u8 = 3;
/// Exit code where something was found.
const FOUND: u8 = 5;
/// Exit code where no node answers.
const UNREACHABLE: u8 = 4;

/// A service mesh in one binary: mutual TLS, policy and discovery for hosts without Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "weft", version, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not in force everywhere yet, 4 no node answers, 5 something was found."
)]
struct Cli {
    /// Where the node's state lives [default: /var/lib/weft for root, else $XDG_STATE_HOME/weft or ~/.local/state/weft]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    data_dir: Option<PathBuf>,
    /// How answers are printed
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = Output::Text, display_order = 901)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node of this host: make a mesh, join one, or go on where it stopped
    Up(Box<up::Up>),
    /// Make a new mesh with this host as its first node, run by systemd, now and after each boot
    Init(Box<begin::Init>),
    /// Let this host join a mesh, run by systemd, now and after each boot
    Join(Box<begin::Join>),
    /// Tokens with which hosts join
    #[command(subcommand)]
    Token(token::Token),
    /// Services of this host and of the mesh
    #[command(subcommand)]
    Service(service::Service),
    /// Run a command that is an instance of a service for as long as it runs
    Run(Box<run::Command>),
    /// Call services by their loopback addresses from this host
    Listen(listen::Command),
    /// What of this host's connections goes through its node, of programs that know nothing of the mesh
    #[command(subcommand)]
    Intercept(intercept::Command),
    /// Apply documents, all or none
    Apply(resource::Apply),
    /// Print documents
    Get(resource::Get),
    /// Delete documents
    Delete(resource::Delete),
    /// Certificates of gateways, and of this node and its services
    #[command(subcommand)]
    Cert(cert::Cert),
    /// Whether this host, and its way to the others, are fit: before it joins, and after
    Check(check::Command),
    /// What a report of a problem needs
    #[command(subcommand)]
    Debug(debug::Debug),
    /// How the mesh looks from this node
    Status,
    /// Every node of the mesh
    Members,
    /// Who is in the mesh
    #[command(subcommand)]
    Node(node::Node),
    /// What would happen to a call, and why
    Explain(look::Explain),
    /// What is wrong with documents though each of them is good
    Analyze(analyze::Analyze),
    /// Three nodes on this machine, from an empty directory to a renewed certificate, in under a minute
    Demo,
    /// Print what lets a shell complete these commands
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages, one for each command
    #[command(hide = true)]
    Man {
        /// Where
        directory: PathBuf,
    },
    /// Be the process that the service manager takes for a node's
    #[command(hide = true)]
    Hold {
        /// The node's process
        #[arg(long)]
        node: u32,
        /// In this process, not in one that it begins
        #[arg(long)]
        here: bool,
    },
    /// Print the version
    Version,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What commands need beside their options.
struct Context {
    client: Client,
    output: Output,
    now: UnixMillis,
}

/// A command that has something to print.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    text: String,
    code: u8,
}

/// A command that failed: one line a fault.
#[derive(Debug, PartialEq, Eq)]
struct Stopped {
    lines: Vec<String>,
    code: u8,
}

type Ended = Result<Done, Stopped>;

/// Runs a command line to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let (out, mut errors, code) = match execute(cli) {
        Ok(done) => (done.text, Vec::new(), done.code),
        Err(stopped) => (String::new(), stopped.lines, stopped.code),
    };
    // A reader that has gone away, such as `head`, is no failure.
    match io::stdout().write_all(out.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => errors.push(format!("standard output: {error}")),
        _ => {}
    }
    let code = if code == 0 && !errors.is_empty() { FAILURE } else { code };
    let text: String = errors.iter().flat_map(|error| error.lines()).map(|line| format!("weft: {line}\n")).collect();
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

fn execute(cli: Cli) -> Ended {
    let data_dir = match cli.data_dir {
        Some(data_dir) => data_dir,
        None => default_data_dir()?,
    };
    match cli.command {
        Command::Up(up) => up.execute(data_dir),
        Command::Init(init) => init.execute(&data_dir),
        Command::Join(join) => join.execute(&data_dir),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut text);
            Ok(Done::text(String::from_utf8_lossy(&text).into_owned()))
        }
        Command::Man { directory } => {
            let written = clap_mangen::generate_to(Cli::command(), &directory);
            let failed = |error| Stopped::failed(format!("{}: {error}", directory.display()));
            written.map(|()| Done::text(String::new())).map_err(failed)
        }
        Command::Hold { node, here } => {
            let held = crate::os::holder::hold(node, here).map_err(|error| Stopped::failed(error.to_string()));
            held.map(|code| Done { code, ..Done::text(String::new()) })
        }
        Command::Demo => crate::demo::main().map(|()| Done::text(String::new())).map_err(Stopped::failed),
        Command::Intercept(command) => {
            let runtime = runtime()?;
            runtime.block_on(command.execute(&data_dir, cli.output))
        }
        command => ask_node(command, &data_dir, cli.output),
    }
}

fn ask_node(command: Command, data_dir: &Path, output: Output) -> Ended {
    let runtime = runtime()?;
    let context = Context { client: Client::new(data_dir), output, now: crate::os::now() };
    match command {
        Command::Check(check) => runtime.block_on(check.execute(data_dir, &context)),
        Command::Debug(debug) => runtime.block_on(debug.execute(data_dir, &context)),
        command => runtime.block_on(ask(command, &context)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Stopped> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Stopped::failed(format!("no runtime: {error}")))
}

async fn ask(command: Command, context: &Context) -> Ended {
    match command {
        Command::Token(token) => token.execute(context).await,
        Command::Service(service) => service.execute(context).await,
        Command::Run(run) => run.execute(context).await,
        Command::Listen(listen) => listen.execute(context).await,
        Command::Apply(apply) => apply.execute(context).await,
        Command::Get(get) => get.execute(context).await,
        Command::Delete(delete) => delete.execute(context).await,
        Command::Cert(cert) => cert.execute(context).await,
        Command::Status => look::status(context).await,
        Command::Members => look::members(context).await,
        Command::Node(node) => node.execute(context).await,
        Command::Explain(explain) => explain.execute(context).await,
        Command::Analyze(analyze) => analyze.execute(context).await,
        Command::Version
        | Command::Up(_)
        | Command::Check(_)
        | Command::Debug(_)
        | Command::Intercept(_)
        | Command::Init(_)
        | Command::Join(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Hold { .. }
        | Command::Demo => {
            context.render(&serde_json::json!({ "version": VERSION }), |_| format!("weft {}\n", VERSION))
        }
    }
}

fn default_data_dir() -> Result<PathBuf, Stopped> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/weft"));
    }
    let directory = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = directory("XDG_STATE_HOME").or_else(|| directory("HOME").map(|home| home.join(".local/state")));
    let state = state.ok_or_else(|| Stopped::usage("neither XDG_STATE_HOME nor HOME is set: name a --data-dir"))?;
    Ok(state.join("weft"))
}

impl Context {
    /// The answer as it was wished for.
    fn render<T: Serialize>(&self, answer: &T, text: impl FnOnce(&T) -> String) -> Ended {
        match self.output {
            Output::Text => Ok(Done::text(text(answer))),
            Output::Json => json(answer).map(Done::text),
        }
    }
}

fn json(answer: &impl Serialize) -> Result<String, Stopped> {
    let text = serde_json::to_string_pretty(answer).map_err(Stopped::failed)?;
    Ok(text + "\n")
}

impl Done {
    fn text(text: String) -> Self {
        Self { text, code: 0 }
    }
}

impl Stopped {
    fn failed(why: impl Display) -> Self {
        Self { lines: vec![why.to_string()], code: FAILURE }
    }

    fn usage(why: impl Display) -> Self {
        Self { lines: vec![why.to_string()], code: USAGE }
    }
}

impl From<ClientError> for Stopped {
    fn from(error: ClientError) -> Self {
        let first = error.to_string();
        match error {
            ClientError::Absent(_) | ClientError::Forbidden(_) => Self { lines: vec![first], code: UNREACHABLE },
            ClientError::Broken { .. } => Self::failed(first),
            ClientError::Refused(error) => {
                Self { lines: std::iter::once(first).chain(error.faults).collect(), code: FAILURE }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse(line: &str) -> Result<Command, String> {
        let cli = Cli::try_parse_from(line.split_whitespace());
        cli.map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "weft",
            "weft up --init --join x",
            "weft up --join x --join-file y",
            "weft up --deny-by-default",
            "weft up --voters 2",
            "weft up --bind 1",
            "weft token create --uses 0",
            "weft service add web",
            "weft apply",
            "weft get Giz/mo",
            "weft delete",
            "weft delete Service",
            "weft delete Service x -f y",
            "weft explain",
            "weft explain a b GET / more",
            "weft explain a b --from 192.0.2.1",
        ] {
            assert!(parse(line).is_err(), "{line:?} was accepted");
        }
        for line in [
            "weft up",
            "weft --output json members",
            "weft get services -o yaml --data-dir x",
            "weft explain a b:80 GET /x -H a:b",
            "weft delete service x -n y --expected 7 --wait",
            "weft delete -f x -f y",
            "weft apply -f - --dry-run",
        ] {
            parse(line).expect(line);
        }
    }

    #[test]
    fn an_absent_node_has_a_code_and_a_remedy_of_its_own() {
        let stopped = Stopped::from(ClientError::Absent(PathBuf::from("/x/weft.sock")));
        assert_eq!(stopped.code, UNREACHABLE);
        assert!(stopped.lines[0].starts_with("no weft node answers on /x/weft.sock: start one with `weft up`"));
    }

    #[test]
    fn every_fault_is_a_line_of_its_own() {
        let faults = vec!["a".to_owned(), "b".to_owned()];
        let error =
            crate::api::schema::Error { reason: "bad-request".into(), message: "nothing was applied".into(), faults };
        assert_eq!(Stopped::from(ClientError::Refused(error)).lines, ["nothing was applied", "a", "b"]);
    }
}
