//! The party behind an address: one IPv4 address, or one IPv6 network of the size that an end site is given, since a site that has one of its addresses has all of them. RFC 6177 leaves
//! the size to the provider and names 56 bits; a site that was given 48 bits counts as 256 parties.

use std::net::{IpAddr, Ipv6Addr};

/// A group of addresses that count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(IpAddr);

/// The part of an IPv6 address that names the network: 56 bits.
const NETWORK: u128 = !0 << 72;

impl Source {
    /// The one that an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => Self(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK))),
            address @ IpAddr::V4(_) => Self(address),
        }
    }

    /// Its name, for keyed hashes only: addresses are personal data.
    pub(crate) fn bytes(self) -> [u8; 16] {
        match self.0 {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_count_as_one_source() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:fe:ffff::9"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:102::1"));
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }
}
