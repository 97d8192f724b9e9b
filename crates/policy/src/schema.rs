//! The words that a policy may use.

use std::str::FromStr;

use cedar_policy::{EntityId, EntityTypeName, EntityUid, Schema};

/// What every policy is validated against, as Cedar's own schema language writes it.
///
/// No attribute is optional, so that no policy can fail for want of one.
pub const SCHEMA: &str = r#"// A peer: the name of a Workload manifest, or a SPIFFE ID that no manifest names.
entity Workload;
// A door: the name of a Service manifest.
entity Service;
// Open a connection. The context tells of the handshake that has just proven the peer.
action "connect" appliesTo {
  principal: Workload,
  resource: Service,
  context: {
    // "1.3"
    tls_version: String,
    // "X25519MLKEM768"
    group: String,
    // How long ago the certificate of the peer became valid.
    peer_age_seconds: Long,
  },
};
"#;

pub(crate) const WORKLOAD: &str = "Workload";
pub(crate) const SERVICE: &str = "Service";

pub(crate) fn schema() -> Schema {
    let (schema, _warnings) =
        Schema::from_cedarschema_str(SCHEMA).expect("our own schema, which a test parses");
    schema
}

/// The types and the action, made once, since a decision must not parse text.
pub(crate) struct Words {
    workload: EntityTypeName,
    service: EntityTypeName,
    connect: EntityUid,
}

impl Words {
    pub(crate) fn new() -> Self {
        let name = |text| EntityTypeName::from_str(text).expect("a type of our own schema");
        Self {
            workload: name(WORKLOAD),
            service: name(SERVICE),
            connect: EntityUid::from_type_name_and_id(name("Action"), EntityId::new("connect")),
        }
    }

    // Entity ids are never built by text: a name with a quote in it would become another name.
    pub(crate) fn workload(&self, name: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.workload.clone(), EntityId::new(name))
    }

    pub(crate) fn service(&self, name: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(self.service.clone(), EntityId::new(name))
    }

    pub(crate) fn connect(&self) -> EntityUid {
        self.connect.clone()
    }
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
