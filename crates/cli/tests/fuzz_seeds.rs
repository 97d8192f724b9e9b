//! A short run of every fuzz target on every seed, and on changes of it: for each test run, without the minutes that the
//! coverage-guided build takes (`cargo xtask fuzz`). Always the same changes, so that what fails fails again.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]
#![expect(
    unused_attributes,
    reason = "the targets are programs of their own, with `no_main`, elsewhere"
)]
#![expect(
    clippy::duplicate_mod,
    reason = "each target takes in what it shares with others, as the program that it is elsewhere"
)]

// The targets are compiled as they are: they take their macro from this crate in place of libFuzzer's.
extern crate self as libfuzzer_sys;

mod support;

#[path = "../../../fuzz/fuzz_targets/agent_messages.rs"]
mod agent_messages;
#[path = "../../../fuzz/fuzz_targets/authority_filter.rs"]
mod authority_filter;
#[path = "../../../fuzz/fuzz_targets/backup.rs"]
mod backup;
#[path = "../../../fuzz/fuzz_targets/backup_page.rs"]
mod backup_page;
#[path = "../../../fuzz/fuzz_targets/bundle.rs"]
mod bundle;
#[path = "../../../fuzz/fuzz_targets/certificate.rs"]
mod certificate;
#[path = "../../../fuzz/fuzz_targets/cgroup.rs"]
mod cgroup;
#[path = "../../../fuzz/fuzz_targets/chain.rs"]
mod chain;
#[path = "../../../fuzz/fuzz_targets/console.rs"]
mod console;
#[path = "../../../fuzz/fuzz_targets/crl.rs"]
mod crl;
#[path = "../../../fuzz/fuzz_targets/csr.rs"]
mod csr;
#[path = "../../../fuzz/fuzz_targets/enforcement.rs"]
mod enforcement;
#[path = "../../../fuzz/fuzz_targets/envoy_check.rs"]
mod envoy_check;
#[path = "../../../fuzz/fuzz_targets/http_head.rs"]
mod http_head;
#[path = "../../../fuzz/fuzz_targets/join_token.rs"]
mod join_token;
#[path = "../../../fuzz/fuzz_targets/journal.rs"]
mod journal;
#[path = "../../../fuzz/fuzz_targets/jws.rs"]
mod jws;
#[path = "../../../fuzz/fuzz_targets/key_file.rs"]
mod key_file;
#[path = "../../../fuzz/fuzz_targets/log_export.rs"]
mod log_export;
#[path = "../../../fuzz/fuzz_targets/log_leaf.rs"]
mod log_leaf;
#[path = "../../../fuzz/fuzz_targets/manifest.rs"]
mod manifest;
#[path = "../../../fuzz/fuzz_targets/node_requests.rs"]
mod node_requests;
#[path = "../../../fuzz/fuzz_targets/note.rs"]
mod note;
#[path = "../../../fuzz/fuzz_targets/ocsp_request.rs"]
mod ocsp_request;
#[path = "../../../fuzz/fuzz_targets/path.rs"]
mod path;
#[path = "../../../fuzz/fuzz_targets/plan_file.rs"]
mod plan_file;
#[path = "../../../fuzz/fuzz_targets/policy.rs"]
mod policy;
#[path = "../../../fuzz/fuzz_targets/proof_bundle.rs"]
mod proof_bundle;
#[path = "../../../fuzz/fuzz_targets/proxy_header.rs"]
mod proxy_header;
#[path = "../../../fuzz/fuzz_targets/sealed.rs"]
mod sealed;
#[path = "../../../fuzz/fuzz_targets/server_messages.rs"]
mod server_messages;
#[path = "../../../fuzz/fuzz_targets/slice.rs"]
mod slice;
#[path = "../../../fuzz/fuzz_targets/spiffe_id.rs"]
mod spiffe_id;
#[path = "../../../fuzz/fuzz_targets/standing.rs"]
mod standing;
#[path = "../../../fuzz/fuzz_targets/traceparent.rs"]
mod traceparent;
#[path = "../../../fuzz/fuzz_targets/workload_api.rs"]
mod workload_api;

use std::time::{Duration, Instant};

use countersign_agent::core::SyncMessage;
use countersign_agent::server_link::SignAnswer;
use countersign_agent::server_link::wire::{attested, renewed, sign_answer, sync_message};
use countersign_api::{Message, v1};
use countersign_identity::Code;
use countersign_policy::{Policies, PolicySource};

/// How a target's input is made of bytes. `None`: of these it cannot be made.
pub(crate) trait Input<'a>: Sized {
    /// The input.
    fn of(bytes: &'a [u8]) -> Option<Self>;
}

