//! The closed lists stay closed, and no text of a peer becomes a word of ours.

use std::collections::HashSet;

use countersign_identity::{
    Code, Fault, KeyId, Lifetime, Name, NodeId, Revision, Serial, SpiffeId, Timestamp, TrustDomain,
};
use proptest::prelude::*;

#[test]
fn every_code_has_its_own_stable_word_and_reads_back() {
    let mut words = HashSet::new();
    for code in Code::ALL {
        assert!(words.insert(code.as_str()), "{code} stands there twice");
        assert_eq!(code.as_str().parse(), Ok(*code));
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
        assert!(code.as_str().bytes().all(allowed), "{code}");
        assert!(code.meaning().ends_with('.'), "{code}");
    }
}

#[test]
fn an_unknown_code_is_none_of_ours() {
    for text in ["", "ok", "allowed", "Expired", "expired ", "policy_denied", "internal-error"] {
        assert!(text.parse::<Code>().is_err(), "{text:?}");
        assert!(serde_json::from_value::<Code>(text.into()).is_err(), "{text:?}");
    }
}

#[test]
fn what_our_verifier_refuses_is_the_peers_fault_and_what_is_away_is_an_outage() {
    for code in [Code::Expired, Code::Revoked, Code::PolicyDenied, Code::PolicyError] {
        assert_eq!(code.fault(), Fault::Peer, "{code}");
    }
    for code in [Code::Unavailable, Code::Sealed, Code::NotReady, Code::TimedOut] {
        assert_eq!(code.fault(), Fault::Outage, "{code}");
    }
    assert_eq!(Code::Internal.fault(), Fault::Us);
}

proptest! {
    #[test]
    fn arbitrary_text_makes_no_parser_panic(text in "\\PC{0,60}") {
        drop(text.parse::<Code>());
        drop(text.parse::<KeyId>());
        drop(text.parse::<Lifetime>());
        drop(text.parse::<Name>());
        drop(text.parse::<NodeId>());
        drop(text.parse::<Revision>());
        drop(text.parse::<Serial>());
        drop(text.parse::<SpiffeId>());
        drop(text.parse::<Timestamp>());
        drop(text.parse::<TrustDomain>());
    }

    #[test]
    fn every_moment_reads_back(micros in any::<i64>()) {
        let moment = Timestamp::from_micros(micros);
        prop_assert_eq!(moment.to_string().parse::<Timestamp>().unwrap(), moment);
    }

    #[test]
    fn every_revision_reads_back_and_orders_by_incarnation_first(
        one in any::<(u64, u64)>(),
        other in any::<(u64, u64)>(),
    ) {
        let revision = |(incarnation, number)| Revision { incarnation, number };
        prop_assert_eq!(revision(one).to_string().parse::<Revision>().unwrap(), revision(one));
        prop_assert_eq!(revision(one).cmp(&revision(other)), one.cmp(&other));
    }
}
