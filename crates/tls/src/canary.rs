//! Trials: what a door says to a canary, and how a canary is shown to a door.
//!
//! A canary comes by an application protocol of its own, which every door knows. It is asked what everybody is asked: does
//! its chain lead to an authority of the bundle, is it valid now, is it out of service? Policy is not asked, and nobody
//! is let in: the door says at which revision it let the canary through its verifier, and closes. By any other
//! protocol a canary is refused, and by this one everybody else is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Clock, Code, Revision, SpiffeId, TlsTerms};
use countersign_pki::{Refused, Verified};
use rustls::{AlertDescription, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::revoked::revoked;
use crate::rule::holds;
use crate::session::Session;
use crate::{Established, Expected, HandshakeFailure, Identity, Outbound, Slice, Trust, dial};

/// The application protocol by which a canary comes.
pub const CANARY_ALPN: &[u8] = b"countersign-canary";

/// An answer is a revision: incarnation and number, eight bytes each, the highest first.
const ANSWER_BYTES: usize = 16;

/// What a door said to a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryAnswer {
    /// It was refused, since a revocation covers it.
    Revoked,
    /// It was refused, since no authority that is trusted there has signed it.
    Untrusted,
    /// It was let through the verifier, which enforces this revision.
    Alive(Revision),
    /// Neither, and why: nothing is proven.
    Unclear(String),
}

/// Why a canary comes to nothing more than an answer; none for everybody else.
pub(crate) fn let_in_nowhere(peer: &Verified) -> Result<(), Refused> {
    if !peer.id.is_canary() {
        return Ok(());
    }
    let why = format!("`{}` is a canary, which is let in nowhere", peer.id);
    Err(Refused { code: Code::PolicyDenied, why })
}

/// Whether this slice lets a canary through.
pub(crate) fn alive(peer: &Verified, slice: &Slice) -> Result<(), Refused> {
    if !peer.id.is_canary() {
        let why = format!("`{}` is no canary, and came as one", peer.id);
        return Err(Refused { code: Code::PolicyDenied, why });
    }
    holds(peer, slice)?;
    revoked(peer, &slice.revocations).map_err(|covered| covered.refused)
}

/// Tells a canary that it was let through, and closes. Gives what is noted of it.
pub(crate) async fn answer(mut tls: Session, revision: Revision) -> Refused {
    let mut said = revision.incarnation.to_be_bytes().to_vec();
    said.extend(revision.number.to_be_bytes());
    let answered = async {
        tls.write_all(&said).await?;
        tls.shutdown().await
    };
    let why = match answered.await {
        Ok(()) => format!("the canary was told that it is let through at revision {revision}"),
        Err(error) => format!("the canary went away before it was answered: {error}"),
    };
    Refused { code: Code::Canary, why }
}

/// Shows a canary at a door behind which `expected` must be, and says what the door says. `slice` is whom we trust; it
/// must not hold the rule that covers the canary, or we would not show it.
pub async fn show_canary(
    clock: &Arc<dyn Clock>,
    slice: Slice,
    canary: Identity,
    door: (SocketAddr, &SpiffeId),
    timeout: Duration,
) -> CanaryAnswer {
    let trust = Trust::new(Arc::clone(clock), slice);
    match trust.set_identity(canary) {
        Ok(()) => show(&trust, door, timeout).await,
        Err(refused) => CanaryAnswer::Unclear(refused.why),
    }
}

/// As [`show_canary`], for a canary that an authority out of service has signed: no verifier should accept it, and ours is
/// not asked. The door itself is verified as ever, by the bundles of `slice`.
pub async fn show_former_canary(
    clock: &Arc<dyn Clock>,
    slice: Slice,
    canary: Identity,
    door: (SocketAddr, &SpiffeId),
    timeout: Duration,
) -> CanaryAnswer {
    // The rule that takes the authority out of service would keep us from showing it.
    let trust = Trust::new(Arc::clone(clock), Slice { revocations: Arc::default(), ..slice });
    match trust.set_former_canary(canary) {
        Ok(()) => show(&trust, door, timeout).await,
        Err(refused) => CanaryAnswer::Unclear(refused.why),
    }
}

async fn show(
    trust: &Arc<Trust>,
    (address, expected): (SocketAddr, &SpiffeId),
    timeout: Duration,
) -> CanaryAnswer {
    let mut outbound = Outbound::control(Expected::Id(expected.clone()));
    outbound.alpn = vec![CANARY_ALPN.to_vec()];
    // Which profile the door has is not known here, and a canary is no secret.
    outbound.terms = TlsTerms::ANY;
    outbound.timeout = timeout;
    let shown = async {
        match dial(trust, address, &outbound).await {
            Ok(established) => hear(established).await,
            Err(HandshakeFailure { detail, .. }) => CanaryAnswer::Unclear(detail),
        }
    };
    let clock = trust.clock();
    tokio::select! {
        answer = shown => answer,
        () = clock.sleep_until(clock.now() + timeout) => {
            CanaryAnswer::Unclear(format!("no answer within {timeout:?}"))
        }
    }
}

async fn hear(Established { mut stream, .. }: Established) -> CanaryAnswer {
    let mut answer = [0; ANSWER_BYTES];
    match stream.read_exact(&mut answer).await {
        // A door that knows nothing of canaries has no such protocol, and may not be believed to have understood.
        Ok(_) if stream.alpn() != Some(CANARY_ALPN) => {
            CanaryAnswer::Unclear("the door does not know of canaries".to_owned())
        }
        Ok(_) => {
            let (incarnation, number) = answer.split_at(ANSWER_BYTES / 2);
            let read = |half: &[u8]| half.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            CanaryAnswer::Alive(Revision { incarnation: read(incarnation), number: read(number) })
        }
        Err(error) => match alert_of(&error) {
            Some(AlertDescription::CertificateRevoked) => CanaryAnswer::Revoked,
            // Roots of one trust domain have one name, so that of another one's issuer it is said that its signature is wrong.
            Some(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
                CanaryAnswer::Untrusted
            }
            Some(alert) => CanaryAnswer::Unclear(format!("it was refused by {alert:?}")),
            None => CanaryAnswer::Unclear(error.to_string()),
        },
    }
}

fn alert_of(error: &std::io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
