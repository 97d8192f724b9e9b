//! Where the fields of resources stand.

use std::collections::HashMap;
use std::sync::Arc;

use countersign_api::resource::{Node, Position, Problem, Resource, Tree};

use super::{CedarText, Lines};

/// The trees of the resources that were read, by `Kind/name`.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<String, Place>);

#[derive(Debug)]
struct Place {
    file: Arc<str>,
    tree: Tree,
    cedar: Option<CedarText>,
}

impl Places {
    pub(super) fn add(
        &mut self,
        resource: &Resource,
        file: Arc<str>,
        tree: Tree,
        cedar: Option<CedarText>,
    ) {
        // Of two resources of one name the later one is pointed at.
        self.0.insert(resource.label(), Place { file, tree, cedar });
    }

    /// Adds file, line and column to a problem; one that has them keeps them.
    pub(super) fn locate(&self, problem: Problem) -> Problem {
        let Some(place) = self.0.get(&problem.resource) else { return problem };
        if problem.file.is_some() {
            return problem;
        }
        let position = descend(&place.tree, &problem.field);
        problem.at(position).in_file(&*place.file)
    }

    /// Adds the place of a line and column of a policy's text.
    pub(super) fn locate_cedar(&self, problem: Problem, at: Position) -> Problem {
        let Some(place) = self.0.get(&problem.resource) else { return problem };
        let Some(cedar) = &place.cedar else { return self.locate(problem) };
        if let Some(file) = &cedar.file {
            return problem.at(Some(at)).in_file(&**file);
        }
        let position = cedar.start.map(|(start, lines)| match lines {
            Lines::Same => {
                Position { line: start.line + at.line - 1, column: start.column + at.column - 1 }
            }
            Lines::Unknown => start,
        });
        problem.at(position).in_file(&*place.file)
    }
}

/// The place of a field, or of the nearest one above it that is there.
fn descend(tree: &Tree, path: &str) -> Option<Position> {
    let (mut tree, mut at) = (tree, tree.at);
    let steps = path.split('.').flat_map(|part| part.split_inclusive('[')).flat_map(|part| {
        let name = part.trim_end_matches('[');
        (!name.is_empty()).then_some(name)
    });
    for step in steps {
        let next = match (&tree.node, step.strip_suffix(']')) {
            (Node::List(items), Some(index)) => {
                index.parse::<usize>().ok().and_then(|index| items.get(index))
            }
            (Node::Map(_), None) => tree.field(step),
            (
                Node::Null
                | Node::Bool(_)
                | Node::Number(_)
                | Node::Text(_)
                | Node::List(_)
                | Node::Map(_),
                _,
            ) => None,
        };
        let Some(next) = next else { break };
        tree = next;
        at = next.at.or(at);
    }
    at
}
