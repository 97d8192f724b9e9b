//! The console in a real browser: every page, in light and dark and at a phone's width, by keyboard, live, and under attack.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/collector.rs"]
#[expect(dead_code, reason = "the tests of traces use the rest of it")]
mod collector;
#[path = "support/load.rs"]
mod load;
#[path = "console/many.rs"]
mod many;
#[path = "support/spans.rs"]
#[expect(dead_code, reason = "the tests of traces use the rest of it")]
mod spans;
mod support;
#[path = "console/walk.rs"]
mod walk;

use std::path::{Path, PathBuf};

use browser::Browser;
use support::{PATIENCE, Up, folder, root, signal, text, until};

const PAGES: [&str; 9] = [
    "/",
    "/map",
    "/workloads",
    "/nodes",
    "/authorities",
    "/policies",
    "/revocations",
    "/log",
    "/handshakes",
];
/// A desk in light and in dark, and a phone in both.
const LOOKS: [(u32, &str); 4] = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")];
/// The tabulator and the return key.
const TAB: &str = "\u{E004}";
const RETURN: &str = "\u{E007}";

/// A browser that is signed in.
fn enter(up: &Up, home: &Path) -> Browser {
    let root = home.join("root.pem");
    let output = up.run(&["console", "--root", root.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let browser = Browser::start(home, &root);
    browser.go(text(&output.stdout).trim());
    until("somebody is in", || browser.url().ends_with('/').then_some(()));
    browser
}

fn origin(browser: &Browser) -> String {
    browser.run("return location.origin").as_str().unwrap().to_owned()
}

fn see(browser: &Browser, path: &str) {
    let origin = origin(browser);
    browser.go(&format!("{origin}{path}"));
}

/// Waits until a script says something else than nothing.
#[track_caller]
fn comes(browser: &Browser, what: &str, script: &str) -> String {
    until(what, || {
        let value = browser.try_run(script)?;
        value.as_str().filter(|value| !value.is_empty()).map(str::to_owned)
    })
}

/// The checker of accessibility that the tests install.
fn axe() -> PathBuf {
    std::env::var_os("COUNTERSIGN_AXE")
        .map_or_else(|| root().join("target/npm/package/axe.min.js"), PathBuf::from)
}

/// Where pictures of every page are left, for people to look at.
fn pictures() -> PathBuf {
    let folder = root().join("target/console");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn picture(folder: &Path, path: &str, width: u32, colours: &str) -> PathBuf {
    let name = path.trim_matches('/').replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let name = if name.is_empty() { "overview" } else { &name };
    folder.join(format!("{name}.{width}.{colours}.png"))
}

/// What axe-core, which is on the page already, finds that is serious or worse.
fn findings(browser: &Browser) -> Vec<String> {
    let script = "const done = arguments[arguments.length - 1]; axe.run(document).then((found) => done(found.violations
        .filter((one) => ['serious', 'critical'].includes(one.impact))
        .map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(' ')}`)))";
    let found = browser.wait_for(script);
    found.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// What the browser has complained of and was not expected to. A live stream that a slow machine lets break is opened anew.
fn complaints(browser: &Browser, expected: &[&str]) -> Vec<String> {
    let mut complaints = browser.complaints();
    complaints.retain(|one| !one.contains("/live - Failed to load resource"));
    complaints.retain(|one| !expected.iter().any(|known| one.contains(known)));
    complaints
}

#[test]
fn every_page_is_accessible_fits_and_breaks_no_rule_of_its_policy() {
    let up = Up::shop();
    let home = folder();
    let browser = enter(&up, home.path());
    up.get("web", "/");
    until("what was seen is stored", || {
        (up.json(&["handshakes", "--at", "orders"])["entries"] != 0).then_some(())
    });
    // On one line of time: what the door answered, who shook hands, and the certificate.
    until("the hour is told", || {
        see(&browser, "/workloads/orders");
        let hour = browser.try_run("return document.querySelector('#hour')?.textContent")?;
        let hour = hour.as_str()?;
        let told = !hour.contains("minute0 answered") && !hour.contains("minute0 admitted");
        (told && hour.contains("svid-issued")).then_some(())
    });
    let axe =
        std::fs::read_to_string(axe()).expect("axe-core is installed: `cargo xtask test` does it");
    let pictures = pictures();
    let details = [
        "/workloads/web",
        "/workloads/orders",
        "/log/1",
        "/map?of=orders",
        "/map?from=web&to=orders",
        "/policies/web-asks-orders",
        "/handshakes?by=pair",
    ];
    let tried = "/policies?from=web&to=payments&method=GET&path=%2Fx";
    for path in PAGES.into_iter().chain(details).chain([tried, "/no-such-page"]) {
        see(&browser, path);
        assert_ne!(
            browser.run("return document.querySelector('h1')?.textContent ?? ''"),
            "",
            "{path}"
        );
        browser.inject(&axe);
        for (width, colours) in LOOKS {
            browser.looks(width, colours);
            browser.picture(&picture(&pictures, path, width, colours));
            assert_eq!(findings(&browser), [""; 0], "{path}, {width} wide, {colours}");
            let over = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
            assert_eq!(over, 0, "{path} is wider than a window of {width}");
        }
    }
    let asked = browser.asked_for();
    let own = origin(&browser) + "/";
    let foreign: Vec<_> = asked.iter().filter(|url| !url.starts_with(&own)).collect();
    assert_eq!(foreign, [""; 0], "each request goes to the console itself");
    assert!(asked.iter().any(|url| url.ends_with("/assets/console.css")), "{asked:?}");
    // The policy had nothing to forbid, and no script failed.
    assert_eq!(complaints(&browser, &["no-such-page"]), [""; 0]);
}

#[test]
fn keyboard_is_enough_and_a_page_stays_true() {
    let up = Up::shop();
    let home = folder();
    let browser = enter(&up, home.path());
    comes(
        &browser,
        "the page is live",
        "return document.querySelector('#link.on')?.textContent ?? ''",
    );
    // The first key leads past the list of pages, the next ones through it.
    browser.types(TAB);
    assert_eq!(browser.run("return document.activeElement.textContent"), "Skip to the page");
    browser.types(&format!("{TAB}{TAB}{TAB}{RETURN}"));
    until("the map is there", || browser.url().ends_with("/map").then_some(()));
    // A door that is knocked at without a certificate shows on the page that is open, by its reason.
    see(&browser, "/handshakes?outcome=no-certificate");
    until("the refusal is seen", || {
        std::process::Command::new("openssl")
            .args(["s_client", "-ign_eof", "-connect", &up.address("orders")])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let rows = browser.try_run("return document.querySelectorAll('#list tbody tr').length")?;
        (rows.as_u64() > Some(0)).then_some(())
    });
    // A revocation: the bar fills while somebody looks.
    see(&browser, "/revocations");
    assert_eq!(browser.run("return document.querySelectorAll('#bars progress').length"), 0);
    let revoked =
        up.run(&["revoke", "spiffe://shop.example/orders", "--reason", "key-compromise", "--wait"]);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    let bar = "const bar = document.querySelector('#bars progress.good'); return bar && bar.value === bar.max ? bar.parentElement.textContent : ''";
    assert!(comes(&browser, "the bar is full", bar).contains("3 of 3 enforcing"));
    assert_eq!(complaints(&browser, &[]), [""; 0]);
}

#[test]
fn page_proves_an_event_by_itself_and_notices_when_it_is_another() {
    let up = Up::shop();
    let home = folder();
    let browser = enter(&up, home.path());
    let events = up.json(&["events"]);
    let mut events = events["events"].as_array().unwrap().iter();
    let issued = events.find(|event| event["kind"] == "svid-issued").unwrap();
    let index = issued["index"].as_u64().unwrap();
    see(&browser, &format!("/log/{index}"));
    let verdict = "const text = document.querySelector('#verdict').textContent; return text.startsWith('Check') ? '' : text";
    assert!(comes(&browser, "the page has checked", verdict).starts_with("Proven"));
    assert_eq!(browser.run("return document.querySelectorAll('#proof li.good').length"), 3);
    // A page that shows another event than the one that is proven.
    browser.run("document.querySelector('#proof').dataset.leaf = '00'.repeat(32); document.querySelector('#proof button').click()");
    let verdict = "const text = document.querySelector('#verdict').textContent; return text.startsWith('NOT') ? text : ''";
    comes(&browser, "the page has noticed", verdict);
    // A server that hands out a proof which does not lead to what was signed.
    browser.inject("window.fetch = ((real) => async (...asked) => { const said = await (await real(...asked)).json(); \
        const lines = said.bundle.split('\\n'); lines[3] = btoa('x'.repeat(32)); said.bundle = lines.join('\\n'); \
        return new Response(JSON.stringify(said)); })(window.fetch)");
    see_again(&browser);
    let bad = comes(&browser, "the forged way is noticed", verdict);
    assert!(bad.starts_with("NOT proven"), "{bad}");
}

/// Checks anew on the same page.
fn see_again(browser: &Browser) {
    browser.run("document.querySelector('#verdict').textContent = ''; document.querySelector('#proof button').click()");
}

#[test]
fn hostile_names_do_nothing_and_can_be_read() {
    let up = Up::shop();
    let home = folder();
    let browser = enter(&up, home.path());
    let manifest = home.path().join("hostile.yaml");
    let hostile = "<img src=x onerror=alert(1)></bdi><script>alert(1)</script>\\u202e\\u200b";
    let (long, path) = ("x".repeat(470), "y".repeat(2048 - "unix:path:".len() - 80));
    let cedar = "// </pre><script>alert(1)</script>".to_owned() + &"z".repeat(2048);
    std::fs::write(
        &manifest,
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: hostile}}\n\
             spec: {{spiffeId: \"spiffe://shop.example/{long}\", selectors: [\"unix:path:/opt/{hostile}{path}\"], lifetime: 5m}}\n\
             ---\napiVersion: countersign.dev/v1alpha1\nkind: Policy\nmetadata: {{name: hostile}}\n\
             spec:\n  cedar: |\n    {cedar}\n    permit (principal == Workload::\"hostile\", action == Action::\"connect\", resource == Service::\"orders\");\n"
        ),
    )
    .unwrap();
    let applied = up.json(&["apply", manifest.to_str().unwrap()]);
    browser.looks(390, "light");
    let query = "%3Cimg%20src=x%20onerror=alert(1)%3E%E2%80%AE";
    let asked = [
        "/workloads/hostile".to_owned(),
        "/workloads".to_owned(),
        "/policies".to_owned(),
        "/policies/hostile".to_owned(),
        "/log".to_owned(),
        format!("/workloads?q={query}"),
        format!("/map?from={query}&to={query}"),
        format!("/handshakes?from={query}&at={query}"),
        format!("/handshakes?from={}", "w".repeat(2048)),
        format!("/policies?from={query}&to=web"),
    ];
    for path in &asked {
        see(&browser, path);
        let made = browser.run("return document.querySelectorAll('img:not([src^=\"/assets/\"]), script:not([src^=\"/assets/\"])').length");
        assert_eq!(made, 0, "{path}");
        let over = browser.run(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth",
        );
        assert_eq!(over, 0, "{path} is pushed out of a phone's width");
    }
    see(&browser, "/workloads/hostile");
    let shown = browser.run("return document.querySelector('#facts').textContent");
    assert!(
        shown.as_str().unwrap().contains("<script>alert(1)</script>⟨U+202E⟩⟨U+200B⟩"),
        "{shown}"
    );
    let pictures = pictures();
    for (width, colours) in LOOKS {
        browser.looks(width, colours);
        browser.picture(&picture(&pictures, "hostile", width, colours));
    }
    assert_eq!(complaints(&browser, &["404"]), [""; 0]);
    // The same names in a terminal: no line runs away, and nothing turns or hides what stands beside it.
    let revision = applied["revision"].as_str().unwrap();
    for command in [&["status"][..], &["show", revision], &["flows"], &["handshakes"]] {
        let said = text_of(&up, command);
        let unseen = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{200b}".contains(c));
        assert!(!said.contains(unseen), "{command:?}: {said:?}");
    }
    let said = text_of(&up, &["status"]);
    assert!(said.lines().all(|line| line.chars().count() < 500), "{said}");
}

fn text_of(up: &Up, command: &[&str]) -> String {
    let output = up.run(command);
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn page_says_when_it_is_not_true_any_more_and_goes_on_when_the_server_is_back() {
    let up = Up::shop();
    let home = folder();
    let browser = enter(&up, home.path());
    comes(
        &browser,
        "the page is live",
        "return document.querySelector('#link.on')?.textContent ?? ''",
    );
    // A link works once: the same one again leads nowhere.
    let output = up.run(&["console"]);
    let link = text(&output.stdout).trim().to_owned();
    browser.go(&link);
    until("somebody is in", || browser.url().ends_with('/').then_some(()));
    browser.go(&link.replace("/login#", "/login?again#"));
    let refused = "return document.querySelector('[role=alert]')?.textContent ?? ''";
    assert!(comes(&browser, "it is refused", refused).contains("was used"));
    see(&browser, "/");
    comes(
        &browser,
        "the page is live",
        "return document.querySelector('#link.on')?.textContent ?? ''",
    );
    signal(up.server(), "KILL");
    let off = comes(
        &browser,
        "the page says so",
        "return document.querySelector('#link.off')?.textContent ?? ''",
    );
    assert!(off.starts_with("Not live since") || off.starts_with("Signed out"), "{off}");
    // A server that starts anew knows no session: what was open asks for a new link.
    up.status_until("the server is back", |status| status["server"]["log"]["size"].is_u64());
    see(&browser, "/");
    assert!(browser.url().ends_with("/login"), "{} after {PATIENCE:?}", browser.url());
}
