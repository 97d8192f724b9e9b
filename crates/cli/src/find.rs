//! Which trust domain a command speaks to.

use std::path::{Path, PathBuf};

use anyhow::Result;
use countersign_api::admin::AdminClient;
use serde::Deserialize;

pub(crate) use countersign_program::system::{socket_path, variable};

use crate::exit::Failure;
use crate::manifest::plain;

/// Where the trust domain is that a command is for.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which trust domain")]
pub(crate) struct Find {
    /// The data directory of an `up` or of a server; also COUNTERSIGN_DATA [default: the last `up` of this user]
    #[arg(long, value_name = "DIR", conflicts_with = "admin")]
    pub(crate) data: Option<PathBuf>,

    /// The admin socket, `unix:///…`; also COUNTERSIGN_ADMIN
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin: Option<String>,
}

/// What `up` writes about itself. Further fields belong to `up`.
#[derive(Debug, Deserialize)]
pub(crate) struct Whereabouts {
    pub(crate) data: PathBuf,
    pub(crate) admin: String,
    pub(crate) agent: String,
}

/// The data directory of the server itself, where `up` was told one and keeps the server's in it.
pub(crate) fn server_data(data: &Path) -> PathBuf {
    let inner = data.join("server");
    let is = |at: &Path| at.join("domain.json").is_file();
    if !is(data) && is(&inner) { inner } else { data.to_owned() }
}

/// The largest such file that is read.
const WHEREABOUTS_BYTES_MAX: u64 = 1024 * 1024;

impl Find {
    /// A client of its server.
    pub(crate) fn client(&self) -> Result<AdminClient> {
        Ok(AdminClient::new(self.admin_socket()?))
    }

    fn admin_socket(&self) -> Result<PathBuf> {
        if let Some(admin) = &self.admin {
            return Ok(socket_path(admin)?);
        }
        if let Some(data) = &self.data {
            return admin_in(data);
        }
        if let Some(admin) = variable("COUNTERSIGN_ADMIN")? {
            return Ok(socket_path(&admin)?);
        }
        if let Some(data) = self.data()? {
            return admin_in(&data);
        }
        match last()? {
            Some(found) => Ok(socket_path(&found.admin)?),
            None => Err(nothing_known("--admin unix:///…").into()),
        }
    }

    /// The data directory that was named: by the flag, or by what `server` and `backup` also take it from, which is no word about a
    /// trust domain whose socket was named.
    fn data(&self) -> Result<Option<PathBuf>> {
        if self.data.is_some() || self.admin.is_some() || variable("COUNTERSIGN_ADMIN")?.is_some() {
            return Ok(self.data.clone());
        }
        let named = std::env::var_os("COUNTERSIGN_DATA").filter(|named| !named.is_empty());
        Ok(named.map(PathBuf::from))
    }

    /// The Workload API's socket of the agent beside it.
    pub(crate) fn agent_socket(&self) -> Result<PathBuf> {
        let Some(data) = self.data()? else {
            let found = last()?.ok_or_else(|| nothing_known("--socket unix:///…"))?;
            return Ok(socket_path(&found.agent)?);
        };
        agent_in(&data)?.ok_or_else(|| {
            let whence = if self.data.is_none() { " (COUNTERSIGN_DATA)" } else { "" };
            Failure::unreachable(format!(
                "`{}`{whence} is the data directory neither of an `up` nor of an agent that has been started: name the agent with \
                 `--socket unix:///…`",
                data.display()
            ))
            .into()
        })
    }

    /// The socket of the agent that runs beside the server which is meant, when one is known.
    pub(crate) fn agent_beside(&self) -> Result<Option<PathBuf>> {
        if let Some(data) = self.data()? {
            return agent_in(&data);
        }
        let Some(found) = last()? else { return Ok(None) };
        // The last `up` of this user may be another trust domain than the one that is asked for.
        let ours = self.admin_socket()? == socket_path(&found.admin)?;
        Ok(if ours { Some(socket_path(&found.agent)?) } else { None })
    }

