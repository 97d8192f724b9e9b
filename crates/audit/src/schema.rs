//! What each kind of event says beside its leaf: the members of its details, in a closed list.

use crate::EventKind;

/// A member of an event's details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

const fn field(name: &'static str, meaning: &'static str) -> Field {
    Field { name, meaning }
}

/// Members that live as long as the program.
macro_rules! fields {
    ($($field:expr),* $(,)?) => { const { &[$($field),*] } };
}

const RULE: Field = field("rule", "The name of the rule, `REVISION.NUMBER`.");
const TARGET: Field = field("target", "What it covers.");
const REASON: Field = field("reason", "Why.");
const UNTIL: Field = field("until", "When it ends.");
const HANDED_BACK: Field =
    field("handedBack", "True when an agent or a journal brought it back after a loss.");
const GENERATION: Field = field("generation", "How many keys it has had.");
const CERTIFICATE: &[Field] = &[
    field("key", "The id of its public key."),
    field("issuer", "The id of the key that signs it."),
    field("node", "The node through which it was issued, if one was."),
    field("notBefore", "From when it is valid."),
    field("notAfter", "Until when it is valid."),
    field("authorisedAt", "The revision on which its issue was decided."),
];

impl EventKind {
    /// What the event's subject is.
    pub const fn subject(self) -> &'static str {
        match self {
            Self::IncarnationBegan => "The trust domain.",
            Self::ServerStarted => "The server's SPIFFE ID.",
            Self::AuthorityCreated | Self::ResponderCreated => {
                "The authority, or whose server's key it is."
            }
            Self::AuthorityRequested | Self::AuthorityImported | Self::CeremonyDue => {
                "The authority, by the id of its key."
            }
            Self::AuthorityWalked => "The authority, by the id of its key.",
            Self::AuthorityApproved => "The new root, by the id of its key.",
            Self::WalkOrdered => "The root that the walk begins at, by the id of its key.",
            Self::TokenCreated => "The SHA-256 of the token, never the token.",
            Self::NodeAttested | Self::NodeRenewed | Self::NodeRemoved => "The node's id.",
            Self::SvidIssued => "The SPIFFE ID that the certificate names.",
            Self::RecordPut | Self::RecordRemoved => "The record, `Kind/name`.",
            Self::Revoked => {
                "What the rule covers: a serial, an identity, a key, a node or an authority."
            }
            Self::Suspended => "The identity, key or node.",
            Self::Resumed => {
                "The identity, key or node; the trust domain, when issuing was resumed."
            }
            Self::ChangeApproved => "The plan, by the digest of what it declares.",
            Self::ReviewStarted | Self::ReviewSigned => {
                "What is reviewed: `all`, `Policy/name` or `Service/name`."
            }
            Self::ConsoleLinkCreated => "A digest of the link, never the link.",
            Self::SessionBegan | Self::SessionEnded => "A digest of the session, never its cookie.",
            Self::SessionRefused => "What was asked: `console`.",
            Self::Summary => "What was counted.",
        }
    }

    /// The members that its details may have. No event has others.
    pub const fn fields(self) -> &'static [Field] {
        match self {
            Self::IncarnationBegan => fields![
                field("cause", "Why: `restored`, or `behind` what somebody had seen of the store."),
                field(
                    "from",
                    "The incarnation before: its number, revision, and the size and root of its log."
                ),
                field("holdUntil", "Until when nothing is issued."),
            ],
            Self::ServerStarted => fields![field("version", "The program's version.")],
            Self::AuthorityCreated | Self::ResponderCreated | Self::SvidIssued => CERTIFICATE,
            Self::AuthorityWalked => fields![
                field("step", "The step."),
                field("force", "The operator's words, when a gate was overridden."),
                field("approved", "True when an operator approved a step that asks for it."),
                field("cause", "Of a taint: `superseded` or `compromised`."),
                REASON,
            ],
            Self::AuthorityApproved => fields![field("step", "The step that it may take.")],
            Self::WalkOrdered => fields![
                field("goal", "What the walk leads to."),
                field("needed", "How many operators have to approve the new root, if any."),
                field("among", "Who may."),
                REASON,
                field("ended", "When it came to its end; absent when it was ordered."),
                field("proof", "Which enforcement points had acknowledged by then."),
            ],
            Self::TokenCreated => fields![
                field("expires", "Until when it may be used."),
                field("labels", "What a machine that joins with it is labelled."),
            ],
            Self::NodeAttested => fields![
                field("host", "The host name that the machine told."),
                field("key", "The id of its registered key."),
                field("labels", "Its labels."),
                field("by", "How it proved itself."),
                field("token", "The SHA-256 of the join token."),
                field(
                    "certificate",
                    "The SHA-256 of the certificate that it showed, if it came by one."
                ),
                field("authority", "The id of the authority of that certificate."),
                GENERATION,
            ],
            Self::NodeRenewed => fields![
                GENERATION,
                field("key", "The id of the key that it proved."),
                field("successor", "Whether that key is a new one."),
                field("host", "The host name that the machine told, when it attested anew."),
                field("labels", "Its labels, when it attested anew."),
                field("by", "How it proved itself, when it attested anew."),
                field(
                    "certificate",
                    "The SHA-256 of the certificate that it showed, if it came by one."
                ),
                field("authority", "The id of the authority of that certificate."),
            ],
            Self::AuthorityRequested | Self::NodeRemoved | Self::RecordRemoved => &[],
            Self::AuthorityImported => fields![
                field("root", "The id of the outside root's key."),
                field("serial", "The certificate's serial, lower hex."),
                field("tbs", "The SHA-256 of its TBSCertificate."),
                field("notAfter", "Until when it is valid."),
            ],
            Self::CeremonyDue => fields![
                field("root", "The id of the outside root's key."),
                field("ends", "When the issuer ends."),
            ],
            Self::ChangeApproved => fields![
                field("base", "The revision that it is for."),
                field("changes", "What it changes, as far as there is room for it."),
                field("count", "How many changes those are."),
            ],
            Self::ReviewStarted => fields![
                field("review", "Its name."),
                field("due", "When it is to be signed."),
                field("window", "How far back it is looked at what was used."),
                field("policies", "The digest of the policies that it is about."),
            ],
            Self::ReviewSigned => fields![
                field("review", "Its name."),
                field("verdict", "`keep`, `narrowed` or `removed`."),
                field(
                    "name",
                    "Who signed, as they call themselves; the actor is whose user id it was."
                ),
                REASON,
            ],
            Self::RecordPut => fields![
                field("sha256", "The digest of the record's value."),
                field(
                    "value",
                    "The value, values of environment variables left out; absent when it is long."
                ),
            ],
            Self::Revoked => fields![
                RULE,
                TARGET,
                REASON,
                UNTIL,
                HANDED_BACK,
                field("trial", "Of a trial: its revision. The rule covers a canary only."),
            ],
            Self::Suspended => fields![REASON, HANDED_BACK],
            Self::Resumed => fields![
                field("issuing", "True when issuing was resumed before a hold-off was over."),
                field(
                    "clock",
                    "True when the present time was taken for right although there were later entries."
                ),
                field("before", "Of a time that was taken for right: the latest time before."),
            ],
            Self::ConsoleLinkCreated => fields![field("expires", "Until when it may be used.")],
            Self::SessionBegan => fields![
                field("link", "The link that was used, as its own event calls it."),
                field("from", "The address that it came from."),
            ],
            Self::SessionRefused => fields![field("count", "How many.")],
            Self::SessionEnded => fields![field(
                "how",
                "How: `signed-out`, `idle`, `old`, `displaced` by a newer one, `refused`, or `stopped` with the server."
            )],
            Self::Summary => {
                fields![field("count", "How many."), field("reason", "Of which reason.")]
            }
        }
    }

    /// Whether details have only members that are documented for this kind.
    pub fn describes(self, details: &serde_json::Value) -> bool {
        let known = |name: &String| self.fields().iter().any(|field| field.name == name);
        details.as_object().is_some_and(|details| details.keys().all(known))
    }
}
