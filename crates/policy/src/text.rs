//! Where things stand in a policy's text, and bounds that hold before Cedar sees it.
//!
//! Cedar tells positions of its own errors only. This finds where each policy begins and which entities are
//! written where. It decides nothing: what a policy names is asked of Cedar.

use std::str::FromStr;

use cedar_policy::EntityUid;

/// Brackets within brackets. Cedar's own passes recurse, some without a check of the stack.
const DEPTH_MAX: usize = 24;
/// Words and signs of one policy.
const TOKENS_MAX: usize = 2000;
/// `if`s in one policy, each of which nests without a bracket.
const IFS_MAX: usize = 24;

/// A bound that the text is over, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooMuch {
    #[error("brackets are nested deeper than the limit of {DEPTH_MAX}")]
    Depth { offset: usize },
    #[error("the policy has more words and signs than the limit of {TOKENS_MAX}; split it")]
    Tokens { offset: usize },
    #[error("the policy has more `if`s than the limit of {IFS_MAX}; split it")]
    Ifs { offset: usize },
}

impl TooMuch {
    pub(crate) fn offset(&self) -> usize {
        match self {
            Self::Depth { offset } | Self::Tokens { offset } | Self::Ifs { offset } => *offset,
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Where each policy begins.
    pub(crate) statements: Vec<usize>,
    /// The entities in the order in which they are written.
    pub(crate) entities: Vec<(usize, EntityUid)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Word,
    Text,
    Sign,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: Kind,
    offset: usize,
    text: &'a str,
}

impl Layout {
    pub(crate) fn of(text: &str) -> Result<Self, TooMuch> {
        let mut layout = Self::default();
        let (mut tokens, mut depth, mut ifs) = (0, 0_usize, 0);
        let mut path = Path::default();
        for token in (Tokens { text, offset: 0 }) {
            let offset = token.offset;
            if tokens == 0 {
                layout.statements.push(offset);
            }
            tokens += 1;
            match token.text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                "if" => ifs += 1,
                _ => {}
            }
            if DEPTH_MAX < depth {
                return Err(TooMuch::Depth { offset });
            }
            if TOKENS_MAX < tokens {
                return Err(TooMuch::Tokens { offset });
            }
            if IFS_MAX < ifs {
                return Err(TooMuch::Ifs { offset });
            }
            layout.entities.extend(path.step(token));
            if token.text == ";" {
                (tokens, depth, ifs) = (0, 0, 0);
            }
        }
        Ok(layout)
    }
}

/// Where one policy of a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    /// After the bracket that closes its scope.
    pub(crate) scope_end: usize,
    /// After its semicolon.
    pub(crate) end: usize,
}

/// Where each policy of a text is that compiles.
pub(crate) fn spans(text: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    let (mut start, mut scope_end, mut depth) = (None, None, 0_usize);
    // The words of annotations are those behind an `@`.
    let (mut named, mut in_scope) = (false, false);
    for token in (Tokens { text, offset: 0 }) {
        let begin = *start.get_or_insert(token.offset);
        let end = token.offset + token.text.len();
        match token.text {
            "permit" | "forbid" if depth == 0 && !named => in_scope = true,
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && in_scope && scope_end.is_none() {
                    scope_end = Some(end);
                }
            }
            ";" => {
                spans.push(Span { start: begin, scope_end: scope_end.unwrap_or(end), end });
                (start, scope_end, depth, in_scope) = (None, None, 0, false);
            }
            _ => {}
        }
        named = token.text == "@";
    }
    spans
}

/// The words before a text that make it an entity: `Workload`, `::`, and then `"web"`.
#[derive(Debug, Default)]
struct Path {
    begin: usize,
    joined: String, // INVARIANT: empty, or words joined by `::`, which may be at its end
}

