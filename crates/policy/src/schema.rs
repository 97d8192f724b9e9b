//! The words that a policy may use.

use std::str::FromStr;

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};
use countersign_identity::Verb;

use crate::TopicAct;

/// What every policy is validated against, as Cedar's own schema language writes it.
///
/// What is not known of every caller is optional, and Cedar takes no policy that reads it without having asked `has`: so no policy
/// can fail for want of an attribute.
pub const SCHEMA: &str = r#"// What the handshake that proved the peer has shown, and what else is known at the moment of the decision.
type Circumstances = {
  // "1.3"
  tls_version: String,
  // "X25519MLKEM768"
  group: String,
  // How long ago the certificate of the peer became valid.
  peer_age_seconds: Long,
  // When it is decided. In UTC: context.time.toTime() is the time of day, and context.time.offset(duration("1h")) that of
  // another zone.
  time: datetime,
  // Which day of the week that is, in UTC: 1 is Monday, 7 is Sunday.
  weekday: Long,
  // The address that the caller's connection comes from, where it is known. For narrowing: it says nothing of who it is.
  source?: ipaddr,
  // By which kinds of facts the caller's certificate says that its process was attested: "launch", "unix:uid". Absent where
  // it does not say, and of callers of other trust domains.
  attestation?: Set<String>,
};
// A group of workloads: the name of a Role manifest. No role is in another.
entity Role;
// A peer: the name of a Workload manifest, or a SPIFFE ID that no manifest names.
entity Workload in [Role] = {
  // Those of its manifest; a SPIFFE ID that no manifest names has none.
  labels: Set<String>,
};
// Data that services keep or hand out: a name in the `dataSets` of Service manifests. Two services that name the same have the same.
entity Dataset;
// A door: the name of a Service manifest. To connect to one that declares operations touches no data. What nobody declares, such as
// a path that no operation stands for, may touch any of its data, or none: it is allowed only where it would be in each case.
entity Service in [Dataset] = {
  // Those of the data sets that are touched: "public", "internal", "confidential", "restricted".
  classifications: Set<String>,
};
// What a service does: the names of the Service and of one of its operations, "payments/charge". It is in each data set that it touches.
entity Operation in [Service, Dataset] = {
  // Those of the data sets that it touches.
  classifications: Set<String>,
};
// What a service carries: the names of the Service and of one of its topics, "broker/charges-made". It is in each data set that it carries.
entity Topic in [Service, Dataset] = {
  classifications: Set<String>,
};
// Open a connection.
action "connect" appliesTo {
  principal: Workload,
  resource: Service,
  context: Circumstances,
};
// Ask for something over it. What no operation declares is asked of the service itself.
action "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS" appliesTo {
  principal: Workload,
  resource: [Service, Operation],
  context: Circumstances,
};
// Put something on a topic, or take what is on it.
action "publish", "subscribe" appliesTo {
  principal: Workload,
  resource: Topic,
  context: Circumstances,
};
"#;

pub(crate) const WORKLOAD: &str = "Workload";
pub(crate) const ROLE: &str = "Role";
/// The one attribute of a workload.
pub(crate) const LABELS: &str = "labels";
pub(crate) const SERVICE: &str = "Service";
pub(crate) const OPERATION: &str = "Operation";
pub(crate) const DATASET: &str = "Dataset";
pub(crate) const TOPIC: &str = "Topic";
/// What services, operations and topics say of their data sets.
pub(crate) const CLASSIFICATIONS: &str = "classifications";
pub(crate) const CONNECT: &str = "connect";
/// The attributes of the context.
pub(crate) const TLS_VERSION: &str = "tls_version";
pub(crate) const GROUP: &str = "group";
pub(crate) const AGE: &str = "peer_age_seconds";
pub(crate) const TIME: &str = "time";
pub(crate) const WEEKDAY: &str = "weekday";
pub(crate) const SOURCE: &str = "source";
pub(crate) const ATTESTATION: &str = "attestation";

pub(crate) fn schema() -> Schema {
    let (schema, _warnings) =
        Schema::from_cedarschema_str(SCHEMA).expect("our own schema, which a test parses");
    schema
}

/// The types and the actions, made once, since a decision must not parse text.
pub(crate) struct Words {
    workload: EntityTypeName,
    role: EntityTypeName,
    service: EntityTypeName,
    operation: EntityTypeName,
    topic: EntityTypeName,
    dataset: EntityTypeName,
    action: EntityTypeName,
}

impl Words {
    pub(crate) fn new() -> Self {
        let name = |text| EntityTypeName::from_str(text).expect("a type of our own schema");
        Self {
            workload: name(WORKLOAD),
            role: name(ROLE),
            service: name(SERVICE),
            operation: name(OPERATION),
            topic: name(TOPIC),
            dataset: name(DATASET),
            action: name("Action"),
        }
    }

    // Entity ids are never built by text: a name with a quote in it would become another name.
    pub(crate) fn workload(&self, name: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.workload.clone(), EntityId::new(name))
    }

    pub(crate) fn role(&self, name: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.role.clone(), EntityId::new(name))
    }

    pub(crate) fn service(&self, name: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.service.clone(), EntityId::new(name))
    }

    pub(crate) fn operation(&self, service: &str, name: &str) -> EntityUid {
        let id = EntityId::new(format!("{service}/{name}"));
        EntityUid::from_type_name_and_id(self.operation.clone(), id)
    }

    pub(crate) fn topic(&self, service: &str, name: &str) -> EntityUid {
        let id = EntityId::new(format!("{service}/{name}"));
        EntityUid::from_type_name_and_id(self.topic.clone(), id)
    }

    pub(crate) fn dataset(&self, name: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.dataset.clone(), EntityId::new(name))
    }

    pub(crate) fn topic_act(&self, act: TopicAct) -> EntityUid {
        self.action(act.as_str())
    }

    pub(crate) fn connect(&self) -> EntityUid {
        self.action(CONNECT)
    }

    pub(crate) fn verb(&self, verb: Verb) -> EntityUid {
        self.action(verb.as_str())
    }

    fn action(&self, word: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.action.clone(), EntityId::new(word))
    }
}

/// The service of an operation or of a topic, as entities name it.
pub(crate) fn service_of(operation: &str) -> &str {
    operation.split_once('/').map_or(operation, |(service, _)| service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_parses_without_warnings() {
        let (_, warnings) = Schema::from_cedarschema_str(SCHEMA).unwrap();
        assert_eq!(warnings.map(|warning| warning.to_string()).collect::<Vec<_>>(), [""; 0]);
    }
}
