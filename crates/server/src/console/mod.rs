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
mod html;
mod live;
mod pages;
mod routes;

use std::sync::Arc;

use crate::admin::Admin;

pub(crate) use door::ConsoleDoor;
pub(crate) use entrance::Entrance;
pub(crate) use html::Html;
pub(crate) use live::Streams;

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

impl ConsoleAt {
    /// The console at this port, under these names; there is at least one.
    pub(crate) fn new(entrance: Entrance, names: &[String], port: u16) -> Self {
        let authorities = names.iter().map(|name| format!("{name}:{port}")).collect();
        Self { entrance, authorities, cookie: format!("__Host-countersign-{port}") }
    }

    /// The address of a page.
    pub(crate) fn url(&self, path: &str) -> String {
        let authority = self.authorities.first().map(String::as_str).unwrap_or_default();
        format!("https://{authority}{path}")
    }
}
