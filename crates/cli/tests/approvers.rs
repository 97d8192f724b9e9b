//! A new root signs when several operators have said so, each from a user of their own.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;
#[path = "support/users.rs"]
mod users;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::unistd::{Uid, seteuid};
use serde_json::Value;
use support::{PATIENCE, text, until};
use users::Place;

const NAMED: [u32; 2] = [64_001, 64_002];
const STRANGER: u32 = 64_003;
/// One user's subordinate uids: more than there are places for those who are no operators.
const SUBORDINATE: std::ops::Range<u32> = 64_100..64_200;
/// Where they find the socket that they are to fill.
const CROWDED: &str = "COUNTERSIGN_TEST_CROWDED_BY_UIDS";

/// A server where root and two others are named as approvers.
fn begin() -> Place {
    let place = Place::begin();
    let named: Vec<_> = NAMED.iter().map(|uid| format!("\"uid:{uid}\"")).collect();
    let text_of = format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Authority\nmetadata: {{name: roots}}\nspec:\n  approve: operator\n  \
         approvals: 2\n  approvers: [{}, \"uid:0\"]\n",
        named.join(", ")
    );
    place.done(0, &["apply", &place.write("roots.yaml", &text_of)]);
    place
}

#[test]
fn rotation_waits_for_two_operators_who_are_not_the_one_who_ordered_it() {
    // Only root can start processes of other users (CI is root).
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = begin();

    // Those who are named see the authorities and approve them; nobody else, and nothing else.
    let [first, second] = NAMED;
    place.refused(first, &["status"], 1, "may not administer");
    place.refused(STRANGER, &["authority", "list"], 1, "may not administer");
    place.refused(first, &["authority", "activate"], 1, "may not administer");
    place.refused(first, &["rotate", "root"], 1, "may not administer");
    let (_, listed, _) = place.ask(first, &["authority", "list"]);
    let former = listed["roots"][0]["key"].as_str().unwrap().to_owned();
    place.refused(first, &["authority", "approve", &former], 1, "nothing that is ordered waits");
    // Not by hand, past everybody, either.
    assert_eq!(place.ask(0, &["authority", "prepare"]).0, 0);
    assert_eq!(place.ask(0, &["authority", "publish"]).0, 0);
    place.refused(0, &["authority", "activate"], 1, "rotate root");
    place.refused(0, &["authority", "activate", "--force", "now"], 1, "rotate root");
    let (status, _, said) = place.ask(0, &["rotate", "root", "--reason", "yearly"]);
    assert_eq!(status, 0, "{said}");
    let (root, gate) = until("the walk waits for people", || {
        let (_, listed, _) = place.ask(second, &["authority", "list"]);
        let steps = listed["order"]["steps"].as_array()?.clone();
        let gate = steps.iter().find_map(|step| step["gate"]["why"].as_str().map(str::to_owned))?;
        let roots = listed["roots"].as_array()?.clone();
        let root =
            roots.iter().find(|root| root["state"] == "published")?["key"].as_str()?.to_owned();
        Some((root, gate))
    });
    assert!(gate.contains("0 of 2 operators"), "{gate}");
    let (_, told, _) = place.ask(0, &["status"]);
    assert!(told["warnings"].to_string().contains("0 of 2 operators have approved"), "{told}");

    // Not the one who ordered it, though named; no other root; nobody twice, be it at once; not by force.
    let approve = ["authority", "approve", &root[..12]];
    place.refused(0, &approve, 1, "ordered this rotation");
    place.refused(STRANGER, &approve, 1, "may not administer");
    place.refused(first, &["authority", "approve", &former], 1, "the root that would sign is");
    assert_eq!(place.at_once(first, &approve).0, 1);
    place.refused(first, &approve, 4, "counts once");
    place.refused(0, &["authority", "activate", "--force", "now"], 1, "1 of 2 operators");
    let (_, listed, _) = place.ask(0, &["authority", "list"]);
    let missing = listed["order"]["approvals"]["missing"].to_string();
    assert!(missing.contains(&second.to_string()) && !missing.contains(&first.to_string()));

    // Taken back: what was approved is nothing any more, and the next rotation begins at nobody.
    assert_eq!(place.ask(0, &["authority", "rollback"]).0, 0);
    assert_eq!(place.ask(0, &["rotate", "root"]).0, 0);
    let root = until("the next walk waits for people", || {
        let (_, listed, _) = place.ask(second, &["authority", "list"]);
        let steps = listed["order"]["steps"].as_array()?.clone();
        steps.iter().find(|step| step["gate"]["why"].to_string().contains("0 of 2 operators"))?;
        let roots = listed["roots"].as_array()?.clone();
        let next = roots.iter().find(|root| root["state"] == "published")?;
        next["key"].as_str().map(str::to_owned)
    });
    let approve = ["authority", "approve", root.as_str()];
    assert_eq!(place.ask(first, &approve).0, 0);
    assert_eq!(place.ask(second, &approve).0, 0);
    let last = until("the rotation ends", || {
        let (_, listed, _) = place.ask(0, &["authority", "list"]);
        listed["order"].is_null().then(|| listed["last"].clone())
    });
    let given = last["approvals"]["given"].as_array().unwrap();
    let actors: Vec<_> = given.iter().map(|one| one["actor"].as_str().unwrap()).collect();
    assert!(given.iter().all(|one| one["authority"] == root.as_str()), "{last}");
    assert_eq!(actors, NAMED.map(|uid| format!("operator:uid:{uid}")));
    assert!(last["steps"].as_array().unwrap().iter().all(|step| step["at"].is_string()), "{last}");

    // Who approved what, and when, is in the log.
    let (_, events, _) = place.ask(0, &["events", "--limit", "1000"]);
    let of_kind = |event: &&Value| event["kind"] == "authority-approved";
    let said: Vec<_> = events["events"].as_array().unwrap().iter().filter(of_kind).collect();
    assert_eq!(said.len(), 3, "{events}");
    assert!(said[1..].iter().all(|event| event["subject"] == root.as_str()), "{events}");
}

