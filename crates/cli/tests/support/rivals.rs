//! Two machines that come with one join token, each to another server.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::servers::{Domain, Part};
use crate::support::{binary, signal, until};

/// Both of them, as processes.
pub(crate) struct Rivals([Child; 2]);

impl Rivals {
    /// Starts them, and waits for nothing.
    pub(crate) fn start(domain: &Domain, name: &str, token: &Value, servers: [&Part; 2]) -> Self {
        let [one, other] = servers;
        let rival = |which: &str, server: &Part| {
            let name = format!("{name}-{which}");
            let socket = domain.place(&format!("{name}/agent.sock"));
            let data = domain.place(&format!("{name}-data"));
            Command::new(binary())
                .args(["agent", "--data", &data, "--socket", &socket, "--server", server.listen()])
                .args(["--log-level", "error", "--output", "json"])
                .env("COUNTERSIGN_JOIN", token["token"].as_str().unwrap())
                .env("COUNTERSIGN_TRUST", token["trust"].as_str().unwrap())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        Self([rival("one", one), rival("other", other)])
    }

    /// Waits until it is known of both whether they are in, ends them, and says how many are. Nobody waits for longer than
    /// until a server tells: whoever is not in has ended by then, and whoever is has said that it is ready.
    pub(crate) fn settle(mut self) -> usize {
        let known = self.0.each_mut().map(|rival| {
            let said = BufReader::new(rival.stdout.take().unwrap());
            std::thread::spawn(move || {
                // Of a process that has ended there is nothing more to read.
                let line = said.lines().next().and_then(Result::ok).unwrap_or_default();
                serde_json::from_str(&line).is_ok_and(|said: Value| said["event"] == "ready")
            })
        });
        let known = known.map(|known| {
            until("it is known whether it is in", || known.is_finished().then_some(()));
            known.join().unwrap()
        });
        known.into_iter().filter(|is_in| *is_in).count()
    }
}

impl Drop for Rivals {
    fn drop(&mut self) {
        for rival in &mut self.0 {
            if rival.try_wait().is_ok_and(|ended| ended.is_none()) {
                signal(i32::try_from(rival.id()).unwrap(), "TERM");
                let _reaped = rival.wait();
            }
        }
    }
}
