//! What this host is like.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::Finding;
use crate::config::MESH_PORT;

/// The kernel of which all that is of use is there: tables of nftables that belong to their process.
const KERNEL: (u32, u32) = (5, 12);
/// Room that a data directory should have, in bytes: a log, snapshots and records.
const ROOM: u64 = 1 << 30;
/// Below this nothing can be kept.
const ROOM_LEAST: u64 = 64 << 20;
/// Files that a node should be allowed to open.
const FILES: u64 = 65_536;

/// Everything; some of it only where no node runs yet.
pub(super) fn all(data_dir: &Path, runs: bool) -> Vec<Finding> {
    let mut findings = vec![kernel(), clock(), room(data_dir), firewall()];
    if !runs {
        findings.push(ports());
        findings.push(files());
    }
    findings
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    match version(&release) {
        Some(found) if found >= KERNEL => Finding::good("kernel", release),
        Some(_) => Finding::warning(
            "kernel",
            format!(
                "{release}: before {}.{} services' loopback addresses need ports that are listened on (--loopback)",
                KERNEL.0, KERNEL.1
            ),
        ),
        None => Finding::warning("kernel", format!("{release:?} is no version that is known")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn clock() -> Finding {
    let asked = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output();
    let said = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    match said.as_str() {
        "yes" => Finding::good("clock", "in step with a time server"),
        "no" => Finding::warning("clock", "in step with no time server: timedatectl set-ntp true, or chrony"),
        _ => Finding::warning("clock", "nobody tells here whether it is in step with a time server"),
    }
}

fn room(data_dir: &Path) -> Finding {
    let there = data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let shown = data_dir.display();
    let Ok(found) = statvfs(there) else { return Finding::bad("disk", format!("{shown}: nothing is known of it")) };
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    let text = format!("{} MiB are free for {shown}", free >> 20);
    match free {
        ROOM.. => Finding::good("disk", text),
        ROOM_LEAST.. => Finding::warning("disk", format!("{text}: give it 1 GiB, for the log, snapshots and records")),
        _ => Finding::bad("disk", format!("{text}: a node cannot keep what it decides")),
    }
}

fn firewall() -> Finding {
    match Command::new("nft").arg("--version").output() {
        Ok(output) if output.status.success() => {
            Finding::good("nftables", String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => Finding::warning("nftables", "nft is not here, and `weft intercept` takes it: apt install nftables"),
    }
}

fn ports() -> Finding {
    let all = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let taken = |what: &str| {
        Finding::bad(
            "port",
            format!("{MESH_PORT} ({what}) is taken by another program: `weft up --listen` names another one"),
        )
    };
    if TcpListener::bind(all(MESH_PORT)).is_err() {
        return taken("TCP");
    }
    if UdpSocket::bind(all(MESH_PORT)).is_err() {
        return taken("UDP");
    }
    Finding::good("port", format!("{MESH_PORT} is free on TCP and UDP"))
}

fn files() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, most)) if most >= FILES => Finding::good("files", format!("{most} may be open")),
        Ok((_, most)) => Finding::warning(
            "files",
            format!("{most} may be open, which bounds connections: raise the limit (LimitNOFILE)"),
        ),
        Err(error) => Finding::warning("files", error.to_string()),
    }
}

/// Whether the host's resolver finds a service of the mesh.
pub(super) fn names(service: &str, address: &str) -> Finding {
    let host = match service.split_once('/') {
        Some((namespace, name)) => format!("{name}.{namespace}.mesh"),
        None => format!("{service}.mesh"),
    };
    let found = (host.as_str(), 0).to_socket_addrs().map(|all| all.map(|one| one.ip().to_string()).collect::<Vec<_>>());
    match found {
        Ok(all) if all.iter().any(|one| one == address) => Finding::good("names", format!("{host} is {address}")),
        _ => Finding::warning(
            "names",
            format!(
                "this host's resolver does not find {host}: point it to the node for .mesh (operations.md, Names), or call by the forward proxy"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10.223"), Some((5, 10)));
        assert_eq!(version("next"), None);
    }
}
