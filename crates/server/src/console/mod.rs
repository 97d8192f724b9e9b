//! The console: the operators' web pages, on an address of their own.
//!
//! Pages are made here, on the server, from what the operators' routes answer, so that there is one answer to each question;
//! the browser gets finished markup, one style sheet and three small scripts, and asks nobody else for anything. It shows, and
//! changes nothing: a link lets a browser look (`entrance`), and whatever may be changed is changed over the operators' socket.
//!
//! What comes from outside of this program is escaped by the one type through which all of it goes ([`Html`]). Who may
//! ask is decided in one place outside of all routes (`gate`).

mod assets;
mod door;
mod entrance;
mod frame;
mod gate;
mod guests;
mod html;
mod live;
mod pages;
pub(crate) mod record;
mod routes;

use std::sync::Arc;

use crate::admin::Admin;

pub(crate) use door::{ConsoleDoor, builder, of_guest};
pub(crate) use entrance::{By, Entrance, name_of};
pub(crate) use guests::Guests;
pub(crate) use html::Html;
pub(crate) use live::Streams;
pub(crate) use routes::router;

/// What the pages are made from.
pub(crate) struct Console {
    pub(crate) admin: Arc<Admin>,
    pub(crate) at: Arc<ConsoleAt>,
    pub(crate) live: Streams,
}

/// Where the console is and who is let in.
pub(crate) struct ConsoleAt {
    pub(crate) entrance: Entrance,
    /// Every name under which it is reached, with its port; the first is the one that links name.
    pub(crate) authorities: Vec<String>,
    /// The cookie of its sessions. Browsers keep the cookies of all ports of a host together, so its port is in the name.
    pub(crate) cookie: String,
}

/// The port that `https` stands for. Browsers leave it out of what they send.
const DEFAULT_PORT: &str = ":443";

impl ConsoleAt {
    /// The console at this port, under these names; there is at least one.
    pub(crate) fn new(entrance: Entrance, names: &[String], port: u16) -> Self {
        let authority = |name: &String| without_default_port(&format!("{name}:{port}")).to_owned();
        let authorities = names.iter().map(authority).collect();
        Self { entrance, authorities, cookie: format!("__Host-countersign-{port}") }
    }

    /// Whether the console is known by that host and port.
    pub(crate) fn is(&self, host: &str) -> bool {
        let host = without_default_port(host);
        self.authorities.iter().any(|known| known.eq_ignore_ascii_case(host))
    }

    /// The address of a page.
    pub(crate) fn url(&self, path: &str) -> String {
        let authority = self.authorities.first().map(String::as_str).unwrap_or_default();
        format!("https://{authority}{path}")
    }
}

/// A host without the port that goes without saying.
fn without_default_port(host: &str) -> &str {
    host.strip_suffix(DEFAULT_PORT).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use countersign_identity::{SystemClock, SystemEntropy};

    use super::*;

    fn at(port: u16) -> ConsoleAt {
        let entrance = Entrance::new(Arc::new(SystemClock), Arc::new(SystemEntropy));
        ConsoleAt::new(entrance, &["console.example".to_owned()], port)
    }

    #[test]
    fn port_that_browsers_leave_out_may_be_left_out() {
        let at = at(443);
        assert_eq!(at.url("/login"), "https://console.example/login");
        assert!(at.is("console.example") && at.is("console.example:443"));
        assert!(!at.is("console.example:8443") && !at.is("example") && !at.is(":443"));
    }

    #[test]
    fn any_other_port_has_to_be_said() {
        let at = at(9443);
        assert_eq!(at.url("/"), "https://console.example:9443/");
        assert!(at.is("console.example:9443") && at.is("Console.Example:9443"));
        assert!(!at.is("console.example") && !at.is("console.example:443"));
    }
}
