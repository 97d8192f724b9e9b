//! Refusals over HTTP.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use countersign_api::admin::ProblemDetails;
use countersign_identity::{Code, Revision};

use crate::refusal::{Refused, http_status};

/// A refusal as RFC 9457 has it.
#[derive(Debug)]
pub(crate) struct Problem(Box<ProblemDetails>);

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(ProblemDetails::new(code, http_status(code).as_u16(), detail)))
    }

    /// What it says.
    pub(crate) fn details(&self) -> &ProblemDetails {
        &self.0
    }

    /// With everything that is wrong with the manifests.
    pub(crate) fn with_problems(
        mut self,
        problems: Vec<countersign_api::resource::Problem>,
    ) -> Self {
        self.0.problems = problems;
        self
    }

    /// With the revision that the caller should have known.
    pub(crate) fn with_revision(mut self, revision: Revision) -> Self {
        self.0.revision = Some(revision);
        self
    }
}

impl<E: Into<Refused>> From<E> for Problem {
    fn from(refused: E) -> Self {
        let Refused { code, why } = refused.into();
        Self::new(code, why)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = http_status(self.0.code);
        let body = self.0.encode();
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}
