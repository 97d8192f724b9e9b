//! The Cedar text of policies: taken from the file that a manifest names, and compiled.

use std::path::Path;

use countersign_api::resource::{
    CEDAR_BYTES_MAX, Entry, Kind, Node, Position, Problem, Resource, Tree,
};
use countersign_policy::Policies;
use countersign_program::system::{plain, read_regular};
use countersign_server::Judge;

use super::files::Source;
use super::{CedarText, Lines, field};

/// Puts the file that `spec.cedarFile` names in the place of `spec.cedar`. Tells where the text stands.
pub(super) fn inline(source: &Source, tree: &mut Tree) -> Result<Option<CedarText>, Box<Problem>> {
    let policy = tree.field("kind").and_then(Tree::text) == Some(Kind::Policy.as_str());
    let Some(Node::Map(entries)) = field(tree, &["spec"]).map(|spec| &mut spec.node) else {
        return Ok(None);
    };
    if !policy {
        return Ok(None);
    }
    let Some(index) = entries.iter().position(|entry| entry.key == "cedarFile") else {
        let at = entries.iter().find(|entry| entry.key == "cedar").and_then(|entry| entry.value.at);
        let start = at.map(|at| (at, lines(source, at)));
        return Ok(Some(CedarText { file: None, start }));
    };
    let both = entries.iter().any(|entry| entry.key == "cedar");
    let entry = entries.remove(index);
    // What follows is one problem, not a second one about a missing field.
    let placeholder = |node| Entry {
        key: "cedar".to_owned(),
        at: entry.at,
        value: Tree { at: entry.value.at, node },
    };
    let name = resource_name(tree);
    let problem = |message: String| {
        let problem = Problem::about(name.clone(), "spec.cedarFile", message);
        Box::new(problem.at(entry.value.at.or(entry.at)).in_file(&*source.name))
    };
    let result = if both {
        Err("stands beside `cedar`: keep one of the two".to_owned())
    } else {
        read(source, &entry.value)
    };
    let (node, told) = match result {
        Ok((file, text)) => {
            (Node::Text(text), Ok(Some(CedarText { file: Some(file.into()), start: None })))
        }
        Err(message) => (Node::Text("unread".to_owned()), Err(problem(message))),
    };
    if !both && let Some(Node::Map(entries)) = field(tree, &["spec"]).map(|spec| &mut spec.node) {
        entries.push(placeholder(node));
    }
    told
}

fn resource_name(tree: &Tree) -> String {
    let name = tree.field("metadata").and_then(|metadata| metadata.field("name"));
    match name.and_then(Tree::text) {
        Some(name) => format!("{}/{}", Kind::Policy, crate::output::printable(name)),
        None => Kind::Policy.to_string(),
    }
}

/// The file's name and text. It must lie in the manifest's folder, also after symbolic links.
fn read(source: &Source, value: &Tree) -> Result<(String, String), String> {
    let Some(text) = value.text() else {
        return Err(format!("expected a file's name, found {}", value.node.describe()));
    };
    let Some(folder) = &source.folder else {
        return Err(
            "has no folder to look in, as the manifest is read from standard input: write `cedar`"
                .to_owned(),
        );
    };
    let shown = crate::output::printable(text);
    let outside =
        || format!("`{shown}` leaves the manifest's folder: put the file beside the manifest");
    let path = Path::new(text);
    let inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if text.is_empty() || !inside {
        return Err(outside());
    }
    let cannot = |error: std::io::Error| format!("`{shown}` cannot be read: {}", plain(&error));
    let folder = folder.canonicalize().map_err(cannot)?;
    let file = folder.join(path).canonicalize().map_err(cannot)?;
    if !file.starts_with(&folder) {
        return Err(outside());
    }
    let text = read_regular(&file, CEDAR_BYTES_MAX).map_err(|why| format!("`{shown}` {why}"))?;
    let beside = Path::new(&*source.name).parent().map(|parent| parent.join(path));
    Ok((beside.unwrap_or_else(|| path.to_owned()).display().to_string(), text))
}

/// Whether the text that begins at this place is a block, as the end of the line before it says.
fn lines(source: &Source, at: Position) -> Lines {
    let line = source.line(at.line.saturating_sub(1)).unwrap_or_default();
    let line = line.split(" #").next().unwrap_or_default().trim_end();
    let header = line.trim_end_matches(['+', '-']);
    let column = usize::try_from(at.column.saturating_sub(1)).unwrap_or(usize::MAX);
    let indented =
        source.line(at.line).is_some_and(|first| first.chars().take(column).all(|c| c == ' '));
    if header.ends_with('|') && indented { Lines::Same } else { Lines::Unknown }
}

/// Compiles the policies of a set; each problem with its place in the policy's text. Names are checked only when
/// every manifest is known.
pub(super) fn compile(set: &[Resource], names_known: bool) -> Vec<(Problem, Position)> {
    let sources = Judge::sources(set);
    let declared = names_known.then(|| Judge::declared(set));
    let Err(problems) = Policies::compile(&sources, declared.as_ref()) else {
        return Vec::new();
    };
    problems
        .into_iter()
        .map(|problem| {
            let label = problem.policy.map(|name| format!("{}/{name}", Kind::Policy));
            let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            let at = Position { line: number(problem.line), column: number(problem.column) };
            (Problem::about(label.unwrap_or_default(), "spec.cedar", problem.message), at)
        })
        .collect()
}