impl<'a> Input<'a> for &'a [u8] {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        Some(bytes)
    }
}

impl<'a> Input<'a> for &'a str {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()
    }
}

impl<'a> Input<'a> for (bool, u8, &'a [u8]) {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let [greets, cut, rest @ ..] = bytes else { return None };
        Some((greets & 1 == 1, *cut, rest))
    }
}

/// What libFuzzer's macro of the name is in the targets' own programs.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: $kind:ty| $body:block) => {
        pub(crate) fn run(bytes: &[u8]) {
            fn one($input: $kind) $body
            if let Some(input) = <$kind as $crate::Input>::of(bytes) {
                one(input);
            }
        }
    };
}

/// How long changes of the seeds are tried, for each target.
const CHANGES_FOR: Duration = Duration::from_secs(2);
/// The longest input that a change makes.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// Small numbers that are always the same: xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'/', b':', b'"'];
        match self.below(2) {
            0 => TELLING[self.below(TELLING.len())],
            _ => u8::try_from(self.below(256)).unwrap(),
        }
    }

    /// One change: a byte, a bit, a part that is gone, doubled, or of another seed.
    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let (from, to) = (self.below(bytes.len() + 1), self.below(bytes.len() + 1));
        let (from, to) = (from.min(to), from.max(to));
        match self.below(6) {
            0 if from < bytes.len() => bytes[from] = self.byte(),
            1 if from < bytes.len() => bytes[from] ^= 1 << self.below(8),
            2 => drop(bytes.drain(from..to.min(from + 16))),
            3 => {
                let part = bytes[from..to].to_vec();
                bytes.splice(to..to, part);
            }
            4 => {
                let start = self.below(other.len() + 1);
                let end = start + self.below(other.len() - start + 1);
                bytes.splice(from..to.min(from + 16), other[start..end].iter().copied());
            }
            _ => bytes.insert(from, self.byte()),
        }
        bytes.truncate(INPUT_BYTES_MAX);
    }
}

/// Shows the input under which a target panicked.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was b\"{}\"", self.0.escape_ascii());
        }
    }
}

fn seed(target: &str, name: &str) -> Vec<u8> {
    std::fs::read(support::root().join("fuzz/corpus").join(target).join(name)).unwrap()
}

/// The message that a seed of `agent_messages` is, behind the byte that says which.
fn of_server<M: Message + Default>(name: &str, which: u8) -> M {
    let bytes = seed("agent_messages", name);
    assert_eq!(bytes[0], which, "{name}");
    M::decode(&bytes[1..]).unwrap()
}

#[track_caller]
fn holds(target: &str, run: fn(&[u8])) {
    let folder = support::root().join("fuzz/corpus").join(target);
    let mut paths: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(3 <= seeds.len(), "{target} has too few seeds");
    for seed in &seeds {
        let _shown = Shown(seed);
        run(seed);
    }
    let mut chance = Chance(0x5eed_0000_0000_0001);
    let (begin, mut tries) = (Instant::now(), 0_u64);
    while begin.elapsed() < CHANGES_FOR {
        let mut bytes = seeds[chance.below(seeds.len())].clone();
        let other = &seeds[chance.below(seeds.len())];
        for _ in 0..=chance.below(4) {
            chance.change(&mut bytes, other);
        }
        let _shown = Shown(&bytes);
        run(&bytes);
        tries += 1;
    }
    println!("{target}: {} seeds, {tries} changes of them", seeds.len());
}

/// What is refused at its first word leaves all behind it untried.
#[test]
fn good_messages_among_the_seeds_are_understood() {
    let sync = |name| sync_message(of_server::<v1::SyncResponse>(name, 0)).unwrap();
    let snapshot = sync("snapshot");
    assert!(matches!(&snapshot, SyncMessage::Snapshot { records, .. } if records.len() == 1));
    let changes = sync("changes");
    assert!(
        matches!(&changes, SyncMessage::Changes { put, gone, .. } if put.len() == 1 && gone.len() == 1)
    );
    assert!(matches!(sync("signed"), SyncMessage::Signed(records) if records.len() == 1));
    assert!(matches!(sync("mark"), SyncMessage::Mark { clock: Some(_), .. }));
    assert!(attested(of_server::<v1::AttestResponse>("attested", 1)).is_ok());
    assert!(renewed(of_server::<v1::Renewed>("renewed", 2)).is_ok());
    let answer = |name| sign_answer(of_server::<v1::SignResult>(name, 3));
    assert!(matches!(answer("issued"), SignAnswer::Issued { .. }));
    assert!(matches!(answer("refused"), SignAnswer::Refused(Code::NoMatch, _)));
    let unknown = answer("refused_for_an_unknown_reason");
    assert!(matches!(unknown, SignAnswer::Refused(Code::Forbidden, _)));
}

