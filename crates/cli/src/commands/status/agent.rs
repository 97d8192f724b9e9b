//! What an agent says of itself and of what it holds, while the server cannot be asked.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use countersign_api::admin::{CredentialView, OutageBudget, ProcessView};
use countersign_api::v1;
use countersign_api::v1::agent_status_client::AgentStatusClient;
use countersign_api::wire::{self, BadWire, MESSAGE_SIZE_MAX, refusal_of};
use countersign_identity::{Code, NodeId, Revision, SpiffeId, Timestamp, TrustDomain};
use serde::Serialize;

use super::{credentials, parts, processes, wanting};
use crate::agent_channel;
use crate::commands::when;
use crate::exit::Failure;
use crate::output;

/// How long the agent may take to answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent's word. What a server's status tells too has the same name and place here; what only a server knows is left out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AgentWord {
    source: &'static str,
    trust_domain: TrustDomain,
    revision: Revision,
    server: ServerFromAfar,
    nodes: [NodeItself; 1],
    outage_budget: OutageBudget,
    warnings: Vec<String>,
}

/// What an agent knows of its server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServerFromAfar {
    address: String,
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    away_since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// The agent's own node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeItself {
    id: NodeId,
    spiffe_id: SpiffeId,
    connected: bool,
    revision: Revision,
    #[serde(skip_serializing_if = "Option::is_none")]
    svid_expires_at: Option<Timestamp>,
    processes: Vec<ProcessView>,
    credentials: Vec<CredentialView>,
}

/// Asks the agent whose socket this is.
///
/// # Errors
/// When it cannot be asked, refuses, or is not understood.
pub(super) async fn ask(socket: &Path) -> Result<AgentWord> {
    let late = |_elapsed| {
        let limit = ANSWER_TIMEOUT.as_secs();
        let socket = socket.display();
        let message = format!("the agent at `unix://{socket}` did not answer within {limit} s");
        Failure::new(Code::TimedOut, message)
    };
    let shown = tokio::time::timeout(ANSWER_TIMEOUT, show(socket)).await.map_err(late)??;
    let wrong = |why: BadWire| {
        Failure::new(Code::Malformed, format!("the agent's answer is not understood: {why}"))
    };
    Ok(AgentWord::read(shown).map_err(wrong)?)
}

async fn show(socket: &Path) -> Result<v1::ShowResponse> {
    let hint = "`--agent unix:///…` or `--data DIR` say where it is";
    let channel = agent_channel::open(socket, hint).await?;
    let mut client = AgentStatusClient::new(channel).max_decoding_message_size(MESSAGE_SIZE_MAX);
    match client.show(v1::ShowRequest {}).await {
        Ok(shown) => Ok(shown.into_inner()),
        Err(status) if agent_channel::was_cut(&status) => Err(agent_channel::cut(socket).into()),
        Err(status) => {
            let code = refusal_of(&status).map_or(Code::Unavailable, |refused| refused.code);
            let message = output::printable(status.message());
            Err(Failure::new(code, format!("the agent does not tell its status: {message}")).into())
        }
    }
}

impl AgentWord {
    fn read(shown: v1::ShowResponse) -> Result<Self, BadWire> {
        let spiffe_id = wire::spiffe_id(&shown.spiffe_id)?;
        let revision = wire::revision(shown.revision)?;
        let (credentials, missing) = sorted(shown.credentials);
        let connected = shown.connected;
        let told = |micros: i64| (micros != 0).then(|| Timestamp::from_micros(micros));
        let trouble = wire::clip(&shown.trouble, wire::MESSAGE_BYTES_MAX);
        Ok(Self {
            source: "agent",
            trust_domain: spiffe_id.trust_domain().clone(),
            revision,
            server: ServerFromAfar {
                address: wire::clip(&shown.server, wire::TEXT_BYTES_MAX),
                connected,
                away_since: told(shown.disconnected_micros).filter(|_| !connected),
                why: Some(trouble).filter(|why| !connected && !why.is_empty()),
            },
            outage_budget: OutageBudget {
                guaranteed_seconds: shown.guaranteed_seconds,
                ends_at: told(shown.budget_ends_micros),
            },
            nodes: [NodeItself {
                id: wire::node_id(&shown.node_id)?,
                spiffe_id,
                connected,
                revision,
                svid_expires_at: told(shown.svid_expires_micros),
                processes: shown.processes.into_iter().map(ProcessView::from).collect(),
                credentials,
            }],
            warnings: missing,
        })
    }

    /// Says why it is not the server that speaks.
    pub(super) fn because(mut self, why: String) -> Self {
        self.warnings.insert(0, why);
        self
    }

    /// For people.
    pub(super) fn describe(&self, now: Timestamp) -> String {
        let [node] = &self.nodes;
        let mut text = format!(
            "trust domain {}, revision {}, as the agent of this machine knows it\n\nserver {}\n{}",
            self.trust_domain,
            self.revision,
            self.server.describe(now),
            self.budget(now),
        );
        text.push_str(&format!("\nnode {} ({})\n", node.id, node.spiffe_id));
        if let Some(ends) = node.svid_expires_at {
            text.push_str(&format!(
                "  the agent's own certificate expires {}; it renews also after that\n",
                when::relative(ends, now)
            ));
        }
        text.push_str(&processes(&node.processes));
        let own = node.processes.iter().find(|process| process.kind == "agent");
        text.push_str(&own.map(|own| parts(&own.parts, now)).unwrap_or_default());
        text.push_str(&wanting(&node.processes, now));
        text.push_str(&credentials(&node.credentials, now));
        for warning in &self.warnings {
            text.push_str(&format!("\nwarning: {}\n", output::printable(warning)));
        }
        text
    }

