//! Manifests: a folder or a file of YAML documents, read whole, with every problem told in its place.

mod files;
mod places;
mod policies;
mod write;
mod yaml;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use countersign_api::resource::{
    Kind, Node, Position, Problem, Resource, Tree, Unread, check_beside,
};
use countersign_identity::{Name, TrustDomain};
pub(crate) use countersign_program::system::plain;

use self::files::Source;
use self::places::Places;
pub(crate) use self::write::write;

/// Everything that is wrong with a set of manifests. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Each problem with its place.
    pub fn list(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Vec<Problem>> for Problems {
    fn from(list: Vec<Problem>) -> Self {
        Self(list)
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if 0 < index {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Manifests that were read, and where each of their fields stands.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    pub(crate) resources: Vec<Resource>,
    places: Places,
    unread: Unread,
    problems: Vec<Problem>,
    /// What was read: a folder, a file, or standard input.
    root: String,
}

/// Reads the manifests of a whole trust domain and checks them as one set, policies included.
///
/// # Errors
/// With every problem in every file.
pub(crate) fn load(path: &Path) -> Result<Vec<Resource>, Problems> {
    let manifests = Manifests::read(path)?;
    let problems = manifests.problems_of_set(&[], None);
    if problems.is_empty() { Ok(manifests.resources) } else { Err(Problems(problems)) }
}

/// Reads one text of manifests by itself: what each says, not how they fit together.
///
/// # Errors
/// With every problem.
pub fn read_text(file: &str, text: &str) -> Result<Vec<Resource>, Problems> {
    let mut manifests = Manifests::default();
    manifests.take(&Source::new(file.into(), None, text.to_owned()));
    manifests.finish();
    if manifests.problems.is_empty() {
        Ok(manifests.resources)
    } else {
        Err(Problems(manifests.problems))
    }
}

impl Manifests {
    /// Reads every manifest of a folder, of one file, or of standard input when the path is `-`.
    ///
    /// # Errors
    /// When the folder or file cannot be read at all. What is wrong inside is kept.
    pub(crate) fn read(path: &Path) -> Result<Self, Problems> {
        let mut manifests = Self { root: path.display().to_string(), ..Self::default() };
        let (sources, problems) = files::open(path)?;
        manifests.problems = problems;
        if !manifests.problems.is_empty() {
            // A file that was not read could hold anything.
            manifests.unread.0.push((None, None));
        }
        for source in &sources {
            manifests.take(source);
        }
        manifests.finish();
        if manifests.resources.is_empty() && manifests.problems.is_empty() {
            let file = path.display().to_string();
            let message = "holds no manifest: expected YAML documents with `apiVersion`, `kind`, `metadata` and `spec` in files `*.yaml` or `*.yml`";
            return Err(Problem::about("", "", message).in_file(file).into());
        }
        Ok(manifests)
    }

    fn take(&mut self, source: &Source) {
        for document in yaml::documents(&source.text) {
            match document {
                Ok(tree) => self.take_document(source, tree),
                Err((position, message)) => {
                    let problem = Problem::about("", "", message).at(position);
                    self.problems.push(problem.in_file(&*source.name));
                    self.unread.0.push((None, None));
                }
            }
        }
    }

    fn take_document(&mut self, source: &Source, mut tree: Tree) {
        let cedar = policies::inline(source, &mut tree);
        let read = Resource::read(&tree);
        match (read, cedar) {
            (Ok(resource), Ok(cedar)) => {
                self.places.add(&resource, source.name.clone(), tree, cedar);
                self.resources.push(resource);
            }
            (read, cedar) => {
                self.unread.0.push(names(&tree));
                let found = read.err().unwrap_or_default();
                self.problems
                    .extend(found.into_iter().map(|problem| problem.in_file(&*source.name)));
                self.problems.extend(cedar.err().map(|problem| *problem));
            }
        }
    }

    /// Brings the problems into the order of the files.
    fn finish(&mut self) {
        sort(&mut self.problems);
    }

    /// Everything that is wrong: with the manifests themselves, and with the set that they make together with
    /// `others`, the resources that are already in force under other names.
    pub(crate) fn problems_of_set(
        &self,
        others: &[Resource],
        domain: Option<&TrustDomain>,
    ) -> Vec<Problem> {
        let mut set = self.resources.clone();
        let ours: BTreeSet<String> = set.iter().map(Resource::label).collect();
        // There is one trust domain, whatever its resource is called.
        let domain_given = set.iter().any(|resource| resource.kind() == Kind::TrustDomain);
        let replaced = |other: &Resource| {
            ours.contains(&other.label()) || domain_given && other.kind() == Kind::TrustDomain
        };
        set.extend(others.iter().filter(|other| !replaced(other)).cloned());
        let mut problems = self.problems.clone();
        if let Err(found) = check_beside(&set, domain, &self.unread) {
            problems.extend(found.into_iter().map(|problem| self.locate(problem)));
        }
        let found = policies::compile(&set, self.unread.0.is_empty());
        problems
            .extend(found.into_iter().map(|(problem, at)| self.places.locate_cedar(problem, at)));
        sort(&mut problems);
        problems
    }

    /// What is wrong with the manifests themselves.
    pub(crate) fn own_problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Gives a problem that the server told its place in the files.
    pub(crate) fn locate(&self, problem: Problem) -> Problem {
        let located = self.places.locate(problem);
        // One of no resource is of all that was read.
        if located.resource.is_empty() && located.file.is_none() && !self.root.is_empty() {
            return located.in_file(self.root.as_str());
        }
        located
    }
}

fn sort(problems: &mut Vec<Problem>) {
    problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    problems.dedup();
}

/// What a manifest with problems would have declared, as far as it can be told.
fn names(tree: &Tree) -> (Option<Kind>, Option<Name>) {
    let kind = tree.field("kind").and_then(Tree::text).and_then(|text| text.parse().ok());
    let name = tree.field("metadata").and_then(|metadata| metadata.field("name"));
    (kind, name.and_then(Tree::text).and_then(|text| text.parse().ok()))
}

/// A place in the text of a policy, which stands in a manifest or in a file of its own.
#[derive(Clone, Debug)]
struct CedarText {
    /// The file of its own.
    file: Option<Arc<str>>,
    /// Where the text begins, and whether its lines are lines of the file.
    start: Option<(Position, Lines)>,
}

/// How the lines of a YAML text relate to those of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    /// A block after `|`: each line of the text is a line of the file, indented.
    Same,
    /// Written in another way: only the beginning is known.
    Unknown,
}

/// The text of a node by a path of fields.
fn field<'a>(tree: &'a mut Tree, path: &[&str]) -> Option<&'a mut Tree> {
    let Some((first, rest)) = path.split_first() else { return Some(tree) };
    let Node::Map(entries) = &mut tree.node else { return None };
    let entry = entries.iter_mut().find(|entry| entry.key == *first)?;
    field(&mut entry.value, rest)
}
#[cfg(test)]
mod tests;
