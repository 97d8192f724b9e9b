//! `countersign verify`: what our verifier says of any chain, and why.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use countersign_identity::{Clock as _, Code, SystemClock, Timestamp, TrustDomain};
use countersign_pki::{
    Bundle, Bundles, Certificate, Refused, Role, check_leaf, decode_certificates, verify,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};
use crate::output;

/// Say whether a chain of certificates is accepted, and if not, by which rule
///
/// Reads PEM or DER, the leaf first; or, with no chain or `-`, one JSON case from standard input:
/// {"chain":[PEM…],"roots":[PEM…],"role":"server"|"client","at":"2026-11-21T12:00:00Z","trust_domain":"…"}.
///
/// Prints {"verdict":"accepted","id":…} (exit status 0) or {"verdict":"refused","rule":…,"why":…} (1).
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The chain, or `-` for a JSON case on standard input
    #[arg(value_name = "CHAIN")]
    chain: Option<PathBuf>,

    /// The authorities to trust: PEM, DER, or a SPIFFE bundle in JSON
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    /// The part that the presenter of the chain plays
    #[arg(long = "as", value_enum, value_name = "ROLE")]
    role: Option<RoleName>,

    /// The moment to judge at [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,

    /// The trust domain that the bundle is of [default: the leaf's own]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,

    /// Check the own rules of one certificate, the first of the file, and nothing else
    #[arg(long, value_enum, conflicts_with_all = ["bundle", "role", "at", "trust_domain"], requires = "chain")]
    profile: Option<ProfileName>,
}

#[derive(Clone, Copy, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleName {
    Client,
    Server,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Client => Self::Client,
            RoleName::Server => Self::Server,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileName {
    /// The leaf of an X.509-SVID
    Leaf,
}

/// A case as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonCase {
    chain: Vec<String>,
    roots: Vec<String>,
    role: RoleName,
    at: Option<String>,
    trust_domain: Option<String>,
}

/// A case that is understood.
#[derive(Debug)]
struct Case {
    chain: Vec<Vec<u8>>,
    roots: Roots,
    role: Role,
    at: Timestamp,
    trust_domain: Option<TrustDomain>,
}

/// The authorities, not yet parsed: a broken one refuses the chain.
#[derive(Debug)]
enum Roots {
    Certificates(Vec<Vec<u8>>),
    Document(Vec<u8>),
}

/// The largest file or case that is read.
const INPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

pub(crate) fn run(arguments: &Arguments) -> Result<Exit> {
    let (answer, exit) = match (&arguments.profile, &arguments.chain) {
        (Some(ProfileName::Leaf), Some(path)) => profile(path)?,
        (Some(ProfileName::Leaf), None) => {
            return Err(Failure::not_understood("name the certificate").into());
        }
        (None, Some(path)) if path.as_os_str() != "-" => judge(&from_files(path, arguments)?),
        (None, _) => judge(&from_stdin(arguments)?),
    };
    output::json(&answer)?;
    Ok(exit)
}

fn profile(path: &PathBuf) -> Result<(Value, Exit)> {
    let certificates = certificates(&super::read_file(path, INPUT_BYTES_MAX)?)
        .map_err(|why| Failure::not_understood(format!("`{}` {why}", path.display())))?;
    let Some((leaf, others)) = certificates.split_first() else {
        let message = format!("`{}` holds no certificate", path.display());
        return Err(Failure::not_understood(message).into());
    };
    let accepted = check_leaf(leaf).map(|id| json!({ "verdict": "accepted", "id": id }));
    let (mut answer, exit) = verdict(accepted);
    if !others.is_empty() {
        let count = certificates.len();
        answer["note"] =
            json!(format!("the first of {count} certificates was checked, and no other"));
    }
    Ok((answer, exit))
}

fn verdict(result: Result<Value, Refused>) -> (Value, Exit) {
    match result {
        Ok(accepted) => (accepted, Exit::Done),
        Err(refused) => {
            (json!({ "verdict": "refused", "rule": refused.code, "why": refused.why }), Exit::No)
        }
    }
}

fn judge(case: &Case) -> (Value, Exit) {
    let (domain, note) = match (&case.trust_domain, own_domain(&case.chain)) {
        (Some(domain), _) => (domain.clone(), None),
        (None, Ok(domain)) => {
            let note = format!("no trust domain was given: the leaf's own, `{domain}`, was used");
            (domain, Some(note))
        }
        (None, Err(refused)) => return verdict(Err(refused)),
    };
    let (mut answer, exit) = verdict(accept(case, &domain));
    answer["trust_domain"] = json!(domain);
    if let Some(note) = note {
        answer["note"] = json!(note);
    }
    (answer, exit)
}

fn accept(case: &Case, domain: &TrustDomain) -> Result<Value, Refused> {
    let bundle = match &case.roots {
        Roots::Certificates(roots) => {
            let parsed: Result<Vec<_>, _> =
                roots.iter().map(|der| Certificate::parse(der)).collect();
            Bundle::new(domain.clone(), parsed?, 0)
        }
        Roots::Document(document) => Bundle::parse_json(domain.clone(), document)
            .map_err(|bad| Refused { code: bad.code(), why: bad.to_string() })?,
    };
    let chain: Vec<&[u8]> = case.chain.iter().map(Vec::as_slice).collect();
    let verified = verify(&chain, &Bundles::of(bundle), case.role, case.at)?;
    Ok(json!({ "verdict": "accepted", "id": verified.id, "expires": verified.expires }))
}

