//! Whatever is said to the console over a connection, nobody sees anything of it without a session, no link begins two, no page of
//! another site changes anything, and no text comes back as markup. What nobody can guess stands in the place of `{link}`,
//! `{session}` and `{form}`.
#![no_main]

use std::cell::RefCell;

use countersign_server::steps::{Answered, Console};
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "each target uses its own part of this")]
#[path = "../support/server.rs"]
mod server;

const NAME: &str = "console.example";
const PORT: u16 = 9443;
const ORIGIN: &str = "https://console.example:9443";
/// An element that no page of ours has.
const MARKUP: &[u8] = b"<x9";

thread_local! {
    static WORLD: RefCell<Option<server::World>> = const { RefCell::new(None) };
}

/// What is put in, and whether it was.
struct Secrets {
    link: (String, bool),
    session: (String, bool),
    form: (String, bool),
}

impl Secrets {
    fn of(console: &Console) -> Self {
        let link = || console.invite().expect("a seeded sequence does not end");
        let session = console.enter(&link()).expect("it is new");
        let form = console.form(&session).expect("it began");
        Self { link: (link(), false), session: (session, false), form: (form, false) }
    }

    fn put_in(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let places = [
            ("{link}", &mut self.link),
            ("{session}", &mut self.session),
            ("{form}", &mut self.form),
        ];
        for (place, (secret, used)) in places {
            let is_here = |window: &[u8]| window == place.as_bytes();
            while let Some(at) = bytes.windows(place.len()).position(is_here) {
                bytes.splice(at..at + place.len(), secret.bytes());
                *used = true;
            }
        }
        bytes
    }
}

fn check(answered: &Answered, console: &Console, secrets: &Secrets) {
    let Answered { method, path, said, status, told } = answered;
    let told_as =
        |name: &str| told.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(told_as("content-security-policy").starts_with("default-src 'none'"), "{answered:?}");
    assert_eq!(told_as("x-content-type-options"), "nosniff");
    assert_eq!(told_as("x-frame-options"), "DENY");
    let open = path == "/login" || path.starts_with("/assets/");
    assert!(secrets.session.1 || open || !status.is_success(), "seen by a stranger: {answered:?}");
    if !["GET", "HEAD"].contains(&method.as_str()) && status.as_u16() < 400 {
        let origin = said.get("origin").and_then(|origin| origin.to_str().ok());
        assert!(
            origin.is_some_and(|origin| origin.eq_ignore_ascii_case(ORIGIN)),
            "another site's page did this: {answered:?}"
        );
    }
    for cookie in told.get_all("set-cookie") {
        let cookie = cookie.to_str().expect("it is ASCII");
        let value = cookie.strip_prefix(console.cookie()).expect("there is no other");
        assert!(value.contains("; Path=/; Secure; HttpOnly; SameSite=Strict"), "{cookie}");
        if value.starts_with("=;") {
            assert!(secrets.session.1 && secrets.form.1 && path == "/logout", "{answered:?}");
        } else {
            assert!(secrets.link.1 && path == "/login" && method == "POST", "{answered:?}");
        }
    }
}

/// How many sessions began.
fn begun(answered: &[Answered]) -> usize {
    let cookies = answered.iter().flat_map(|one| one.told.get_all("set-cookie"));
    cookies.filter(|cookie| !cookie.as_bytes().ends_with(b"Max-Age=0")).count()
}

fuzz_target!(|bytes: &[u8]| {
    WORLD.with_borrow_mut(|slot| {
        let world = slot.get_or_insert_with(server::World::begin);
        let domain = "shop.example".parse().expect("it is one");
        let console = world.steps.console(domain, NAME, PORT).expect("chance does not end");
        let mut secrets = Secrets::of(&console);
        let said = secrets.put_in(bytes);
        let (answered, heard) = world.runtime.block_on(console.converse(&said));
        answered.iter().for_each(|one| check(one, &console, &secrets));
        assert!(
            !heard.windows(MARKUP.len()).any(|window| window == MARKUP),
            "a text came back as markup: {}",
            heard.escape_ascii()
        );
        let begun = begun(&answered);
        assert!(begun <= 1, "a link let two in");
        let let_in = console.enter(&secrets.link.0).is_ok();
        assert_eq!(let_in, begun == 0, "a link is used up by who comes in by it, and nobody else");
        // Only who has the session can end it, or ask so often in it that it has to wait.
        let goes_on = console.form(&secrets.session.0).is_ok();
        assert!(goes_on || secrets.session.1, "a stranger ended a session");
        // What began is in the log of the server, and each input meets the same one.
        if 0 < begun {
            *slot = None;
        }
    });
});
