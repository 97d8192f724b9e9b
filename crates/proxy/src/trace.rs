//! Where a request stands in a trace, in its header fields (W3C Trace Context).
//!
//! Whoever sends it may say anything there. It is bounded, what is not well formed goes no further, and nobody is let in, known or
//! refused because of it.

use countersign_program::trace::Context;
use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");
/// What every vendor has to pass on, all fields together (section 3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

/// Where the request says that it comes from, if it says so in one way only.
pub(crate) fn read(headers: &HeaderMap) -> Option<Context> {
    let mut values = headers.get_all(PARENT).iter();
    let (value, second) = (values.next()?, values.next());
    if second.is_some() {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

/// What goes on with the request: this hop's own span, or what the request said, if that is well formed.
pub(crate) fn carry(headers: &mut HeaderMap, span: Option<Context>) {
    if !headers.contains_key(PARENT) && span.is_none() {
        headers.remove(STATE);
        return;
    }
    let was = read(headers);
    let bytes: usize = headers.get_all(STATE).iter().map(HeaderValue::len).sum();
    if was.is_none() || STATE_BYTES_MAX < bytes {
        headers.remove(STATE);
    }
    match span.or(was) {
        Some(place) => {
            let value = HeaderValue::from_str(&place.to_string());
            headers.insert(PARENT, value.expect("hexadecimal digits and hyphens"));
        }
        None => {
            headers.remove(PARENT);
        }
    }
}

/// A method in a closed list of words, since whoever asks chooses it.
pub(crate) fn word(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        _ => "HTTP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(parents: &[&str], state: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(PARENT, HeaderValue::from_str(parent).unwrap());
        }
        if !state.is_empty() {
            headers.append(STATE, HeaderValue::from_str(state).unwrap());
        }
        headers
    }

    #[test]
    fn what_is_malformed_doubled_or_too_long_goes_no_further() {
        let long = "a=".to_owned() + &"b".repeat(600);
        for (parents, state) in [
            (&["nonsense"][..], "a=b"),
            (&[PLACE, PLACE], "a=b"),
            (&["00-00000000000000000000000000000000-00f067aa0ba902b7-01"], "a=b"),
            (&[], "a=b"),
        ] {
            let mut headers = headers(parents, state);
            assert_eq!(read(&headers), None);
            carry(&mut headers, None);
            assert!(headers.is_empty(), "{headers:?}");
        }
        let mut headers = headers(&[PLACE], &long);
        carry(&mut headers, None);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[PARENT], PLACE);
    }

    #[test]
    fn a_hop_puts_its_own_span_in_place_and_keeps_the_state() {
        let own: Context = PLACE.replace("00f067aa0ba902b7", "00f067aa0ba902b8").parse().unwrap();
        let mut headers = headers(&[PLACE], "a=b");
        carry(&mut headers, Some(own));
        assert_eq!(headers[PARENT], own.to_string());
        assert_eq!(headers[STATE], "a=b");
    }
}
