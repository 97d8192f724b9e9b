//! Refusals over HTTP: RFC 9457 problem details with a code of the closed list.

use countersign_identity::{Code, Revision};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::resource::Problem;

/// Why a request was refused. Media type `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemDetails {
    /// `https://countersign.dev/codes/CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong here, and what to do.
    pub detail: String,
    /// The stable code.
    #[schema(value_type = String)]
    pub code: Code,
    /// What is wrong with which manifest, when manifests are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// The revision in force, when the base was stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub revision: Option<Revision>,
}

impl ProblemDetails {
    /// A refusal. The HTTP status is the caller's choice, since its table lives in the server.
    pub fn new(code: Code, status: u16, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("https://countersign.dev/codes/{code}"),
            title: code.meaning().to_owned(),
            status,
            detail: detail.into(),
            code,
            problems: Vec::new(),
            revision: None,
        }
    }

    /// The same, with what is wrong with the manifests.
    #[must_use]
    pub fn with_problems(mut self, problems: Vec<Problem>) -> Self {
        self.problems = problems;
        self
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts, numbers and lists always have a JSON form")
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// When it is none, or its code is unknown: an unknown reason is not one of ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadProblem> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// The bytes are no problem details of ours.
#[derive(Debug, thiserror::Error)]
#[error("the answer is not a problem of RFC 9457 with a known code: {0}")]
pub struct BadProblem(#[from] serde_json::Error);
