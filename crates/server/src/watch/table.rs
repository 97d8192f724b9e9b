//! Every metric: what it is called, of which kind it is, what it is told apart by, and what it means.

/// A metric of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    Resident,
    Started,
    Revision,
    Records,
    Connections,
    Agents,
    Handshakes,
    FlowsLost,
    FactsLost,
    ObservationsLost,
    Issued,
    IssueRefused,
    AttestationRefused,
    ProofsVerified,
    Calls,
    ListsPublished,
    ListEntries,
    OcspAnswers,
    RootEnds,
    IssuerEnds,
    CeremonyDue,
    RootKeyAway,
    ApprovalsMissing,
    ReviewsOverdue,
    LastGood,
    LastFailure,
    Ends,
    StoreWritable,
    JournalWhole,
    LogEvents,
    LogSigned,
    LogSignedAt,
    Nodes,
    Points,
    Unaware,
    Revocations,
    Suspensions,
    SvidsHeld,
    SvidsInTrouble,
    FirstExpiry,
    ClockSkew,
    ClockBehind,
    SpansDropped,
    CallSeconds,
}

/// Name, kind, labels and help. A name is written here and nowhere else.
pub(crate) type Row = (&'static str, &'static str, &'static [&'static str], &'static str);

pub(super) const METRICS: [(Metric, Row); 44] = {
    use Metric::*;
    [
        (
            Resident,
            ("countersign_server_resident_bytes", "gauge", &[], "Resident memory of the process."),
        ),
        (
            Started,
            (
                "countersign_server_started_seconds",
                "gauge",
                &[],
                "When the process started, in seconds since 1970.",
            ),
        ),
        (
            Revision,
            (
                "countersign_server_revision_number",
                "gauge",
                &[],
                "The revision of the snapshot, within its incarnation.",
            ),
        ),
        (Records, ("countersign_server_records_count", "gauge", &[], "Records of the state.")),
        (
            Connections,
            (
                "countersign_server_connections_count",
                "gauge",
                &[],
                "Connections on the agents' port that are open.",
            ),
        ),
        (Agents, ("countersign_server_agents_count", "gauge", &[], "Agents whose stream is open.")),
        (
            Handshakes,
            (
                "countersign_server_handshakes_total",
                "counter",
                &["code"],
                "Handshakes seen everywhere, by how they ended.",
            ),
        ),
        (
            FlowsLost,
            (
                "countersign_server_flows_lost_total",
                "counter",
                &[],
                "Requests and connections that were counted in no flow.",
            ),
        ),
        (
            FactsLost,
            (
                "countersign_server_facts_lost_total",
                "counter",
                &[],
                "Facts that were lost before they came here.",
            ),
        ),
        (
            ObservationsLost,
            (
                "countersign_server_observations_lost_total",
                "counter",
                &["of"],
                "Handshakes and answered requests that are not in what is stored.",
            ),
        ),
        (
            Issued,
            (
                "countersign_server_svids_issued_total",
                "counter",
                &[],
                "Certificates made for workloads.",
            ),
        ),
        (
            IssueRefused,
            (
                "countersign_server_svids_refused_total",
                "counter",
                &["code"],
                "Certificates refused, by reason.",
            ),
        ),
        (
            AttestationRefused,
            (
                "countersign_server_attestations_refused_total",
                "counter",
                &["stage", "code"],
                "Attestations and renewals of nodes refused, and connections closed unread, by reason.",
            ),
        ),
        (
            ProofsVerified,
            (
                "countersign_server_proofs_verified_total",
                "counter",
                &["of"],
                "Statements, requests and chains verified for machines that attest or renew, right or not.",
            ),
        ),
        (
            Calls,
            (
                "countersign_server_calls_total",
                "counter",
                &["method", "code"],
                "Calls of agents, by method and how they ended.",
            ),
        ),
        (
            ListsPublished,
            (
                "countersign_server_revocation_lists_total",
                "counter",
                &[],
                "Times that the revocation lists of an authority were made.",
            ),
        ),
        (
            ListEntries,
            (
                "countersign_server_revocation_list_entries_count",
                "gauge",
                &[],
                "Certificates on the revocation lists of all authorities.",
            ),
        ),
        (
            OcspAnswers,
            (
                "countersign_server_ocsp_answers_total",
                "counter",
                &["outcome"],
                "OCSP requests, by what was answered.",
            ),
        ),
        (
            RootEnds,
            (
                "countersign_server_root_ends_seconds",
                "gauge",
                &[],
                "When the active root ends, in seconds since 1970.",
            ),
        ),
        (
            IssuerEnds,
            (
                "countersign_server_issuer_ends_seconds",
                "gauge",
                &[],
                "When the issuer ends that signs now, in seconds since 1970.",
            ),
        ),
        (
            CeremonyDue,
            (
                "countersign_server_ceremony_due_count",
                "gauge",
                &[],
                "1 when a root that is held outside has to sign a successor of the issuer.",
            ),
        ),
        (
            RootKeyAway,
            (
                "countersign_server_root_key_away_count",
                "gauge",
                &[],
                "1 when the root's key, in a token, did not sign when it was last asked to.",
            ),
        ),
        (
            ApprovalsMissing,
            (
                "countersign_server_approvals_missing_count",
                "gauge",
                &[],
                "Operators who still have to approve that a new root signs.",
            ),
        ),
        (
            ReviewsOverdue,
            (
                "countersign_server_reviews_overdue_count",
                "gauge",
                &[],
                "Reviews of policies that wait longer than they should to be signed.",
            ),
        ),
        (
            LastGood,
            (
                "countersign_server_last_good_seconds",
                "gauge",
                &["part"],
                "When leaf, issuer, bundle or policy was last had or confirmed, in seconds since 1970.",
            ),
        ),
        (
            LastFailure,
            (
                "countersign_server_last_failure_seconds",
                "gauge",
                &["part"],
                "When it was last wanted and not had, in seconds since 1970; absent when never.",
            ),
        ),
        (
            Ends,
            (
                "countersign_server_ends_seconds",
                "gauge",
                &["part"],
                "When the own leaf, the issuer, the first authority of the bundle or the first policy ends, in seconds since 1970.",
            ),
        ),
        (
            StoreWritable,
            (
                "countersign_server_store_writable",
                "gauge",
                &[],
                "1 when the store took the last write that was tried.",
            ),
        ),
        (
            JournalWhole,
            (
                "countersign_server_journal_whole",
                "gauge",
                &[],
                "1 when the journal holds every rule that is in force; absent where none is kept.",
            ),
        ),
        (
            LogEvents,
            ("countersign_server_log_events_count", "gauge", &[], "Events in the audit log."),
        ),
        (
            LogSigned,
            (
                "countersign_server_log_signed_count",
                "gauge",
                &[],
                "Events in the newest checkpoint.",
            ),
        ),
        (
            LogSignedAt,
            (
                "countersign_server_log_signed_seconds",
                "gauge",
                &[],
                "When the audit log was last seen to be signed to its end, or was signed, in seconds since 1970.",
            ),
        ),
        (
            Nodes,
            (
                "countersign_server_nodes_count",
                "gauge",
                &[],
                "Nodes on record, whichever server their agents are connected to.",
            ),
        ),
        (
            Points,
            (
                "countersign_server_points_count",
                "gauge",
                &["state"],
                "Enforcement points on record, by whether they enforce the newest revocation: `enforcing`, `behind`, or `silent` while no agent speaks for them.",
            ),
        ),
        (
            Unaware,
            (
                "countersign_server_unaware_count",
                "gauge",
                &[],
                "Processes that hold an SVID and cannot say what they enforce; a node of which that is not known counts as one. Counted four times a minute; the last number while the database is away.",
            ),
        ),
        (
            Revocations,
            ("countersign_server_revocations_count", "gauge", &[], "Revocations in force."),
        ),
        (
            Suspensions,
            ("countersign_server_suspensions_count", "gauge", &[], "Suspensions in force."),
        ),
        (
            SvidsHeld,
            (
                "countersign_server_svids_held_count",
                "gauge",
                &[],
                "SVIDs that connected agents say they hold.",
            ),
        ),
        (
            SvidsInTrouble,
            (
                "countersign_server_svids_in_trouble_count",
                "gauge",
                &[],
                "SVIDs whose last renewal failed, as agents say.",
            ),
        ),
        (
            FirstExpiry,
            (
                "countersign_server_outage_budget_ends_seconds",
                "gauge",
                &[],
                "When the first SVID now in use ends, as agents say, in seconds since 1970.",
            ),
        ),
        (
            ClockSkew,
            (
                "countersign_server_clock_skew_seconds",
                "gauge",
                &[],
                "By how much the clock of a connected node differs from this server's, at most.",
            ),
        ),
        (
            ClockBehind,
            (
                "countersign_server_clock_behind_count",
                "gauge",
                &[],
                "1 while the clock lies behind what the log has seen, so that nothing is issued.",
            ),
        ),
        (
            CallSeconds,
            (
                "countersign_server_call_seconds",
                "summary",
                &["method"],
                "How long calls of agents took, by method.",
            ),
        ),
        (
            SpansDropped,
            (
                "countersign_server_spans_dropped_total",
                "counter",
                &[],
                "Spans that no collector took.",
            ),
        ),
    ]
};
