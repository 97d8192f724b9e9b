//! Where a certificate says that its revocation is told: lists over plain HTTP, and an OCSP responder.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use countersign_identity::{KeyId, Serial};

/// The most parts into which one issuer's list is divided.
pub const SHARDS_MAX: u16 = 256;

/// The longest address: every certificate carries it twice.
const URL_BYTES_MAX: usize = 200;

/// The address under which lists and the responder are reached, such as `http://crl.shop.example:8880`.
///
/// Plain HTTP, because what is fetched is signed, and because a client that needs TLS to learn of a revocation would
/// need the answer before it may ask (RFC 5280, 8).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ViewsUrl(String); // INVARIANT: `http://`, a host, maybe a port and a path without a final `/`; at most 200 bytes of ASCII

/// Why a text is not such an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadViewsUrl {
    /// Another scheme, or none.
    #[error(
        "`{0}` is not an address of plain HTTP: expected `http://HOST:PORT`, such as `http://crl.shop.example:8880` (what is fetched there is signed)"
    )]
    Scheme(String),
    /// Not a host, a port and a path.
    #[error(
        "`{0}` is not an address: expected `http://HOST:PORT/PATH` with a DNS name or an IP address, and a path of a-z, A-Z, 0-9, `.`, `_`, `-` and `/`"
    )]
    Form(String),
    /// Too long.
    #[error(
        "has {bytes} bytes: at most {URL_BYTES_MAX} are allowed, since every certificate carries it"
    )]
    Long {
        /// How many.
        bytes: usize,
    },
}

impl ViewsUrl {
    /// The text, without a `/` at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ViewsUrl {
    type Err = BadViewsUrl;

    fn from_str(text: &str) -> Result<Self, BadViewsUrl> {
        let shown =
            || text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        if URL_BYTES_MAX < text.len() {
            return Err(BadViewsUrl::Long { bytes: text.len() });
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| BadViewsUrl::Scheme(shown()))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let segment = |part: &str| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let path_good = path.is_empty() || path[1..].split('/').all(segment);
        if !path_good || !is_authority(authority) {
            return Err(BadViewsUrl::Form(shown()));
        }
        Ok(Self(format!("http://{rest}")))
    }
}

/// A host with or without a port.
fn is_authority(text: &str) -> bool {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return address.port() != 0;
    }
    if let Some(inner) = text.strip_prefix('[') {
        return inner.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let port_good =
        port.is_none_or(|port| digits(port) && port.parse().is_ok_and(|port: u16| port != 0));
    port_good && (host.parse::<std::net::Ipv4Addr>().is_ok() || is_name(host))
}

fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name whose last label is all digits is a mistyped IPv4 address.
    let numeric =
        host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    !numeric && host.split('.').all(label)
}

impl fmt::Display for ViewsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for ViewsUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Into how many parts an issuer's list is divided: 1, 2, 4 and so on up to 256.
///
/// Powers of two only, so that there are few divisions; a server can answer for each of them, also for those that
/// certificates name which were issued before the number was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shards(NonZeroU16); // INVARIANT: a power of two, at most SHARDS_MAX

/// A number that is not one of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of shards: expected 1, 2, 4, 8, 16, 32, 64, 128 or 256")]
pub struct BadShards(String);

impl Shards {
    /// One: the list is whole.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// Takes a power of two up to [`SHARDS_MAX`].
    ///
    /// # Errors
    /// When it is another number.
    pub fn new(count: u16) -> Result<Self, BadShards> {
        let count = NonZeroU16::new(count).filter(|count| count.is_power_of_two());
        count
            .filter(|count| count.get() <= SHARDS_MAX)
            .map(Self)
            .ok_or_else(|| BadShards(count.map_or(0, NonZeroU16::get).to_string()))
    }

    /// How many there are.
    pub const fn count(self) -> u16 {
        self.0.get()
    }

    /// The part in which a certificate is listed: by its last byte, which is random. It never changes.
    pub fn of(self, serial: Serial) -> Shard {
        let last = serial.as_bytes()[15];
        Shard { index: u16::from(last) & (self.count() - 1), of: self }
    }

    /// The part of this number, counted from 0.
    pub fn shard(self, index: u16) -> Option<Shard> {
        (index < self.count()).then_some(Shard { index, of: self })
    }
}

impl FromStr for Shards {
    type Err = BadShards;

    fn from_str(text: &str) -> Result<Self, BadShards> {
        let bad = || BadShards(text.chars().take(80).collect());
        let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let count: u16 = text.parse().map_err(|_not_one| bad())?;
        if digits { Self::new(count).map_err(|_other| bad()) } else { Err(bad()) }
    }
}

