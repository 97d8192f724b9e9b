//! Why OpenSSL and GnuTLS judge otherwise.

use countersign_identity::Code;

use crate::vectors::Case;

const SPIFFE: &str = "We refuse: SPIFFE IDs. Neither knows that there has to be one, its form, nor who may bear which (X.509-SVID, 2 and 4)";
const DOMAINS: &str = "We refuse: trust domains. To them roots are roots, whoever's peers they vouch for (X.509-SVID, 5)";
const PEER: &str =
    "We refuse: an authority as a peer, which RFC 5280 allows and X.509-SVID (4.1, 4.3) does not";
const USAGE: &str = "We refuse: key usage has to be there, critical, and fit (X.509-SVID, 4.3); to them its absence is leave, and its criticality advice";
const PLAIN: &str = "We refuse: an authority's basic constraints have to be critical (RFC 5280, 4.2.1.9), of which they ask nothing";
const ROOT: &str = "We refuse: of a root, as of every authority, we ask that it is one, may sign, and says nothing critical that we do not know; they take its key and its name (RFC 5280, 6.1.1 d)";
const DER: &str =
    "We refuse: not the one encoding that DER and RFC 5280 allow; they read what can be read";
const AROUND: &str = "We refuse: bytes around the certificate, which their readers of files leave out or take for a form of BER";
const VERSION: &str = "We refuse: not version 3, though there are extensions (RFC 5280, 4.1.2.1)";
const BOUND: &str = "We refuse: a bound of ours on what a stranger may have us read and compare";
const FORM: &str = "We refuse: a compressed point; here a key has one form, and so one id";
const KEYS: &str = "We refuse: algorithms that are sound, and not among those that we take";
const URI: &str = "We refuse: constraints on URI names. Software differs on what they mean for `spiffe://`, so nobody gets to rely on them";
const WILDCARD: &str =
    "We refuse: a wildcard that reaches a name which is excluded; they compare letters";
const DIRECTORY: &str =
    "We refuse: directory names outside of the permitted ones, which GnuTLS does not compare";
const BESIDE: &str = "We accept: directory names beside the excluded ones, which GnuTLS does not compare, and refuses";
const MAIL: &str = "We refuse: an address of mail under any constraint on such addresses, because none is compared here; they compare them";
const VERSIONS: &str = "We refuse: an address of another version than all that are permitted; to GnuTLS the two versions are two kinds of names";
const MASK: &str = "We refuse: a constraint on addresses that is not a network in the style of CIDR (RFC 5280, 4.2.1.10), also where there is no address";
const CRITICAL: &str =
    "We refuse: critical, and not processed here; they process it, or say that they do";
const EXPLICIT: &str = "We refuse: policy constraints, also plain ones, because we process no policies; they look at policies only when told to";
const LEAF: &str = "We refuse: what only authorities may have, in a leaf (RFC 5280, 4.2.1.9 and 4.2.1.10), a subject that is empty beside plain names (4.2.1.6)";
const TWICE: &str = "We refuse: one extension twice (RFC 5280, 4.2)";
const PURPOSE: &str = "We refuse: a purpose that is not the peer's. Any purpose is none, and an authority's purposes bind what is below it";
const SECONDS: &str = "We refuse: a moment after the end; they count in whole seconds";
const LAST: &str = "We accept: the last second, which belongs to the validity (RFC 5280, 4.1.2.5)";
const ORDER: &str = "We accept: another path, where the first certificate of a name leads nowhere. They do not always come back from it";
const SELF: &str = "We accept: an authority that renewed its own key under its own name, which counts against no length (RFC 5280, 6.1.4 l)";
const IDENTIFIERS: &str = "We accept: key identifiers that do not match. They help to find a path, and are no rule of it (RFC 5280, 6.1)";

/// The reason for which a case is judged otherwise, if one is known. It is the same for both.
pub(super) fn why(case: &Case) -> Option<&'static str> {
    let name = &*case.name;
    let has = |part: &str| name.contains(part);
    let any = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let Some(rule) = case.rule else {
        return match name {
            "at_the_last_moment" => Some(LAST),
            "self_issued_authority_is_not_counted" => Some(SELF),
            "key_identifiers_that_do_not_match" => Some(IDENTIFIERS),
            "directory_constraint_that_excludes_others"
            | "subject_with_the_excluded_after_its_begin" => Some(BESIDE),
            "expired_certificate_sent_along" | "two_roots_of_one_name" => Some(ORDER),
            _ => None,
        };
    };
    match rule {
        Code::NoIdentity | Code::SeveralIdentities | Code::BadIdentity => Some(SPIFFE),
        Code::UnknownTrustDomain | Code::UnknownIssuer => Some(DOMAINS),
        Code::LeafIsAuthority => Some(PEER),
        Code::IssuerNotAuthority if any(&["named_as", "of_four_of_"]) => Some(SPIFFE),
        _ if name.starts_with("root_") || name == "leaf_trusted_as_a_root" => Some(ROOT),
        Code::IssuerNotAuthority if has("plain_basic") => Some(PLAIN),
        Code::BadKeyUsage => Some(USAGE),
        Code::BadExtendedKeyUsage => Some(PURPOSE),
        Code::TooManyCertificates => Some(BOUND),
        Code::Expired if has("microsecond") => Some(SECONDS),
        Code::WeakAlgorithm if any(&["p521", "secp256k1", "ed448", "short"]) => Some(KEYS),
        Code::NameConstraint if has("uri_constraint") => Some(URI),
        Code::NameConstraint if has("wildcard") => Some(WILDCARD),
        Code::NameConstraint if has("more_names") => Some(BOUND),
        Code::NameConstraint if any(&["subject_", "directory_"]) && !has("mail") => Some(DIRECTORY),
        Code::NameConstraint if has("mail") => Some(MAIL),
        Code::NameConstraint if any(&["mask", "six_bytes"]) => Some(MASK),
        Code::NameConstraint if has("version") => Some(VERSIONS),
        Code::BadExtension if has("policy_constraints") => Some(EXPLICIT),
        Code::BadExtension if has("twice") => Some(TWICE),
        Code::BadExtension if has("critical") => Some(CRITICAL),
        Code::BadExtension => Some(LEAF),
        Code::Malformed if any(&["16_kib", "sixty_five"]) => Some(BOUND),
        Code::Malformed if has("version") => Some(VERSION),
        Code::Malformed if has("compressed") => Some(FORM),
        Code::Malformed if any(&["followed_by", "long_length", "indefinite", "bytes_after"]) => {
            Some(AROUND)
        }
        Code::Malformed => Some(DER),
        _ => None,
    }
}
