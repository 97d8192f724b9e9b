//! Ports for listeners that no manifest fixes: free ones, and the same again at the next `up` when they still are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::net::TcpSocket;

/// The ports given so far, by what they are for.
///
/// Each is held for those whom it is given to: by a socket that is bound and does not listen. The kernel gives such a port to
/// nobody who asks for any free one, and to no connection as its own end. Who asks for it by its number and sets
/// `SO_REUSEADDR`, as all of ours do, can bind and listen beside it; so could a stranger, as long as ours does not listen.
pub(crate) struct Ports {
    file: PathBuf,
    given: BTreeMap<String, u16>,
    /// What manifests fix, and what was given by now: nobody else is given it.
    taken: BTreeSet<u16>,
    held: Vec<TcpSocket>,
    /// For the listeners of programs that are not ours and may not set `SO_REUSEADDR`.
    lent: Vec<TcpSocket>,
}

impl Ports {
    /// Those of this folder. Of what is `fixed`, nothing is given.
    pub(crate) fn open(data: &Path, fixed: BTreeSet<u16>) -> Self {
        let file = data.join("ports.json");
        // A missing or damaged file only means that other ports are chosen.
        let given = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let given = given.unwrap_or_default();
        Self { file, given, taken: fixed, held: Vec::new(), lent: Vec::new() }
    }

    /// The address to use for `purpose`, a listener of ours: as asked, with port 0 replaced by a free one, which is held
    /// for as long as this lives.
    pub(crate) fn give(&mut self, purpose: &str, asked: SocketAddr) -> Result<SocketAddr> {
        let (address, socket) = self.find(purpose, asked)?;
        self.held.extend(socket);
        Ok(address)
    }

    /// The same for a listener of somebody else's program: held until [`Self::leave_to_programs`].
    pub(crate) fn lend(&mut self, purpose: &str, asked: SocketAddr) -> Result<SocketAddr> {
        let (address, socket) = self.find(purpose, asked)?;
        self.lent.extend(socket);
        Ok(address)
    }

    /// Frees the ports of other people's programs, which are about to start.
    pub(crate) fn leave_to_programs(&mut self) {
        self.lent.clear();
    }

    /// Remembers which ports were given, for the next time.
    pub(crate) fn remember(&self) -> Result<()> {
        countersign_program::system::replace(&self.file, &serde_json::to_vec_pretty(&self.given)?)
    }

    fn find(
        &mut self,
        purpose: &str,
        asked: SocketAddr,
    ) -> Result<(SocketAddr, Option<TcpSocket>)> {
        if asked.port() != 0 {
            return Ok((asked, None));
        }
        let before = self.given.get(purpose).copied().filter(|port| !self.taken.contains(port));
        let again = before.and_then(|port| hold(SocketAddr::new(asked.ip(), port)).ok());
        let socket = match again {
            Some(socket) => socket,
            None => self.any(asked).with_context(|| format!("no free port on {}", asked.ip()))?,
        };
        let address = socket.local_addr()?;
        self.taken.insert(address.port());
        self.given.insert(purpose.to_owned(), address.port());
        Ok((address, Some(socket)))
    }

    fn any(&self, asked: SocketAddr) -> std::io::Result<TcpSocket> {
        // Held meanwhile, so that each is offered once.
        let mut unfit = Vec::new();
        loop {
            let socket = hold(asked)?;
            let port = socket.local_addr()?.port();
            let remembered = self.given.values().any(|given| *given == port);
            if !remembered && !self.taken.contains(&port) {
                return Ok(socket);
            }
            unfit.push(socket);
        }
    }
}

/// A socket that is bound there and does not listen. `SO_REUSEADDR` lets it bind where connections of an earlier listener
/// still linger, and lets the one it waits for bind beside it.
fn hold(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn a_free_port_is_given_again_and_a_taken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut ports = Ports::open(folder.path(), BTreeSet::new());
        let first = ports.give("orders", ANY).unwrap();
        assert_ne!(first, ports.give("payments", ANY).unwrap());
        ports.remember().unwrap();
        drop(ports);

        let mut ports = Ports::open(folder.path(), BTreeSet::new());
        assert_eq!(ports.give("orders", ANY).unwrap(), first);
        ports.remember().unwrap();
        drop(ports);

        let _taken = TcpListener::bind(first).unwrap();
        assert_ne!(Ports::open(folder.path(), BTreeSet::new()).give("orders", ANY).unwrap(), first);
    }

    #[test]
    fn a_fixed_port_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let fixed: SocketAddr = "127.0.0.1:8443".parse().unwrap();
        assert_eq!(Ports::open(folder.path(), BTreeSet::new()).give("x", fixed).unwrap(), fixed);
    }

    #[test]
    fn no_port_is_given_twice_whatever_was_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let mut ports = Ports::open(folder.path(), BTreeSet::new());
        let first = ports.give("orders", ANY).unwrap();
        ports.given.insert("payments".to_owned(), first.port());
        ports.remember().unwrap();
        drop(ports);

        let mut ports = Ports::open(folder.path(), BTreeSet::new());
        assert_eq!(ports.give("orders", ANY).unwrap(), first);
        assert_ne!(ports.give("payments", ANY).unwrap(), first);
        drop(ports);
        let fixed = BTreeSet::from([first.port()]);
        assert_ne!(Ports::open(folder.path(), fixed).give("orders", ANY).unwrap(), first);
    }

    #[test]
    fn a_given_port_is_held_for_who_it_is_given_to() {
        let folder = tempfile::tempdir().unwrap();
        let mut ports = Ports::open(folder.path(), BTreeSet::new());
        let ours = ports.give("orders.listen", ANY).unwrap();
        let theirs = ports.lend("orders.forward", ANY).unwrap();

        assert!(!is_free(ours) && !is_free(theirs));
        drop(TcpListener::bind(ours).expect("it can be listened on while it is held"));
        assert!(!is_free(ours), "held still, for a listener that starts again");
        ports.leave_to_programs();
        assert!(is_free(theirs) && !is_free(ours));
        drop(ports);
        assert!(is_free(ours));
    }

    /// Whether a program that does not set `SO_REUSEADDR` may bind there: as the kernel judges a port before it gives it
    /// to who asks for any.
    fn is_free(address: SocketAddr) -> bool {
        TcpSocket::new_v4().unwrap().bind(address).is_ok()
    }
}
