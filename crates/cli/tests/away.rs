//! `status` while the server is away: the agent beside it answers, and says that it is the one who does.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/domain.rs"]
mod domain;
mod support;

use domain::{Domain, run};
use support::{Up, signal, text, until};

/// Exit status of the design, section 16.
const NOT_REACHABLE: Option<i32> = Some(3);

#[test]
fn a_server_that_does_not_answer_is_spoken_for_by_the_agent_beside_it() {
    let up = Up::shop();
    let before = up.status_until("all is held", |status| {
        let held = status["nodes"][0]["credentials"].as_array();
        status["source"] == "server" && held.is_some_and(|held| held.len() == 3)
    });
    let server = up.server();
    signal(server, "STOP");

    let said = up.run(&["status"]);
    let (out, told) = (text(&said.stdout), text(&said.stderr));
    assert!(said.status.success(), "{told}");
    for word in [
        "as the agent of this machine knows it",
        "outage budget",
        "6m45s are guaranteed",
        "spiffe://shop.example/payments",
        "web-proxy",
        "warning: the server did not answer within 2 s",
    ] {
        assert!(out.contains(word), "expected `{word}` in: {out}");
    }

    let status = up.json(&["status"]);
    assert_eq!(status["source"], "agent");
    for member in ["trustDomain", "revision"] {
        assert_eq!(status[member], before[member], "{member} keeps its place");
    }
    for member in ["id", "spiffeId", "credentials"] {
        assert_eq!(status["nodes"][0][member], before["nodes"][0][member], "{member}");
    }
    assert_eq!(status["outageBudget"], before["outageBudget"], "the agent knows it as well");

    let refused = up.run(&["status", "--handshakes"]);
    assert_eq!(refused.status.code(), NOT_REACHABLE, "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("when it is back"), "{}", text(&refused.stderr));
    signal(server, "CONT");
    up.status_until("the server speaks for itself again", |status| status["source"] == "server");
}

#[test]
fn since_when_and_why_a_dead_server_is_away_is_told_and_nobody_else_is_taken_for_its_agent() {
    let mut domain = Domain::make();
    domain.credentials();
    let (admin, socket) = (domain.admin(), domain.socket());
    domain.server.kill();

    let asked = || run(&["status", "--agent", &socket, "--output", "json"]);
    let status = until("the agent knows it", || {
        let status: serde_json::Value = serde_json::from_slice(&asked().stdout).unwrap();
        (status["server"]["connected"] == false).then_some(status)
    });
    assert!(status["server"]["awaySince"].is_string(), "{status}");
    assert!(status["server"]["why"].is_string(), "{status}");
    assert_eq!(status["outageBudget"]["guaranteedSeconds"], 135, "45 % of 5 m: {status}");
    let human = text(&run(&["status", "--agent", &socket]).stdout);
    assert!(human.contains(" AWAY since "), "{human}");

    // Another trust domain's `up` may be this user's last: it is not the agent beside this server.
    let other = Up::shop();
    let mut command = std::process::Command::new(support::binary());
    command.args(["status", "--admin", &admin]).env("XDG_STATE_HOME", other.data.join("xdg"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), NOT_REACHABLE, "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("no server answers"), "{}", text(&output.stderr));

    domain.agent.kill();
    let output = asked();
    assert_eq!(output.status.code(), NOT_REACHABLE, "{}", text(&output.stdout));
}
