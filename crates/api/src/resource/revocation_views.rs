//! What the rest of the world is told about revocations: lists and OCSP, and whether certificates name them.

use countersign_identity::Lifetime;
use countersign_pki::{OcspNamed, Pointers, Shards, ViewsUrl};
use serde::Serialize;

use super::reader::{Fields, Problems};
use super::tree::Tree;

/// A list every quarter of an hour, also when nothing was revoked, so that a client sees that it is not kept from one.
const INTERVAL: &str = "15m";
/// A client that cannot reach anybody goes on for an hour with the list that it has.
const VALIDITY: &str = "1h";
/// More often than this nobody needs a list in which nothing changed.
const INTERVAL_SECS_MIN: u64 = 10;

/// Revocation lists and OCSP. Servers sign both in any case; here is what certificates say about them, and how often
/// they are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct RevocationViews {
    /// Where lists and the OCSP responder are reached, `http://crl.shop.example:8880`; certificates name it. Absent:
    /// they name nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<super::schema::ViewsUrlText>")]
    pub url: Option<ViewsUrl>,
    /// Into how many lists the certificates of one issuer are divided: 1 (the default), 2, 4, up to 256.
    #[schemars(with = "Option<super::schema::ShardsNumber>")]
    pub shards: Shards,
    /// Whether certificates name the OCSP responder besides a list; `true` by default.
    #[schemars(with = "Option<bool>")]
    pub ocsp: bool,
    /// How often a list is made when nothing was revoked; an OCSP answer is good for as long.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub interval: Lifetime,
    /// How long a list is good: at least twice the interval.
    #[schemars(with = "Option<super::schema::LifetimeText>")]
    pub validity: Lifetime,
}

impl Default for RevocationViews {
    /// What holds when nobody said anything: certificates name nothing.
    fn default() -> Self {
        let constant = |text: &str| text.parse().expect("the constants of this file are lifetimes");
        Self {
            url: None,
            shards: Shards::ONE,
            ocsp: true,
            interval: constant(INTERVAL),
            validity: constant(VALIDITY),
        }
    }
}

impl RevocationViews {
    /// What certificates are to say, if anything.
    pub fn pointers(&self) -> Option<Pointers> {
        let ocsp = if self.ocsp { OcspNamed::Yes } else { OcspNamed::No };
        Some(Pointers { url: self.url.clone()?, shards: self.shards, ocsp })
    }

    /// Reads the fields of `spec.revocationViews`.
    pub(super) fn read(tree: &Tree, path: &str, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::open(tree, path, problems)?;
        let url = fields.optional("url", problems);
        let shards = fields.number("shards", problems);
        let ocsp = fields.switch("ocsp", problems);
        let interval = fields.optional::<Lifetime>("interval", problems);
        let validity = fields.optional::<Lifetime>("validity", problems);
        let (at_interval, at_validity) = (fields.place_of("interval"), fields.place_of("validity"));
        fields.close(problems);
        let defaults = Self::default();
        let (interval, validity) = (interval?, validity?);
        // A default is never what breaks the limit that somebody wrote.
        let views = Self {
            interval: interval.unwrap_or_else(|| match validity {
                Some(validity) => defaults.interval.min(share(validity, 1, 2)),
                None => defaults.interval,
            }),
            validity: validity.unwrap_or_else(|| match interval {
                Some(interval) => defaults.validity.max(share(interval, 2, 1)),
                None => defaults.validity,
            }),
            ..defaults
        };
        if views.interval.duration().as_secs() < INTERVAL_SECS_MIN {
            let message =
                format!("`{}` is too often: write `{INTERVAL_SECS_MIN}s` or more", views.interval);
            problems.add(&at_interval, message);
        }
        if views.validity.duration() < views.interval.duration() * 2 {
            let message = format!(
                "`{}` is less than twice `interval`, which is `{}`: a list that comes late would leave a gap, so raise it",
                views.validity, views.interval
            );
            problems.add(&at_validity, message);
        }
        Some(Self {
            url: url?,
            shards: shards?.unwrap_or(Shards::ONE),
            ocsp: ocsp?.unwrap_or(true),
            ..views
        })
    }
}

/// A multiple or a part of a span, within the range that a lifetime has.
fn share(span: Lifetime, times: u64, part: u64) -> Lifetime {
    let secs = span.duration().as_secs() * times / part;
    Lifetime::from_secs(secs).unwrap_or(span)
}
