//! Clocks that are wrong by more than what counts as skew, and right again after a while.

use std::time::Duration;

use crate::faults::Whose;
use crate::support::{self, text, until};
use crate::world::{World, sent_kill};

/// What the server says of itself while its clock is behind what it has recorded.
const BEHIND: &str = "nothing is issued until the clock is set right";
/// More than an agent takes to come up and to ask.
const ASKING: Duration = Duration::from_secs(1);

impl World {
    /// The server's clock goes back ten minutes: it says so, issues nothing, and goes on taking out of service.
    pub(crate) fn suffer_server_clock(&self, kill_agent: bool) {
        self.set_server_clock(-600);
        self.until_behind();
        if kill_agent {
            // Its successor holds no key, so it asks for everything.
            sent_kill(&self.processes("agent"));
        }
        let name = self.issues_nothing();
        self.set_server_clock(0);
        self.until_served(&name);
    }

    /// A clock goes far ahead, beyond the end of all that is held, and lifts nothing by that. When it is right again it is behind
    /// what was recorded meanwhile: nothing is issued until an operator says that it is right.
    pub(crate) fn suffer_clock_ahead(
        &mut self,
        (whose, ahead): (Whose, i64),
        kill: Option<&str>,
        lasts: Duration,
    ) {
        self.was_ahead = true;
        match whose {
            Whose::Server => self.set_server_clock(ahead),
            Whose::Machine => self.set_clock_of_all(ahead),
        }
        let target = format!("spiffe://shop.example/nobody-ahead-{}", self.revision.1);
        let revoked = self.up().run(&["revoke", &target, "--reason", "key-compromise"]);
        assert!(revoked.status.success(), "{}", text(&revoked.stderr));
        // A new life does not believe the clock either.
        kill.map(|part| sent_kill(&self.processes(part)));
        std::thread::park_timeout(lasts);
        until("the server answers", || self.status());
        self.check_promises();
        self.set_clock_of_all(0);
        self.until_behind();
        let name = self.issues_nothing();
        let word = self.up().run(&["resume-issuing", "--clock"]);
        assert!(word.status.success(), "{}", text(&word.stderr));
        self.until_served(&name);
    }

    fn until_behind(&self) {
        until("the server says that its clock is behind", || {
            self.status().filter(|status| status["warnings"].to_string().contains(BEHIND))
        });
    }

    /// What is asked for is not issued, and what is taken out of service is. Gives the name of a workload that is waited for.
    fn issues_nothing(&self) -> String {
        let before = self.recorded();
        let (name, file) =
            (format!("late-{}", self.revision.1), self.folder.path().join("late.yaml"));
        std::fs::write(
            &file,
            support::manifest_of_me("30s").replace("name: me", &format!("name: {name}")),
        )
        .unwrap();
        // Its agent asks for it at once.
        self.up().json(&["apply", file.to_str().unwrap()]);
        let target = "spiffe://shop.example/nobody-late";
        let revoked = self.up().run(&["revoke", target, "--reason", "key-compromise"]);
        assert!(revoked.status.success(), "{}", text(&revoked.stderr));
        std::thread::park_timeout(ASKING);
        let more: Vec<String> = self.recorded().difference(&before).cloned().collect();
        assert!(more.is_empty(), "issued by a clock that is behind: {more:?}");
        name
    }

    fn until_served(&self, name: &str) {
        until("what was asked for meanwhile is served", || {
            let id = format!("spiffe://shop.example/{name}");
            let out = self.folder.path().join("late");
            let fetch = ["fetch", "x509", "--id", &id, "--write", out.to_str().unwrap()];
            self.up().run(&fetch).status.success().then_some(())
        });
    }
}