    /// What `up` wrote, whether it runs or not.
    pub(crate) fn up_json(&self) -> Result<PathBuf> {
        match self.data()? {
            Some(data) => Ok(data.join("up.json")),
            None => crate::up::last_up().ok_or_else(|| nothing_known("--data DIR").into()),
        }
    }

    /// The data directory, if it is known.
    pub(crate) fn data_directory(&self) -> Result<Option<PathBuf>> {
        match self.data()? {
            Some(data) => Ok(Some(data)),
            None => Ok(last()?.map(|found| found.data)),
        }
    }
}

/// The admin socket of the `up` or the server that keeps its state there.
fn admin_in(data: &Path) -> Result<PathBuf> {
    match whereabouts(&data.join("up.json"))? {
        Some(found) => Ok(socket_path(&found.admin)?),
        None => Ok(countersign_server::admin_path(data)),
    }
}

/// The Workload API's socket of the `up` or the agent that keeps its state there, which reads the same variable as a server.
fn agent_in(data: &Path) -> Result<Option<PathBuf>> {
    match whereabouts(&data.join("up.json"))? {
        Some(found) => Ok(Some(socket_path(&found.agent)?)),
        None => Ok(Some(data.join("run").join("agent.sock")).filter(|path| path.exists())),
    }
}

fn nothing_known(flag: &str) -> Failure {
    Failure::unreachable(format!(
        "no trust domain is known: this user has not run `countersign up`; name one with `--data DIR` or `{flag}`"
    ))
}

fn last() -> Result<Option<Whereabouts>> {
    match crate::up::last_up() {
        Some(path) => whereabouts(&path),
        None => Ok(None),
    }
}

fn whereabouts(path: &Path) -> Result<Option<Whereabouts>> {
    let bad = |what: &str| {
        Failure::not_understood(format!(
            "`{}` {what}, or name the trust domain with `--admin unix:///…`",
            path.display()
        ))
    };
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) if WHEREABOUTS_BYTES_MAX < metadata.len() => Ok(Vec::new()),
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| bad("was not written by `countersign up`: remove it").into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            // Somebody's who is not asking, perhaps: that it cannot be read is no reason to remove it.
            let become_him = match error.kind() {
                std::io::ErrorKind::PermissionDenied => ": become who may, or run `countersign up`",
                _ => "",
            };
            Err(bad(&format!("cannot be read: {}{become_him}", plain(&error))).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_unix_sockets_are_taken() {
        for text in ["unix:///run/a.sock", "unix:/run/a.sock", "/run/a.sock"] {
            assert_eq!(socket_path(text).unwrap(), Path::new("/run/a.sock"));
        }
        for text in ["", "unix://", "unix://host/a", "tcp://127.0.0.1:1", "a.sock", "unix:///a?b"] {
            let error = socket_path(text).unwrap_err();
            assert_eq!(error.exit, crate::exit::Exit::NotUnderstood, "{text:?}");
        }
    }

    #[test]
    fn the_agent_of_a_data_directory_is_an_ups_or_the_one_whose_directory_it_is() {
        let data = tempfile::tempdir().unwrap();
        let find = Find { data: Some(data.path().to_owned()), admin: None };
        let said = find.agent_socket().unwrap_err().to_string();
        assert!(said.contains("neither of an `up` nor of an agent"), "{said}");
        assert!(said.contains(data.path().to_str().unwrap()), "{said}");
        assert_eq!(find.agent_beside().unwrap(), None);
        let socket = data.path().join("run/agent.sock");
        std::fs::create_dir(data.path().join("run")).unwrap();
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(find.agent_socket().unwrap(), socket);
        assert_eq!(find.agent_beside().unwrap(), Some(socket));
        let up = r#"{"data":"/d","admin":"unix:///admin.sock","agent":"unix:///agent.sock"}"#;
        std::fs::write(data.path().join("up.json"), up).unwrap();
        assert_eq!(find.agent_socket().unwrap(), Path::new("/agent.sock"));
        let file = Find { data: Some(data.path().join("up.json")), admin: None };
        let said = file.agent_socket().unwrap_err().to_string();
        assert!(said.contains("not a directory, or name"), "{said}");
    }
}
