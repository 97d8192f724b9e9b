//! The one way in which certificates come to be: built, reviewed, recorded, signed, verified, in this order.

use std::sync::Arc;

use arc_swap::ArcSwap;
use countersign_audit::{Event, EventKind};
use countersign_identity::{
    Attested, Clock, Code, Entropy, Lifetime, NodeId, NodeTag, Serial, SpiffeId, Timestamp,
};
use countersign_pki::{
    Certificate, ChainMemory, DnsName, Draft, ProvenKey, Provenance, Receipt, Reserved, Reviewed,
    Role, Summary,
};
use countersign_program::trace::Scope;
use countersign_store::{Batch, IssuedRow, Op, Store};
use countersign_tls::revoked;

use crate::authority::{Authorities, Signing};
use crate::digest::node_tag;
use crate::refusal::Refused;
use crate::state::State;
use crate::watch::{TimeGuard, believed};

/// One certificate to be made.
pub(crate) struct Wanted {
    /// The identity.
    pub(crate) id: SpiffeId,
    /// The key, whose possession was proven.
    pub(crate) key: ProvenKey,
    /// How long it lives.
    pub(crate) lifetime: Lifetime,
    /// Names besides.
    pub(crate) dns_names: Vec<DnsName>,
    /// By which kinds of facts its holder is attested; empty where it is by none.
    pub(crate) attested: Attested,
    /// Whether the identity may lie under `/countersign`.
    pub(crate) reserved: Reserved,
}

/// On whose behalf certificates are made, and what else must become true in the same moment or not at all.
pub(crate) struct Cause {
    /// Who asked: a SPIFFE ID, or `server`.
    pub(crate) actor: String,
    /// Through which node they are issued.
    pub(crate) node: Option<NodeId>,
    /// Changes beside the state: a token spent, a node registered.
    pub(crate) ops: Vec<Op>,
    /// What the log says besides.
    pub(crate) events: Vec<Event>,
}

/// A request for certificates, decided item by item: what was refused stays in its place.
pub(crate) struct Order {
    /// What is wanted, or why not.
    pub(crate) wanted: Vec<Result<Wanted, Refused>>,
    /// On whose behalf.
    pub(crate) cause: Cause,
    /// Where its steps stand in a trace, if they are told.
    pub(crate) scope: Scope,
}

/// A certificate that is recorded, signed and verified.
#[derive(Clone, Debug)]
pub(crate) struct Svid {
    /// Whom it names.
    pub(crate) id: SpiffeId,
    /// What is shown: leaf and issuer, and what stands between the issuer and its root.
    pub(crate) chain: Vec<Certificate>,
    /// The moment from which lifetimes and renewals are reckoned.
    pub(crate) issued: Timestamp,
    /// Its serial.
    pub(crate) serial: Serial,
}

/// Makes certificates.
pub(crate) struct Desk {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) authorities: Arc<ArcSwap<Authorities>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) time: Arc<TimeGuard>,
    /// Signatures of authorities that were verified before.
    pub(crate) memory: ChainMemory,
}

/// What every certificate of one request has in common.
struct Request<'a> {
    state: &'a State,
    by: Signing,
    standing: Standing,
    now: Timestamp,
    provenance: Provenance,
}

/// Whether what an authority signs must be accepted, or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    InService,
    Condemned,
}

impl Desk {
    /// The present time, if it may be believed.
    ///
    /// # Errors
    /// As [`believed`].
    pub(crate) async fn now(&self) -> Result<Timestamp, Refused> {
        believed(&self.time, &*self.clock, &*self.store).await
    }

    /// Makes all the certificates that pass review, in the order of the request, with one durable commit.
    ///
    /// Not to be torn: once recorded, a certificate should be signed. Callers run it in a task of its own.
    ///
    /// # Errors
    /// When nothing was recorded, and so nothing issued: the store refused, or the clock is not to be trusted.
    pub(crate) async fn issue(
        &self,
        state: &State,
        order: Order,
    ) -> Result<Vec<Result<Svid, Refused>>, Refused> {
        let by = self.authorities.load().issuing();
        self.issue_by(by, Standing::InService, state, order).await
    }

    /// The same by an authority that is out of service: canaries, by which it is tried that nobody accepts its word any
    /// more. What our own verifier would accept is not given out.
    ///
    /// # Errors
    /// As for [`issue`](Self::issue).
    pub(crate) async fn issue_condemned(
        &self,
        by: Signing,
        state: &State,
        order: Order,
    ) -> Result<Vec<Result<Svid, Refused>>, Refused> {
        self.issue_by(by, Standing::Condemned, state, order).await
    }