/// What one user's many uids do: each connects once, after somebody who is named and asks only then. A process has one uid at a time
/// for all of its threads, so this is a process of its own.
#[test]
#[ignore = "another test runs it, by itself"]
fn crowd_of_many_uids() {
    let Some(socket) = std::env::var_os(CROWDED) else { return };
    let connect = |uid| {
        seteuid(Uid::from_raw(uid)).unwrap();
        let stream = UnixStream::connect(&socket);
        seteuid(Uid::from_raw(0)).unwrap();
        stream.unwrap()
    };
    let request = b"GET /v1/authorities HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let ask = |mut stream: UnixStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut said = String::new();
        // It may have had to go already.
        stream.write_all(request).and_then(|()| stream.read_to_string(&mut said)).ok();
        said.split(' ').nth(1).unwrap_or("cut").to_owned()
    };
    let named = connect(NAMED[0]);
    let mut crowd: Vec<_> = SUBORDINATE.map(connect).collect();
    // Whoever came last is answered, so that all are in by then; and whoever came first had to go for those.
    assert_eq!(ask(crowd.pop().unwrap()), "403");
    assert_eq!(ask(crowd.swap_remove(0)), "cut");
    assert_eq!(ask(named), "200");
}

#[test]
fn a_user_with_many_uids_takes_no_place_of_one_who_is_named_to_approve() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = begin();
    until("who is named is let in", || {
        (place.ask(NAMED[0], &["authority", "list"]).0 == 0).then_some(())
    });
    let mut crowd = Command::new(std::env::current_exe().unwrap());
    crowd.args(["--exact", "crowd_of_many_uids", "--ignored"]).env(CROWDED, place.at("admin.sock"));
    let done = crowd.output().unwrap();
    let said = text(&done.stdout);
    assert!(done.status.success() && said.contains("1 passed"), "{said}{}", text(&done.stderr));
}
