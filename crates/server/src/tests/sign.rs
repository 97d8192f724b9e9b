//! SVIDs for workloads.

use std::time::Duration;

use bytes::Bytes;
use countersign_api::v1;
use countersign_api::v1::sign_result::Outcome;
use countersign_identity::Code;
use countersign_pki::{Certificate, KeyKind, PrivateKey, make_csr};
use tonic::Response;

use super::{Agent, Client, Realm, code, known, nobody, unknown_or_cut, workload};

pub(super) fn item(workload: &str, key: &PrivateKey) -> v1::SignItem {
    v1::SignItem {
        workload: workload.to_owned(),
        csr: make_csr(key).unwrap().into(),
        ..Default::default()
    }
}

pub(super) async fn sign(
    client: &mut Client,
    items: Vec<v1::SignItem>,
) -> Vec<Result<v1::Issued, Code>> {
    let request = v1::SignRequest { items, ..v1::SignRequest::default() };
    let answer = client.node.sign(request).await.map(Response::into_inner).unwrap();
    let read = |result: v1::SignResult| match result.outcome.unwrap() {
        Outcome::Issued(issued) => Ok(issued),
        Outcome::Refusal(refusal) => Err(refusal.code.parse().unwrap()),
    };
    answer.results.into_iter().map(read).collect()
}

#[tokio::test]
async fn node_gets_what_is_open_to_it_and_nothing_else() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running
        .apply(vec![
            workload("web", &[]),
            workload("vault", &["secure"]),
            workload("edge", &["edge"]),
        ])
        .await;
    let agent = Agent::join(&realm, &running, &["edge"]).await;
    let mut client = agent.client(&realm, &running).await;
    let keys: Vec<_> = (0..4).map(|_| PrivateKey::generate(KeyKind::P256).unwrap()).collect();
    let items = vec![
        item("vault", &keys[0]),
        item("web", &keys[1]),
        item("no-such", &keys[2]),
        item("edge", &keys[3]),
    ];
    let results = sign(&mut client, items).await;
    assert_eq!(results[0], Err(Code::UnknownWorkload));
    assert_eq!(results[2], Err(Code::UnknownWorkload));
    let mut leaves = Vec::new();
    for (result, name, key) in [(&results[1], "web", &keys[1]), (&results[3], "edge", &keys[3])] {
        let issued = result.as_ref().unwrap();
        let verified = agent.verify(&realm, &issued.chain);
        assert_eq!(verified.id.as_str(), format!("spiffe://shop.example/{name}"));
        assert_eq!(verified.key, key.public().id());
        assert_eq!(issued.issued_micros, countersign_identity::Clock::now(&*realm.clock).micros());
        leaves.push(Certificate::parse(&issued.chain[0]).unwrap());
    }
    running.stop().await;
    let issued = realm.verify_everything().await;
    for leaf in leaves {
        assert!(issued.iter().any(|issued| issued.row.tbs == leaf.tbs_digest()));
    }
    // Root, issuer, server, agent, and two workloads: what was refused was not recorded.
    assert_eq!(issued.len(), 6);
}

#[tokio::test]
async fn key_or_name_that_does_not_fit_is_refused_item_by_item() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let wrong_kind = PrivateKey::generate(KeyKind::Ed25519).unwrap();
    let mut forged = make_csr(&key).unwrap();
    *forged.last_mut().unwrap() ^= 1;
    let items = vec![
        v1::SignItem { workload: "web".to_owned(), csr: Bytes::from(forged), ..Default::default() },
        item("web", &wrong_kind),
        v1::SignItem { workload: "web".to_owned(), csr: Bytes::new(), ..Default::default() },
        item("countersign/server/x", &key),
        item("../web", &key),
        item("*", &key),
        item("web", &key),
    ];
    let codes: Vec<_> =
        sign(&mut client, items).await.into_iter().map(|result| result.err()).collect();
    let expected = [
        Some(Code::BadPossession),
        Some(Code::WeakKey),
        Some(Code::NotUnderstood),
        Some(Code::UnknownWorkload),
        Some(Code::UnknownWorkload),
        Some(Code::UnknownWorkload),
        None,
    ];
    assert_eq!(codes, expected);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn nothing_is_signed_for_who_is_no_agent() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    // Without a certificate.
    let nobody = nobody(&realm, &running).await;
    let refused = nobody.node.sign(v1::SignRequest::default()).await.unwrap_err();
    assert_eq!(code(&refused), Code::Unauthenticated);
    let refused = nobody.node.report(v1::ReportRequest::default()).await.unwrap_err();
    assert_eq!(code(&refused), Code::Unauthenticated);
    // With a workload's.
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let mut client = agent.client(&realm, &running).await;
    let issued = sign(&mut client, vec![item("web", &key)]).await.remove(0).unwrap();
    let web = known(&realm, &running, &agent.bundle, &issued.chain, &key).await;
    let refused = web.node.sign(v1::SignRequest::default()).await.unwrap_err();
    assert_eq!(code(&refused), Code::Forbidden);
    running.stop().await;
}

