//! Sets of addresses, as they are named where something depends on where a connection comes from.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;

use super::problem::shorten;

/// An IP address, or all that begin alike: `10.0.0.7`, `10.0.0.0/8`, `2001:db8::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    first: IpAddr, // INVARIANT: no bit after the prefix is set; not an IPv4 address in IPv6
    prefix: u8,    // INVARIANT: 1 to the length of the address
}

/// Why a text is not a set of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNetwork {
    /// Something else.
    #[error("`{0}` is neither an IP address nor a network, such as `10.0.0.7` or `10.0.0.0/8`")]
    Text(String),
    /// Everybody.
    #[error("`{0}` names every address: name those that are meant")]
    Everybody(String),
    /// An address inside of it.
    #[error("`{text}` names a network by an address in it: write `{meant}`")]
    Inside {
        /// What was written.
        text: String,
        /// What was meant, probably.
        meant: Network,
    },
}

impl Network {
    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.prefix) == Some(self.first)
    }
}

/// The address without the bits after the prefix. None when it is shorter than that.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let away = 32_u32.checked_sub(prefix)?;
            let mask = u32::MAX.checked_shl(away).unwrap_or(0);
            Some(IpAddr::V4((v4.to_bits() & mask).into()))
        }
        IpAddr::V6(v6) => {
            let away = 128_u32.checked_sub(prefix)?;
            let mask = u128::MAX.checked_shl(away).unwrap_or(0);
            Some(IpAddr::V6((v6.to_bits() & mask).into()))
        }
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork::Text(shorten(text));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_not_one| bad())?;
        if address.to_canonical() != address {
            return Err(bad());
        }
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => whole,
            // Digits only: `parse` would take a sign as well.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_not_a_number| bad())?
            }
            Some(_) => return Err(bad()),
        };
        let first = masked(address, prefix).ok_or_else(bad)?;
        if prefix == 0 {
            return Err(BadNetwork::Everybody(shorten(text)));
        }
        let network = Self { first, prefix };
        if first != address {
            return Err(BadNetwork::Inside { text: shorten(text), meant: network });
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.first.is_ipv4() { 32 } else { 128 };
        if self.prefix == whole {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn holds(network: &str, inside: &[&str], outside: &[&str]) {
        let read: Network = network.parse().unwrap();
        assert_eq!(read.to_string(), network);
        for address in inside {
            assert!(read.contains(address.parse().unwrap()), "{address} in {network}");
        }
        for address in outside {
            assert!(!read.contains(address.parse().unwrap()), "{address} in {network}");
        }
    }

    #[test]
    fn a_network_holds_what_begins_alike() {
        holds("10.0.0.7", &["10.0.0.7", "::ffff:10.0.0.7"], &["10.0.0.8", "::10.0.0.7"]);
        holds("10.0.0.0/8", &["10.0.0.0", "10.255.255.255"], &["11.0.0.0", "9.255.255.255"]);
        holds("128.0.0.0/1", &["255.255.255.255"], &["127.255.255.255", "::1"]);
        holds("2001:db8::/32", &["2001:db8:ffff::1"], &["2001:db9::", "10.0.0.1"]);
        holds("::1", &["::1"], &["::2", "0.0.0.1"]);
    }

    #[test]
    fn what_names_everybody_or_nobody_is_refused() {
        let refused = |text: &str| text.parse::<Network>().unwrap_err();
        for text in [
            "",
            "a",
            "10.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "*",
            "::ffff:10.0.0.1",
            "10.0.0.1/8/8",
            "10.0.0.0/08x",
            " 10.0.0.1",
            "10.0.0.1:80",
        ] {
            assert!(matches!(refused(text), BadNetwork::Text(_)), "{text:?}");
        }
        assert!(matches!(refused("0.0.0.0/0"), BadNetwork::Everybody(_)));
        assert!(matches!(refused("::/0"), BadNetwork::Everybody(_)));
        assert!(refused("10.1.2.3/8").to_string().ends_with("write `10.0.0.0/8`"));
    }
}