    async fn issue_by(
        &self,
        by: Signing,
        standing: Standing,
        state: &State,
        order: Order,
    ) -> Result<Vec<Result<Svid, Refused>>, Refused> {
        // 1. One moment and one authority for all.
        let now = self.now().await?;
        let tag = order.cause.node.map_or(NodeTag::from_bytes([0; 8]), node_tag);
        let attested = Attested::default();
        let provenance = Provenance { revision: state.revision, node: tag, attested };
        let request = Request { state, by, standing, now, provenance };
        // 2. Build and review. What does not pass is not recorded.
        let reviewing = order.scope.begin("review");
        let mut reviewed = Vec::with_capacity(order.wanted.len());
        for one in order.wanted {
            reviewed.push(one.and_then(|one| self.review(one, &request)));
        }
        drop(reviewing);
        let recording = order.scope.begin("record");
        // 3. Record before signing. A crash in between leaves an entry without a certificate, which is
        // harmless; the other order could leave a certificate which the log has never seen.
        let summaries = reviewed.iter().flatten().map(Reviewed::summary).collect();
        let committed = self.store.commit(batch(&request, summaries, order.cause)).await?;
        self.time.recorded(now);
        drop(recording);
        // 4. Sign what was recorded.
        let _signing = order.scope.begin("sign");
        let mut receipts = committed.receipts.into_iter();
        let mut svids = Vec::with_capacity(reviewed.len());
        for one in reviewed {
            let svid = match one {
                Ok(one) => sign(one, receipts.next(), &request, &self.memory).await,
                Err(refused) => Err(refused),
            };
            svids.push(svid);
        }
        Ok(svids)
    }

    fn review(&self, wanted: Wanted, request: &Request<'_>) -> Result<Reviewed, Refused> {
        let serial = Serial::draw(request.now, &*self.entropy)
            .map_err(|lost| Refused::new(Code::Internal, lost.to_string()))?;
        let draft = Draft {
            id: wanted.id,
            key: wanted.key,
            serial,
            issued: request.now,
            lifetime: wanted.lifetime,
            dns_names: wanted.dns_names,
            provenance: Provenance { attested: wanted.attested, ..request.provenance },
            reserved: wanted.reserved,
        };
        draft
            .review(&request.state.profile(), &request.by.issuer)
            .map_err(|refusal| Refused::new(refusal.code(), refusal.to_string()))
    }
}

/// What is recorded: each certificate with its event, and what must become true with them.
fn batch(request: &Request<'_>, summaries: Vec<Summary>, cause: Cause) -> Batch {
    let revision = request.provenance.revision;
    let issued: Vec<IssuedRow> = summaries
        .into_iter()
        .filter_map(|summary| {
            Some(IssuedRow {
                serial: summary.serial,
                tbs: summary.tbs,
                spiffe_id: summary.id?,
                key: summary.key,
                issuer: summary.issuer,
                node: cause.node,
                validity: summary.validity,
                revision,
            })
        })
        .collect();
    let mut events = cause.events;
    let actor = &cause.actor;
    events.extend(issued.iter().map(|row| row.event(EventKind::SvidIssued, request.now, actor)));
    // A removal of rights that is newer than the snapshot undoes what was decided on it.
    Batch { authorised_at: Some(revision), events, issued, ops: cause.ops, ..Batch::default() }
}

/// Signs what is recorded, and looks at it with the eyes of those who will have to accept it.
async fn sign(
    reviewed: Reviewed,
    receipt: Option<Receipt>,
    request: &Request<'_>,
    memory: &ChainMemory,
) -> Result<Svid, Refused> {
    let internal = |why: String| Refused::new(Code::Internal, why);
    let receipt = receipt.ok_or_else(|| internal("the store gave no receipt".to_owned()))?;
    let summary = reviewed.summary();
    let by = &request.by;
    let fresh = reviewed.sign_fresh(receipt, &*by.signer).await;
    let fresh = fresh.map_err(|fault| internal(fault.to_string()))?;
    let mut above = vec![by.issuer.certificate().clone()];
    above.extend_from_slice(&by.above);
    let (state, moment) = (request.state, (Role::Client, request.now));
    let verified = countersign_pki::verify_fresh(&fresh, &above, state.bundles(), moment, memory);
    let (id, key) = match (request.standing, verified) {
        (Standing::InService, Ok(verified)) => (verified.id, verified.key),
        (Standing::InService, Err(refused)) => {
            return Err(internal(format!("our own verifier refuses it: {}", refused.why)));
        }
        (Standing::Condemned, Ok(verified)) if revoked(&verified, &state.revocations()).is_ok() => {
            let why = "our own verifier would accept what an authority out of service has signed";
            return Err(internal(why.to_owned()));
        }
        (Standing::Condemned, Ok(_) | Err(_)) => {
            let leaf = fresh.certificate();
            (leaf.spiffe_id().map_err(|refused| internal(refused.why))?, leaf.key_id())
        }
    };
    if Some(&id) != summary.id.as_ref() || key != summary.key {
        return Err(internal("the certificate is not the one that was asked for".to_owned()));
    }
    let chain = [fresh.certificate().clone()].into_iter().chain(above).collect();
    Ok(Svid { id, chain, issued: request.now, serial: summary.serial })
}
