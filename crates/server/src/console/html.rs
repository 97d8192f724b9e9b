//! Markup in which no data can be markup: what is fixed is written as it is, and everything else is escaped.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use countersign_identity::{Timestamp, is_unseen};

/// A piece of a page. Only texts of this program get into it unescaped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Html(String); // INVARIANT: well-formed but for what literals open and close later

impl Html {
    /// Adds fixed markup.
    pub(crate) fn put(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Adds fixed markup in which each `{}` is a value, escaped for texts and quoted attributes.
    pub(crate) fn fill(&mut self, template: &'static str, values: &[&dyn Display]) -> &mut Self {
        let mut values = values.iter();
        let mut parts = template.split("{}");
        self.0.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let value = values.next();
            debug_assert!(value.is_some(), "a value is missing for `{template}`");
            if let Some(value) = value {
                self.text(value);
            }
            self.0.push_str(part);
        }
        debug_assert!(values.next().is_none(), "a value is left over for `{template}`");
        self
    }

    /// Adds a text.
    pub(crate) fn text(&mut self, value: &(impl Display + ?Sized)) -> &mut Self {
        // A value that cannot be shown leaves its place empty, and the page stands.
        let _unshown = write!(Escaped(&mut self.0), "{value}");
        self
    }

    /// Adds a name that others chose: kept apart from the direction of the text around it.
    pub(crate) fn name(&mut self, value: &(impl Display + ?Sized)) -> &mut Self {
        self.put("<bdi class=\"name\">").text(value).put("</bdi>")
    }

    /// Adds another piece.
    pub(crate) fn add(&mut self, piece: &Self) -> &mut Self {
        self.0.push_str(&piece.0);
        self
    }

    /// Adds a moment, told by how far off it is; the page keeps that true while it is open.
    pub(crate) fn moment(&mut self, at: Timestamp, now: Timestamp) -> &mut Self {
        self.fill(
            "<time datetime=\"{}\" title=\"{}\" data-relative>{}</time>",
            &[&at, &at, &Relative { at, now }],
        )
    }

    /// The markup.
    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

/// Writes texts so that they stay texts, and shows what a reader could not see or would be fooled by.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '&' => self.0.push_str("&amp;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(character),
                unseen if is_unseen(unseen) => {
                    write!(self.0, "\u{27e8}U+{:04X}\u{27e9}", u32::from(unseen))?;
                }
                plain => self.0.push(plain),
            }
        }
        Ok(())
    }
}

/// A text as one part of a path or of a query.
pub(crate) struct InUrl<T>(pub(crate) T);

impl<T: Display> Display for InUrl<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.to_string().bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    f.write_char(char::from(byte))?;
                }
                other => write!(f, "%{other:02X}")?,
            }
        }
        Ok(())
    }
}

/// How far a moment is off, in the two largest units.
pub(crate) struct Relative {
    pub(crate) at: Timestamp,
    pub(crate) now: Timestamp,
}

impl Display for Relative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ahead, behind) = (self.at.since(self.now), self.now.since(self.at));
        if ahead.as_secs() == 0 && behind.as_secs() == 0 {
            return f.write_str("now");
        }
        match ahead.is_zero() {
            true => write!(f, "{} ago", Span(behind)),
            false => write!(f, "in {}", Span(ahead)),
        }
    }
}

/// A span of time in its two largest units: `3 h 12 min`.
pub(crate) struct Span(pub(crate) Duration);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secs = self.0.as_secs();
        let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
        let Some(first) = units.iter().position(|(unit, _)| *unit <= secs) else {
            return f.write_str("0 s");
        };
        let (unit, word) = units[first];
        write!(f, "{} {word}", secs / unit)?;
        // Under ten minutes seconds are of interest, and of hours minutes.
        if let Some((smaller, word)) = units.get(first + 1)
            && secs / unit < 10
            && 0 < secs % unit / smaller
        {
            write!(f, " {} {word}", secs % unit / smaller)?;
        }
        Ok(())
    }
}

/// A count, with a thin gap between thousands.
pub(crate) struct Count<T>(pub(crate) T);

impl<T: Display> Display for Count<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if 0 < place && (digits.len() - place).is_multiple_of(3) {
                f.write_char('\u{202f}')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// The beginning of an id, enough to tell it from others by eye.
pub(crate) struct Short<T>(pub(crate) T);

impl<T: Display> Display for Short<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0.to_string();
        match id.char_indices().nth(12) {
            Some((end, _)) => write!(f, "{}\u{2026}", &id[..end]),
            None => f.write_str(&id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn shown(value: &str, expected: &str) {
        let mut html = Html::default();
        html.fill("<p title=\"{}\">{}</p>", &[&value, &value]);
        assert_eq!(html.into_string(), format!("<p title=\"{expected}\">{expected}</p>"));
    }

    #[test]
    fn data_is_never_markup() {
        shown("web", "web");
        shown("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;");
        shown("\" onload='x' &lt;", "&quot; onload=&#39;x&#39; &amp;lt;");
        shown("{}", "{}");
    }

    #[test]
    fn what_fools_the_eye_is_shown() {
        shown("nim\u{202e}da", "nim⟨U+202E⟩da");
        shown("a\u{200b}b\u{0}c\u{1b}[2J", "a⟨U+200B⟩b⟨U+0000⟩c⟨U+001B⟩[2J");
        shown("\u{5e9}\u{5dc}\u{5d5}\u{5dd} é 字", "\u{5e9}\u{5dc}\u{5d5}\u{5dd} é 字");
    }

    #[test]
    fn part_of_an_address_stays_one() {
        assert_eq!(InUrl("a/b?c=d&e \"é").to_string(), "a%2Fb%3Fc%3Dd%26e%20%22%C3%A9");
        assert_eq!(InUrl("..").to_string(), "..");
    }

    #[test]
    fn spans_are_told_as_people_tell_them() {
        let span = |secs| Span(Duration::from_secs(secs)).to_string();
        assert_eq!(
            [span(0), span(59), span(75), span(720)],
            ["0 s", "59 s", "1 min 15 s", "12 min"]
        );
        assert_eq!([span(3600), span(11_520), span(90_000)], ["1 h", "3 h 12 min", "1 d 1 h"]);
        let now = Timestamp::from_secs(1000);
        let told = |at| Relative { at: Timestamp::from_secs(at), now }.to_string();
        assert_eq!([told(1000), told(1090), told(940)], ["now", "in 1 min 30 s", "1 min ago"]);
        assert_eq!([Count(999).to_string(), Count(12_345).to_string()], ["999", "12\u{202f}345"]);
    }
}
