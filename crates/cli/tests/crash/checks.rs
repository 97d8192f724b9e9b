//! What must hold after every fault, in our own words and in those of an outside program.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{self, python, root, text, until};
use crate::world::World;

impl World {
    fn status(&self) -> Option<Value> {
        let output = self.up().run(&["status", "--output", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["source"] == "server").then_some(status)
    }

    /// All that must hold once the fault is over.
    pub(crate) fn check(&mut self) {
        let up = self.up();
        until("requests go through", || {
            let answer = support::get(&up.address("web"), "/");
            answer.is_ok_and(|(status, _)| status == 200).then_some(())
        });
        let status = until("the agent serves what the server says, and holds all of it", || {
            let status = self.status()?;
            let node = status["nodes"].as_array()?.iter().find(|node| node["connected"] == true)?;
            let held = node["credentials"].as_array()?.len();
            (node["revision"] == status["revision"] && 4 <= held).then_some(status)
        });
        // 1. Revisions only go on.
        let revision = numbers(&status["revision"]);
        assert!(self.revision <= revision, "{:?} after {revision:?}", self.revision);
        self.revision = revision;
        self.incarnation = revision.0;
        // 2. The store agrees with itself, in our own words and in those of an outsider.
        let server = self.data().join("server");
        let verified = self.run(&["store", "verify", server.to_str().unwrap(), "--output", "json"]);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        self.check_from_outside(&status);
        // 3. No rule that was acknowledged is missing.
        let up = self.up();
        let mut missing = Vec::new();
        let begin = Instant::now();
        // What an agent hands back takes a moment.
        while begin.elapsed() < Duration::from_secs(30) {
            let targets = up.json(&["revocations"])["rules"].to_string();
            let absent = |target: &&String| !targets.contains(&format!("{target}\""));
            missing = self.rules.keys().filter(absent).cloned().collect();
            if missing.is_empty() {
                break;
            }
        }
        let of = |target: &String| format!("{target} of revision {}", self.rules[target]);
        let missing: Vec<String> = missing.iter().map(of).collect();
        assert!(missing.is_empty(), "rules are missing: {missing:?}");
        // 4. No change is half there.
        let resources = up.json(&["resource", "list"]).to_string();
        for pair in 0..self.pairs {
            let has = |half: &str| resources.contains(&format!("\"pair-{pair}-{half}\""));
            assert_eq!(has("one"), has("two"), "pair {pair} is half there");
            self.looked.pairs += u64::from(has("one"));
        }
        self.looked.rules += self.rules.len();
    }

    fn check_from_outside(&self, status: &Value) {
        let out = self.folder.path().join("held");
        until("the identity of this process is served", || {
            let write = ["fetch", "x509", "--write", out.to_str().unwrap()];
            self.up().run(&write).status.success().then_some(())
        });
        let der = self.folder.path().join("held.der");
        let converted = Command::new("openssl")
            .args(["x509", "-outform", "DER", "-in"])
            .arg(out.join("svid.pem"))
            .arg("-out")
            .arg(&der)
            .output()
            .unwrap();
        assert!(converted.status.success(), "{}", text(&converted.stderr));
        let log = &status["server"]["log"];
        let checked = until("all that is held is in the log", || {
            let output = Command::new(python())
                .arg(root().join("crates/cli/tests/support/check_state.py"))
                .arg(self.data().join("server/state.db"))
                .arg(log["size"].to_string())
                .arg(&der)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", text(&output.stderr));
            let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(checked["problems"], serde_json::json!([]), "{checked}");
            let now = self.status()?;
            let held = now["nodes"][0]["credentials"].as_array()?.clone();
            // What is of an earlier incarnation is issued anew before the rule that ends it.
            let began = now["incarnation"]["beganAt"].as_str().unwrap_or("").to_owned();
            let missing = |credential: &&Value| {
                checked["serials"].get(credential["serial"].as_str().unwrap()).is_none()
                    && began.as_str() <= credential["issuedAt"].as_str().unwrap()
            };
            held.iter().find(missing).is_none().then_some(checked)
        });
        assert_eq!(checked["rootAt"], log["root"], "the root of {} leaves", log["size"]);
        assert!(!checked["certificates"][der.to_str().unwrap()].is_null(), "{checked}");
    }
}

fn numbers(revision: &Value) -> (u64, u64) {
    let (incarnation, number) = revision.as_str().unwrap().split_once('.').unwrap();
    (incarnation.parse().unwrap(), number.parse().unwrap())
}
