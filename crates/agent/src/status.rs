//! What the agent says of itself to its own user, also while no server can be reached.

use std::sync::Arc;

use countersign_api::v1;
use countersign_api::v1::agent_status_server::{AgentStatus, AgentStatusServer};
use countersign_api::wire::refusal_status;
use countersign_identity::{Code, Timestamp};
use tonic::{Request, Response, Status};

use crate::reception::{Reception, visitor};
use crate::reports::Reports;
use crate::view::View;

/// The service.
pub(crate) struct StatusService {
    reception: Reception,
    reports: Reports,
    servers: Arc<[String]>,
}

impl StatusService {
    pub(crate) fn server(
        reception: Reception,
        reports: Reports,
        servers: Arc<[String]>,
    ) -> AgentStatusServer<Self> {
        AgentStatusServer::new(Self { reception, reports, servers }).max_decoding_message_size(1024)
    }

    fn show(&self, view: &View) -> v1::ShowResponse {
        let micros = |moment: Option<Timestamp>| moment.map_or(0, Timestamp::micros);
        let node = &view.node;
        v1::ShowResponse {
            node_id: node.id.as_bytes().to_vec().into(),
            spiffe_id: node.spiffe_id.to_string(),
            server: self.servers.get(view.link.server).cloned().unwrap_or_default(),
            connected: view.link.disconnected.is_none(),
            disconnected_micros: micros(view.link.disconnected),
            revision: Some(view.replica.revision().into()),
            credentials: view.credentials(),
            processes: self.reports.processes(Some(view)),
            svid_expires_micros: micros(node.standing.term.map(|term| term.expires)),
            budget_ends_micros: micros(view.budget_ends),
            trouble: trouble(view),
            guaranteed_seconds: view.guaranteed_budget().map_or(0, |budget| budget.as_secs()),
        }
    }
}

/// What somebody has to look at first.
fn trouble(view: &View) -> String {
    let trouble = view.link.trouble.clone().or(view.node.standing.trouble.clone());
    match (view.link.refused, trouble) {
        (Some(code), trouble) => format!(
            "the servers refuse this node ({code}): {}",
            trouble.unwrap_or_else(|| code.meaning().to_owned())
        ),
        (None, Some(trouble)) => trouble,
        (None, None) if !view.replica.is_understood() => {
            "the server sends a revocation or suspension that this version does not understand: \
             it needs an update"
                .to_owned()
        }
        (None, None) => String::new(),
    }
}

#[tonic::async_trait]
impl AgentStatus for StatusService {
    async fn show(
        &self,
        request: Request<v1::ShowRequest>,
    ) -> Result<Response<v1::ShowResponse>, Status> {
        let peer = visitor(&request)?.caller.peer();
        let ours = rustix::process::geteuid().as_raw();
        if peer.uid != 0 && peer.uid != ours {
            let message =
                format!("the agent's status is for root and uid {ours}, not for uid {}", peer.uid);
            return Err(refusal_status(tonic::Code::PermissionDenied, Code::Forbidden, &message));
        }
        let view = self.reception.views.borrow().clone();
        match view {
            Some(view) => Ok(Response::new(self.show(&view))),
            None => Err(refusal_status(
                tonic::Code::Unavailable,
                Code::NotReady,
                "this agent has not joined its trust domain yet",
            )),
        }
    }
}
