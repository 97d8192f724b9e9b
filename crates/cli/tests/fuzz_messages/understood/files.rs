//! Files, and what is said to the console.

use countersign_cli::steps::Plan;
use countersign_seal::KekFile;
use countersign_server::steps::{JournalLines, read_backup};
use countersign_store::Page;

use super::{World, seed};
use crate::server::key;

#[test]
fn a_backup_is_read_with_all_of_its_tables() {
    let kek = KekFile::parse("kek".as_ref(), &[7; 32], None).unwrap();
    let pages = read_backup(&seed("backup", "whole")[1..], &kek).unwrap();
    let read = |bytes: &Vec<u8>| Page::parse(bytes).unwrap();
    let pages: Vec<Page> = pages.iter().map(read).collect();
    for table in ["records", "commits", "log", "issued", "secrets"] {
        assert!(pages.iter().any(|page| page.table == table && 0 < page.rows), "{table}");
    }
}

#[test]
fn the_rules_of_a_journal_are_taken_once_they_are_signed() {
    let lines = JournalLines::of(key(4));
    let other = JournalLines::of(key(5));
    let text = String::from_utf8(seed("journal", "rules")).unwrap();
    let mut rules = 0;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let (kind, name, value) = (text("kind"), text("name"), text("value").into());
        let rule = lines.sign(countersign_api::v1::Record { kind, name, value }).unwrap();
        assert_eq!(lines.read(&lines.line(&rule)), (vec![rule.clone()], 0));
        assert_eq!(other.read(&lines.line(&rule)), (Vec::new(), 1));
        lines.take(&rule).unwrap();
        rules += 1;
    }
    assert_eq!(rules, 3);
}

#[test]
fn a_plan_is_put_in_force() {
    let world = World::begin();
    let before = world.steps.revision();
    let plan = Plan::parse(&seed("plan_file", "change")).unwrap();
    let applied = world.runtime.block_on(world.steps.apply(plan.resources())).unwrap();
    assert!(before < applied);
}

#[test]
fn a_link_begins_a_session_and_a_session_sees_pages() {
    let world = World::begin();
    let domain = "shop.example".parse().unwrap();
    let console = world.steps.console(domain, "console.example", 9443).unwrap();
    let ask = |name: &str, place: &str, secret: &str| {
        let said = String::from_utf8(seed("console", name)).unwrap().replace(place, secret);
        world.runtime.block_on(console.converse(said.as_bytes())).0
    };
    let entered = ask("link", "{link}", &console.invite().unwrap());
    assert_eq!(entered[0].told["location"], "/", "{entered:?}");
    let session = console.enter(&console.invite().unwrap()).unwrap();
    for name in ["pages", "queries"] {
        let pages = ask(name, "{session}", &session);
        let seen = pages.iter().filter(|page| page.status == 200).count();
        assert!(5 <= pages.len() && 2 <= seen, "{name}: {pages:?}");
    }
    let said = String::from_utf8(seed("console", "logout")).unwrap();
    let said = said.replace("{form}", &console.form(&session).unwrap());
    let said = said.replace("{session}", &session);
    let (answered, _) = world.runtime.block_on(console.converse(said.as_bytes()));
    assert_eq!(answered[0].told["location"], "/login", "{answered:?}");
    assert!(console.form(&session).is_err(), "it is over");
}
