//! Paths of requests: the one form that is decided on and sent on, and templates for them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest path that is decided on.
pub const PATH_BYTES_MAX: usize = 8 * 1024;
/// The longest template.
const TEMPLATE_BYTES_MAX: usize = 512;

/// A path in the one form that every reader takes for the same: begins with `/`, has no empty segment but at its end, no
/// `.` and no `..`, and escapes only what must be escaped, in capital letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CanonicalPath(Arc<str>); // INVARIANT: as said above

/// Why a path is not decided on: two readers could take it for two different ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// `payments` or `*`.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// Over [`PATH_BYTES_MAX`].
    #[error("the path has {0} bytes, over the limit of {PATH_BYTES_MAX}")]
    Long(usize),
    /// `//`, which some servers merge and others do not.
    #[error("the path has an empty segment: write one `/`, not `//`")]
    EmptySegment,
    /// `.` or `..`, also when escaped.
    #[error("the path has a segment `{0}`, which some servers resolve and others do not")]
    DotSegment(&'static str),
    /// A character that no path may hold as it is.
    #[error("the path holds {0:?}, which must be escaped")]
    Character(char),
    /// `%` without two hexadecimal digits.
    #[error("the path holds a `%` that begins no escape")]
    BadEscape,
    /// An escaped character at which a reader that decodes once more would see another path.
    #[error("the path holds `%{0:02X}`, which some servers decode and others do not")]
    Escaped(u8),
    /// A character that becomes a separator where text is normalised, or is brought into an older alphabet.
    #[error("the path holds {0:?}, which some servers read as a separator or a dot")]
    Lookalike(char),
    /// ` ` at an end of a segment.
    #[error("a segment of the path begins or ends with a space, which some servers cut off")]
    Space,
    /// Escapes that are no text.
    #[error("the path is not UTF-8 when its escapes are decoded")]
    NotUtf8,
}