/// The trust domain that the leaf itself names.
fn own_domain(chain: &[Vec<u8>]) -> Result<TrustDomain, Refused> {
    let Some(leaf) = chain.first() else {
        return Err(Refused { code: Code::NoCertificate, why: "the chain is empty".to_owned() });
    };
    Ok(Certificate::parse(leaf)?.spiffe_id()?.trust_domain().clone())
}

fn from_files(path: &PathBuf, arguments: &Arguments) -> Result<Case, Failure> {
    let Some(bundle) = &arguments.bundle else {
        return Err(Failure::not_understood("name the authorities to trust with `--bundle FILE`"));
    };
    let Some(role) = arguments.role else {
        return Err(Failure::not_understood(
            "say which part the presenter plays: `--as client` or `--as server`",
        ));
    };
    let chain = certificates(&super::read_file(path, INPUT_BYTES_MAX)?)
        .map_err(|why| Failure::not_understood(format!("`{}` {why}", path.display())))?;
    let bytes = super::read_file(bundle, INPUT_BYTES_MAX)?;
    let roots = if bytes.trim_ascii_start().starts_with(b"{") {
        Roots::Document(bytes)
    } else {
        let roots = certificates(&bytes)
            .map_err(|why| Failure::not_understood(format!("`{}` {why}", bundle.display())))?;
        Roots::Certificates(roots)
    };
    let at = arguments.at.unwrap_or_else(|| SystemClock::new().now());
    Ok(Case { chain, roots, role: role.into(), at, trust_domain: arguments.trust_domain.clone() })
}

fn from_stdin(arguments: &Arguments) -> Result<Case, Failure> {
    if arguments.bundle.is_some() {
        return Err(Failure::not_understood("a JSON case brings its own roots: remove `--bundle`"));
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| {
        Failure::not_understood(format!("standard input cannot be read: {error}"))
    })?;
    if u64::try_from(bytes.len()).is_ok_and(|length| INPUT_BYTES_MAX < length) {
        let message = format!(
            "standard input is larger than {INPUT_BYTES_MAX} bytes, which is the most that is read"
        );
        return Err(Failure::not_understood(message));
    }
    let mut case = parse_case(&bytes)?;
    // A flag wins over the case, as everywhere.
    case.role = arguments.role.map_or(case.role, Role::from);
    case.at = arguments.at.unwrap_or(case.at);
    case.trust_domain = arguments.trust_domain.clone().or(case.trust_domain);
    Ok(case)
}

fn parse_case(bytes: &[u8]) -> Result<Case, Failure> {
    let bad = |why: String| Failure::not_understood(format!("the case is not understood: {why}"));
    let case: JsonCase = serde_json::from_slice(bytes).map_err(|error| {
        bad(format!(
            "{error}; write `{{\"chain\":[PEM…],\"roots\":[PEM…],\"role\":\"server\"}}`, or name a file of the chain with `--bundle FILE` and `--as ROLE`"
        ))
    })?;
    let at = match case.at {
        Some(text) => text
            .parse()
            .map_err(|error: countersign_identity::BadTimestamp| bad(format!("`at`: {error}")))?,
        None => SystemClock::new().now(),
    };
    let trust_domain = match case.trust_domain {
        Some(text) => Some(text.parse().map_err(|error: countersign_identity::IdError| {
            bad(format!("`trust_domain`: {error}"))
        })?),
        None => None,
    };
    let all = |field: &str, texts: &[String]| -> Result<Vec<Vec<u8>>, Failure> {
        let mut ders = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let found = decode_certificates(text)
                .map_err(|error| bad(format!("`{field}[{index}]`: {error}")))?;
            ders.extend(found);
        }
        Ok(ders)
    };
    Ok(Case {
        chain: all("chain", &case.chain)?,
        roots: Roots::Certificates(all("roots", &case.roots)?),
        role: case.role.into(),
        at,
        trust_domain,
    })
}

/// The certificates of a file: PEM, or DER one after the other.
pub(super) fn certificates(bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && text.contains("-----BEGIN ")
    {
        return decode_certificates(text).map_err(|error| format!("is not understood: {error}"));
    }
    let mut ders = Vec::new();
    let mut rest = bytes;
    while let Some(length) = der_length(rest) {
        let (der, after) = rest.split_at(length);
        ders.push(der.to_vec());
        rest = after;
    }
    match ders.last_mut() {
        // What follows the last certificate belongs to it, and makes it malformed: our verifier says so.
        Some(last) => last.extend_from_slice(rest),
        None => return Err("holds neither PEM nor DER certificates".to_owned()),
    }
    Ok(ders)
}

/// The length of the DER sequence at the beginning, if it is all there (X.690, 8.1).
fn der_length(bytes: &[u8]) -> Option<usize> {
    let (&[0x30, first], rest) = bytes.split_first_chunk::<2>()? else { return None };
    let (header, length) = match first {
        0..=0x7f => (2, usize::from(first)),
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            let digits = rest.get(..count)?;
            (2 + count, digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)))
        }
        0x80 | 0x85..=0xff => return None,
    };
    let whole = header + length;
    (whole <= bytes.len()).then_some(whole)
}

#[cfg(test)]
mod tests;
