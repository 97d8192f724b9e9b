//! Ports for listeners that no manifest fixes: free ones, and the same again at the next `up` when they still are.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The ports given so far, by what they are for.
pub(crate) struct Ports {
    file: PathBuf,
    given: BTreeMap<String, u16>,
    // Held until all are given, so that no port is given twice.
    reserved: Vec<TcpListener>,
}

impl Ports {
    pub(crate) fn open(data: &Path) -> Self {
        let file = data.join("ports.json");
        // A missing or damaged file only means that other ports are chosen.
        let given = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { file, given: given.unwrap_or_default(), reserved: Vec::new() }
    }

    /// The address to use for `purpose`: as asked, with port 0 replaced by a free one.
    pub(crate) fn give(&mut self, purpose: &str, asked: SocketAddr) -> Result<SocketAddr> {
        if asked.port() != 0 {
            return Ok(asked);
        }
        let before = self.given.get(purpose).copied();
        let again = before.and_then(|port| TcpListener::bind((asked.ip(), port)).ok());
        let listener = match again {
            Some(listener) => listener,
            None => TcpListener::bind(asked)
                .with_context(|| format!("no free port on {}", asked.ip()))?,
        };
        let address = listener.local_addr()?;
        self.given.insert(purpose.to_owned(), address.port());
        self.reserved.push(listener);
        Ok(address)
    }

    /// Frees the ports for the processes that will listen on them, and remembers them.
    pub(crate) fn release(self) -> Result<()> {
        countersign_program::system::replace(&self.file, &serde_json::to_vec_pretty(&self.given)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_is_given_again_and_a_taken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut ports = Ports::open(folder.path());
        let first = ports.give("orders", any).unwrap();
        assert_ne!(first, ports.give("payments", any).unwrap());
        ports.release().unwrap();

        let mut ports = Ports::open(folder.path());
        assert_eq!(ports.give("orders", any).unwrap(), first);
        ports.release().unwrap();

        let _taken = TcpListener::bind(first).unwrap();
        assert_ne!(Ports::open(folder.path()).give("orders", any).unwrap(), first);
    }

    #[test]
    fn a_fixed_port_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let fixed: SocketAddr = "127.0.0.1:8443".parse().unwrap();
        assert_eq!(Ports::open(folder.path()).give("x", fixed).unwrap(), fixed);
    }
}