impl Path {
    fn step(&mut self, token: Token<'_>) -> Option<(usize, EntityUid)> {
        let open = self.joined.ends_with("::");
        match token.kind {
            Kind::Word if open => self.joined.push_str(token.text),
            Kind::Word => {
                self.begin = token.offset;
                token.text.clone_into(&mut self.joined);
            }
            Kind::Sign if token.text == "::" && !self.joined.is_empty() && !open => {
                self.joined.push_str("::");
            }
            Kind::Text if open => {
                let written = std::mem::take(&mut self.joined) + token.text;
                return EntityUid::from_str(&written).ok().map(|uid| (self.begin, uid));
            }
            Kind::Sign | Kind::Text => self.joined.clear(),
        }
        None
    }
}

struct Tokens<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = &self.text[self.offset..];
            let first = rest.chars().next()?;
            let (kind, length) = if first.is_whitespace() {
                self.offset += first.len_utf8();
                continue;
            } else if rest.starts_with("//") {
                // Cedar ends a comment at either. Reading on further would hide policies from every check.
                self.offset += rest.find(['\n', '\r']).unwrap_or(rest.len());
                continue;
            } else if first == '"' {
                (Kind::Text, quoted(rest))
            } else if is_word(first) {
                (Kind::Word, rest.find(|c| !is_word(c)).unwrap_or(rest.len()))
            } else if rest.starts_with("::") {
                (Kind::Sign, 2)
            } else {
                (Kind::Sign, first.len_utf8())
            };
            let token = Token { kind, offset: self.offset, text: &rest[..length] };
            self.offset += length;
            return Some(token);
        }
    }
}

/// What stands behind the entity that is written there, past white space and brackets that close.
pub(crate) fn after_entity(text: &str, offset: usize) -> &str {
    let written = text.get(offset..).unwrap_or_default();
    let begin = written.find('"').unwrap_or(written.len());
    let name = &written[begin..];
    name[quoted(name)..].trim_start_matches(|c: char| c.is_whitespace() || c == ')')
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// How long the quoted text is that `rest` begins with; all of it when the quote is not closed.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (offset, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return offset + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_and_policies_are_found_past_comments_quotes_and_white_space() {
        let text = r#"// Workload::"no"; permit
@why("Workload::\"no\"; x")
permit(principal == Workload :: "we\"b", action, resource) when { "a;b" like "*" };
forbid(principal, action == Action::"connect", resource == A::B::"c");"#;
        let layout = Layout::of(text).unwrap();
        let starts: Vec<_> = layout.statements.iter().map(|at| &text[*at..*at + 6]).collect();
        assert_eq!(starts, ["@why(\"", "forbid"]);
        let found: Vec<_> = layout.entities.iter().map(|(_, uid)| uid.to_string()).collect();
        assert_eq!(found, [r#"Workload::"we\"b""#, r#"Action::"connect""#, r#"A::B::"c""#]);
        assert!(text[layout.entities[0].0..].starts_with("Workload ::"));
    }

    #[test]
    fn nothing_hides_from_the_bounds_behind_a_comment_and_a_carriage_return() {
        let deep = format!("// x\r{}", "(".repeat(25));
        assert!(matches!(Layout::of(&deep), Err(TooMuch::Depth { offset: 29 })));
    }

    #[test]
    fn no_text_stops_the_scanner() {
        for text in ["", "\"", "\"\\", "//", "::", "a::", "é::\"x", "\u{0}", "};;;\"\"", "\u{85}"]
        {
            assert!(Layout::of(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn deep_and_long_policies_are_refused() {
        assert!(matches!(Layout::of(&"(".repeat(25)), Err(TooMuch::Depth { offset: 24 })));
        assert!(matches!(Layout::of(&"a || ".repeat(1000)), Err(TooMuch::Tokens { .. })));
        assert!(matches!(Layout::of(&"if ".repeat(25)), Err(TooMuch::Ifs { .. })));
        assert!(Layout::of(&"permit((((()))));".repeat(2000)).is_ok());
    }
}
