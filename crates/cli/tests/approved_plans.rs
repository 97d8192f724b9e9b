//! What is declared changes once several operators have approved the plan, each from a user of their own.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

mod support;
#[path = "support/users.rs"]
mod users;

use std::path::Path;

use users::{Place, open_up};

const FIRST: u32 = 64_011;
const SECOND: u32 = 64_012;
const STRANGER: u32 = 64_013;

/// A plan of these manifests, in a file that everybody may read.
#[track_caller]
fn plan(place: &Place, manifest: &str, name: &str) -> String {
    let file = place.at(name);
    let plan = place.done(0, &["plan", manifest, "--out", &file]);
    assert_eq!(plan["approval"]["needed"], 2, "{plan}");
    open_up(Path::new(&file), 0o644);
    file
}

fn domain(changes: &str) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: shop}}\nspec:\n  \
         trustDomain: shop.example\n{changes}"
    )
}

fn workload(name: &str) -> String {
    format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  selectors: [\"unix:uid:1\"]\n"
    )
}

#[test]
fn of_many_words_and_applications_at_once_one_counts() {
    // Only root can start processes of other users (CI is root).
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::begin();
    let named = format!("[\"uid:{FIRST}\", \"uid:{SECOND}\"]");
    let changes = format!("  changes: {{approvals: 2, approvers: {named}}}\n");
    place.done(0, &["apply", &place.write("domain.yaml", &domain(&changes))]);
    let file = plan(&place, &place.write("a.yaml", &workload("a")), "a.json");

    let approve = ["plan", "approve", &file];
    let (given, others) = place.at_once(FIRST, &approve);
    assert_eq!(given, 1, "{others:?}");
    for said in others {
        assert!(said.0 == 4 && said.1.contains("approved it already"), "{said:?}");
    }
    let apply = ["apply", "--plan", &file];
    let (applied, refused) = place.at_once(0, &apply);
    assert!(applied == 0 && refused.iter().all(|said| said.1.contains("1 of 2 operators")));
    place.done(SECOND, &approve);
    let (applied, others) = place.at_once(0, &apply);
    assert_eq!(applied, 1, "{others:?}");
    for said in others {
        assert!(said.0 == 4 && said.1.contains("the change was made for revision"), "{said:?}");
    }
    let events = place.done(0, &["events", "--limit", "1000"]);
    let events = events["events"].as_array().unwrap().clone();
    let approved = events.iter().filter(|event| event["kind"] == "change-approved");
    let put = events.iter().filter(|event| event["subject"] == "Workload/a");
    assert_eq!((approved.count(), put.count()), (2, 1), "{events:?}");
}

#[test]
fn nothing_changes_without_the_word_of_those_who_are_named() {
    // Only root can start processes of other users (CI is root).
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::begin();
    let named = format!("[\"uid:{FIRST}\", \"uid:{SECOND}\", \"uid:0\"]");
    let changes = format!("  changes: {{approvals: 2, approvers: {named}}}\n");
    let required = place.write("domain.yaml", &domain(&changes));
    place.refused(FIRST, &["plan", &required], 1, "may not administer");
    let begun = place.done(0, &["apply", &required]);

    // No way past it: not bare, not back, not by removal, and not by lifting the requirement itself.
    let (a, b) = (place.write("a.yaml", &workload("a")), place.write("b.yaml", &workload("b")));
    let lifted = place.write("lifted.yaml", &domain(""));
    let says = "`countersign plan approve FILE`";
    for refused in [&["apply", &a][..], &["apply", &lifted], &["rollback", "1"]] {
        place.refused(0, refused, 1, says);
    }
    place.refused(0, &["resource", "remove", "TrustDomain", "shop"], 2, "cannot be removed");
    let base = begun["revision"].as_str().unwrap();
    place.refused(0, &["apply", &a, "--base", base], 1, "0 of 2 operators have approved");

    // Those who are named see what there is to approve, and nothing else.
    let file = plan(&place, &a, "a.json");
    let shown = place.done(FIRST, &["plan", "show", &file]);
    assert_eq!(shown["changes"][0]["name"], "a", "{shown}");
    place.refused(STRANGER, &["plan", "show", &file], 1, "may not administer");
    place.refused(STRANGER, &["plan", "approve", &file], 1, "may not administer");
    for refused in [&["status"][..], &["apply", "--plan", &file], &["rollback", "1"]] {
        place.refused(FIRST, refused, 1, "may not administer");
    }

    // Nobody counts twice, and who applies it does not count.
    place.done(0, &["plan", "approve", &file]);
    place.done(FIRST, &["plan", "approve", &file]);
    place.refused(FIRST, &["plan", "approve", &file], 4, "counts once");
    place.refused(0, &["apply", "--plan", &file], 1, "1 of 2 operators have approved");

    // What was approved is these manifests, and no others that are put in their place.
    let changed = std::fs::read_to_string(&file).unwrap().replace("unix:uid:1", "unix:uid:2");
    let changed = place.write("changed.json", &changed);
    place.done(SECOND, &["plan", "approve", &file]);
    place.refused(0, &["apply", "--plan", &changed], 1, "0 of 2 operators have approved");
    let applied = place.done(0, &["apply", "--plan", &file]);
    assert_eq!(applied["changes"][0]["name"], "a", "{applied}");
    place.refused(0, &["apply", "--plan", &file], 4, "the change was made for revision");
    place.refused(FIRST, &["plan", "approve", &file], 4, "the change was made for revision");

    // A word is for one revision: what moves meanwhile has it asked for anew.
    let (first, second) = (plan(&place, &b, "b.json"), plan(&place, &lifted, "lifted.json"));
    for uid in [FIRST, SECOND] {
        place.done(uid, &["plan", "approve", &first]);
        place.done(uid, &["plan", "approve", &second]);
    }
    place.done(0, &["apply", "--plan", &second]);
    place.refused(0, &["apply", "--plan", &first], 4, "the change was made for revision");
    // Nobody has to be asked any more, and nobody who was named has a say.
    place.done(0, &["apply", &b]);
    place.refused(FIRST, &["plan", "show", &first], 1, "may not administer");

    let events = place.done(0, &["events", "--limit", "1000"]);
    let events = events["events"].as_array().unwrap().clone();
    let approved = events.iter().filter(|event| event["kind"] == "change-approved");
    let approved: Vec<_> = approved.map(|event| event["actor"].as_str().unwrap()).collect();
    assert_eq!(approved.len(), 7, "{approved:?}");
    assert_eq!(approved[1], format!("operator:uid:{FIRST}"));
}
