//! No text makes the manifest reader panic, and what it reads is written and read again as the same.
#![no_main]

use countersign_api::resource::{Resource, Tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(resources) = countersign_cli::manifest::read_text("fuzz.yaml", text) {
        for resource in resources {
            let json = serde_json::to_vec(&resource.manifest()).expect("a manifest is JSON");
            let tree = Tree::from_json(&json).expect("what we wrote");
            assert_eq!(Resource::read(&tree).as_ref(), Ok(&resource));
        }
    }
    if let Ok(tree) = Tree::from_json(text.as_bytes()) {
        let _read = Resource::read(&tree).is_ok();
    }
});
