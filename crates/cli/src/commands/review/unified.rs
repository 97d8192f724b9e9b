//! The difference between two texts, in the form that `patch` reads.

use std::fmt::Write as _;

/// Lines around a change that are shown, so that `patch` finds its place.
const CONTEXT: usize = 3;
/// A longer text is told as a whole: gone, and new.
const LINES_MAX: usize = 4000;

/// What makes `after` of `before`, as a change of this file; without `after`, the file goes.
pub(super) fn diff(file: &str, before: &str, after: Option<&str>) -> String {
    let new = after.map_or_else(|| "/dev/null".to_owned(), |_| format!("b/{file}"));
    let steps = steps(&lines(before), &lines(after.unwrap_or_default()));
    let mut text = format!("--- a/{file}\n+++ {new}\n");
    for hunk in hunks(&steps) {
        write_hunk(&steps, hunk, &mut text);
    }
    text
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// One line, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step<'a> {
    Both(&'a str),
    Old(&'a str),
    New(&'a str),
}

impl Step<'_> {
    fn is_change(self) -> bool {
        match self {
            Self::Both(_) => false,
            Self::Old(_) | Self::New(_) => true,
        }
    }
}

/// The fewest lines that go and come.
fn steps<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<Step<'a>> {
    if LINES_MAX < before.len() || LINES_MAX < after.len() {
        let gone = before.iter().map(|line| Step::Old(line));
        return gone.chain(after.iter().map(|line| Step::New(line))).collect();
    }
    // common[i][j]: how many lines the rests from i and from j have in common, in order.
    let width = after.len() + 1;
    let mut common = vec![0_u16; (before.len() + 1) * width];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            common[i * width + j] = if before[i] == after[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut steps, mut i, mut j) = (Vec::new(), 0, 0);
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            steps.push(Step::Both(before[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == after.len()
            || (i < before.len() && common[i * width + j + 1] <= common[(i + 1) * width + j])
        {
            steps.push(Step::Old(before[i]));
            i += 1;
        } else {
            steps.push(Step::New(after[j]));
            j += 1;
        }
    }
    steps
}

/// The ranges of steps that are shown: changes with what is around them.
fn hunks(steps: &[Step<'_>]) -> Vec<std::ops::Range<usize>> {
    let mut hunks: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, _) in steps.iter().enumerate().filter(|(_, step)| step.is_change()) {
        let shown = index.saturating_sub(CONTEXT)..(index + CONTEXT + 1).min(steps.len());
        match hunks.last_mut() {
            Some(last) if shown.start <= last.end => last.end = shown.end,
            Some(_) | None => hunks.push(shown),
        }
    }
    hunks
}

fn write_hunk(steps: &[Step<'_>], hunk: std::ops::Range<usize>, text: &mut String) {
    let old = |steps: &[Step<'_>]| steps.iter().filter(|it| !matches!(it, Step::New(_))).count();
    let new = |steps: &[Step<'_>]| steps.iter().filter(|it| !matches!(it, Step::Old(_))).count();
    let (before, within) = (&steps[..hunk.start], &steps[hunk]);
    // A side without lines begins before its first.
    let side = |from: usize, count: usize| format!("{},{count}", from + usize::from(0 < count));
    let old = side(old(before), old(within));
    let new = side(new(before), new(within));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "@@ -{old} +{new} @@");
    for step in within {
        let _ = match step {
            Step::Both(line) => writeln!(text, " {line}"),
            Step::Old(line) => writeln!(text, "-{line}"),
            Step::New(line) => writeln!(text, "+{line}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_is_told_with_its_place() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\n";
        let after = "a\nB\nc\nd\ne\nf\ng\nh\ni\nj\nl\nm\n";
        let expected = "--- a/f\n+++ b/f\n@@ -1,5 +1,5 @@\n a\n-b\n+B\n c\n d\n e\n\
                        @@ -8,5 +8,5 @@\n h\n i\n j\n-k\n l\n+m\n";
        assert_eq!(diff("f", before, Some(after)), expected);
    }

    #[test]
    fn file_that_goes_is_told_whole() {
        let expected = "--- a/f\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n";
        assert_eq!(diff("f", "a\nb\n", None), expected);
    }
}
