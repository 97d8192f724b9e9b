//! JSON Schemas of the manifests, so that editors complete and check.

use schemars::JsonSchema;

use super::{
    API_VERSION, AuthoritySpec, Kind, PolicySpec, RoleSpec, ServiceSpec, TlsProfileSpec,
    TrustDomainSpec, WorkloadSpec,
};

macro_rules! text_schema {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        #[derive(JsonSchema)]
        $(#[$doc])*
        #[expect(dead_code, reason = "stands for the schema of a text only")]
        pub(super) struct $name(String);
    )*};
}

text_schema! {
    /// The name of a trust domain: 1 to 255 of a-z, 0-9, `.`, `-` and `_`.
    #[schemars(extend("pattern" = r"^[a-z0-9._-]{1,255}$"))]
    TrustDomainText
    /// A SPIFFE ID with a path, `spiffe://shop.example/web`.
    #[schemars(extend("pattern" = r"^spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)+$"))]
    SpiffeIdText
    /// A span of time with units, largest first, `90s`, `15m` or `1h30m`.
    #[schemars(extend("pattern" = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    LifetimeText
    /// An address of plain HTTP, `http://crl.shop.example:8880`.
    #[schemars(extend("pattern" = r"^http://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._-]+)*/?$"))]
    ViewsUrlText
    /// A DNS label: 1 to 63 of a-z, 0-9 and `-`, a letter or digit first and last.
    #[schemars(extend("pattern" = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    NameText
}

/// At least one selector.
#[derive(JsonSchema)]
#[schemars(extend("minItems" = 1, "maxItems" = 16))]
#[expect(dead_code, reason = "stands for the schema of a list only")]
pub(super) struct SelectorTexts(Vec<String>);

/// Into how many lists.
#[derive(JsonSchema)]
#[schemars(extend("enum" = [1, 2, 4, 8, 16, 32, 64, 128, 256]))]
#[expect(dead_code, reason = "stands for the schema of a number only")]
pub(super) struct ShardsNumber(u16);

/// The kind of a key.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
pub(super) enum KeyTypeText {
    #[schemars(rename = "ecdsa-p256")]
    P256,
    #[schemars(rename = "ecdsa-p384")]
    P384,
    #[schemars(rename = "ed25519")]
    Ed25519,
    #[schemars(rename = "rsa-2048")]
    Rsa2048,
    #[schemars(rename = "rsa-3072")]
    Rsa3072,
}

/// The kind of an authority's key.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
pub(super) enum AuthorityKeyTypeText {
    #[schemars(rename = "ecdsa-p256")]
    P256,
    #[schemars(rename = "ecdsa-p384")]
    P384,
    #[schemars(rename = "ed25519")]
    Ed25519,
}

/// What is spoken.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum ProtocolText {
    Http,
    Tcp,
}

/// A method of HTTP.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "UPPERCASE")]
pub(super) enum VerbText {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum ModeText {
    Enforce,
    Observe,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum MutualTlsText {
    Required,
    None,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum ClassificationText {
    Public,
    Internal,
    Confidential,
    Restricted,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum ExpiredText {
    End,
    Keep,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
pub(super) enum TlsVersionText {
    #[schemars(rename = "1.3")]
    V13,
    #[schemars(rename = "1.2")]
    V12,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
pub(super) enum TlsGroupText {
    #[schemars(rename = "X25519MLKEM768")]
    X25519Mlkem768,
    X25519,
    #[schemars(rename = "P-256")]
    P256,
    #[schemars(rename = "P-384")]
    P384,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
pub(super) enum TlsSuiteText {
    #[schemars(rename = "TLS_AES_128_GCM_SHA256")]
    Aes128,
    #[schemars(rename = "TLS_AES_256_GCM_SHA384")]
    Aes256,
    #[schemars(rename = "TLS_CHACHA20_POLY1305_SHA256")]
    Chacha20,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum ClientCertificateText {
    Required,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum ForwardText {
    Nothing,
    Identity,
    Certificate,
    Chain,
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "stands for the schema of a word only")]
#[schemars(rename_all = "camelCase")]
pub(super) enum ProxyVersionText {
    V2,
}

/// The JSON Schema of a kind's manifests.
pub fn schema(kind: Kind) -> serde_json::Value {
    let spec = match kind {
        Kind::TrustDomain => schemars::schema_for!(TrustDomainSpec),
        Kind::Authority => schemars::schema_for!(AuthoritySpec),
        Kind::Workload => schemars::schema_for!(WorkloadSpec),
        Kind::Service => schemars::schema_for!(ServiceSpec),
        Kind::Policy => schemars::schema_for!(PolicySpec),
        Kind::Role => schemars::schema_for!(RoleSpec),
        Kind::TlsProfile => schemars::schema_for!(TlsProfileSpec),
    };
    let mut spec = spec.to_value();
    let mut definitions = serde_json::Value::Null;
    if let Some(members) = spec.as_object_mut() {
        members.remove("$schema");
        members.remove("title");
        definitions = members.remove("$defs").unwrap_or_default();
    }
    // A field that may be absent may not be null.
    without_null(&mut spec);
    without_null(&mut definitions);
    if kind == Kind::Policy {
        offer_cedar_file(&mut spec);
    }
    let mut schema = serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("countersign {kind}"),
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": { "const": API_VERSION },
            "kind": { "const": kind },
            "metadata": {
                "type": "object",
                "additionalProperties": false,
                "required": ["name"],
                "properties": {
                    "name": { "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" },
                },
            },
            "spec": spec,
        },
    });
    if !definitions.is_null() {
        schema["$defs"] = definitions;
    }
    schema
}

/// Takes `null` out of every choice of types.
fn without_null(schema: &mut serde_json::Value) {
    use serde_json::Value;
    match schema {
        Value::Object(members) => {
            let is_null = |choice: &Value| choice == "null" || choice["type"] == "null";
            for name in ["type", "anyOf"] {
                let Some(Value::Array(choices)) = members.get_mut(name) else { continue };
                choices.retain(|choice| !is_null(choice));
                if let [only] = choices.as_mut_slice() {
                    let only = only.take();
                    match only {
                        Value::Object(inner) if name == "anyOf" => {
                            members.remove(name);
                            members.extend(inner);
                        }
                        only => drop(members.insert(name.to_owned(), only)),
                    }
                }
            }
            members.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A manifest of a policy names a file or holds the text; what is sent to a server holds the text.
fn offer_cedar_file(spec: &mut serde_json::Value) {
    spec["properties"]["cedarFile"] = serde_json::json!({
        "type": "string",
        "description": "A file beside the manifest that holds the policies.",
    });
    spec["oneOf"] = serde_json::json!([{ "required": ["cedar"] }, { "required": ["cedarFile"] }]);
    if let Some(members) = spec.as_object_mut() {
        members.remove("required");
    }
}
