//! What parses as a SPIFFE ID is canonical, and its parts make it again.
#![no_main]

use countersign_identity::{Selector, SpiffeId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.as_str().parse::<SpiffeId>().as_ref(), Ok(&id));
        let again = match id.path() {
            "" => id.trust_domain().id(),
            path => id.trust_domain().with_path(path).expect("a path that was parsed"),
        };
        assert_eq!(again, id);
    }
    if let Ok(selector) = text.parse::<Selector>() {
        assert_eq!(selector.to_string(), text);
    }
});
