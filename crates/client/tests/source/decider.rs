//! What is decided about requests that somebody else has taken.

use countersign::{Code, Decider, Name, SpiffeId, Told};
use countersign_api::v1;
use countersign_identity::Revoked;
use countersign_pki::Certificate;

use crate::agent::Offer;
use crate::realm::{Realm, Svid};
use crate::revocation::{LEAK, record, rule};
use crate::world::{PERMIT, World, now, policy};

const SEE: &str = r#"permit (principal == Workload::"web", action == Action::"GET", resource == Operation::"orders/see")"#;
const OPERATIONS: &str = r#","operations":[{"name":"see","method":"GET","path":"/see/{id}"}]"#;

/// The slice of `orders` with these operations, if any, where `web` may connect, and with these policies besides.
fn slice(world: &World, operations: &str, policies: &[&str]) -> v1::Slice {
    let mut slice = world.slice(6, "orders");
    let head = r#"{"workload":"orders","protocol":"http","listen":"127.0.0.1:4","forward":"unix""#;
    slice.services[0].value = format!("{head}{operations}}}").into();
    let more = policies.iter().enumerate();
    let more = more.map(|(at, text)| v1::Record { name: format!("p{at}"), ..policy(text) });
    slice.policies = std::iter::once(policy(PERMIT)).chain(more).collect();
    slice
}

fn decider(world: &World, policies: &[&str]) -> Decider {
    Decider::of(slice(world, OPERATIONS, policies), None).unwrap()
}

/// What is decided about `GET` of this target, and in which form it would go on.
fn ask(decider: &Decider, svid: &Svid, target: &str, fields: &[&str]) -> Result<String, Code> {
    ask_as(decider, (&svid.id, svid.chain.leaf()), None, target, fields)
}

fn ask_as(
    decider: &Decider,
    (peer, certificate): (&SpiffeId, &Certificate),
    service: Option<&str>,
    target: &str,
    fields: &[&str],
) -> Result<String, Code> {
    let service: Option<Name> = service.map(|name| name.parse().unwrap());
    let told = Told { service: service.as_ref(), peer, certificate, method: "GET", target };
    let ruling = decider.decide(&told, fields.iter().copied(), now());
    ruling.passes.map_err(|denied| denied.code)
}

#[tokio::test]
async fn the_form_that_is_decided_on_is_the_one_that_goes_on() {
    let world = World::new(Offer::Enforcement);
    let (decider, web) = (decider(&world, &[&format!("{SEE};")]), world.svid("/web"));
    for (target, goes_on) in
        [("/see/1", "/see/1"), ("/%73ee/1?q=%2f..", "/see/1?q=%2f.."), ("/see/%2a", "/see/%2A")]
    {
        assert_eq!(ask(&decider, &web, target, &[]).as_deref(), Ok(goes_on), "{target}");
    }
    for (target, code) in [
        ("/see", Code::PolicyDenied),
        ("/see/1/", Code::PolicyDenied),
        ("/see/../see/1", Code::NotUnderstood),
        ("//see/1", Code::NotUnderstood),
        ("/see/1;v=2", Code::NotUnderstood),
        ("/see%2f1", Code::NotUnderstood),
        ("/see/1#a", Code::NotUnderstood),
        ("/see/1?a#b", Code::NotUnderstood),
        ("see/1", Code::NotUnderstood),
        ("*", Code::NotUnderstood),
        ("", Code::NotUnderstood),
    ] {
        assert_eq!(ask(&decider, &web, target, &[]), Err(code), "{target}");
    }
    for field in ["x-http-method-override", "X_HTTP_Method", "x-original-url"] {
        let asked = ask(&decider, &web, "/see/1", &["accept", field]);
        assert_eq!(asked, Err(Code::NotUnderstood), "{field}");
    }
    assert!(ask(&decider, &web, "/see/1", &["accept", "x-method", "accept"]).is_ok());
    // Where connections are all that is decided on, requests pass as they came, as at a door.
    let open = Decider::of(slice(&world, "", &[]), Some(&decider)).unwrap();
    assert_eq!(ask(&open, &web, "/a//b;c", &[]).as_deref(), Ok("/a//b;c"));
    assert_eq!(ask(&open, &world.svid("/payments"), "/", &[]), Err(Code::PolicyDenied));
}

#[tokio::test]
async fn nothing_is_asked_of_policies_before_it_is_sure_who_asks() {
    let world = World::new(Offer::Enforcement);
    let any = r#"@unscoped("a test") permit (principal, action, resource);"#;
    let (web, open) = (world.svid("/web"), decider(&world, &[any]));
    assert!(ask(&open, &web, "/see/1", &[]).is_ok());
    let orders = world.svid("/orders");
    let lying = ask_as(&open, (&web.id, orders.chain.leaf()), None, "/see/1", &[]);
    assert_eq!(lying, Err(Code::BadIdentity), "the certificate names another");
    let foreign = Realm::new("press.example", 9, now()).svid("/web", now(), 600);
    assert_eq!(ask(&open, &foreign, "/see/1", &[]), Err(Code::UnknownTrustDomain));
    let past = now() - std::time::Duration::from_secs(900);
    let expired = world.realm.svid("/web", past, 600);
    assert_eq!(ask(&open, &expired, "/see/1", &[]), Err(Code::Expired));
    let issuer = &web.chain.certificates()[1];
    assert!(ask_as(&open, (&web.id, issuer), None, "/see/1", &[]).is_err(), "an authority's");
    let mut ruled = slice(&world, OPERATIONS, &[any]);
    let leaked = rule(Revoked::Key(web.chain.leaf().key_id()), LEAK);
    ruled.revocations.push(record("leak", &serde_json::to_vec(&leaked).unwrap()));
    let ruled = Decider::of(ruled, Some(&open)).unwrap();
    assert_eq!(ask(&ruled, &web, "/see/1", &[]), Err(Code::Revoked));
    assert!(ask(&ruled, &world.svid("/web"), "/see/1", &[]).is_ok(), "another key");
    for (of, code) in [(issuer.key_id(), Some(Code::Revoked)), (web.chain.leaf().key_id(), None)] {
        let mut ruled = slice(&world, OPERATIONS, &[any]);
        let leaked = rule(Revoked::Authority(of), LEAK);
        ruled.revocations.push(record("leak", &serde_json::to_vec(&leaked).unwrap()));
        let ruled = Decider::of(ruled, Some(&open)).unwrap();
        assert_eq!(
            ask(&ruled, &web, "/see/1", &[]).err(),
            code,
            "what signed it is revoked, or not"
        );
    }
}

