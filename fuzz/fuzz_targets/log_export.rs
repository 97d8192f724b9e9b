//! No text makes `log verify --export` panic, and no text that it finds in order is another log than the one that was signed.
#![no_main]

use countersign_api::admin::LeafView;
use countersign_audit::NoteKey;
use countersign_cli::steps::verify_export;
use libfuzzer_sys::fuzz_target;

/// What was exported of a server's log.
const MADE: &str = include_str!("../corpus/log_export/whole");

/// The leaves of an export, without its heading.
fn leaves(text: &[u8]) -> Vec<LeafView> {
    let lines = text.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty());
    lines.map_while(|line| serde_json::from_slice(line).ok()).collect()
}

fn key() -> NoteKey {
    let heading = MADE.lines().next().expect("it has one");
    let heading: serde_json::Value = serde_json::from_str(heading).expect("it is JSON");
    heading["log"]["key"].as_str().expect("it is named").parse().expect("it is one")
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let Ok(logs) = runtime.block_on(verify_export(bytes.to_vec(), &[key()])) else { return };
    for (reviewed, further) in logs {
        if !reviewed.findings.is_empty() || !further.is_empty() {
            continue;
        }
        assert!(0 < reviewed.signed || reviewed.size == 0, "nothing vouches for its events");
        let made = leaves(MADE.as_bytes());
        for leaf in leaves(bytes) {
            let signed = usize::try_from(leaf.index).ok().and_then(|index| made.get(index));
            if reviewed.signed <= leaf.index {
                continue;
            }
            let signed = signed.expect("no more was signed");
            assert_eq!((&leaf.leaf, leaf.hash), (&signed.leaf, signed.hash));
            assert!(leaf.details.is_none() || leaf.details == signed.details, "{leaf:?}");
        }
    }
});
