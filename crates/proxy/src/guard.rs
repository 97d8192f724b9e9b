//! Whether a peer's request may go on to the program, and in which form.

pub(crate) use countersign::requests::Entered;
use countersign::requests::Unanswered;
use countersign_identity::Name;
use countersign_tls::Admitted;
use http::request;

use crate::plane::Plane;
use crate::upstream::Failed;

/// The peer of one connection, and the service whose door it came through.
pub(crate) struct Guard {
    pub(crate) service: Name,
    pub(crate) admitted: Admitted,
}

impl Guard {
    /// Decides on the request, if its service declares operations, and writes its path in the form that was decided on.
    pub(crate) fn check(
        &self,
        plane: &Plane,
        head: &mut request::Parts,
    ) -> Result<Entered, Failed> {
        Ok(plane.requests.enter(&self.service, &self.admitted, head)?)
    }

    /// The connection goes on with this request and takes no other.
    pub(crate) fn upgraded(&self, plane: &Plane, entered: &Entered) -> Result<(), Failed> {
        Ok(plane.requests.upgraded(&self.admitted, entered)?)
    }
}

impl From<Unanswered> for Failed {
    fn from(why: Unanswered) -> Self {
        Self { code: why.code, detail: why.detail, again: why.again }
    }
}