#[tokio::test]
async fn it_decides_about_the_services_of_whoever_asks_and_no_others() {
    let world = World::new(Offer::Enforcement);
    let web = world.svid("/web");
    let asked = |decider: &Decider, service| {
        ask_as(decider, (&web.id, web.chain.leaf()), service, "/see/1", &[])
    };
    let one = decider(&world, &[&format!("{SEE};")]);
    assert!(asked(&one, Some("orders")).is_ok());
    assert_eq!(asked(&one, Some("payments")), Err(Code::NotFound));
    let mut two = slice(&world, OPERATIONS, &[&format!("{SEE};")]);
    let second = v1::Record { name: "second".to_owned(), ..two.services[0].clone() };
    let value = String::from_utf8(second.value.to_vec()).unwrap();
    let theirs = value.replace(r#""workload":"orders""#, r#""workload":"web""#);
    let theirs = v1::Record { name: "theirs".to_owned(), value: theirs.into(), ..second.clone() };
    two.services.extend([second, theirs]);
    let two = Decider::of(two, None).unwrap();
    assert_eq!(two.services().map(Name::as_str).collect::<Vec<_>>(), ["orders", "second"]);
    assert_eq!(asked(&two, None), Err(Code::NotUnderstood), "one has to be named");
    assert!(asked(&two, Some("orders")).is_ok());
    assert_eq!(asked(&two, Some("second")), Err(Code::PolicyDenied));
    assert_eq!(asked(&two, Some("theirs")), Err(Code::NotFound));
    // Another form of the path could have led to another service.
    for target in ["/%73ee/1", "//see/1", "/see/%31?q"] {
        let other = ask_as(&two, (&web.id, web.chain.leaf()), Some("orders"), target, &[]);
        assert_eq!(other, Err(Code::NotUnderstood), "{target}");
    }
    let mut none = slice(&world, OPERATIONS, &[]);
    none.services.clear();
    none.policies.clear();
    assert_eq!(asked(&Decider::of(none, None).unwrap(), None), Err(Code::NotFound));
    let mut bad = slice(&world, OPERATIONS, &[]);
    bad.policies[0].value = b"{}"[..].into();
    assert!(Decider::of(bad, None).is_err(), "what no point would enforce decides nothing");
}

#[tokio::test]
async fn what_nobody_tells_or_counts_permits_nothing() {
    let world = World::new(Offer::Enforcement);
    let web = world.svid("/web");
    let asked = |policies: &[&str]| ask(&decider(&world, policies), &web, "/see/1", &[]);
    for condition in [
        r#"when { context.tls_version == "1.3" }"#,
        r#"when { context.tls_version == "1.2" }"#,
        r#"when { context.group == "X25519MLKEM768" }"#,
        r#"unless { context.group == "X25519" }"#,
    ] {
        let denied = asked(&[&format!("{SEE} {condition};")]);
        assert_eq!(denied, Err(Code::PolicyDenied), "{condition}");
    }
    let forbid = SEE.replacen("permit", "forbid", 1);
    let old = format!(r#"{forbid} when {{ context.tls_version == "1.2" }};"#);
    assert_eq!(asked(&[&format!("{SEE};"), &old]), Err(Code::PolicyDenied));
    assert!(asked(&[&format!("{SEE} when {{ context.peer_age_seconds < 3600 }};")]).is_ok());
    // It may come from there, and nobody tells.
    let source = r#"context has source && context.source.isInRange(ip("10.0.0.0/8"))"#;
    let near = format!("{forbid} when {{ {source} }};");
    assert_eq!(asked(&[&format!("{SEE};"), &near]), Err(Code::PolicyError));
    assert_eq!(asked(&[&format!("{SEE} when {{ {source} }};")]), Err(Code::PolicyError));
    assert!(
        asked(&[&format!("{SEE} when {{ context.time > datetime(\"2000-01-01\") }};")]).is_ok()
    );
    let ended = format!("{SEE} when {{ context.time < datetime(\"2000-01-01\") }};");
    assert_eq!(asked(&[&ended]), Err(Code::PolicyDenied));
    let attested = format!("{SEE} when {{ context has attestation }};");
    assert_eq!(asked(&[&attested]), Err(Code::PolicyDenied), "its certificate says nothing");
    let slowly = format!(r#"@rate("100/s") {SEE};"#);
    assert_eq!(asked(&[&slowly]), Err(Code::PolicyError));
    assert!(asked(&[&slowly, &format!("{SEE};")]).is_ok(), "one without a limit permits it");
}
