use countersign_api::admin::HandshakesResponse;
use serde_json::json;

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_795_262_400);

/// A status with everything in it, hostile names included.
fn status() -> Status {
    let value = json!({
        "trustDomain": "shop.example",
        "revision": "1.7",
        "server": {
            "version": "0.1.0", "pid": 7, "residentBytes": 31_457_280, "startedAt": "2026-11-21T11:00:00Z",
            "address": "127.0.0.1:8443", "sealed": false, "log": { "size": 3, "root": "0".repeat(64) },
        },
        "nodes": [{
            "id": "0".repeat(32), "spiffeId": "spiffe://shop.example/countersign/agent/1",
            "host": "evil\u{1b}[2J", "connected": false, "seenAt": "2026-11-21T11:59:00Z",
            "clockSkewMillis": -7000,
            "processes": [
                { "name": "agent", "kind": "agent", "pid": 8, "residentBytes": 1, "connections": 0, "version": "" },
            ],
            "credentials": [{
                "workload": "web", "spiffeId": "spiffe://shop.example/web", "serial": format!("1{}", "0".repeat(31)),
                "issuedAt": "2026-11-21T11:58:00Z", "expiresAt": "2026-11-21T12:13:00Z",
                "renewalAt": "2026-11-21T12:05:30Z", "trouble": "the server is away",
            }],
        }],
        "points": [{
            "name": "web-proxy", "spiffeId": "spiffe://shop.example/web", "node": "0".repeat(32), "live": true,
            "residentBytes": 1, "connections": 2,
        }],
        "workloads": [{
            "name": "web", "spiffeId": "spiffe://shop.example/web", "lifetime": "15m",
            "guaranteedBudgetSeconds": 405, "held": 1,
        }],
        "outageBudget": { "guaranteedSeconds": 405, "endsAt": "2026-11-21T12:13:00Z" },
        "warnings": ["`web` is open to every process of the machine"],
    });
    serde_json::from_value(value).unwrap()
}

#[test]
fn people_see_who_is_alive_until_when_and_what_is_wrong() {
    let text = describe(&status(), NOW);
    let expected = format!(
        "trust domain shop.example, revision 1.7\n\
         \n\
         server 0.1.0 at 127.0.0.1:8443, up 1h, 30.0 MiB, pid 7\n  \
         log of 3 events, root {root}\n  \
         outage budget 13m: the first credential in use expires at 2026-11-21T12:13:00Z if the server stays away; \
         6m45s are guaranteed at any moment\n\
         \n\
         node {node} (evil\u{fffd}[2J), AWAY, seen 1m ago, its clock is -7000 ms off\n  \
         PROCESS  KIND   PID  MEMORY   CONNECTIONS\n  \
         agent    agent  8    0.0 MiB  0\n\
         \n  \
         IDENTITY                   AGE  RENEWS    EXPIRES  SERIAL                            TROUBLE\n  \
         spiffe://shop.example/web  2m   in 5m30s  in 13m   1{serial}  the server is away\n\
         \n\
         ENFORCEMENT POINT  FOR                        LIVE  ENFORCES     CONNECTIONS\n\
         web-proxy          spiffe://shop.example/web  yes   nothing yet  2\n\
         \n\
         WORKLOAD  IDENTITY                   LIFETIME  GUARANTEED BUDGET  HELD\n\
         web       spiffe://shop.example/web  15m       6m45s              1\n\
         \n\
         warning: `web` is open to every process of the machine\n",
        root = "0".repeat(64),
        node = "0".repeat(32),
        serial = "0".repeat(31),
    );
    assert_eq!(text, expected);
}

#[test]
fn parts_tell_when_they_were_good_when_and_why_they_failed_and_when_they_end() {
    let mut status = status();
    let part = |part: &str, failed: Option<(&str, &str)>| {
        let value = json!({
            "part": part, "lastGoodAt": "2026-11-21T11:59:55Z", "endsAt": "2026-11-21T13:00:00Z",
            "lastFailureAt": failed.map(|(at, _)| at), "lastFailure": failed.map(|(_, why)| why),
        });
        serde_json::from_value::<PartView>(value).unwrap()
    };
    let away = ("2026-11-21T11:59:58Z", "the store is\u{1b}[2J away");
    status.server.parts = vec![part("leaf", None), part("policy", Some(away))];
    status.nodes[0].processes[0].parts = vec![
        part("leaf", Some(("2026-11-21T11:59:00Z", "long mended"))),
        part("bundle", Some(away)),
    ];
    let text = describe(&status, NOW);
    for line in [
        "  PART    LAST GOOD  LAST FAILURE  ENDS   WHY IT FAILED\n",
        "  leaf    5s ago     never         in 1h\n",
        "  policy  5s ago     2s ago        in 1h  the store is",
        "  agent wanted its bundle 2s ago, and did not get it: the store is",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains('\u{1b}') && !text.contains("long mended"), "{text}");
}

#[test]
fn an_empty_domain_says_what_to_do_next() {
    let mut status = status();
    status.nodes.clear();
    status.outage_budget.ends_at = None;
    let text = describe(&status, NOW);
    assert!(
        text.contains("countersign token create") && text.contains("no credential is in use"),
        "{text}"
    );
}

#[test]
fn refused_handshakes_show_their_reason_and_what_peers_chose_stays_in_its_cell() {
    let handshake = json!({
        "index": 1, "at": "2026-11-21T12:00:00Z", "point": "p", "direction": "inbound", "service": "orders",
        "localId": "spiffe://shop.example/orders", "peerId": "", "peerAddress": "127.0.0.1:9", "peerSerial": "",
        "version": "1.3", "group": "X25519", "suite": "", "resumed": false, "micros": 5, "code": "no-certificate",
        "detail": "line\u{2028}feed\n", "count": 3,
    });
    let response = json!({ "handshakes": [handshake], "dropped": 4, "next": 1 });
    let text = handshakes(&serde_json::from_value(response).unwrap());
    assert!(text.contains("refused: no-certificate  3"), "{text}");
    assert!(
        text.contains("line\u{fffd}feed\u{fffd}") && text.contains("4 handshakes were not told"),
        "{text}"
    );
    assert_eq!(
        handshakes(&HandshakesResponse { handshakes: Vec::new(), dropped: 0, next: 0 }),
        "no handshake was seen yet\n"
    );
}
