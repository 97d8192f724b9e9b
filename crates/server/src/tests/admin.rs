//! What operators do, and what they may not.

use countersign_api::admin::{Action, AdminError, ApplyRequest};
use countersign_api::resource::Kind;
use countersign_identity::Code;
use serde_json::json;

use super::{Realm, Running, policy, service, workload};

fn refused(error: AdminError) -> countersign_api::admin::ProblemDetails {
    match error {
        AdminError::Refused(problem) => *problem,
        other => panic!("expected a refusal: {other}"),
    }
}

fn request(resources: Vec<serde_json::Value>) -> ApplyRequest {
    ApplyRequest { resources, base: None, prune: false, dry_run: false }
}

async fn declared(running: &Running) -> Vec<String> {
    let resources = running.admin.resources().await.unwrap().resources;
    resources.iter().map(|resource| format!("{}/{}", resource.kind, resource.name)).collect()
}

#[tokio::test]
async fn one_wrong_manifest_changes_nothing_and_all_problems_are_told() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let before = running.admin.status().await.unwrap().revision;
    let resources = vec![
        workload("web", &[]),
        service("web", &["no-such"]),
        policy("broken", "permit (principal, action"),
        policy(
            "unknown",
            r#"permit (principal == Workload::"nobody", action == Action::"connect", resource == Service::"web");"#,
        ),
        json!({ "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": "other" },
                "spec": { "spiffeId": "spiffe://shop.example/web", "selectors": ["launch:x"] } }),
    ];
    let problem = refused(running.admin.apply(&request(resources)).await.unwrap_err());
    assert_eq!(problem.code, Code::InvalidManifest);
    let about: Vec<_> = problem.problems.iter().map(|problem| problem.resource.as_str()).collect();
    for expected in ["Service/web", "Policy/broken", "Policy/unknown", "Workload/web"] {
        assert!(about.contains(&expected), "{expected} in {:?}", problem.problems);
    }
    assert_eq!(running.admin.status().await.unwrap().revision, before);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn workload_cannot_take_what_belongs_to_servers_and_agents() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    for id in [
        "spiffe://shop.example/countersign/server/x",
        "spiffe://other.example/web",
        "spiffe://shop.example",
        "spiffe://shop.example/a/../b",
    ] {
        let manifest = json!({
            "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": "web" },
            "spec": { "spiffeId": id, "selectors": ["launch:x"] },
        });
        let problem = refused(running.admin.apply(&request(vec![manifest])).await.unwrap_err());
        assert_eq!(problem.code, Code::InvalidManifest, "{id}");
    }
    running.stop().await;
}

#[tokio::test]
async fn change_for_an_older_base_is_a_conflict_that_names_the_current_one() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let base = running.admin.status().await.unwrap().revision;
    let moved = running.apply(vec![workload("web", &[])]).await.revision;
    let stale = ApplyRequest { base: Some(base), ..request(vec![workload("late", &[])]) };
    let problem = refused(running.admin.apply(&stale).await.unwrap_err());
    assert_eq!((problem.code, problem.revision), (Code::StaleBase, Some(moved)));
    let current = ApplyRequest { base: Some(moved), ..stale };
    running.admin.apply(&current).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn trial_changes_nothing_and_says_what_would() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let trial = ApplyRequest { dry_run: true, ..request(vec![workload("web", &[])]) };
    let answer = running.admin.apply(&trial).await.unwrap();
    assert_eq!(answer.changes[0].action, Action::Create);
    assert_eq!(declared(&running).await, ["TrustDomain/shop-example"]);
    running.stop().await;
}

