//! The files that pages need beside their markup. They are in the program, and no step makes them.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const STYLE: &str = include_str!("../../../../console/console.css");
const LIVE: &str = include_str!("../../../../console/live.js");
const LOGIN: &str = include_str!("../../../../console/login.js");
const PROOF: &str = include_str!("../../../../console/proof.js");
const ICON: &str = include_str!("../../../../console/icon.svg");

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file by its name.
pub(super) fn asset(name: &str) -> Option<Response> {
    let (kind, text) = match name {
        "console.css" => ("text/css; charset=utf-8", STYLE),
        "live.js" => (SCRIPT, LIVE),
        "login.js" => (SCRIPT, LOGIN),
        "proof.js" => (SCRIPT, PROOF),
        "icon.svg" => ("image/svg+xml", ICON),
        _ => return None,
    };
    Some(
        ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "private, max-age=60")], text)
            .into_response(),
    )
}
