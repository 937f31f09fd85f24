//! The address that a request comes from: the other end of the connection, or what trusted proxies say of it.
//!
//! Each proxy appends the address that it was connected from to `X-Forwarded-For`. Read from the right, everything up to the first address that is not a trusted proxy's
//! was written by a trusted one; what stands to the left of it anybody may have written.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use access::source::Source;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The other end of the connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Networks whose hosts say truly where a request comes from. None by default.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// A list of networks (`10.0.0.0/8`) and addresses, with commas between.
    pub fn parse(text: &str) -> Result<Self, String> {
        let network = |part: &str| {
            let address = || part.parse::<IpAddr>().ok().map(IpNet::from);
            part.parse::<IpNet>()
                .ok()
                .or_else(address)
                .ok_or_else(|| format!("{part} is neither a network, such as 10.0.0.0/8, nor an address"))
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(network).collect::<Result<_, _>>().map(Self)
    }

    /// Whether this is the address of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The address that a request from `peer` comes from.
    fn resolve(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut address = peer.to_canonical();
        // A line that is no text ends the way back, as any hop does that is no address.
        let values: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().map(|value| value.to_str().unwrap_or_default()).collect();
        for hop in values.iter().rev().flat_map(|value| value.rsplit(',')) {
            if !self.contains(address) {
                break;
            }
            // What a trusted proxy did not write as an address ends the way back.
            let Some(before) = parse(hop.trim()) else { break };
            address = before;
        }
        address
    }
}

/// An address, with or without a port.
fn parse(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(with_port).or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

/// The address that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The address of a request with these headers, by way of a connection that its extensions name.
    pub(crate) fn resolve(extensions: &Extensions, headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        let peer = extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
        Self(proxies.resolve(peer, headers))
    }

    /// The party that the address stands for.
    pub fn source(self) -> Source {
        Source::of(self.0)
    }
}

impl<S: Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let unknown = || Self::resolve(&parts.extensions, &HeaderMap::new(), &TrustedProxies::default());
        Ok(parts.extensions.get().copied().unwrap_or_else(unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer: &str, proxies: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(X_FORWARDED_FOR, value.parse().unwrap());
        }
        TrustedProxies::parse(proxies).unwrap().resolve(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_have_written_is_believed() {
        assert_eq!(from("203.0.113.9", "", &["198.51.100.1"]), "203.0.113.9", "nobody is trusted");
        assert_eq!(from("203.0.113.9", "10.0.0.0/8", &["198.51.100.1"]), "203.0.113.9", "not that one");
        assert_eq!(from("10.0.0.1", "10.0.0.0/8", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(from("10.0.0.1", "10.0.0.0/8", &["192.0.2.7, 198.51.100.1"]), "198.51.100.1", "the left was written by the client");
        assert_eq!(from("10.0.0.1", "10.0.0.0/8", &["192.0.2.7", "198.51.100.1, 10.0.0.2"]), "198.51.100.1", "two proxies, two headers");
        assert_eq!(from("10.0.0.1", "10.0.0.0/8", &["198.51.100.1, nonsense"]), "10.0.0.1");
        assert_eq!(from("10.0.0.1", "10.0.0.0/8", &[]), "10.0.0.1");
        assert_eq!(from("::ffff:10.0.0.1", "10.0.0.0/8", &["198.51.100.1:4711"]), "198.51.100.1", "mapped, and with a port");
        assert_eq!(from("2001:db8::1", "2001:db8::/64", &["[2001:db8:1::5]:443"]), "2001:db8:1::5");
        assert!(TrustedProxies::parse("10.0.0.0/8, nonsense").is_err());
    }
}
