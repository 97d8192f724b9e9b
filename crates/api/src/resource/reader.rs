//! Reads the fields of a tree into typed values, and goes on after each problem.

use std::collections::HashSet;
use std::str::FromStr;

use super::Kind;
use super::problem::{Position, Problem, shorten};
use super::tree::{Entry, Node, Tree};
use countersign_identity::Name;

/// How many problems of one resource are told. More help nobody.
const PROBLEMS_MAX: usize = 100;

/// Where a value belongs: its path, and its place in the text.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) at: Option<Position>,
}

/// What was found wrong so far.
#[derive(Debug)]
pub(super) struct Problems {
    resource: String,
    of_record: bool,
    list: Vec<Problem>,
}

impl Problems {
    /// None yet, in a resource that is known by what its tree says of itself.
    pub(super) fn of(tree: &Tree) -> Self {
        let kind = tree.field("kind").and_then(Tree::text);
        let name = tree.field("metadata").and_then(|data| data.field("name")).and_then(Tree::text);
        let resource = match (kind, name) {
            (Some(kind), Some(name)) => format!("{}/{}", shorten(kind), shorten(name)),
            (Some(kind), None) => shorten(kind),
            (None, _) => String::new(),
        };
        Self { resource, of_record: false, list: Vec::new() }
    }

    /// None yet, in the record of a resource, which may hold what the server has added.
    pub(super) fn of_record(tree: &Tree) -> Self {
        Self { of_record: true, ..Self::of(tree) }
    }

    pub(super) fn is_of_record(&self) -> bool {
        self.of_record
    }

    /// Kind and name are understood now.
    pub(super) fn speak_of(&mut self, kind: Option<Kind>, name: Option<&Name>) {
        if let (Some(kind), Some(name)) = (kind, name) {
            self.resource = format!("{kind}/{name}");
        }
    }

    pub(super) fn add(&mut self, place: &Place, message: impl Into<String>) {
        if self.list.len() < PROBLEMS_MAX {
            let problem = Problem::about(self.resource.clone(), place.path.clone(), message);
            self.list.push(problem.at(place.at));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.list
    }
}

/// The fields of one map, taken one by one; what is left over at the end is unknown.
pub(super) struct Fields<'a> {
    path: String,
    at: Option<Position>,
    entries: &'a [Entry],
    taken: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Opens a map; tells when it is none.
    pub(super) fn open(tree: &'a Tree, path: &str, problems: &mut Problems) -> Option<Self> {
        let place = Place { path: path.to_owned(), at: tree.at };
        let Node::Map(entries) = &tree.node else {
            let found = tree.node.describe();
            problems.add(&place, format!("expected fields (`name: value`), found {found}"));
            return None;
        };
        let mut seen = HashSet::new();
        for entry in entries {
            if !seen.insert(entry.key.as_str()) {
                let place = Place { path: join(path, &shorten(&entry.key)), at: entry.at };
                problems.add(&place, "is given twice: keep one of the two");
            }
        }
        Some(Self { path: path.to_owned(), at: tree.at, entries, taken: Vec::new() })
    }

    /// Where the map itself stands.
    pub(super) fn place(&self) -> Place {
        Place { path: self.path.clone(), at: self.at }
    }

    /// Where a field stands; the map's own place when it is absent.
    pub(super) fn place_of(&self, key: &str) -> Place {
        let entry = self.entries.iter().find(|entry| entry.key == key);
        let at = entry.map_or(self.at, |entry| entry.value.at.or(entry.at));
        Place { path: join(&self.path, key), at }
    }

    /// Whether the field is written.
    pub(super) fn is_there(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Entry> {
        self.taken.push(key);
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// A field that must be there, as a tree of its own.
    pub(super) fn required_child(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<(&'a Tree, String)> {
        let entry = self.take(key);
        if entry.is_none() {
            problems.add(&self.place_of(key), "is missing: add it");
        }
        entry.map(|entry| (&entry.value, join(&self.path, key)))
    }

    /// A text that must be there, with its place.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<(String, Place)> {
        let (tree, _) = self.required_child(key, problems)?;
        let place = self.place_of(key);
        text_of(tree, &place, problems).map(|text| (text.to_owned(), place))
    }

    /// A value that must be there.
    pub(super) fn required<T>(&mut self, key: &'static str, problems: &mut Problems) -> Option<T>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let (tree, _) = self.required_child(key, problems)?;
        parse(tree, &self.place_of(key), problems)
    }

    /// A value that may be absent. The outer `None` means that it was there and wrong.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<Option<T>>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        match self.take(key) {
            None => Some(None),
            Some(entry) => parse(&entry.value, &self.place_of(key), problems).map(Some),
        }
    }

    /// A number that may be absent, written as a number. The outer `None` means that it was there and wrong.
    pub(super) fn number<T>(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<Option<T>>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let Some(entry) = self.take(key) else { return Some(None) };
        let place = self.place_of(key);
        let Node::Number(text) = &entry.value.node else {
            let found = entry.value.node.kind();
            problems.add(&place, format!("expected a number, without quotes, found {found}"));
            return None;
        };
        text.parse().map_err(|error: T::Err| problems.add(&place, error.to_string())).ok().map(Some)
    }

