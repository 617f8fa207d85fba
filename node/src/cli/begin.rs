//! `weft init` and `weft join`: what the node of a host that runs as a service of systemd begins with, at its next start and no other.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use clap::Args;
use nix::unistd::User;
use weft_proto::identity::{NodeName, TrustDomain};

use super::file::File;
use super::host::HostOptions;
use super::kept::{self, BEGIN, Said};
use super::start::read_line;
use super::systemd::{self, systemctl};
use super::{Done, Ended, Stopped};
use crate::config::{DNS_ADDRESS, Dns, Loopback};
use crate::os::services::write_whole;

/// The unit that runs the node.
const UNIT: &str = "weft.service";
/// The capabilities that the unit's process has, by what is switched on.
const CAPABILITIES: &str = "/etc/systemd/system/weft.service.d/10-capabilities.conf";

/// What the host's resolver is told.
const RESOLVED: &str = "/etc/systemd/resolved.conf.d/weft.conf";

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Name of the new mesh
    #[arg(long, value_name = "NAME", default_value = crate::config::TRUST_DOMAIN)]
    trust_domain: TrustDomain,
    /// In the new mesh, deny every call that no ALLOW policy covers
    #[arg(long)]
    deny_by_default: bool,
    /// Name of the node [default: the host name's first label]
    #[arg(long)]
    name: Option<NodeName>,
    /// Read from the arguments with what was said before.
    #[command(flatten)]
    _host: HostOptions,
}

#[derive(Debug, Args)]
pub(super) struct Join {
    /// The line that `weft token create` printed; - or none: from standard input, where other users of this host do not see it
    line: Option<String>,
    /// Name of the node [default: the host name's first label]
    #[arg(long)]
    name: Option<NodeName>,
    /// Read from the arguments with what was said before.
    #[command(flatten)]
    _host: HostOptions,
}

impl Init {
    pub(super) fn execute(self, data_dir: &Path) -> Ended {
        let mut words = vec!["--init".to_owned(), "--trust-domain".to_owned(), self.trust_domain.to_string()];
        if self.deny_by_default {
            words.push("--deny-by-default".into());
        }
        start(data_dir, words, self.name)
    }
}

impl Join {
    pub(super) fn execute(self, data_dir: &Path) -> Ended {
        let line = match self.line.as_deref() {
            None if io::stdin().is_terminal() => {
                return Err(Stopped::usage(
                    "weft join LINE: the line that `weft token create` printed on a host of the mesh",
                ));
            }
            None | Some("-") => read_line(Path::new("-"))?,
            Some(line) => line.to_owned(),
        };
        crate::join::read_line(line.trim()).map_err(|error| Stopped::usage(error.to_string()))?;
        start(data_dir, vec!["--join".into(), line.trim().to_owned()], self.name)
    }
}

/// Leaves what the unit is to begin with, and starts it, now and at every boot.
fn start(data_dir: &Path, mut words: Vec<String>, name: Option<NodeName>) -> Ended {
    words.extend(name.into_iter().flat_map(|name| ["--name".to_owned(), name.to_string()]));
    let user = unit_user()?;
    if data_dir.join("store").exists() && !data_dir.join(BEGIN).exists() {
        let shown = data_dir.display();
        return Err(Stopped::failed(format!(
            "this host is a node already ({shown}): see `weft status`; to make another one of it, `systemctl disable --now {UNIT}`, \
             then remove {shown}"
        )));
    }
    let (host, said) = HostOptions::in_force(data_dir, &File::read(None, data_dir)?)?;
    leave(data_dir, &words, &said, &user).map_err(stopped)?;
    capabilities(&host)?;
    route_names(&host)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", UNIT])?;
    systemctl(&["restart", UNIT]).map_err(|stopped| {
        let text =
            format!("the node did not start; `journalctl -u {UNIT} -n 30` says why. What it was to begin with is kept");
        Stopped { lines: stopped.lines.into_iter().chain([text]).collect(), code: stopped.code }
    })?;
    Ok(Done::text(format!("this host is a node now, and will be after each boot ({UNIT}): weft status\n")))
}

type Failed = (String, io::Error);

fn stopped((path, error): Failed) -> Stopped {
    Stopped::failed(format!("{path}: {error}"))
}

