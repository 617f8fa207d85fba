//! Who listens on this host, from the kernel's own list (proc(5), `/proc/net/tcp` and `/proc/net/tcp6`).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whether anything listens on an address of this host's loopback; of others that can't be told from here.
pub(super) fn on(address: SocketAddr) -> Option<bool> {
    if !address.ip().to_canonical().is_loopback() {
        return None;
    }
    let (four, six) =
        (fs::read_to_string("/proc/net/tcp").ok()?, fs::read_to_string("/proc/net/tcp6").unwrap_or_default());
    let all = four.lines().chain(six.lines()).filter_map(listener);
    let mut fits = all.filter(|(ip, port)| *port == address.port() && takes(*ip, address.ip()));
    Some(fits.next().is_some())
}

/// Whether a listener on `ip` gets what is sent to `to`. One on all addresses of IPv6 gets those of IPv4 too, unless it was
/// told not to, which the list does not say.
fn takes(ip: IpAddr, to: IpAddr) -> bool {
    ip.to_canonical() == to.to_canonical() || (ip.is_unspecified() && (ip.is_ipv6() || to.to_canonical().is_ipv4()))
}

/// The address of a line, if it is a listener's.
fn listener(line: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_whitespace();
    let local = words.nth(1)?;
    if words.nth(1)? != LISTEN {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits, each in the order of the host.
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|at| u32::from_str_radix(&ip[at * 8..at * 8 + 8], 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [only] => IpAddr::V4(Ipv4Addr::from(*only)),
        [_, _, _, _] => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?)),
        _ => return None,
    };
    Some((ip, port))
}

const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_seen_while_it_is_there() {
        for any in ["127.0.0.1", "0.0.0.0", "::1"] {
            // None of those that the kernel gives to whoever asks for any: it would be given again at once.
            let bound = (10_000..20_000).find_map(|port| std::net::TcpListener::bind((any, port)).ok());
            let Some(listener) = bound else { continue };
            let port = listener.local_addr().expect("bound").port();
            let address = SocketAddr::new(
                if any.contains(':') { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) },
                port,
            );
            assert_eq!(on(address), Some(true), "{any}");
            drop(listener);
            assert_eq!(on(address), Some(false), "{any}");
        }
        assert_eq!(on("192.0.2.1:80".parse().expect("valid")), None);
    }
}
