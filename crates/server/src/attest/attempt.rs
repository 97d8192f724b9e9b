//! What a caller shows to prove who it is, looked at only by leave.

use std::sync::Arc;

use countersign_identity::{Clock, Timestamp};
use countersign_pki::{
    BadSignature, Bundles, Certificate, ProvenKey, PublicKey, Role, Verified, VerifiedMachine,
    verify_machine,
};
use countersign_tls::{Leave, Outcome};

use crate::control::Control;
use crate::edge::{Conduct, Peer};
use crate::refusal::Refused;
use crate::watch::{Proof, Watch};

/// Leave to look at what one caller shows once.
///
/// Every operation with a public key for a caller who attests or renews is one of these methods, so that none is done
/// without leave and each is counted. Dropped without a word, it counts as one that came to nothing.
#[must_use]
pub(crate) struct Attempt<'a> {
    conduct: &'a Conduct,
    watch: &'a Watch,
    clock: &'a dyn Clock,
    leave: Option<Leave>, // INVARIANT: there until it is dropped
    outcome: Outcome,
}

impl<'a> Attempt<'a> {
    /// Begins to look at what this caller shows.
    ///
    /// # Errors
    /// `rate-limited` when too much that came from there, or from unknown sources, was wrong.
    pub(crate) fn begin(control: &'a Control, peer: &'a Peer) -> Result<Self, Refused> {
        Self::on(&peer.conduct, &control.watch, &control.clock)
    }

    fn on(
        conduct: &'a Conduct,
        watch: &'a Watch,
        clock: &'a Arc<dyn Clock>,
    ) -> Result<Self, Refused> {
        let leave = Some(conduct.shows(clock.now())?);
        // Until something else is known.
        Ok(Self { conduct, watch, clock: &**clock, leave, outcome: Outcome::Failed })
    }

    /// It ended so: what it took is given back unless that is the caller's fault.
    pub(crate) fn ended<T>(mut self, ended: &Result<T, Refused>) {
        self.outcome = Outcome::of(ended.as_ref().err().map(|refused| refused.code));
    }

    /// Nothing was looked at.
    pub(crate) fn unused(mut self) {
        self.outcome = Outcome::Nothing;
    }

    /// The key of who signed this statement.
    pub(crate) fn statement(
        &self,
        key: &PublicKey,
        statement: &[u8],
        signature: &[u8],
    ) -> Result<ProvenKey, BadSignature> {
        self.watch.verified(Proof::Statement);
        ProvenKey::by_statement(key, statement, signature)
    }

    /// The key of who signed this request.
    pub(crate) fn request(&self, csr: &[u8]) -> Result<ProvenKey, Refused> {
        self.watch.verified(Proof::Request);
        let opened = countersign_pki::open_csr(csr);
        opened.map_err(|refused| Refused::new(refused.code(), refused.to_string()))
    }

    /// The machine whose certificate an authority of its operator signed.
    pub(crate) fn machine(
        &self,
        chain: &[&[u8]],
        anchors: &[Certificate],
        now: Timestamp,
    ) -> Result<VerifiedMachine, Refused> {
        self.watch.verified(Proof::Chain);
        verify_machine(chain, anchors, now).map_err(Refused::from)
    }