fn leave(data_dir: &Path, words: &[String], said: &[Said], user: &User) -> Result<(), Failed> {
    let failed = |path: &Path| {
        let shown = path.display().to_string();
        move |error| (shown, error)
    };
    fs::create_dir_all(data_dir).map_err(failed(data_dir))?;
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let own = |path: &Path, mode: u32| {
        chown(path, Some(uid), Some(gid)).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
    };
    own(data_dir, 0o700).map_err(failed(data_dir))?;
    let begin = data_dir.join(BEGIN);
    write_whole(&begin, &words.iter().map(|word| format!("{word}\n")).collect::<String>()).map_err(failed(&begin))?;
    own(&begin, 0o600).map_err(failed(&begin))?;
    kept::keep(data_dir, said).map_err(failed(data_dir))?;
    let options = data_dir.join(kept::FILE);
    if options.exists() {
        own(&options, 0o600).map_err(failed(&options))?;
    }
    Ok(())
}

/// Gives the unit what is switched on, and nothing else.
fn capabilities(host: &HostOptions) -> Result<(), Stopped> {
    let gate = if host.gateway.is_empty() { "" } else { "CAP_NET_BIND_SERVICE" };
    let capture = if host.loopback == Loopback::Off { "" } else { "CAP_NET_ADMIN" };
    let text = format!(
        "# Written by weft: ports below 1024 for gateways, the kernel's redirection of services' loopback addresses.\n[Service]\n\
         AmbientCapabilities=\nAmbientCapabilities={gate} {capture}\n"
    );
    systemd::write(Path::new(CAPABILITIES), &text)
}

/// Lets the host's resolver ask the node for names of services, where it can be told so.
fn route_names(host: &HostOptions) -> Result<(), Stopped> {
    let address = match host.dns {
        Dns::Off => None,
        Dns::Auto => Some(DNS_ADDRESS),
        Dns::At(address) => Some(address),
    };
    let path = Path::new(RESOLVED);
    let Some(address) = address.filter(|_| asks_others()) else {
        if path.exists() {
            fs::remove_file(path).map_err(|error| stopped((RESOLVED.to_owned(), error)))?;
            systemctl(&["try-restart", "systemd-resolved.service"])?;
        }
        return Ok(());
    };
    let text = format!(
        "# Written by weft: names of services are asked from the node.\n[Resolve]\nDNS={address}\nDomains=~mesh ~svc.cluster.local\n"
    );
    systemd::write(Path::new(RESOLVED), &text)?;
    systemctl(&["restart", "systemd-resolved.service"])
}

/// Whether systemd-resolved runs and has others to ask for other names once it asks the node for ours: servers of a link, or none anywhere.
/// Servers of the whole host it would not tell apart from the node, and those that it falls back to it would forget.
fn asks_others() -> bool {
    let ask = |arguments: &[&str]| {
        let output = Command::new("resolvectl").args(arguments).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (Some(servers), Some(status)) = (ask(&["dns"]), ask(&["status"])) else { return false };
    let named = |line: &str| line.split_once(": ").map(|(_, servers)| servers.trim().to_owned()).unwrap_or_default();
    let global = servers.lines().filter(|line| line.starts_with("Global")).map(named).collect::<String>();
    let own = fs::read_to_string(RESOLVED).unwrap_or_default();
    let others = global.split_whitespace().any(|server| !own.contains(server));
    let links = servers.lines().any(|line| line.starts_with("Link") && !named(line).is_empty());
    !others && (links || !status.contains("Fallback DNS Servers"))
}

/// Whom the unit runs as.
fn unit_user() -> Result<User, Stopped> {
    let asked = Command::new("systemctl").args(["show", "--property=User", "--value", UNIT]).output();
    let name = asked.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
    let name = String::from_utf8_lossy(&name).trim().to_owned();
    let user = User::from_name(&name).ok().flatten().filter(|_| !name.is_empty());
    user.ok_or_else(|| {
        Stopped::failed(format!(
            "there is no {UNIT} on this host, or its user is missing: install the package, or run the node yourself with `weft up`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::start::read;

    #[test]
    fn what_is_left_is_what_the_node_begins_with() {
        let directory = tempfile::TempDir::new().expect("a directory");
        assert!(read(directory.path()).is_ok_and(|begin| begin.is_none()));
        let user = User::from_uid(nix::unistd::geteuid()).expect("asked").expect("this user");
        let words = ["--join", "weft1.line", "--name", "b"].map(str::to_owned);
        let said = [("--zone".to_owned(), "eu/a".to_owned())];
        leave(directory.path(), &words, &said, &user).expect("written");
        let Ok(Some(begin)) = read(directory.path()) else { panic!("it is there") };
        assert_eq!(begin.join.as_deref(), Some("weft1.line"));
        assert_eq!(begin.name.map(|name| name.to_string()).as_deref(), Some("b"));
        assert_eq!(fs::read_to_string(directory.path().join(kept::FILE)).expect("kept"), "--zone eu/a\n");
        kept::begun(directory.path());
        assert!(read(directory.path()).is_ok_and(|begin| begin.is_none()));
    }
}