#[tokio::test]
async fn pruning_removes_what_is_not_named_but_never_the_trust_domain() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[]), workload("old", &[])]).await;
    let pruned = ApplyRequest { prune: true, ..request(vec![workload("web", &[])]) };
    let answer = running.admin.apply(&pruned).await.unwrap();
    let removed: Vec<_> =
        answer.changes.iter().map(|change| (change.action, change.kind)).collect();
    assert_eq!(removed, [(Action::Remove, Kind::Service), (Action::Remove, Kind::Workload)]);
    assert_eq!(declared(&running).await, ["TrustDomain/shop-example", "Workload/web"]);
    // The same again changes nothing, and makes no revision.
    let again = running.admin.apply(&pruned).await.unwrap();
    assert_eq!((again.revision, again.changes.len()), (answer.revision, 0));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn trust_domain_is_one_whatever_it_is_named_and_never_another() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![super::trust_domain("2h")]).await;
    assert_eq!(declared(&running).await, ["TrustDomain/shop"]);
    let mut other = super::trust_domain("2h");
    other["spec"]["trustDomain"] = "other.example".into();
    let problem = refused(running.admin.apply(&request(vec![other])).await.unwrap_err());
    assert_eq!(problem.code, Code::InvalidManifest);
    let name = "shop".parse().unwrap();
    let problem = running.admin.remove_resource(Kind::TrustDomain, &name).await.unwrap_err();
    assert_eq!(refused(problem).code, Code::InvalidManifest);
    running.stop().await;
}

#[tokio::test]
async fn what_others_need_cannot_be_removed() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let name = "web".parse().unwrap();
    let problem = running.admin.remove_resource(Kind::Workload, &name).await.unwrap_err();
    assert_eq!(refused(problem).code, Code::InvalidManifest);
    running.admin.remove_resource(Kind::Service, &name).await.unwrap();
    running.admin.remove_resource(Kind::Workload, &name).await.unwrap();
    let problem = running.admin.remove_resource(Kind::Workload, &name).await.unwrap_err();
    assert_eq!(refused(problem).code, Code::NotFound);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn ten_thousand_workloads_are_one_revision() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let before = running.admin.status().await.unwrap().revision;
    let workloads = (0..10_000).map(|number| workload(&format!("w{number}"), &[])).collect();
    let answer = running.apply(workloads).await;
    assert_eq!(answer.changes.len(), 10_000);
    assert_eq!(answer.revision.number, before.number + 1);
    running.stop().await;
}

#[tokio::test]
async fn every_change_is_an_event_with_its_operator() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let events = running.admin.events(1000, None).await.unwrap().events;
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    for expected in ["authority-created", "server-started", "record-put"] {
        assert!(kinds.contains(&expected), "{expected} in {kinds:?}");
    }
    let put = events.iter().find(|event| event.subject == "Workload/web").unwrap();
    assert!(put.actor.starts_with("operator:uid:"), "{}", put.actor);
    assert_eq!(
        events.iter().map(|event| event.index).collect::<Vec<_>>(),
        (0..events.len() as u64).collect::<Vec<_>>()
    );
    running.stop().await;
}

/// As an earlier version took them.
#[tokio::test]
async fn a_lifetime_in_force_that_would_be_refused_now_stands_in_no_other_changes_way() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    running.stop().await;
    let connection = rusqlite::Connection::open(realm.data().join("state.db")).unwrap();
    for table in ["records", "changes"] {
        let shorter = format!(
            "UPDATE {table} SET value = CAST(replace(CAST(value AS TEXT), '\"15m\"', '\"5s\"') AS BLOB) \
             WHERE kind = 'Workload' AND instr(value, CAST('\"15m\"' AS BLOB)) != 0"
        );
        assert_eq!(connection.execute(&shorter, []).unwrap(), 1);
    }
    drop(connection);
    let running = realm.serve().await;
    running.apply(vec![workload("other", &[])]).await;
    let with = |lifetime: &str| {
        let mut web = workload("web", &["edge"]);
        web["spec"]["lifetime"] = lifetime.into();
        request(vec![web])
    };
    let problem = refused(running.admin.apply(&with("5s")).await.unwrap_err());
    assert!(problem.problems[0].message.contains("is shorter than"), "{:?}", problem.problems);
    running.admin.apply(&with("15m")).await.unwrap();
    running.stop().await;
}
