//! Where callers come from, as far as limits are concerned.

use std::net::IpAddr;

/// An IPv4 address, or the first half of an IPv6 address: what one subscriber can easily choose from is one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u64);

impl Source {
    /// The source of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_bits() as u64),
            // The mark of IPv6 keeps the two kinds apart: no routable prefix has its first bit set.
            IpAddr::V6(v6) => Self((v6.to_bits() >> 64) as u64 | 1 << 63),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subscriber_is_one_source_however_many_addresses_it_has() {
        let at = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
        assert_ne!(at("::"), at("0.0.0.0"));
    }
}