impl CanonicalPath {
    /// Brings a path into the one form, or says why there is none.
    ///
    /// # Errors
    /// When two readers could take it for two different paths.
    pub fn of(raw: &str) -> Result<Self, BadPath> {
        if PATH_BYTES_MAX < raw.len() {
            return Err(BadPath::Long(raw.len()));
        }
        let rest = raw.strip_prefix('/').ok_or(BadPath::NotAbsolute)?;
        let mut path = String::with_capacity(raw.len());
        let mut segments = rest.split('/').peekable();
        while let Some(raw) = segments.next() {
            let segment = segment(raw)?;
            if segment.is_empty() && segments.peek().is_some() {
                return Err(BadPath::EmptySegment);
            }
            path.push('/');
            path.push_str(&segment);
        }
        Ok(Self(path.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn segments(&self) -> impl Iterator<Item = &str> {
        self.0[1..].split('/')
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One segment in its one form.
fn segment(raw: &str) -> Result<String, BadPath> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        if c != '%' {
            if !is_plain(c) {
                return Err(BadPath::Character(c));
            }
            decoded.push(c as u8); // ASCII, as `is_plain` says
            out.push(c);
            rest = &rest[1..];
            continue;
        }
        let digits = rest.get(1..3).ok_or(BadPath::BadEscape)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(BadPath::BadEscape);
        }
        let byte = u8::from_str_radix(digits, 16).map_err(|_not_hexadecimal| BadPath::BadEscape)?;
        if byte < 0x20 || matches!(byte, b'/' | b'\\' | b'%' | b';' | b'?' | b'#' | 0x7f) {
            return Err(BadPath::Escaped(byte));
        }
        decoded.push(byte);
        if is_unreserved(byte as char) && byte.is_ascii() {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        rest = &rest[3..];
    }
    match out.as_str() {
        "." => return Err(BadPath::DotSegment(".")),
        ".." => return Err(BadPath::DotSegment("..")),
        _ => {}
    }
    let text = str::from_utf8(&decoded).map_err(|_not_text| BadPath::NotUtf8)?;
    if let Some(like) = text.chars().find(|c| LOOKALIKES.contains(c)) {
        return Err(BadPath::Lookalike(like));
    }
    if text.starts_with(' ') || text.ends_with(' ') {
        return Err(BadPath::Space);
    }
    Ok(out)
}

/// What `.`, `/`, `\`, `%`, `;`, `?` and `#` can be made of, by Unicode's normal forms or by the best fit in a code page of old.
const LOOKALIKES: [char; 23] = [
    '\u{37e}', '\u{2024}', '\u{2025}', '\u{2044}', '\u{2100}', '\u{2101}', '\u{2105}', '\u{2106}',
    '\u{2215}', '\u{2216}', '\u{fe52}', '\u{fe54}', '\u{fe56}', '\u{fe5f}', '\u{fe68}', '\u{fe6a}',
    '\u{ff03}', '\u{ff05}', '\u{ff0e}', '\u{ff0f}', '\u{ff1b}', '\u{ff1f}', '\u{ff3c}',
];

/// What may stand in a segment as it is (RFC 3986, 3.3), without `;`, behind which some servers look for parameters.
fn is_plain(c: char) -> bool {
    is_unreserved(c)
        || matches!(c, '!' | '$' | '&' | '\'' | '(' | ')' | '*' | '+' | ',' | '=' | ':' | '@')
}

fn is_unreserved(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~')
}

/// A path with places for one segment each: `/charges/{id}`. `{rest*}` at the end stands for one or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathTemplate {
    text: Arc<str>,
    parts: Arc<[Part]>, // INVARIANT: those of `text`; `Rest` only at the end
    /// How many bytes of the text stand before its first place.
    literal: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Part {
    Literal(String),
    One,
    Rest,
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the template of a path: {why}")]
pub struct BadTemplate {
    text: String,
    why: String,
}

impl PathTemplate {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text, shared.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// Whether it stands for this path.
    pub fn matches(&self, path: &CanonicalPath) -> bool {
        // Most of the many that a path is held against differ from it here.
        if !path.as_str().as_bytes().starts_with(&self.text.as_bytes()[..self.literal]) {
            return false;
        }
        let mut parts = self.parts.iter();
        for segment in path.segments() {
            match parts.next() {
                Some(Part::Literal(literal)) if literal == segment => {}
                Some(Part::One) if !segment.is_empty() => {}
                Some(Part::Rest) => return !segment.is_empty(),
                Some(Part::Literal(_) | Part::One) | None => return false,
            }
        }
        parts.next().is_none()
    }

    /// Whether it stands for the same paths, whatever its places are named.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.parts == other.parts
    }

    /// Orders templates that match one path: the one that says more is the smaller.
    pub fn says_more(&self, other: &Self) -> std::cmp::Ordering {
        let rank = |part: &Part| match part {
            Part::Literal(_) => 0,
            Part::One => 1,
            Part::Rest => 2,
        };
        self.parts.iter().map(rank).cmp(other.parts.iter().map(rank))
    }
}

impl FromStr for PathTemplate {
    type Err = BadTemplate;

    fn from_str(text: &str) -> Result<Self, BadTemplate> {
        let bad = |why: String| BadTemplate { text: text.chars().take(80).collect(), why };
        if TEMPLATE_BYTES_MAX < text.len() {
            return Err(bad(format!("it is longer than {TEMPLATE_BYTES_MAX} bytes")));
        }
        let rest =
            text.strip_prefix('/').ok_or_else(|| bad("it must begin with `/`".to_owned()))?;
        let segments: Vec<&str> = rest.split('/').collect();
        let mut parts = Vec::with_capacity(segments.len());
        for (index, segment) in segments.iter().enumerate() {
            let last = index + 1 == segments.len();
            parts.push(part(segment, last).map_err(bad)?);
        }
        let literal = text.find('{').unwrap_or(text.len());
        Ok(Self { text: text.into(), parts: parts.into(), literal })
    }
}

fn part(text: &str, last: bool) -> Result<Part, String> {
    let inner = text.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
    if let Some(inner) = inner {
        let (name, rest) = inner.strip_suffix('*').map_or((inner, false), |name| (name, true));
        let named = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !named {
            return Err(format!("`{text}` needs a name of letters, digits and `_`"));
        }
        return match (rest, last) {
            (false, _) => Ok(Part::One),
            (true, true) => Ok(Part::Rest),
            (true, false) => Err(format!("`{text}` may stand at the end only")),
        };
    }
    match CanonicalPath::of(&format!("/{text}")) {
        Ok(path) if path.as_str()[1..] == *text && (last || !text.is_empty()) => {
            Ok(Part::Literal(text.to_owned()))
        }
        Ok(path) if last || !text.is_empty() => {
            Err(format!("write `{}` in place of `{text}`", &path.as_str()[1..]))
        }
        Ok(_) => Err("it has an empty segment".to_owned()),
        Err(why) => Err(why.to_string()),
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl serde::Serialize for PathTemplate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn becomes(raw: &str, canonical: &str) {
        let path = CanonicalPath::of(raw).unwrap();
        assert_eq!(path.as_str(), canonical, "{raw}");
        assert_eq!(CanonicalPath::of(canonical).unwrap(), path, "it stays what it is");
    }

    #[test]
    fn one_form_for_all_spellings_of_a_path() {
        for (raw, canonical) in [
            ("/", "/"),
            ("/charges", "/charges"),
            ("/charges/", "/charges/"),
            ("/%63harges", "/charges"),
            ("/%7euser/a%2db", "/~user/a-b"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%20b", "/a%20b"),
            ("/a:b@c,(d)", "/a:b@c,(d)"),
            ("/...", "/..."),
        ] {
            becomes(raw, canonical);
        }
    }

    #[test]
    fn what_two_readers_could_take_for_two_paths_is_refused() {
        for raw in [
            "",
            "*",
            "charges",
            "//",
            "/a//b",
            "//host/a",
            "/.",
            "/..",
            "/a/./b",
            "/a/../b",
            "/%2e",
            "/%2e%2E/a",
            "/.%2e",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%0a",
            "/%252e",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+1",
            "/a;b",
            "/a%3bb",
            "/a%3fb",
            "/a%23",
            "/a b",
            "/é",
            "/{a}",
            "/%c0%ae",
            "/%ff",
            "/%ed%a0%80",
            "/a\u{0}",
            "/a|b",
            "/a%7f",
        ] {
            assert!(CanonicalPath::of(raw).is_err(), "{raw:?}");
        }
        assert!(CanonicalPath::of(&format!("/{}", "a".repeat(PATH_BYTES_MAX))).is_err());
    }

    #[track_caller]
    fn matches(template: &str, path: &str) -> bool {
        let template: PathTemplate = template.parse().unwrap();
        template.matches(&CanonicalPath::of(path).unwrap())
    }

    #[test]
    fn a_place_stands_for_exactly_one_segment() {
        assert!(matches("/charges/{id}", "/charges/42"));
        assert!(!matches("/charges/{id}", "/charges"));
        assert!(!matches("/charges/{id}", "/charges/"));
        assert!(!matches("/charges/{id}", "/charges/42/refunds"));
        assert!(!matches("/charges", "/charges/"));
        assert!(!matches("/charges", "/Charges"));
        assert!(matches("/", "/"));
        assert!(matches("/files/{path*}", "/files/a/b"));
        assert!(!matches("/files/{path*}", "/files/"));
        assert!(!matches("/files/{path*}", "/files"));
    }

    #[test]
    fn templates_that_could_match_nothing_or_too_much_are_refused() {
        for bad in
            ["", "a", "//", "/{}", "/{a b}", "/{a*}/b", "/a{b}", "/..", "/%61", "/a;b", "/{*}"]
        {
            assert!(bad.parse::<PathTemplate>().is_err(), "{bad:?}");
        }
        let said = "/%7Euser".parse::<PathTemplate>().unwrap_err().to_string();
        assert!(said.contains("write `~user`"), "{said}");
    }

    #[test]
    fn the_template_that_says_more_goes_first() {
        let template = |text: &str| text.parse::<PathTemplate>().unwrap();
        let (id, mine, rest) =
            (template("/charges/{id}"), template("/charges/mine"), template("/charges/{a*}"));
        assert!(mine.says_more(&id).is_lt() && id.says_more(&rest).is_lt());
        assert!(id.same_shape(&template("/charges/{other}")) && !id.same_shape(&mine));
    }

    proptest::proptest! {
        #[test]
        fn a_canonical_path_is_its_own_canonical_form(raw in "/[a-c./%2eEfF0-9;]{0,16}") {
            if let Ok(path) = CanonicalPath::of(&raw) {
                let again = CanonicalPath::of(path.as_str());
                proptest::prop_assert_eq!(again.as_ref(), Ok(&path));
                let segments = path.as_str().split('/').skip(1);
                for segment in segments {
                    proptest::prop_assert!(segment != "." && segment != "..");
                }
            }
        }
    }
}