    fn budget(&self, now: Timestamp) -> String {
        let budget = &self.outage_budget;
        let guaranteed = when::span(Duration::from_secs(budget.guaranteed_seconds));
        match budget.ends_at {
            Some(ends) => format!(
                "  outage budget {}: the first credential in use expires at {ends} if the server stays away; {guaranteed} are guaranteed from the moment it goes\n",
                when::span(ends.since(now))
            ),
            None => "  outage budget: no credential is in use\n".to_owned(),
        }
    }
}

impl ServerFromAfar {
    fn describe(&self, now: Timestamp) -> String {
        let address = output::printable(&self.address);
        if self.connected {
            return format!("{address}: the agent's stream to it is open");
        }
        let since = self.away_since.map_or_else(String::new, |since| {
            format!(" since {since} ({})", when::span(now.since(since)))
        });
        let why = self
            .why
            .as_ref()
            .map_or_else(String::new, |why| format!(": {}", output::printable(why)));
        format!("{address} AWAY{since}{why}")
    }
}

/// What is held, and a sentence for each workload that has nothing.
fn sorted(told: Vec<v1::CredentialStatus>) -> (Vec<CredentialView>, Vec<String>) {
    let mut held = Vec::new();
    let mut missing = Vec::new();
    for credential in told {
        let (workload, trouble) = (credential.workload.clone(), credential.trouble.clone());
        match CredentialView::try_from(credential) {
            Ok(credential) => held.push(credential),
            // Without a serial number nothing is held.
            Err(_nothing_held) if trouble.is_empty() => {
                missing.push(format!("`{workload}` has no certificate"));
            }
            Err(_nothing_held) => {
                missing.push(format!("`{workload}` has no certificate: {trouble}"));
            }
        }
    }
    (held, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_262_400);

    fn shown() -> v1::ShowResponse {
        let micros = |secs: i64| NOW.micros() + secs * 1_000_000;
        v1::ShowResponse {
            node_id: vec![0; 16].into(),
            spiffe_id: "spiffe://shop.example/countersign/agent/1".to_owned(),
            server: "server:8443".to_owned(),
            connected: false,
            disconnected_micros: micros(-12),
            revision: Some(v1::Revision { incarnation: 1, number: 7 }),
            credentials: vec![
                v1::CredentialStatus {
                    workload: "web".to_owned(),
                    spiffe_id: "spiffe://shop.example/web".to_owned(),
                    serial: vec![0x10; 16].into(),
                    issued_micros: micros(-30),
                    expires_micros: micros(30),
                    renewal_micros: micros(-2),
                    trouble: String::new(),
                },
                v1::CredentialStatus {
                    workload: "late".to_owned(),
                    trouble: "the server is away".to_owned(),
                    ..Default::default()
                },
            ],
            processes: Vec::new(),
            svid_expires_micros: micros(3600),
            budget_ends_micros: micros(30),
            trouble: "evil\u{1b}[2J".to_owned(),
            guaranteed_seconds: 27,
        }
    }

    #[test]
    fn people_see_since_when_the_server_is_away_and_how_long_what_is_held_lasts() {
        let word = AgentWord::read(shown()).unwrap().because("the server is away".to_owned());
        let expected = format!(
            "trust domain shop.example, revision 1.7, as the agent of this machine knows it\n\
             \n\
             server server:8443 AWAY since 2026-11-21T11:59:48Z (12s): evil [2J\n  \
             outage budget 30s: the first credential in use expires at 2026-11-21T12:00:30Z if the server stays away; \
             27s are guaranteed from the moment it goes\n\
             \n\
             node {node} (spiffe://shop.example/countersign/agent/1)\n  \
             the agent's own certificate expires in 1h; it renews also after that\n\
             \n  \
             IDENTITY                   AGE  RENEWS  EXPIRES  SERIAL                            TROUBLE\n  \
             spiffe://shop.example/web  30s  2s ago  in 30s   {serial}\n\
             \n\
             warning: the server is away\n\
             \n\
             warning: `late` has no certificate: the server is away\n",
            node = "0".repeat(32),
            serial = "10".repeat(16),
        );
        assert_eq!(word.describe(NOW), expected);
    }

    #[test]
    fn scripts_find_what_a_server_tells_too_in_its_place() {
        let word = AgentWord::read(shown()).unwrap();
        let value = serde_json::to_value(&word).unwrap();
        assert_eq!(value["source"], "agent");
        assert_eq!(value["server"]["awaySince"], "2026-11-21T11:59:48Z");
        assert_eq!(value["outageBudget"]["endsAt"], "2026-11-21T12:00:30Z");
        assert_eq!(value["outageBudget"]["guaranteedSeconds"], 27);
        assert_eq!(value["nodes"][0]["credentials"][0]["workload"], "web");
        assert_eq!(value["nodes"][0]["svidExpiresAt"], "2026-11-21T13:00:00Z");
    }

    #[test]
    fn an_agent_with_its_stream_open_does_not_call_the_server_away() {
        let shown = v1::ShowResponse {
            connected: true,
            disconnected_micros: 0,
            trouble: String::new(),
            ..shown()
        };
        let word = AgentWord::read(shown).unwrap();
        assert!(
            word.describe(NOW).contains("server server:8443: the agent's stream to it is open")
        );
        assert_eq!(serde_json::to_value(&word).unwrap()["server"].get("awaySince"), None);
    }

    #[test]
    fn an_answer_without_a_node_is_not_understood() {
        assert!(AgentWord::read(v1::ShowResponse::default()).is_err());
    }
}
