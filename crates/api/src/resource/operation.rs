//! What a service does: its named operations.

use countersign_identity::{Name, PathTemplate, Verb};
use serde::Serialize;

use super::reader::{Fields, Place, Problems};
use super::tree::Tree;

/// How many operations one service may have.
pub const OPERATIONS_MAX: usize = 256;

/// One thing that a service does, by name, so that policies can speak of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct OperationSpec {
    /// Its name: policies write `Operation::"SERVICE/NAME"`.
    #[schemars(with = "super::schema::NameText")]
    pub name: Name,
    /// The method, `POST`; that of every gRPC call is `POST`.
    #[schemars(with = "super::schema::VerbText")]
    pub method: Verb,
    /// The path, `/charges/{id}`; of a gRPC call `/package.Service/Method`. `{rest*}` at the end is one or more segments.
    #[schemars(with = "String")]
    pub path: PathTemplate,
}

pub(super) fn read_operation(
    tree: &Tree,
    place: &Place,
    problems: &mut Problems,
) -> Option<OperationSpec> {
    let mut fields = Fields::open(tree, &place.path, problems)?;
    let name = fields.required("name", problems);
    let method = fields.required("method", problems);
    let path = fields.required("path", problems);
    fields.close(problems);
    Some(OperationSpec { name: name?, method: method?, path: path? })
}

/// Two operations of one name, or for the same requests.
pub(super) fn refuse_repeated(
    fields: &Fields<'_>,
    operations: &[OperationSpec],
    problems: &mut Problems,
) {
    for (index, operation) in operations.iter().enumerate() {
        let mut place = fields.place_of("operations");
        place.path = format!("{}[{index}]", place.path);
        let earlier = &operations[..index];
        if earlier.iter().any(|earlier| earlier.name == operation.name) {
            let message = format!("there are two operations `{}`: rename one", operation.name);
            problems.add(&place, message);
        }
        let same = |earlier: &&OperationSpec| {
            earlier.method == operation.method && earlier.path.same_shape(&operation.path)
        };
        if let Some(earlier) = earlier.iter().find(same) {
            let message = format!(
                "`{} {}` is what operation `{}` stands for: keep one of the two",
                operation.method, operation.path, earlier.name
            );
            problems.add(&place, message);
        }
    }
}