#[test]
fn good_policies_among_the_seeds_compile() {
    for name in ["any", "forbid_when", "permit"] {
        let text = String::from_utf8(seed("policy", name)).unwrap();
        let source = PolicySource::enforced("fuzz".parse().unwrap(), text);
        let compiled = Policies::compile(&[source], None);
        assert!(compiled.is_ok(), "{name}: {:#?}", compiled.err());
    }
}

#[test]
fn the_authority_filter_target_holds_near_its_seeds() {
    holds("authority_filter", authority_filter::run);
}

#[test]
fn the_bundle_target_holds_near_its_seeds() {
    holds("bundle", bundle::run);
}

#[test]
fn the_certificate_target_holds_near_its_seeds() {
    holds("certificate", certificate::run);
}

#[test]
fn the_cgroup_target_holds_near_its_seeds() {
    holds("cgroup", cgroup::run);
}

#[test]
fn the_chain_target_holds_near_its_seeds() {
    holds("chain", chain::run);
}

#[test]
fn the_crl_target_holds_near_its_seeds() {
    holds("crl", crl::run);
}

#[test]
fn the_csr_target_holds_near_its_seeds() {
    holds("csr", csr::run);
}

#[test]
fn the_manifest_target_holds_near_its_seeds() {
    holds("manifest", manifest::run);
}

#[test]
fn the_ocsp_request_target_holds_near_its_seeds() {
    holds("ocsp_request", ocsp_request::run);
}

#[test]
fn the_path_target_holds_near_its_seeds() {
    holds("path", path::run);
}

#[test]
fn the_policy_target_holds_near_its_seeds() {
    holds("policy", policy::run);
}

#[test]
fn the_proxy_header_target_holds_near_its_seeds() {
    holds("proxy_header", proxy_header::run);
}

#[test]
fn the_spiffe_id_target_holds_near_its_seeds() {
    holds("spiffe_id", spiffe_id::run);
}

#[test]
fn the_log_leaf_target_holds_near_its_seeds() {
    holds("log_leaf", log_leaf::run);
}

#[test]
fn the_note_target_holds_near_its_seeds() {
    holds("note", note::run);
}

#[test]
fn the_proof_bundle_target_holds_near_its_seeds() {
    holds("proof_bundle", proof_bundle::run);
}

#[test]
fn the_agent_messages_target_holds_near_its_seeds() {
    holds("agent_messages", agent_messages::run);
}

#[test]
fn the_jws_target_holds_near_its_seeds() {
    holds("jws", jws::run);
}

#[test]
fn the_sealed_target_holds_near_its_seeds() {
    holds("sealed", sealed::run);
}

#[test]
fn the_server_messages_target_holds_near_its_seeds() {
    holds("server_messages", server_messages::run);
}

#[test]
fn the_standing_target_holds_near_its_seeds() {
    holds("standing", standing::run);
}

#[test]
fn the_node_requests_target_holds_near_its_seeds() {
    holds("node_requests", node_requests::run);
}

#[test]
fn the_enforcement_target_holds_near_its_seeds() {
    holds("enforcement", enforcement::run);
}

#[test]
fn the_slice_target_holds_near_its_seeds() {
    holds("slice", slice::run);
}

#[test]
fn the_workload_api_target_holds_near_its_seeds() {
    holds("workload_api", workload_api::run);
}

#[test]
fn the_envoy_check_target_holds_near_its_seeds() {
    holds("envoy_check", envoy_check::run);
}

#[test]
fn the_http_head_target_holds_near_its_seeds() {
    holds("http_head", http_head::run);
}

#[test]
fn the_join_token_target_holds_near_its_seeds() {
    holds("join_token", join_token::run);
}

#[test]
fn the_traceparent_target_holds_near_its_seeds() {
    holds("traceparent", traceparent::run);
}

#[test]
fn the_key_file_target_holds_near_its_seeds() {
    holds("key_file", key_file::run);
}

#[test]
fn the_backup_target_holds_near_its_seeds() {
    holds("backup", backup::run);
}

#[test]
fn the_backup_page_target_holds_near_its_seeds() {
    holds("backup_page", backup_page::run);
}

#[test]
fn the_journal_target_holds_near_its_seeds() {
    holds("journal", journal::run);
}

#[test]
fn the_log_export_target_holds_near_its_seeds() {
    holds("log_export", log_export::run);
}

#[test]
fn the_plan_file_target_holds_near_its_seeds() {
    holds("plan_file", plan_file::run);
}

#[test]
fn the_console_target_holds_near_its_seeds() {
    holds("console", console::run);
}
