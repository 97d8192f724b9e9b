//! Where callers come from, as far as limits are concerned.

use std::net::IpAddr;

/// An IPv4 address, or the first half of an IPv6 address: what one subscriber can easily choose from is one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source(u64);

impl Source {
    /// The source of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(v4.to_bits())),
            // The mark of IPv6 keeps the two kinds apart: no routable prefix has its first bit set.
            IpAddr::V6(v6) => Self(u64::try_from(v6.to_bits() >> 64).unwrap_or(u64::MAX) | 1 << 63),
        }
    }
}
