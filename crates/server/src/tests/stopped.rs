//! Who gets nothing any more, being suspended or removed, and whom no suspension stops.

use countersign_api::admin::{Leaked, ResumeRequest, SuspendRequest, Target};
use countersign_api::v1;
use countersign_identity::{Code, Reason, Revocation, Revocations, SpiffeId, Suspended};
use countersign_pki::Certificate;

use super::revoke::{covers, id, key, refused, request, revoke, svid};
use super::sign::{item, sign};
use super::sync::open;
use super::{Agent, Realm, soon, workload};

#[tokio::test]
async fn leaked_process_gets_nothing_until_an_operator_resumes_it() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    svid(&agent, &realm, &mut client, "web").await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::ProcessCompromise).await;
    assert_eq!((answer.leaked, answer.suspended.len()), (Leaked::Process, 1));
    let asked = sign(&mut client, vec![item("web", &key())]).await;
    assert_eq!(asked[0], Err(Code::Suspended));
    let resume = ResumeRequest { target: Suspended::Identity(id("web")) };
    running.admin.resume(&resume).await.unwrap();
    assert!(sign(&mut client, vec![item("web", &key())]).await[0].is_ok());
    refused(running.admin.resume(&resume).await, Code::NotFound);
    assert_eq!(running.admin.revocations().await.unwrap().rules.len(), 1, "it stays revoked");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn leaked_node_loses_its_stream_and_comes_back_by_attesting_anew_only() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let held = svid(&agent, &realm, &mut client, "web").await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let answer = revoke(&running, Target::Node(agent.node), Reason::NodeCompromise).await;
    assert!(covers(
        &Revocations::new(
            answer
                .rules
                .iter()
                .map(|rule| {
                    let (target, about) = (rule.target.clone(), rule.about.clone());
                    let rule = Revocation {
                        target,
                        about,
                        reason: rule.reason,
                        at: rule.at,
                        until: rule.until,
                    };
                    ("r".into(), rule.into())
                })
                .take(1)
        ),
        &held
    ));
    let ended = async {
        loop {
            if let Err(status) = stream.next().await {
                return status;
            }
        }
    };
    soon(ended).await;
    let asked = client
        .node
        .sign(v1::SignRequest { items: vec![item("web", &key())], ..v1::SignRequest::default() })
        .await;
    let issued = asked.is_ok_and(|answer| {
        let results = answer.into_inner().results;
        results
            .iter()
            .any(|result| matches!(result.outcome, Some(v1::sign_result::Outcome::Issued(_))))
    });
    assert!(!issued, "nothing is issued through it any more");
    let again = Agent::join(&realm, &running, &[]).await;
    let mut client = again.client(&realm, &running).await;
    svid(&again, &realm, &mut client, "web").await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn removed_workload_and_removed_node_take_out_of_service_what_they_hold() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let (web, orders) = (
        svid(&agent, &realm, &mut client, "web").await,
        svid(&agent, &realm, &mut client, "orders").await,
    );
    let kind = countersign_api::resource::Kind::Workload;
    running.admin.remove_resource(kind, &"web".parse().unwrap()).await.unwrap();
    let rules = async || {
        let listed = running.admin.revocations().await.unwrap().rules;
        Revocations::new(listed.into_iter().map(|rule| {
            let (name, target, about) = (rule.name.as_str().into(), rule.target, rule.about);
            let (reason, at, until) = (rule.reason, rule.at, rule.until);
            (name, Revocation { target, about, reason, at, until }.into())
        }))
    };
    let now = rules().await;
    assert!(covers(&now, &web) && !covers(&now, &orders));
    running.admin.remove_node(agent.node).await.unwrap();
    assert!(covers(&rules().await, &orders));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn identity_of_another_trust_domain_is_not_suspended_here() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let foreign = Suspended::Identity("spiffe://other.example/web".parse().unwrap());
    let reason = Reason::ProcessCompromise;
    let request = SuspendRequest { target: foreign.clone(), reason };
    let error = running.admin.suspend(&request).await.unwrap_err();
    assert_eq!(error.code(), Code::ForeignDomain);
    let said = error.to_string();
    for part in [
        "`spiffe://other.example/web` is outside trust domain `shop.example`",
        "its own operators suspend it; a policy with `forbid` keeps it out here",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(running.admin.revocations().await.unwrap().suspensions.is_empty());
    let request = SuspendRequest { target: Suspended::Identity(id("web")), reason };
    running.admin.suspend(&request).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn what_no_suspension_stops_is_refused_with_what_does() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let node = "ab".repeat(16);
    for (path, code, words) in [
        (format!("/countersign/agent/{node}"), Code::ReservedPath, format!("`--node {node}`")),
        ("/countersign/server/one".to_owned(), Code::ReservedPath, "stop that server".to_owned()),
        ("/countersign/console/one".to_owned(), Code::ReservedPath, "stop that server".to_owned()),
        ("/countersign/x".to_owned(), Code::ReservedPath, "nothing suspends it".to_owned()),
        (String::new(), Code::NotUnderstood, "`spiffe://shop.example/web`".to_owned()),
    ] {
        let id: SpiffeId = format!("spiffe://shop.example{path}").parse().unwrap();
        let (reason, target) = (Reason::ProcessCompromise, Suspended::Identity(id.clone()));
        let error = running.admin.suspend(&SuspendRequest { target, reason }).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(&words), "{error}");
        // A reason that suspends says no more than is so, either.
        let error = running.admin.revoke(&request(Target::Identity(id), reason)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(&words), "{error}");
    }
    let nobody = Target::Identity("spiffe://shop.example".parse().unwrap());
    let said = running.admin.revoke(&request(nobody, Reason::KeyCompromise)).await;
    refused(said, Code::NotUnderstood);
    let server = Target::Identity(id("countersign/server/one"));
    let answer = revoke(&running, server, Reason::KeyCompromise).await;
    assert!(answer.suspended.is_empty(), "{answer:?}");
    assert!(running.admin.revocations().await.unwrap().suspensions.is_empty());
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn a_certificate_of_what_no_suspension_stops_is_revoked_by_its_serial_and_nothing_is_suspended()
 {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let serial = Certificate::parse(&agent.chain[0]).unwrap().serial().unwrap();
    let answer = revoke(&running, Target::Serial(serial), Reason::ProcessCompromise).await;
    assert!(!answer.rules.is_empty() && answer.suspended.is_empty(), "{answer:?}");
    running.stop().await;
}
