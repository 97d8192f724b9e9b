//! What operators ask of a server over its admin socket: HTTP and JSON.

mod authority;
mod client;
mod console;
mod difference;
mod inventory;
mod list;
mod log;
mod policy;
mod problem;
mod requests;
mod review;
mod revocation;
mod seen;
mod status;

pub use self::authority::{
    ApprovalView, ApprovalsView, ApproveRequest, AuthoritiesResponse, Cause, CeremonyRequest,
    CeremonyView, GateView, Goal, ImportRequest, ImportResponse, IssuerView, OrderView,
    PlannedStep, ProofView, REPORT_TYPE, RecoverRequest, RecoverResponse, RequestView, RootKey,
    RootState, RootView, RotateRequest, Step, StepRequest, StepView, TrialSummary,
};
pub use self::client::{AdminClient, AdminError};
pub use self::console::ConsoleLinkResponse;
pub use self::difference::{FieldChange, differences};
pub use self::inventory::{Finding, FindingKind, InventoryResponse, OperationView, ServiceView};
pub use self::list::CrlResponse;
pub use self::log::{
    LeafView, LeavesResponse, LogResponse, ProofResponse, TileHashView, TileHashesResponse,
};
pub use self::policy::{
    Answer, ApprovalGiven, ExplainRequest, ExplainResponse, FlowView, FlowsResponse, HistoryEntry,
    HistoryResponse, PlanApproval, PlanResponse, PlannedChange, RollbackRequest, Touched,
    UnusedGrant,
};
pub use self::problem::{BadProblem, ProblemDetails};
pub use self::requests::{
    Action, AppliedChange, ApplyRequest, ApplyResponse, BadFingerprint, CreateTokenRequest,
    CreateTokenResponse, EventFilter, EventView, EventsResponse, Handshake, HandshakeDirection,
    HandshakesResponse, LIST_MAX, NodeView, NodesResponse, ResourceView, ResourcesResponse,
    TOKEN_TTL, TrustFingerprint,
};
pub use self::review::{
    BadSubject, BadVerdict, Observed, PermitView, Proposal, ReviewReport, ReviewState,
    ReviewSubject, ReviewView, ReviewsResponse, SignReviewRequest, SignatureView,
    StartReviewRequest, Verdict,
};
pub use self::revocation::{
    CONVERGENCE_WAIT_MILLIS_MAX, CanaryView, Convergence, Leaked, MissingPoint, Reissue,
    ResumeRequest, RevisionResponse, RevocationsResponse, RevokeRequest, RevokeResponse, RuleView,
    SuspendRequest, SuspensionView, TARGETS_MAX, Target, TrialView, UnverifiedPoint, VerifiedPoint,
};
pub use self::seen::{
    HandshakeBy, HandshakeCount, HandshakeFilter, HandshakeGroup, HandshakeHistory, Outcome,
    OutcomeCounts, UnknownWord,
};
pub use self::status::{
    CredentialView, IncarnationView, LogView, NodeStatus, OutageBudget, PartView, PointStatus,
    ProcessView, ServerStatus, Status, WorkloadStatus,
};
