//! `weft intercept`: what of this host's connections its firewall sends to the node.

mod firewall;
mod shown;
mod units;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use weft_proto::kinds::hosts;

use super::{Done, Ended, Output, Stopped, json, systemd};
use crate::client::{Client, ClientError};
use crate::intercept::rules::{self, Host};
use crate::intercept::{FILE, Intercept, Intercepted, Interception, Kept, WhenStopped};
use crate::os::intercept::read;
use shown::Shown;

/// How long whoever switches it on has to say that it stays.
const CONFIRM_WITHIN: &str = "60";
/// How long the node has to listen for what will be sent to it.
const LISTENING: Duration = Duration::from_secs(5);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the rules that `on` would make, and change nothing
    Plan(What),
    /// Switch it on: it goes back by itself to what was before unless `confirm` follows in time
    On(On),
    /// Keep it, also after a reboot
    Confirm,
    /// Switch it off: no rule is left
    Off,
    /// What is intercepted
    Status,
    /// Whether what is intercepted is what should be: exit code 1 where it is not
    Verify,
    /// Make the rules again that were made before, as after a reboot, or when a unit has got a new control group
    #[command(hide = true)]
    Restore,
    /// Take the rules away and keep what was asked for
    #[command(hide = true)]
    Clear,
    /// Switch it off unless it has been confirmed by then
    #[command(hide = true)]
    Rollback {
        #[arg(long)]
        attempt: u64,
        #[arg(long)]
        after: u64,
    },
}

/// What is intercepted.
#[derive(Debug, Clone, Args)]
pub(super) struct What {
    /// A TCP port of this host: what others connect to there in plain text is judged by PeerAuthentication; may be repeated
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    inbound: Vec<u16>,
    /// A user of this host, by name or number: what its programs connect to goes through the mesh; may be repeated
    #[arg(long, value_name = "USER")]
    user: Vec<String>,
    /// The same of a unit of systemd; may be repeated
    #[arg(long, value_name = "UNIT")]
    unit: Vec<String>,
    /// A port to which connections go as ever; may be repeated. That of SSH, the node's own and that of this session always are
    #[arg(long, value_name = "PORT")]
    exclude_port: Vec<u16>,
    /// Addresses to which and from which connections go as ever; may be repeated
    #[arg(long, value_name = "ADDRESS[/LENGTH]", value_parser = block)]
    exclude_address: Vec<IpNet>,
    /// A user whose programs connect as ever, though a unit of theirs is named; may be repeated
    #[arg(long, value_name = "USER")]
    exclude_user: Vec<String>,
    /// What becomes of such connections while the node does not run: they are refused, or pass as if there were no mesh (for a node
    /// that systemd runs)
    #[arg(long, value_enum, default_value = "refuse")]
    when_stopped: WhenStopped,
}

#[derive(Debug, Clone, Args)]
pub(super) struct On {
    #[command(flatten)]
    what: What,
    /// How long it stays on unless `weft intercept confirm` follows
    #[arg(long, value_name = "SECONDS", default_value = CONFIRM_WITHIN, value_parser = clap::value_parser!(u64).range(5..=3600))]
    confirm_within: u64,
    /// Do not wait for `weft intercept confirm`
    #[arg(long)]
    now: bool,
}

fn block(text: &str) -> Result<IpNet, String> {
    hosts::block(text).ok_or_else(|| format!("{text:?} is no address, and no block of them such as 10.0.0.0/8"))
}

/// Where the commands work.
struct Place<'a> {
    client: Client,
    data_dir: &'a Path,
    output: Output,
}

impl Command {
    pub(super) async fn execute(self, data_dir: &Path, output: Output) -> Ended {
        let place = Place { client: Client::new(data_dir), data_dir, output };
        match self {
            Self::Plan(what) => {
                let kept = place.kept(what.interception(), true).await?;
                Ok(Done::text(rules::text(&kept.interception, &place.host(&kept)?).map_err(Stopped::usage)?))
            }
            Self::On(on) => place.on(on).await,
            Self::Confirm => place.confirm().await,
            Self::Off => {
                units::disarm();
                place.off().await
            }
            Self::Status => {
                let shown = place.look().await?;
                place.show(&shown)
            }
            Self::Verify => {
                let shown = place.look().await?;
                let code = u8::from(!shown.problems.is_empty());
                place.show(&shown).map(|done| Done { code, ..done })
            }
            Self::Restore => place.restore(),
            Self::Clear => firewall::apply(&rules::none()).map(|()| Done::text(String::new())),
            Self::Rollback { attempt, after } => place.rollback(attempt, Duration::from_secs(after)).await,
        }
    }
}

