//! What is wrong with a policy, and where.

use std::fmt;

use countersign_identity::Name;

/// One thing that is wrong with a policy's text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The manifest; absent where a text was asked about by itself.
    pub policy: Option<Name>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What was expected, what was found, and what to write instead.
    pub message: String,
}

impl Problem {
    /// A problem at a byte of the text.
    pub(crate) fn at(policy: Option<&Name>, text: &str, offset: usize, message: String) -> Self {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            policy: policy.cloned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(policy) = &self.policy {
            write!(f, "policy `{policy}`, ")?;
        }
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one_and_in_characters() {
        let text = "é\nàb\n";
        for (offset, line, column) in
            [(0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 2, 1), (5, 2, 2), (99, 3, 1)]
        {
            let problem = Problem::at(None, text, offset, String::new());
            assert_eq!((problem.line, problem.column), (line, column), "offset {offset}");
        }
    }
}
