//! What is enforced, and who we are.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use countersign_identity::{
    Clock, Code, Name, Revision, Revocation, Revocations, SpiffeId, Timestamp, TlsTerms,
};
use countersign_pki::{
    Bundle, Bundles, ChainMemory, Findings, Refused, Role, SignatureCounts, Verified,
    verify_recalling,
};
use countersign_policy::Policies;
use rustls::crypto::CryptoProvider;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::{self, Changed, Reviewed};
use crate::config::Providers;
use crate::identity::Own;
use crate::limit::Limit;
use crate::register::Register;
use crate::revoked::revoked;
use crate::{Identity, ServiceTls};

/// All that verifiers enforce, at one revision. It is swapped as one value, so that no decision ever mixes two.
#[derive(Clone)]
pub struct Slice {
    /// Which state this is.
    pub revision: Revision,
    /// Whom we trust, by trust domain.
    pub bundles: Arc<Bundles>,
    /// The names under which policies know identities.
    pub names: Arc<HashMap<SpiffeId, Name>>,
    /// Who may connect to what.
    pub policies: Arc<Policies>,
    /// What was issued and is out of service.
    pub revocations: Arc<Revocations>,
    /// What the TLS profiles of services ask of those who dial them, and of those whom they let in; of no service that is not
    /// among them more than the usual.
    pub profiles: Arc<HashMap<Name, ServiceTls>>,
}

impl Slice {
    /// Trusts nobody and allows nothing: what a process enforces before it was told anything.
    pub fn nothing() -> Self {
        Self {
            revision: Revision::default(),
            bundles: Arc::default(),
            names: Arc::default(),
            policies: Arc::new(Policies::none()),
            revocations: Arc::default(),
            profiles: Arc::default(),
        }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({}, {} names)", self.revision, self.names.len())
    }
}

/// How often what is open is decided on again where policies read the time. What begins is decided on at its moment.
pub const TIME_REVIEW_EVERY: Duration = Duration::from_secs(5);

/// Bounds on what peers can make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live connections, both ways together. Each costs a file descriptor here.
    pub connections_max: usize,
    /// How many of these are for those whom we dial. However many come to us, they leave so many.
    pub dialled_min: usize,
    /// Handshakes under way with those who dial us.
    pub handshakes_max: usize,
}

impl Limits {
    /// Enough for a proxy with the usual limit on open files raised to its hard value.
    pub const USUAL: Self =
        Self { connections_max: 16_384, dialled_min: 4096, handshakes_max: 1024 };
}

/// What came of applying a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision that is enforced from now on.
    pub revision: Revision,
    /// How many live connections it ended.
    pub cut: usize,
    /// How many live connections it told to retire.
    pub draining: usize,
    /// The rule by which we are not any more who we were: nothing is shown until there is another identity.
    pub own: Option<Arc<Revocation>>,
}

/// What this process enforces and who it is; shared by all its connections.
///
/// The slice and the identity are swapped apart: a renewed certificate changes no decision, and a new slice
/// does not wait for one.
pub struct Trust {
    clock: Arc<dyn Clock>,
    slice: ArcSwap<Slice>,
    own: ArcSwapOption<Own>,
    pub(crate) register: Arc<Register>,
    pub(crate) handshakes: Limit,
    providers: Providers,
    /// Arithmetic only, so that it outlives every slice.
    memory: ChainMemory,
    applying: Mutex<Life>,
    /// Held by who looks for the connections that a re-proof names.
    pub(crate) naming: tokio::sync::Mutex<()>,
}

/// Whether anything may still be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Closed,
}

impl Trust {
    /// Begins with this slice and without an identity.
    pub fn new(clock: Arc<dyn Clock>, slice: Slice) -> Arc<Self> {
        Self::with_limits(clock, slice, Limits::USUAL)
    }

