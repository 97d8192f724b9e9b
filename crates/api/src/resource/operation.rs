//! What a service does: its named operations.

use countersign_identity::{Name, PathTemplate, Verb};
use serde::Serialize;

use super::data_set::{DATA_SETS_MAX, DataSet};
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
    /// Which of the service's `dataSets` it touches.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::NameText>>")]
    pub data_sets: Vec<Name>,
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
    let data_sets = fields.set("dataSets", DATA_SETS_MAX, problems);
    fields.close(problems);
    Some(OperationSpec { name: name?, method: method?, path: path?, data_sets: data_sets? })
}

/// A data set that is listed twice, and one that an operation touches and the service does not have.
pub(super) fn check_data_sets(
    fields: &Fields<'_>,
    operations: &[OperationSpec],
    data_sets: &[DataSet],
    problems: &mut Problems,
) {
    for (index, one) in data_sets.iter().enumerate() {
        if data_sets[..index].iter().any(|earlier| earlier.name == one.name) {
            let mut place = fields.place_of("dataSets");
            place.path = format!("{}[{index}].name", place.path);
            problems.add(&place, format!("`{}` is listed twice: keep one of the two", one.name));
        }
    }
    for (index, operation) in operations.iter().enumerate() {
        let unknown = |name: &&Name| !data_sets.iter().any(|one| one.name == **name);
        for name in operation.data_sets.iter().filter(unknown) {
            let mut place = fields.place_of("operations");
            place.path = format!("{}[{index}].dataSets", place.path);
            let message = format!("`{name}` is none of the service's `dataSets`: list it there");
            problems.add(&place, message);
        }
    }
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
