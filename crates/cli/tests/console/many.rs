//! With ten thousand workloads every page stays small enough to be read, and is moved through without a halt.

use std::fmt::Write as _;

use crate::browser::Browser;
use crate::support::{Up, folder};
use crate::{LOOKS, PAGES, enter, see};

const MANY: usize = 10_000;
/// Elements of a page that a browser lays out in an instant.
const ELEMENTS_MAX: u64 = 5_000;
/// The longest that a page may stand still while somebody moves through it. It is by far more than an idle machine needs.
const HALT_MILLIS_MAX: f64 = 1_000.0;
/// A page that stands still does so each time; a machine that does other things does not.
const TRIES: u32 = 3;
/// The width of none of the looks.
const OTHER_WIDTH: u32 = 800;

/// Moves through the whole page in thirty frames, and says between which two of them it took longest.
const MOVE: &str = "const done = arguments[arguments.length - 1];
    const whole = document.documentElement.scrollHeight;
    let frame = 0, before = performance.now(), longest = 0;
    const next = () => {
        const now = performance.now();
        longest = Math.max(longest, now - before);
        before = now;
        if (30 < ++frame) { done(longest); return; }
        window.scrollTo(0, whole * frame / 30);
        requestAnimationFrame(next);
    };
    requestAnimationFrame(next)";

fn manifests() -> String {
    let mut text = String::new();
    for number in 0..MANY {
        let _ = write!(
            text,
            "---\napiVersion: countersign.dev/v1alpha1\nkind: Workload\nmetadata: {{name: w{number:05}}}\n\
             spec: {{selectors: [\"unix:uid:{number}\"], lifetime: 1h}}\n"
        );
    }
    text
}

/// For how long a page stands still when it is moved through in this look.
fn halt(browser: &Browser, path: &str, (width, colours): (u32, &str)) -> f64 {
    let moved = || {
        browser.looks(width, colours);
        browser.wait_for(MOVE).as_f64().unwrap()
    };
    let mut longest = moved();
    for _ in 1..TRIES {
        if longest < HALT_MILLIS_MAX {
            break;
        }
        // As new: nothing of it is laid out in this look yet.
        browser.looks(OTHER_WIDTH, colours);
        see(browser, path);
        longest = moved();
    }
    longest
}

#[test]
fn pages_stay_light_with_ten_thousand_workloads() {
    let up = Up::shop();
    let home = folder();
    let manifest = home.path().join("many.yaml");
    std::fs::write(&manifest, manifests()).unwrap();
    up.json(&["apply", manifest.to_str().unwrap()]);
    let browser = enter(&up, home.path());
    for path in PAGES {
        see(&browser, path);
        let elements = browser.run("return document.querySelectorAll('*').length");
        assert!(elements.as_u64().unwrap() < ELEMENTS_MAX, "{path}: {elements} elements");
        for (width, colours) in LOOKS {
            let longest = halt(&browser, path, (width, colours));
            assert!(longest < HALT_MILLIS_MAX, "{path}, {width} wide: it stood for {longest} ms");
            println!(
                "{path}, {width} wide, {colours}: {elements} elements, at most {longest:.0} ms a frame"
            );
        }
    }
}
