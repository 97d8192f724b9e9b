//! A text is a join token in one spelling only, and what the server looks up an agent can be told.
#![no_main]

use countersign_agent::JoinToken;
use countersign_server::steps::token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let found = token(text);
    if let Ok(digest) = found {
        assert_eq!(text.len(), 43, "32 bytes in base64, without padding");
        assert!(text.parse::<JoinToken>().is_ok(), "an agent takes what a server takes");
        // The last character holds four bits and two that are nothing: of its spellings, one is a token.
        let last = text.len() - 1;
        for other in b'0'..=b'z' {
            let spelt = format!("{}{}", &text[..last], char::from(other));
            if let Ok(same) = token(&spelt) {
                assert_eq!(same == digest, spelt == text, "two tokens have one digest");
            }
        }
    }
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(format!("{token:?}"), "JoinToken");
    }
});