impl What {
    fn interception(self) -> Interception {
        let mut interception = Interception {
            inbound: self.inbound,
            users: self.user,
            units: self.unit,
            exclude_ports: self.exclude_port,
            exclude_addresses: self.exclude_address,
            exclude_users: self.exclude_user,
            when_stopped: self.when_stopped,
            ..Interception::default()
        };
        let session = std::env::var("SSH_CONNECTION").ok().and_then(|text| session_port(&text));
        interception.exclude_ports.extend(session.filter(|port| !interception.exclude_ports.contains(port)));
        interception
    }
}

/// The port of this host in what sshd tells of a session: the addresses and ports of both ends.
fn session_port(text: &str) -> Option<u16> {
    text.split_whitespace().nth(3)?.parse().ok()
}

impl Place<'_> {
    /// What is to be kept of it.
    async fn kept(&self, interception: Interception, confirmed: bool) -> Result<Kept, Stopped> {
        if interception.inbound.is_empty() && !interception.is_outbound() {
            return Err(Stopped::usage("nothing would be intercepted: name ports with --inbound, or --user or --unit"));
        }
        if interception.when_stopped == WhenStopped::Pass && !systemd::runs() {
            return Err(Stopped::usage(
                "--when-stopped pass takes a node that systemd runs: without it nobody would notice its end",
            ));
        }
        let address = self.client.status().await?.address;
        let node_port = address.parse::<SocketAddr>().map(|address| address.port());
        let node_port = node_port.map_err(|error| Stopped::failed(format!("{address}: {error}")))?;
        let before = self.client.intercepted().await?.kept;
        let before = before.and_then(|kept| if kept.confirmed { Some(kept.interception) } else { kept.before });
        Ok(Kept { interception, confirmed, before, attempt: crate::os::now(), node_port })
    }

    /// What rules need to know of this host.
    fn host(&self, kept: &Kept) -> Result<Host, Stopped> {
        let users = |names: &[String]| -> Result<Vec<u32>, Stopped> {
            let user = |name: &String| {
                crate::os::user(name).ok_or_else(|| Stopped::usage(format!("{name:?} is no user of this host")))
            };
            names.iter().map(user).collect()
        };
        let owner = fs::metadata(self.data_dir);
        let owner = owner.map_err(|error| Stopped::failed(format!("{}: {error}", self.data_dir.display())))?;
        Ok(Host {
            node_user: owner.uid(),
            node_port: kept.node_port,
            users: users(&kept.interception.users)?,
            exclude_users: users(&kept.interception.exclude_users)?,
            groups: kept.interception.units.iter().filter_map(|unit| units::group(unit)).collect(),
        })
    }

    async fn on(&self, On { what, confirm_within, now }: On) -> Ended {
        let kept = self.kept(what.interception(), now).await?;
        let text = rules::text(&kept.interception, &self.host(&kept)?).map_err(Stopped::usage)?;
        firewall::check(&text)?;
        if let Err(stopped) = self.put(&kept, &text).await {
            self.back(&kept).await?;
            return Err(stopped);
        }
        if now {
            return Ok(Done::text("on, and it stays: `weft intercept off` ends it\n".to_owned()));
        }
        if let Err(stopped) = units::arm(self.data_dir, kept.attempt, confirm_within) {
            self.back(&kept).await?;
            return Err(stopped);
        }
        Ok(Done::text(format!(
            "on for {confirm_within} s. Look whether all works that should, then: weft intercept confirm\n"
        )))
    }

    /// Lets the node listen, then makes the rules.
    async fn put(&self, kept: &Kept, text: &str) -> Result<(), Stopped> {
        self.client.intercept(&Intercept { kept: Some(kept.clone()) }).await?;
        self.listens(&kept.interception).await?;
        units::prepare(&kept.interception)?;
        firewall::apply(text)
    }

    /// Back to what was confirmed before, or to nothing.
    async fn back(&self, kept: &Kept) -> Result<(), Stopped> {
        let Some(before) = kept.before.clone() else { return self.off().await.map(drop) };
        let kept = Kept { interception: before, confirmed: true, before: None, ..kept.clone() };
        let text = rules::text(&kept.interception, &self.host(&kept)?).map_err(Stopped::failed)?;
        self.put(&kept, &text).await
    }

    /// Waits until the node takes what will be sent to it.
    async fn listens(&self, interception: &Interception) -> Result<(), Stopped> {
        let deadline = tokio::time::Instant::now() + LISTENING;
        for port in listened(interception) {
            while !takes(port) {
                if tokio::time::Instant::now() >= deadline {
                    return Err(Stopped::failed(format!(
                        "the node does not listen on port {port}, so nothing was changed: `weft status` tells why"
                    )));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    async fn confirm(&self) -> Ended {
        let Some(kept) = self.client.intercepted().await?.kept else {
            return Err(Stopped::failed("nothing is intercepted: it went off, or was never on"));
        };
        self.client.intercept(&Intercept { kept: Some(Kept { confirmed: true, before: None, ..kept }) }).await?;
        units::disarm();
        Ok(Done::text("it stays: `weft intercept off` ends it\n".to_owned()))
    }

    /// Takes everything away that there is, whether or not the node runs.
    async fn off(&self) -> Ended {
        firewall::apply(&rules::none())?;
        units::forget()?;
        match self.client.intercept(&Intercept { kept: None }).await {
            Ok(_) => {}
            Err(ClientError::Absent(_)) => {
                let file = self.data_dir.join(FILE);
                if file.exists() {
                    let removed = fs::remove_file(&file);
                    removed.map_err(|error| Stopped::failed(format!("{}: {error}", file.display())))?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Done::text("off: connections go as ever\n".to_owned()))
    }

    fn kept_here(&self) -> Result<Option<Kept>, Stopped> {
        let path = self.data_dir.join(FILE);
        read(&path).map_err(|error| Stopped::failed(format!("{}: {error}", path.display())))
    }

    fn restore(&self) -> Ended {
        let Some(kept) = self.kept_here()?.filter(|kept| kept.confirmed || firewall::is_there()) else {
            return Ok(Done::text(String::new()));
        };
        let text = rules::text(&kept.interception, &self.host(&kept)?).map_err(Stopped::failed)?;
        firewall::apply(&text)?;
        Ok(Done::text(String::new()))
    }

    async fn rollback(&self, attempt: u64, after: Duration) -> Ended {
        tokio::time::sleep(after).await;
        match self.kept_here()? {
            Some(kept) if kept.attempt == attempt && !kept.confirmed => match self.back(&kept).await {
                Ok(()) => Ok(Done::text(String::new())),
                // Whatever stands in the way, nobody stays locked out.
                Err(_) => self.off().await,
            },
            _ => Ok(Done::text(String::new())),
        }
    }

    async fn look(&self) -> Result<Shown, Stopped> {
        let Intercepted { kept, idle } = self.client.intercepted().await?;
        let mut problems = Vec::new();
        let there = firewall::comment()?;
        match (&kept, there) {
            (None, Some(_)) => {
                problems.push("rules are left though nothing is to be intercepted: weft intercept off".to_owned());
            }
            (Some(_), None) => problems.push("the rules are gone: weft intercept restore".to_owned()),
            (Some(kept), Some(comment)) => {
                let wanted = rules::digest(&kept.interception, &self.host(kept)?);
                if !comment.ends_with(&wanted) {
                    problems
                        .push("the rules are others than those that were asked for: weft intercept restore".to_owned());
                }
            }
            (None, None) => {}
        }
        for port in kept.iter().flat_map(|kept| listened(&kept.interception)).filter(|port| !takes(*port)) {
            problems.push(format!("the node does not listen on port {port}, and what is sent there is refused"));
        }
        problems.extend(idle.iter().map(|port| {
            format!(
                "port {port}: no instance of a service of this host listens there, and what is sent there is refused"
            )
        }));
        Ok(Shown { on: kept.is_some(), kept, problems })
    }

    fn show(&self, shown: &Shown) -> Ended {
        match self.output {
            Output::Json => json(shown).map(Done::text),
            Output::Text => Ok(Done::text(shown.text())),
        }
    }
}

fn listened(interception: &Interception) -> Vec<u16> {
    let inbound = (!interception.inbound.is_empty()).then_some(interception.inbound_at);
    let outbound = interception.is_outbound().then_some(interception.outbound_at);
    inbound.into_iter().chain(outbound).collect()
}

/// Whether somebody takes connections at the port.
fn takes(port: u16) -> bool {
    match TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), LISTENING) {
        Ok(_) => true,
        // What the firewall has not sent there is ended at once.
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_session_is_left_out() {
        assert_eq!(session_port("192.0.2.7 50022 10.0.0.5 2222"), Some(2222));
        assert_eq!(session_port("192.0.2.7"), None);
    }
}
