//! Which fuzz target reads which message.

use countersign_api::{Message, envoy, v1, workload};

use super::parts;

/// A message that a target reads.
pub(crate) struct Row {
    pub(crate) message: &'static str,
    pub(crate) target: &'static str,
    framing: Framing,
    /// The name of its type.
    rust: &'static str,
    /// Whether these bytes are such a message, with something in it unless there never is.
    pub(crate) holds: fn(&[u8]) -> bool,
}

/// How messages lie in an input.
#[derive(Clone, Copy)]
enum Framing {
    /// One, which is all of it.
    Whole,
    /// One, behind the byte that says which.
    Behind(u8),
    /// Several, each with its length before it.
    Parts,
    /// Several, each with its length in four bytes before it, as on a standing connection.
    Standing,
}

impl Row {
    /// How a target writes that it reads this.
    pub(crate) fn readings(&self) -> [String; 3] {
        let rust = self.rust;
        let standing = format!("next::<v1::{rust}>(");
        let by_hand = match rust {
            "FromAgent" => "steps.read(".to_owned(),
            "ReplicaReport" => "replica_report(".to_owned(),
            _ => standing.clone(),
        };
        [format!("{rust}::decode("), standing, by_hand]
    }

    /// The messages in an input, if it is one of this.
    pub(crate) fn pieces<'a>(&self, input: &'a [u8]) -> Vec<&'a [u8]> {
        match self.framing {
            Framing::Whole => vec![input],
            Framing::Behind(which) => match input.split_first() {
                Some((first, rest)) if *first == which => vec![rest],
                Some(_) | None => Vec::new(),
            },
            Framing::Parts => parts::split(input),
            Framing::Standing => {
                let (mut rest, mut pieces) = (input, Vec::new());
                while let Some((length, after)) = rest.split_first_chunk::<4>() {
                    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
                    let Some((piece, more)) = after.split_at_checked(length) else { break };
                    pieces.push(piece);
                    rest = more;
                }
                pieces
            }
        }
    }
}

fn row<M: Message + Default + PartialEq>(
    message: &'static str,
    target: &'static str,
    framing: Framing,
) -> Row {
    let name = std::any::type_name::<M>();
    let rust = name.rsplit("::").next().unwrap_or(name);
    let holds = |bytes: &[u8]| {
        M::decode(bytes).is_ok_and(|read| size_of::<M>() == 0 || read != M::default())
    };
    Row { message, target, framing, rust, holds }
}

/// Inputs and outputs of every call, what travels on standing connections, and whatever else is no part of another message.
pub(crate) fn rows() -> Vec<Row> {
    use Framing::{Behind, Parts, Standing, Whole};
    vec![
        row::<v1::AttestRequest>("countersign.v1.AttestRequest", "node_requests", Behind(0)),
        row::<v1::AttestX509Request>(
            "countersign.v1.AttestX509Request",
            "node_requests",
            Behind(1),
        ),
        row::<v1::RenewRequest>("countersign.v1.RenewRequest", "node_requests", Behind(2)),
        row::<v1::FromAgent>("countersign.v1.FromAgent", "node_requests", Behind(3)),
        row::<v1::AttestResponse>("countersign.v1.AttestResponse", "agent_messages", Behind(1)),
        row::<v1::AttestX509Response>(
            "countersign.v1.AttestX509Response",
            "agent_messages",
            Behind(4),
        ),
        row::<v1::RenewResponse>("countersign.v1.RenewResponse", "agent_messages", Behind(5)),
        row::<v1::FromServer>("countersign.v1.FromServer", "standing", Standing),
        row::<v1::ReplicaReport>("countersign.v1.ReplicaReport", "server_messages", Behind(5)),
        row::<v1::EnforcementRequest>("countersign.v1.EnforcementRequest", "enforcement", Parts),
        row::<v1::EnforcementResponse>("countersign.v1.EnforcementResponse", "slice", Parts),
        row::<workload::X509svidResponse>("X509SVIDResponse", "workload_api", Whole),
        row::<envoy::CheckRequest>("envoy.service.auth.v3.CheckRequest", "envoy_check", Whole),
    ]
}

/// Why the bytes of others are no target's.
pub(crate) const NOT_FROM_OUTSIDE: [(&str, &str); 12] = [
    ("countersign.v1.ShowRequest", "it has no fields: there is nothing to read in it"),
    (
        "countersign.v1.ShowResponse",
        "the operator's own agent wrote it, on a socket for root and its user, for people to read",
    ),
    ("X509SVIDRequest", "it has no fields: there is nothing to read in it"),
    ("X509BundlesRequest", "it has no fields: there is nothing to read in it"),
    ("X509BundlesResponse", "we write it, and nothing of ours asks for it"),
    ("JWTSVIDRequest", "the call is not offered: what it asks is not looked at"),
    ("JWTSVIDResponse", "nothing of ours asks for it"),
    ("JWTBundlesRequest", "it has no fields: there is nothing to read in it"),
    ("JWTBundlesResponse", "nothing of ours asks for it"),
    ("ValidateJWTSVIDRequest", "the call is not offered: what it asks is not looked at"),
    ("ValidateJWTSVIDResponse", "nothing of ours asks for it"),
    ("envoy.service.auth.v3.CheckResponse", "we write it, and nothing of ours asks for it"),
];
