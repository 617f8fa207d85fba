//! Loopback addresses of services: the same on every node, and by the name alone unless taken.

use std::net::Ipv4Addr;

use crate::service::ServiceName;

/// The first one, and the length of the prefix that all share.
pub const ADDRESSES: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 64, 0, 0), 10);
const BASE: u32 = ADDRESSES.0.to_bits();
const COUNT: u32 = 1 << (32 - ADDRESSES.1);

/// Whether it may be one.
pub fn is_loopback_of_services(address: Ipv4Addr) -> bool {
    address.to_bits() & !(COUNT - 1) == BASE
}

/// Every address that a service may have, in the order in which it is given the first that is free.
pub fn addresses(service: &ServiceName) -> impl Iterator<Item = Ipv4Addr> + use<> {
    let start = service.hash32();
    (0..COUNT)
        .map(move |step| Ipv4Addr::from(BASE + (start.wrapping_add(step) % COUNT)))
        .filter(|address| !matches!(address.octets()[3], 0 | 255))
}
