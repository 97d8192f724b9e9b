//! Attested facts about a process.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// One attested fact, `unix:uid:1000` or `launch:payments`. A workload names those that a process must all have.
///
/// Compared as a whole and by bytes: no wildcard, no prefix, no normalisation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    kind: SelectorKind,
    value: Arc<str>, // INVARIANT: 1 to 4096 bytes without control characters, and right for its kind
}

/// What a selector speaks of. The list is closed: an unknown kind is refused, it never matches by silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SelectorKind {
    /// `unix:uid`, the user id of the process.
    UnixUid,
    /// `unix:gid`, the primary group id.
    UnixGid,
    /// `unix:user`, the user's name in the node's user database.
    UnixUser,
    /// `unix:group`, the primary group's name.
    UnixGroup,
    /// `unix:path`, the program that the process runs now. A hint only: it does not separate processes of one user.
    UnixPath,
    /// `unix:sha256`, the digest of that program. A hint only, likewise.
    UnixSha256,
    /// `launch`, the label under which the launcher started the process.
    Launch,
    /// `systemd:unit`, the unit that the process belongs to.
    SystemdUnit,
    /// `container:id`, the container that the process belongs to.
    ContainerId,
}

/// By which kinds of facts somebody was attested, as a certificate carries it. Empty where nobody says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attested(u16); // INVARIANT: only bits of `KINDS`, the first kind the lowest

impl Attested {
    /// By these facts.
    pub fn by<'a>(selectors: impl IntoIterator<Item = &'a Selector>) -> Self {
        selectors.into_iter().fold(Self::default(), |all, one| all.and(one.kind))
    }

    /// These, and one more.
    #[must_use]
    pub fn and(self, kind: SelectorKind) -> Self {
        let place = KINDS.iter().position(|(known, _)| *known == kind);
        Self(self.0 | place.map_or(0, |place| 1 << place))
    }

    /// From what [`bits`](Self::bits) gave. Kinds that a later version knows are left out.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & (u16::MAX >> (16 - KINDS.len())))
    }

    /// One bit for each kind, in the order of [`SelectorKind`], the first the lowest.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether each of these is among those.
    pub const fn is_within(self, those: Self) -> bool {
        self.0 & !those.0 == 0
    }

    /// Whether nobody says.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds, as selectors begin with them: `unix:uid`, `launch`.
    pub fn kinds(self) -> impl Iterator<Item = &'static str> {
        let named = KINDS.into_iter().enumerate();
        named.filter(move |(place, _)| self.0 >> place & 1 == 1).map(|(_, (_, text))| text)
    }
}

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSelector {
    /// No kind of that name.
    #[error("`{0}` is not a selector: expected one of {kinds}", kinds = kinds())]
    Kind(String),
    /// The value does not fit the kind.
    #[error("`{value}` is not a value for `{kind}`: expected {expected}")]
    Value {
        /// What the selector speaks of.
        kind: SelectorKind,
        /// What was given.
        value: String,
        /// What would fit.
        expected: &'static str,
    },
}

const KINDS: [(SelectorKind, &str); 9] = [
    (SelectorKind::UnixUid, "unix:uid"),
    (SelectorKind::UnixGid, "unix:gid"),
    (SelectorKind::UnixUser, "unix:user"),
    (SelectorKind::UnixGroup, "unix:group"),
    (SelectorKind::UnixPath, "unix:path"),
    (SelectorKind::UnixSha256, "unix:sha256"),
    (SelectorKind::Launch, "launch"),
    (SelectorKind::SystemdUnit, "systemd:unit"),
    (SelectorKind::ContainerId, "container:id"),
];

fn kinds() -> String {
    KINDS.map(|(_, text)| format!("`{text}:…`")).join(", ")
}

impl Selector {
    /// Makes a selector of a fact.
    ///
    /// # Errors
    /// When the value does not fit the kind.
    pub fn new(kind: SelectorKind, value: &str) -> Result<Self, BadSelector> {
        match expected(kind, value) {
            None => Ok(Self { kind, value: value.into() }),
            Some(expected) => {
                Err(BadSelector::Value { kind, value: value.chars().take(80).collect(), expected })
            }
        }
    }

    /// What it speaks of.
    pub fn kind(&self) -> SelectorKind {
        self.kind
    }

    /// What it says.
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// What the value should have been, if it is not that.
fn expected(kind: SelectorKind, value: &str) -> Option<&'static str> {
    let number = value.parse::<u32>().is_ok_and(|number| number.to_string() == value);
    let text = (1..=4096).contains(&value.len()) && !value.chars().any(char::is_control);
    let hex = value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let (valid, expected) = match kind {
        SelectorKind::UnixUid | SelectorKind::UnixGid => (number, "a decimal number"),
        SelectorKind::UnixPath => (text && value.starts_with('/'), "an absolute path"),
        SelectorKind::UnixSha256 | SelectorKind::ContainerId => {
            (hex && value.len() == 64, "64 lower-case hexadecimal digits")
        }
        SelectorKind::Launch => {
            (value.parse::<crate::Name>().is_ok(), "a name of a-z, 0-9 and `-`")
        }
        SelectorKind::UnixUser | SelectorKind::UnixGroup | SelectorKind::SystemdUnit => {
            (text && value.len() <= 256, "1 to 256 bytes without control characters")
        }
    };
    (!valid).then_some(expected)
}

impl fmt::Display for SelectorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = KINDS.iter().find(|(kind, _)| kind == self).map_or("", |(_, text)| text);
        f.write_str(text)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl FromStr for Selector {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, BadSelector> {
        let (kind, value) = KINDS
            .iter()
            .find_map(|(kind, prefix)| Some((*kind, text.strip_prefix(prefix)?.strip_prefix(':')?)))
            .ok_or_else(|| BadSelector::Kind(text.chars().take(80).collect()))?;
        Self::new(kind, value)
    }
}

impl serde::Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_kinds_round_trip() {
        for text in [
            "unix:uid:0",
            "unix:gid:4294967295",
            "unix:user:www-data",
            "launch:payments",
            "unix:path:/usr/bin/a b",
            "systemd:unit:nginx.service",
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn kinds_go_through_bits_and_unknown_ones_are_left_out() {
        let selectors =
            ["launch:web", "unix:uid:7", "unix:uid:8"].map(|text| text.parse().unwrap());
        let attested = Attested::by(&selectors);
        assert_eq!(attested.kinds().collect::<Vec<_>>(), ["unix:uid", "launch"]);
        assert_eq!(Attested::from_bits(attested.bits() | 0xfe00), attested);
        assert!(Attested::by([]).is_empty() && Attested::from_bits(0x8000).is_empty());
        let all = KINDS.iter().fold(Attested::default(), |all, (kind, _)| all.and(*kind));
        assert_eq!(Attested::from_bits(u16::MAX), all);
        assert_eq!(all.kinds().count(), KINDS.len());
        assert!(attested.is_within(all) && attested.is_within(attested));
        assert!(!all.is_within(attested) && Attested::default().is_within(attested));
    }

    #[test]
    fn metacharacters_do_not_widen_a_selector() {
        for text in [
            "",
            "unix",
            "unix:uid",
            "unix:uid:",
            "unix:uid:*",
            "unix:uid:+1",
            "unix:uid:01",
            "unix:uid:-1",
            "unix:uid:4294967296",
            "launch:",
            "launch:a/b",
            "launch:*",
            "unix:path:bin",
            "unix:path:/a\nb",
            "unix:sha256:ABC",
            "k8s:ns:shop",
            "UNIX:uid:1",
            " unix:uid:1",
        ] {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
    }
}