#[tokio::test]
async fn request_over_its_bound_is_refused_as_a_whole() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let items = vec![item("web", &key); 257];
    let refused = client
        .node
        .sign(v1::SignRequest { items, ..v1::SignRequest::default() })
        .await
        .unwrap_err();
    assert_eq!(code(&refused), Code::TooLarge);
    let results = sign(&mut client, vec![item("web", &key); 256]).await;
    assert!(results.iter().all(Result::is_ok));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn removed_node_gets_nothing_on_a_connection_that_is_still_open() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    sign(&mut client, vec![item("web", &key)]).await.remove(0).unwrap();
    running.admin.remove_node(agent.node).await.unwrap();
    let request = v1::SignRequest { items: vec![item("web", &key)], ..v1::SignRequest::default() };
    let refused = client.node.sign(request).await.unwrap_err();
    unknown_or_cut(&refused);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn removed_workload_gets_nothing_from_the_answer_of_apply_on() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    sign(&mut client, vec![item("web", &key)]).await.remove(0).unwrap();
    let kind = countersign_api::resource::Kind::Workload;
    running.admin.remove_resource(kind, &"web".parse().unwrap()).await.unwrap();
    let result = sign(&mut client, vec![item("web", &key)]).await.remove(0);
    assert_eq!(result, Err(Code::UnknownWorkload));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn issuer_is_succeeded_at_half_of_its_life_and_both_are_accepted() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), super::trust_domain("24h")]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let issuer = |chain: &[Bytes]| Certificate::parse(&chain[1]).unwrap().key_id();
    let first = issuer(&agent.chain);
    running.stop().await;
    realm.clock.advance(Duration::from_secs(4 * 86_400));
    let running = realm.serve().await;
    let second = Agent::join(&realm, &running, &[]).await;
    assert_ne!(issuer(&second.chain), first);
    agent.verify(&realm, &second.chain);
    // Long after both have ended, the server recovers by itself: the root still signs.
    running.stop().await;
    realm.clock.advance(Duration::from_secs(60 * 86_400));
    let running = realm.serve().await;
    let third = Agent::join(&realm, &running, &[]).await;
    agent.verify(&realm, &third.chain);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_goes_on_while_rights_are_taken_away_elsewhere() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let key = PrivateKey::generate(KeyKind::P256).unwrap();
    let items = vec![item("web", &key), item("other", &key)];
    let signing = async {
        let mut outcomes = Vec::new();
        for _ in 0..40 {
            let request = v1::SignRequest { items: items.clone(), ..v1::SignRequest::default() };
            outcomes.push(client.node.sign(request).await.map_err(|status| code(&status)));
        }
        outcomes
    };
    let narrowing = async {
        for round in 0..20 {
            let labels: &[&str] = if round % 2 == 0 { &["a"] } else { &["b"] };
            running.apply(vec![workload("other", labels)]).await;
        }
    };
    let (outcomes, ()) = tokio::join!(signing, narrowing);
    let mut signed = 0;
    for outcome in outcomes {
        match outcome {
            Ok(answer) => {
                let outcome = answer.into_inner().results.remove(0).outcome;
                assert!(matches!(outcome, Some(Outcome::Issued(_))), "{outcome:?}");
                signed += 1;
            }
            // A request that loses again and again says so, and may be asked again.
            Err(code) => assert_eq!(code, Code::Fenced),
        }
    }
    assert!(0 < signed, "nothing was signed meanwhile");
    let after = sign(&mut client, items).await;
    assert!(after[0].is_ok(), "{after:?}");
    assert_eq!(after[1], Err(Code::UnknownWorkload));
    running.stop().await;
    let issued = realm.verify_everything().await;
    let to = |path| issued.iter().filter(|issued| issued.row.spiffe_id.path() == path).count();
    assert_eq!((to("/web"), to("/other")), (signed + 1, 0));
}

#[tokio::test]
async fn each_workload_gets_its_certificate_for_the_kind_of_key_that_its_manifest_names_and_for_no_other()
 {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let manifests = KeyKind::ALL.map(|kind| {
        let mut manifest = workload(kind.as_str(), &[]);
        manifest["spec"]["keyType"] = kind.as_str().into();
        manifest
    });
    running.apply(manifests.to_vec()).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let keys = KeyKind::ALL.map(|kind| PrivateKey::generate(kind).unwrap());
    for wanted in KeyKind::ALL {
        let items = keys.iter().map(|key| item(wanted.as_str(), key)).collect();
        let results = sign(&mut client, items).await;
        for (result, key) in results.into_iter().zip(&keys) {
            match result {
                Ok(issued) => {
                    assert_eq!(key.public().kind(), wanted);
                    let verified = agent.verify(&realm, &issued.chain);
                    assert_eq!(verified.key, key.public().id());
                }
                Err(code) => {
                    assert_eq!(code, Code::WeakKey);
                    assert_ne!(key.public().kind(), wanted);
                }
            }
        }
    }
    running.stop().await;
    realm.verify_everything().await;
}
