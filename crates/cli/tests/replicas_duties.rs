//! Duties that one of two servers does, as processes: who does them when that one dies, or stands still.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::time::{Duration, Instant};

use servers::{Domain, Part, done, run};
use support::{text, until};

/// For how long a server has the duty to sign the log, and how much later it may be noticed that this is over.
const LEASE: Duration = Duration::from_secs(10);
const NOTICED: Duration = Duration::from_secs(10);

/// Has the database keep every signature of the log that anybody brings, also one that comes second: of whose connection it is,
/// and who had the duty at that moment.
const WITNESS: &str = "CREATE TABLE signings (place BIGINT GENERATED ALWAYS AS IDENTITY, size BIGINT, note TEXT, \
     signer TEXT, holder TEXT); \
     CREATE FUNCTION witness() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
     INSERT INTO signings (size, note, signer, holder) SELECT NEW.size, NEW.note, \
     split_part(current_setting('application_name'), '/', 1), \
     (SELECT holder FROM leases WHERE name = 'log/sign'); RETURN NEW; END $$; \
     CREATE TRIGGER witness BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION witness()";

/// A trust domain whose database tells who has signed.
struct Witnessed(Domain);

impl Witnessed {
    fn make() -> Self {
        let domain = Domain::isolated("serializable");
        domain.sql(WITNESS);
        Self(domain)
    }

    /// A server whose connections are known by its name.
    fn serve(&self, name: &str) -> Part {
        self.0.server_at(name, &format!("{}&application_name={name}", self.0.url), &[])
    }

    /// Who has signed last.
    fn signer(&self) -> String {
        self.0.sql("SELECT signer FROM signings ORDER BY place DESC LIMIT 1")
    }

    /// Has something happen, and waits until this server shows a signature of the log that this one made for it.
    fn is_signed_by(&self, signer: &str, shown: &Part) {
        let size = size(shown);
        until("something happens", || {
            run(&["token", "create", "--admin", shown.admin()]).status.success().then_some(())
        });
        until("it is signed", || {
            (size < self::size(shown) && self.signer() == signer).then_some(())
        });
    }

    /// Who has signed, in the order of time; each once for what it signed without another between.
    fn turns(&self) -> Vec<String> {
        let all = self.0.sql("SELECT signer FROM signings ORDER BY place");
        let mut turns: Vec<String> = all.lines().map(str::to_owned).collect();
        turns.dedup();
        turns
    }

    /// Checks that no two signatures contradict each other, nor the log.
    fn agree(&self, servers: [&Part; 2]) {
        let contradictions = "SELECT count(*) FROM (SELECT 1 FROM signings GROUP BY size \
                              HAVING 1 < count(DISTINCT note)) AS twice";
        assert_eq!(self.0.sql(contradictions), "0");
        for server in servers {
            let output = run(&["log", "verify", "--admin", server.admin()]);
            assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        }
        done(&["store", "verify", &self.0.url]);
    }
}

/// Up to which event a server shows the log signed.
fn size(server: &Part) -> u64 {
    let output = run(&["log", "checkpoint", "--admin", server.admin()]);
    let note = text(&output.stdout);
    note.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or_default()
}

#[test]
fn the_log_is_signed_on_in_time_when_its_signer_is_killed_and_at_no_time_by_two() {
    let domain = Witnessed::make();
    let (one, two) = (domain.serve("one"), domain.serve("two"));
    domain.0.apply(&one, "web");
    let signer = until("somebody signs", || Some(domain.signer()).filter(|name| !name.is_empty()));
    let (signing, other, heir) = match signer.as_str() {
        "one" => (one, two, "two"),
        _ => (two, one, "one"),
    };
    // As long as it lives it is the one that signs, also what comes about through the other.
    for shown in [&other, &signing, &other] {
        domain.is_signed_by(&signer, shown);
    }
    let killed = Instant::now();
    signing.kill();
    domain.is_signed_by(heir, &other);
    let took = killed.elapsed();
    println!("the log was signed again {took:?} after its signer was killed");
    assert!(took < LEASE + NOTICED, "{took:?}");
    // Who comes back finds the duty taken.
    let back = domain.serve(&signer);
    for shown in [&back, &other] {
        domain.is_signed_by(heir, shown);
    }
    assert_eq!(domain.turns(), [signer.as_str(), heir]);
    let of_others = "SELECT count(*) FROM (SELECT 1 FROM signings GROUP BY holder \
                     HAVING 1 < count(DISTINCT signer)) AS shared";
    assert_eq!(domain.0.sql(of_others), "0", "each signed while it had the duty");
    // One that stands still loses it as well, and does not go on with what it had in hand.
    other.signal("STOP");
    domain.is_signed_by(&signer, &back);
    other.signal("CONT");
    for shown in [&other, &back, &other] {
        domain.is_signed_by(&signer, shown);
    }
    domain.agree([&other, &back]);
}