    /// The identity of a client that shows this chain.
    pub(crate) fn client(
        &self,
        chain: &[&[u8]],
        bundles: &Bundles,
        at: Timestamp,
    ) -> Result<Verified, Refused> {
        self.watch.verified(Proof::Chain);
        countersign_pki::verify(chain, bundles, Role::Client, at).map_err(Refused::from)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            self.conduct.showed(leave, self.outcome, self.clock.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use countersign_identity::{Code, SimClock};
    use countersign_pki::{KeyKind, PrivateKey};

    use super::*;
    use crate::edge::Crowd;

    const START: Timestamp = Timestamp::from_secs(1_000_000);
    const STATEMENT: &[u8] = b"it is me";
    /// As many as a source that nobody vouches for may fail at once, those of them that are on record, and strangers.
    const ONE: u64 = 20;
    const SUSPECTS: u64 = 256;
    const AT_THE_DOOR: u64 = 1024;

    /// The agents' port without its sockets: the door, the books, and signatures that are really verified.
    struct Port {
        crowd: Crowd,
        watch: Watch,
        time: Arc<SimClock>,
        clock: Arc<dyn Clock>,
        key: PrivateKey,
        right: Vec<u8>,
        wrong: Vec<u8>,
    }

    impl Port {
        fn open() -> Self {
            let key = PrivateKey::generate(KeyKind::P256).unwrap();
            let [right, wrong] = [STATEMENT, b"it is not"].map(|said| key.sign(said).unwrap());
            let time = Arc::new(SimClock::new(START));
            let clock = Arc::clone(&time) as Arc<dyn Clock>;
            let (crowd, watch) = (Crowd::new(START), Watch::new(START));
            Self { crowd, watch, time, clock, key, right, wrong }
        }

        /// Lets somebody in who does not say who it is.
        fn connect(&self, source: u32) -> Result<Conduct, Refused> {
            let place = self.crowd.enter(IpAddr::from(source.to_be_bytes()), self.time.now())?;
            Ok(place.handshake(Outcome::Anonymous, self.time.now()).1)
        }

        fn shows(&self, on: &Conduct, signature: &[u8]) -> Result<(), Code> {
            let attempt = Attempt::on(on, &self.watch, &self.clock).map_err(|it| it.code)?;
            let proven = attempt.statement(self.key.public(), STATEMENT, signature);
            let proven = proven.map_err(|bad| Refused::new(Code::BadPossession, bad.to_string()));
            attempt.ended(&proven);
            proven.map(|_key| ()).map_err(|it| it.code)
        }

        fn fails(&self, on: &Conduct) -> Code {
            self.shows(on, &self.wrong).unwrap_err()
        }

        /// A machine from there that nobody knows and that has its key: whether it comes in at once, proves itself, and comes in
        /// again with what it got for it.
        #[track_caller]
        fn is_renewed(&self, source: u32) -> bool {
            let Ok(conduct) = self.connect(source) else { return false };
            assert_eq!(self.shows(&conduct, &self.right), Ok(()), "who is let in is heard");
            let address = IpAddr::from(source.to_be_bytes());
            let again = self.crowd.enter(address, self.time.now());
            again.expect("it proved who it is").handshake(Outcome::Proven, self.time.now());
            true
        }

        fn verified(&self) -> u64 {
            self.watch.counts().values().sum()
        }
    }

    #[test]
    fn proofs_without_end_on_one_connection_cost_what_one_source_may_fail() {
        let port = Port::open();
        let conduct = port.connect(1).unwrap();
        let codes: Vec<Code> = (0..10_000).map(|_| port.fails(&conduct)).collect();
        assert_eq!(port.verified(), ONE);
        assert_eq!(codes[19..21], [Code::BadPossession, Code::RateLimited]);
        // Another connection of that source is no better off.
        assert_eq!(port.fails(&port.connect(1).unwrap()), Code::RateLimited);
        assert!(port.is_renewed(2));
        port.time.advance(Duration::from_secs(3));
        assert_eq!(port.fails(&conduct), Code::BadPossession);
        assert_eq!(port.fails(&conduct), Code::RateLimited);
    }

    #[test]
    fn flood_of_proofs_from_five_thousand_sources_is_bounded_and_keeps_nobody_out() {
        let port = Port::open();
        let mut good = 0;
        for number in 0..5000 {
            if let Ok(conduct) = port.connect(1000 + number) {
                for _ in 0..40 {
                    port.fails(&conduct);
                }
            }
            if number % 50 == 0 {
                good += 1;
                assert!(port.is_renewed(1_000_000 + number), "{number}");
            }
            port.time.advance(Duration::from_millis(1));
        }
        // In five seconds, of 200,000: each source once, and then one of the suspects.
        let most = 5000 + SUSPECTS + 500 + good;
        assert!(port.verified() <= most, "{}", port.verified());
    }

    #[test]
    fn flood_at_one_moment_from_more_sources_than_are_remembered_is_bounded_too() {
        let port = Port::open();
        for number in 0..30_000 {
            let Ok(conduct) = port.connect(1000 + number) else { continue };
            for _ in 0..3 {
                port.fails(&conduct);
            }
        }
        assert!(port.verified() <= AT_THE_DOOR + SUSPECTS, "{}", port.verified());
    }

    #[test]
    fn sources_that_are_not_remembered_share_what_is_left_and_whoever_is_let_in_is_heard() {
        let port = Port::open();
        let (mut renewed, mut entered) = (0, 0);
        // Twenty thousand a second fill all memory; then the door is what bounds them.
        for number in 0..300_000 {
            if let Ok(conduct) = port.connect(1000 + number) {
                entered += 1;
                for _ in 0..3 {
                    port.fails(&conduct);
                }
            }
            if number % 20 == 0 {
                port.time.advance(Duration::from_millis(1));
            }
            if number % 400 == 0 {
                renewed += u64::from(port.is_renewed(10_000_000 + number));
            }
        }
        assert!(12_000 < entered, "{entered}: more than there is room to remember");
        let most = entered + SUSPECTS + 15 * 100 + renewed;
        assert!(port.verified() <= most, "{} of {entered} strangers", port.verified());
        assert!(0 < renewed);
    }

    #[test]
    fn fleet_that_comes_back_at_once_is_heard_and_uses_nothing_up() {
        let port = Port::open();
        for number in 0..10_000 {
            assert!(port.is_renewed(1000 + number), "{number}");
        }
        // Many may be behind one address, beside somebody who fails there.
        let neighbour = port.connect(1000).unwrap();
        for _ in 0..200 {
            assert_eq!(port.fails(&neighbour), Code::BadPossession);
            assert!(port.is_renewed(1000));
        }
    }

    #[test]
    fn neighbours_of_who_came_with_a_certificate_are_not_taken_for_strangers() {
        let port = Port::open();
        let agent = port.crowd.enter(IpAddr::from([0, 0, 0, 1]), START).unwrap();
        agent.handshake(Outcome::Proven, START);
        let conduct = port.connect(1).unwrap();
        for _ in 0..200 {
            assert_eq!(port.fails(&conduct), Code::BadPossession);
        }
        assert!(port.is_renewed(1));
    }

    #[test]
    fn clock_that_goes_back_locks_nobody_out() {
        let port = Port::open();
        let conduct = port.connect(1).unwrap();
        while port.fails(&conduct) == Code::BadPossession {}
        port.time.set(Timestamp::from_secs(10));
        assert!(port.is_renewed(2), "a stranger");
        assert_eq!(port.fails(&conduct), Code::RateLimited);
        port.time.advance(Duration::from_secs(3));
        assert_eq!(port.fails(&conduct), Code::BadPossession, "it waits no longer than else");
    }

    #[test]
    fn what_ends_without_a_word_counts_as_failed_and_what_is_our_fault_does_not() {
        let port = Port::open();
        let conduct = port.connect(1).unwrap();
        let begin = || Attempt::on(&conduct, &port.watch, &port.clock);
        for _ in 0..1000 {
            begin().unwrap().unused();
            let away = Refused::new(Code::Unavailable, "the store is away");
            begin().unwrap().ended::<()>(&Err(away));
        }
        let untold = (0..1000).filter(|_| begin().map(drop).is_ok()).count();
        assert_eq!(untold, 20);
    }
}
