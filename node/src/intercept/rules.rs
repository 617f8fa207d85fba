//! The rules of the firewall: one table of nftables of its own, and nothing of others' touched.
//!
//! Only what begins a connection is looked at, so that none that is open is ever sent elsewhere: neither the session of whoever
//! switches it on nor any other.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Interception;

/// The table.
pub const TABLE: &str = "weft_intercept";
/// Ports to which connections always go as ever: that of SSH.
const ALWAYS: [u16; 1] = [22];

/// What the rules need to know of the host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Whom the node runs as: what it connects to itself is never sent to it.
    pub node_user: u32,
    /// The node's own port.
    pub node_port: u16,
    /// The numbers of the users that are named.
    pub users: Vec<u32>,
    /// Those of the ones that are left out.
    pub exclude_users: Vec<u32>,
    /// The control groups of the units that are named, from the root: `system.slice/web.service`.
    pub groups: Vec<String>,
}

/// The rules in the words of `nft -f`: they take the place of those that were there, all at once.
///
/// # Errors
/// Tells what would cut somebody off.
pub fn text(interception: &Interception, host: &Host) -> Result<String, String> {
    let never = never(interception, host);
    if let Some(port) = interception.inbound.iter().find(|port| never.contains(port)) {
        return Err(format!("port {port} is never intercepted: it is that of SSH, one of the node's own, or left out"));
    }
    if host.users.contains(&host.node_user) {
        return Err(format!(
            "the node runs as the user {} itself: what it connects to would come back to it; name other users or units",
            host.node_user
        ));
    }
    let mut text = String::new();
    let _ = writeln!(text, "table inet {TABLE} {{}}\ndelete table inet {TABLE}");
    let _ = writeln!(text, "table inet {TABLE} {{\n\tcomment \"weft {}\"", digest(interception, host));
    if interception.is_outbound() {
        text.push_str("\tchain outbound {\n\t\ttype nat hook output priority -100; policy accept;\n");
        let mut rule = |words: &str| text.push_str(&format!("\t\t{words}\n"));
        rule("meta l4proto != tcp return");
        rule("tcp flags & (fin | syn | rst | ack) != syn return");
        rule("oifname \"lo\" return");
        rule(&format!("meta skuid {} return", host.node_user));
        rule(&format!("tcp dport {} return", set(&never)));
        excluded(&interception.exclude_addresses, "daddr").iter().for_each(|words| rule(words));
        if !host.exclude_users.is_empty() {
            rule(&format!("meta skuid {} return", set(&host.exclude_users)));
        }
        let then = format!("meta l4proto tcp counter redirect to :{}", interception.outbound_at);
        if !host.users.is_empty() {
            rule(&format!("meta skuid {} {then}", set(&host.users)));
        }
        for group in &host.groups {
            let level = group.split('/').count();
            rule(&format!("socket cgroupv2 level {level} \"{group}\" {then}"));
        }
        text.push_str("\t}\n");
    }
    if !interception.inbound.is_empty() {
        text.push_str("\tchain inbound {\n\t\ttype nat hook prerouting priority -100; policy accept;\n");
        let mut rule = |words: &str| text.push_str(&format!("\t\t{words}\n"));
        rule("meta l4proto != tcp return");
        rule("tcp flags & (fin | syn | rst | ack) != syn return");
        rule("iifname \"lo\" return");
        rule("fib daddr type != local return");
        excluded(&interception.exclude_addresses, "saddr").iter().for_each(|words| rule(words));
        let ports = set(&sorted(&interception.inbound));
        rule(&format!("tcp dport {ports} counter redirect to :{}", interception.inbound_at));
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    Ok(text)
}

/// What takes the table away, whether or not it is there.
pub fn none() -> String {
    format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n")
}

/// What the table's comment says, by which it is known again.
pub fn digest(interception: &Interception, host: &Host) -> String {
    let text = format!("{interception:?} {host:?}");
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

/// Ports to which connections go as ever.
pub fn never(interception: &Interception, host: &Host) -> Vec<u16> {
    let own = [host.node_port, interception.inbound_at, interception.outbound_at];
    let ports = ALWAYS.iter().chain(&own).chain(&interception.exclude_ports);
    sorted(&ports.copied().collect::<Vec<_>>())
}

fn excluded(blocks: &[IpNet], end: &str) -> Vec<String> {
    let of = |ipv4: bool| {
        let own = blocks.iter().filter(|block| matches!(block.addr(), IpAddr::V4(_)) == ipv4);
        let all: Vec<String> = own.map(|block| block.trunc().to_string()).collect();
        let family = if ipv4 { "ip" } else { "ip6" };
        (!all.is_empty()).then(|| format!("{family} {end} {{ {} }} return", all.join(", ")))
    };
    [true, false].into_iter().filter_map(of).collect()
}

fn sorted(ports: &[u16]) -> Vec<u16> {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

fn set<T: std::fmt::Display>(all: &[T]) -> String {
    format!("{{ {} }}", all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { node_user: 990, node_port: 7946, users: vec![1000], ..Host::default() }
    }

    #[test]
    fn what_would_cut_somebody_off_is_refused() {
        let inbound = |port| Interception { inbound: vec![port], ..Interception::default() };
        for port in [22, 7946, 15_006, 15_007] {
            let why = text(&inbound(port), &host()).expect_err("refused");
            assert!(why.contains(&format!("port {port} is never intercepted")), "{why}");
        }
        let left_out = Interception { exclude_ports: vec![2222], ..inbound(2222) };
        assert!(text(&left_out, &host()).is_err());
        assert!(text(&inbound(8080), &host()).is_ok());
        let own = Host { users: vec![990], ..host() };
        let users = Interception { users: vec!["weft".into()], ..Interception::default() };
        assert!(text(&users, &own).expect_err("refused").contains("would come back to it"));
    }

    #[test]
    fn rules_say_what_is_asked_for_and_leave_the_rest() {
        let all = Interception {
            inbound: vec![8080, 80],
            users: vec!["app".into()],
            units: vec!["web.service".into()],
            exclude_ports: vec![5432, 2222],
            exclude_addresses: ["10.9.0.0/16", "fd00::/8"].map(|one| one.parse().expect("a block")).into(),
            ..Interception::default()
        };
        let host = Host { groups: vec!["system.slice/web.service".into()], ..host() };
        let text = text(&all, &host).expect("good");
        for rule in [
            "delete table inet weft_intercept",
            "tcp dport { 22, 2222, 5432, 7946, 15006, 15007 } return",
            "meta skuid 990 return",
            "ip daddr { 10.9.0.0/16 } return",
            "ip6 daddr { fd00::/8 } return",
            "ip saddr { 10.9.0.0/16 } return",
            "meta skuid { 1000 } meta l4proto tcp counter redirect to :15007",
            "socket cgroupv2 level 2 \"system.slice/web.service\" meta l4proto tcp counter redirect to :15007",
            "tcp dport { 80, 8080 } counter redirect to :15006",
        ] {
            assert!(text.contains(rule), "{rule} is missing in\n{text}");
        }
        let inbound = Interception { inbound: vec![80], ..Interception::default() };
        assert!(!super::text(&inbound, &host).expect("good").contains("hook output"));
    }
}