    /// `true` or `false`; nothing when it is absent. The outer `None` means that it was there and wrong.
    pub(super) fn switch(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<Option<bool>> {
        let Some(entry) = self.take(key) else { return Some(None) };
        let Node::Bool(value) = &entry.value.node else {
            let found = entry.value.node.kind();
            let message = format!("expected `true` or `false`, without quotes, found {found}");
            problems.add(&self.place_of(key), message);
            return None;
        };
        Some(Some(*value))
    }

    /// A tree of its own that may be absent.
    pub(super) fn optional_child(&mut self, key: &'static str) -> Option<(&'a Tree, String)> {
        let entry = self.take(key)?;
        Some((&entry.value, join(&self.path, key)))
    }

    /// A list, empty when absent. `None` when any item was wrong.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        max: usize,
        problems: &mut Problems,
        mut item: impl FnMut(&'a Tree, &Place, &mut Problems) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Some(entry) = self.take(key) else { return Some(Vec::new()) };
        let place = self.place_of(key);
        let Node::List(trees) = &entry.value.node else {
            let found = entry.value.node.describe();
            problems.add(&place, format!("expected a list (`[a, b]`), found {found}"));
            return None;
        };
        if max < trees.len() {
            let count = trees.len();
            problems.add(&place, format!("has {count} items: at most {max} are allowed"));
            return None;
        }
        let items: Vec<Option<T>> = trees
            .iter()
            .enumerate()
            .map(|(index, tree)| {
                let place = Place { path: format!("{}[{index}]", place.path), at: tree.at };
                item(tree, &place, problems)
            })
            .collect();
        items.into_iter().collect()
    }

    /// A list of texts, none twice.
    pub(super) fn set<T>(
        &mut self,
        key: &'static str,
        max: usize,
        problems: &mut Problems,
    ) -> Option<Vec<T>>
    where
        T: FromStr<Err: std::fmt::Display> + PartialEq + Clone + std::fmt::Display,
    {
        let mut seen: Vec<T> = Vec::new();
        self.list(key, max, problems, |tree, place, problems| {
            let value: T = parse(tree, place, problems)?;
            if seen.contains(&value) {
                problems.add(place, format!("`{value}` is listed twice: keep one of the two"));
                return None;
            }
            seen.push(value.clone());
            Some(value)
        })
    }

    /// The entries of a free map, empty when absent, with their place.
    pub(super) fn entries(
        &mut self,
        key: &'static str,
        max: usize,
        problems: &mut Problems,
    ) -> Option<Vec<(&'a Entry, Place)>> {
        let Some(entry) = self.take(key) else { return Some(Vec::new()) };
        let path = join(&self.path, key);
        let fields = Fields::open(&entry.value, &path, problems)?;
        if max < fields.entries.len() {
            let count = fields.entries.len();
            problems
                .add(&fields.place(), format!("has {count} entries: at most {max} are allowed"));
            return None;
        }
        let placed = fields.entries.iter().map(|entry| {
            let at = entry.value.at.or(entry.at);
            (entry, Place { path: join(&path, &shorten(&entry.key)), at })
        });
        Some(placed.collect())
    }

    /// Tells every field that nobody asked for.
    pub(super) fn close(self, problems: &mut Problems) {
        let unknown = self.entries.iter().filter(|entry| !self.taken.contains(&entry.key.as_str()));
        for entry in unknown.take(PROBLEMS_MAX) {
            let place = Place { path: join(&self.path, &shorten(&entry.key)), at: entry.at };
            problems.add(&place, unknown_field(&entry.key, &self.taken));
        }
    }
}

/// The text of a value; tells when it is something else.
pub(super) fn text_of<'a>(
    tree: &'a Tree,
    place: &Place,
    problems: &mut Problems,
) -> Option<&'a str> {
    let text = tree.text();
    if text.is_none() {
        problems.add(place, format!("expected a text, found {}", tree.node.describe()));
    }
    text
}

/// Parses the text of a value.
pub(super) fn parse<T>(tree: &Tree, place: &Place, problems: &mut Problems) -> Option<T>
where
    T: FromStr<Err: std::fmt::Display>,
{
    let text = text_of(tree, place, problems)?;
    text.parse().map_err(|error: T::Err| problems.add(place, error.to_string())).ok()
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn unknown_field(key: &str, known: &[&'static str]) -> String {
    let closest = known
        .iter()
        .map(|known| (distance(&key.to_lowercase(), &known.to_lowercase()), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3));
    match closest {
        Some((_, closest)) => format!("unknown field: did you mean `{closest}`?"),
        None => {
            let known: Vec<_> = known.iter().map(|known| format!("`{known}`")).collect();
            format!("unknown field: remove it, or use one of {}", known.join(", "))
        }
    }
}

/// Levenshtein's distance, over the first 64 characters of each.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
