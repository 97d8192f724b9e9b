//! What a service carries: its named topics.

use countersign_identity::Name;
use serde::Serialize;

use super::data_set::{DATA_SETS_MAX, DataSet};
use super::reader::{Fields, Place, Problems};
use super::tree::Tree;

/// How many topics one service may have.
pub(super) const TOPICS_MAX: usize = 256;

/// Something that is published and subscribed to, by name, so that policies can speak of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct TopicSpec {
    /// Its name: policies write `Topic::"SERVICE/NAME"`.
    #[schemars(with = "super::schema::NameText")]
    pub name: Name,
    /// Which of the service's `dataSets` it carries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<super::schema::NameText>>")]
    pub data_sets: Vec<Name>,
}

pub(super) fn read_topic(tree: &Tree, place: &Place, problems: &mut Problems) -> Option<TopicSpec> {
    let mut fields = Fields::open(tree, &place.path, problems)?;
    let name = fields.required("name", problems);
    let data_sets = fields.set("dataSets", DATA_SETS_MAX, problems);
    fields.close(problems);
    Some(TopicSpec { name: name?, data_sets: data_sets? })
}

/// Two topics of one name, and a data set that the service does not have.
pub(super) fn check_topics(
    fields: &Fields<'_>,
    topics: &[TopicSpec],
    data_sets: &[DataSet],
    problems: &mut Problems,
) {
    for (index, topic) in topics.iter().enumerate() {
        let mut place = fields.place_of("topics");
        place.path = format!("{}[{index}]", place.path);
        if topics[..index].iter().any(|earlier| earlier.name == topic.name) {
            problems.add(&place, format!("there are two topics `{}`: rename one", topic.name));
        }
        place.path.push_str(".dataSets");
        let unknown = |name: &&Name| !data_sets.iter().any(|one| one.name == **name);
        for name in topic.data_sets.iter().filter(unknown) {
            let message = format!("`{name}` is none of the service's `dataSets`: list it there");
            problems.add(&place, message);
        }
    }
}