    /// As [`new`](Self::new), with other limits than the usual ones.
    pub fn with_limits(clock: Arc<dyn Clock>, slice: Slice, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            clock,
            slice: ArcSwap::from_pointee(slice),
            own: ArcSwapOption::empty(),
            register: Arc::new(Register::new(limits.connections_max, limits.dialled_min)),
            handshakes: Limit::new(limits.handshakes_max),
            providers: Providers::new(),
            memory: ChainMemory::new(),
            applying: Mutex::new(Life::Open),
            naming: tokio::sync::Mutex::default(),
        })
    }

    /// Enforces this slice from now on, and ends or retires the live connections that it does not let exist.
    ///
    /// When this returns, no connection is admitted any more on the slice before, all that the new one denies are shut or
    /// draining, and an identity that it covers is not shown. Slices are taken in the order of the calls: that a revision
    /// does not go back, and that no revocation is lost before its end ([`Revocations::keeping`]), is for the caller to
    /// see to, who knows whether the state was restored.
    ///
    /// Parts that did not change should be the same `Arc`s as before: then only what did change is looked at.
    pub fn apply(&self, slice: Slice) -> Applied {
        let life = self.one_at_a_time();
        let slice = Arc::new(match *life {
            Life::Open => slice,
            Life::Closed => Slice { revision: slice.revision, ..Slice::nothing() },
        });
        slice.policies.lapse(self.now());
        // Swap, then scan. Whoever registers after the scan decides on the new slice (see `admission::admit`).
        let before = self.slice.swap(Arc::clone(&slice));
        let own = self.stop_showing(&slice);
        let changed = Changed::between(&before, &slice);
        let Reviewed { cut, draining } =
            admission::review(&self.register, &slice, changed, self.now());
        // What ends next may end earlier than what is waited for.
        self.register.soonest().look_again();
        Applied { revision: slice.revision, cut, draining, own }
    }

    /// Ends what was let in on a certificate, and lets nothing begin any more, for good: from now on nobody is trusted and
    /// nothing is shown, whatever is applied.
    pub fn close(&self) {
        *self.one_at_a_time() = Life::Closed;
        self.own.store(None);
        self.apply(Slice::nothing());
    }

    /// Gives up our own identity when a rule covers it, and tells the rule.
    fn stop_showing(&self, slice: &Slice) -> Option<Arc<Revocation>> {
        let own = self.own.load_full()?;
        let covered = revoked(&own.verified, &slice.revocations).err()?;
        self.own.store(None);
        Some(covered.rule)
    }

    /// Shows this identity in every handshake from now on. Live connections stay.
    ///
    /// # Errors
    /// When our own verifier does not accept it on the present slice, or a revocation covers it. The identity before
    /// stays then.
    pub fn set_identity(&self, identity: Identity) -> Result<(), Refused> {
        let chain: Vec<&[u8]> = identity.chain().certificates().iter().map(|c| c.der()).collect();
        // No slice comes between the question and the answer.
        let life = self.one_at_a_time();
        if *life == Life::Closed {
            let why = "this process shows nothing any more".to_owned();
            return Err(Refused { code: Code::NoOwnIdentity, why });
        }
        let slice = self.slice();
        // Foreign issuers may write certificates for one of the roles alone.
        let as_client = countersign_pki::verify(&chain, &slice.bundles, Role::Client, self.now());
        let verified = as_client.or_else(|refused| {
            let as_server =
                countersign_pki::verify(&chain, &slice.bundles, Role::Server, self.now());
            as_server.map_err(|_same| refused)
        })?;
        revoked(&verified, &slice.revocations).map_err(|covered| covered.refused)?;
        self.own.store(Some(Arc::new(Own { identity: Arc::new(identity), verified })));
        Ok(())
    }

    /// Shows a canary that no verifier should accept, ours included: only that the authority above it has signed it is
    /// looked at.
    ///
    /// # Errors
    /// When it is no canary, or that authority has not signed it.
    pub(crate) fn set_former_canary(&self, identity: Identity) -> Result<(), Refused> {
        let refused = |why: String| Refused { code: Code::Canary, why };
        let id = identity.id();
        let [leaf, above, ..] = identity.chain().certificates() else {
            return Err(refused(format!("`{id}` comes without the authority that has signed it")));
        };
        if !id.is_canary() {
            return Err(refused(format!("`{id}` is no canary")));
        }
        let signer = Bundle::new(id.trust_domain().clone(), vec![above.clone()], 0);
        let anchors = Bundles::of(signer);
        let verified = countersign_pki::verify(&[leaf.der()], &anchors, Role::Client, self.now())?;
        self.own.store(Some(Arc::new(Own { identity: Arc::new(identity), verified })));
        Ok(())
    }

    /// Shows nothing any more: new handshakes fail with `no-own-identity`.
    pub fn clear_identity(&self) {
        self.own.store(None);
    }

    /// What is enforced now, and when that is, without policies that have ended by then. Live connections that they let in are ended.
    pub(crate) fn slice_now(&self) -> (Arc<Slice>, Timestamp) {
        let (slice, now) = (self.slice(), self.now());
        if slice.policies.ends().is_none_or(|end| now < end) {
            return (slice, now);
        }
        let _one_at_a_time = self.one_at_a_time();
        let (slice, now) = (self.slice(), self.now());
        if slice.policies.lapse(now) {
            let Reviewed { cut, .. } =
                admission::review(&self.register, &slice, Changed::Decisions, now);
            tracing::info!(cut, "policies have ended");
        }
        (slice, now)
    }

    /// Ends what policies that read the time do not permit any more.
    fn review_time(&self) {
        let _one_at_a_time = self.one_at_a_time();
        let (slice, now) = (self.slice(), self.now());
        let Reviewed { cut, .. } =
            admission::review(&self.register, &slice, Changed::Decisions, now);
        if 0 < cut {
            tracing::info!(cut, "policies that read the time permit it no longer");
        }
    }

    /// What is enforced now.
    pub fn slice(&self) -> Arc<Slice> {
        self.slice.load_full()
    }

    /// Who we are now; possibly expired.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.own.load_full().map(|own| Arc::clone(&own.identity))
    }

    /// How many connections are live.
    pub fn connections(&self) -> usize {
        self.register.len()
    }

    /// How many connections retire and are not closed yet, to wait on.
    pub fn draining(&self) -> watch::Receiver<usize> {
        self.register.draining()
    }

    /// How many connections revocations have ended or retired so far.
    pub fn revoked(&self) -> u64 {
        self.register.revoked()
    }

    /// How many signatures of peers' chains were verified, and how many were known to be right from an earlier handshake.
    pub fn signatures(&self) -> SignatureCounts {
        self.memory.counts()
    }

    /// The clock of this process.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Ends connections when the certificate of their peer expires, their time to drain is over, or the policy that let them in
    /// ends or, reading the time, does not let them in any more, until it is told to stop. Must always run beside what uses this
    /// trust.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut reviewed = self.now();
        loop {
            let (slice, now) = self.slice_now();
            let (ends, timed) = (slice.policies.ends(), slice.policies.reads().time);
            // The second half is for a clock that went back.
            if timed && (TIME_REVIEW_EVERY <= now.since(reviewed) || now < reviewed) {
                reviewed = now;
                self.review_time();
            }
            let next = self.register.sweep(self.now());
            // A certificate is valid at its last moment still (RFC 5280, 4.1.2.5).
            let wake = next.map_or(Timestamp::LAST, |last| last + Duration::from_micros(1));
            let wake = ends.map_or(wake, |end| wake.min(end));
            let wake = if timed { wake.min(self.now() + TIME_REVIEW_EVERY) } else { wake };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep_until(wake) => {}
                () = self.register.soonest().sooner() => {}
            }
        }
    }

    /// Verifies a peer's chain on what is enforced now, with the help of what is remembered of signatures.
    pub(crate) fn verify(
        &self,
        chain: &[&[u8]],
        role: Role,
    ) -> Result<(Verified, Findings), Refused> {
        verify_recalling(chain, &self.slice().bundles, role, self.now(), &self.memory)
    }

    /// The peer whose chain this is has proven that it holds the leaf's key.
    pub(crate) fn remember(&self, findings: &Findings) {
        self.memory.remember(findings, self.now());
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn valid_own(&self) -> Option<Arc<Own>> {
        let now = self.now();
        self.own.load_full().filter(|own| now <= own.identity.expires())
    }

    fn one_at_a_time(&self) -> MutexGuard<'_, Life> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn provider(&self, terms: TlsTerms) -> Arc<CryptoProvider> {
        self.providers.of(terms)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({:?}, {:?})", self.slice(), self.identity())
    }
}