impl fmt::Display for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for Shards {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.count())
    }
}

/// One part of an issuer's list. Written `4-2`: of four parts the one with number 2, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard {
    index: u16, // INVARIANT: below `of`
    of: Shards,
}

/// A text that names no part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a shard: expected `COUNT-INDEX`, such as `4-2`, with the index from 0")]
pub struct BadShard(String);

impl Shard {
    /// Whether a certificate is listed in this part.
    pub fn holds(self, serial: Serial) -> bool {
        self.of.of(serial) == self
    }

    /// Into how many parts the list is divided.
    pub const fn shards(self) -> Shards {
        self.of
    }
}

impl FromStr for Shard {
    type Err = BadShard;

    fn from_str(text: &str) -> Result<Self, BadShard> {
        let parts = text.split_once('-').and_then(|(count, index)| {
            let index = index.parse::<u16>().ok().filter(|number| number.to_string() == index)?;
            count.parse::<Shards>().ok()?.shard(index)
        });
        parts.ok_or_else(|| BadShard(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.of, self.index)
    }
}

/// What certificates say about where their revocation is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointers {
    /// Where everything is reached.
    pub url: ViewsUrl,
    /// Into how many parts the lists are divided that certificates name.
    pub shards: Shards,
    /// Whether the OCSP responder is named.
    pub ocsp: OcspNamed,
}

/// Whether certificates name the OCSP responder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OcspNamed {
    /// They do.
    Yes,
    /// They name lists only.
    No,
}

impl Pointers {
    /// Where the list is that a certificate of this issuer names.
    pub fn list_for(&self, issuer: KeyId, serial: Serial) -> String {
        match self.shards {
            Shards::ONE => self.complete(issuer),
            shards => self.shard(issuer, shards.of(serial)),
        }
    }

    /// Where an issuer's whole list is.
    pub fn complete(&self, issuer: KeyId) -> String {
        format!("{}/crl/{issuer}.crl", self.url)
    }

    /// Where the changes since an earlier list are.
    pub fn delta(&self, issuer: KeyId) -> String {
        format!("{}/crl/{issuer}/delta.crl", self.url)
    }

    /// Where one part of the list is.
    pub fn shard(&self, issuer: KeyId, shard: Shard) -> String {
        format!("{}/crl/{issuer}/{shard}.crl", self.url)
    }

    /// Where the OCSP responder is, if certificates are to name it.
    pub fn responder(&self) -> Option<String> {
        match self.ocsp {
            OcspNamed::Yes => Some(format!("{}/ocsp", self.url)),
            OcspNamed::No => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_plain_http_and_nothing_else() {
        for good in [
            "http://crl.shop.example",
            "http://crl.shop.example:8880",
            "http://127.0.0.1:80/a/b",
            "http://[::1]:8880",
            "http://[::1]",
        ] {
            assert_eq!(good.parse::<ViewsUrl>().unwrap().as_str(), good);
            assert_eq!(format!("{good}/").parse::<ViewsUrl>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "https://a",
            "ftp://a",
            "http://",
            "http:///a",
            "http://a:0",
            "http://a:+1",
            "http://a:70000",
            "http://a:",
            "http://a/?q",
            "http://a/b#c",
            "http://a//b",
            "http://a/../b",
            "http://u@a",
            "http://a b",
            "http://1.2.3",
            "http://[::1",
            "http://é",
            "http://a/\u{0}",
        ] {
            assert!(bad.parse::<ViewsUrl>().is_err(), "{bad:?}");
        }
        assert!(format!("http://a/{}", "b".repeat(200)).parse::<ViewsUrl>().is_err());
    }

    #[test]
    fn every_serial_lies_in_exactly_one_shard_of_each_division() {
        for count in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
            let shards = Shards::new(count).unwrap();
            for last in 0..=255 {
                let mut bytes = [1; 16];
                bytes[15] = last;
                let serial = Serial::from_bytes(bytes).unwrap();
                let holding = (0..count).filter(|at| shards.shard(*at).unwrap().holds(serial));
                assert_eq!(holding.count(), 1, "{count}: {last}");
            }
        }
    }

    #[test]
    fn shards_are_written_in_one_way() {
        assert_eq!("4-2".parse::<Shard>().unwrap().to_string(), "4-2");
        for bad in ["", "4", "4-4", "3-1", "4-02", "04-2", "4-+2", "0-0", "512-1", "4-2-1"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
