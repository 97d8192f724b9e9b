//! Doors and ways as flags say them: `key=value` with commas between.

use std::str::FromStr;

use crate::{FixedInbound, FixedOutbound, LocalPlace, Protocol, Target};
use countersign_api::resource::{HostPort, ListenAddress, Local};
use countersign_identity::{Name, SpiffeId};

use countersign_program::output::printable;

/// A door for peers.
#[derive(Debug)]
pub(super) struct Inbound(pub(super) FixedInbound);

/// A way to a peer.
#[derive(Debug)]
pub(super) struct Outbound(pub(super) FixedOutbound);

/// The parts of one flag.
struct Parts<'a> {
    whole: &'a str,
    parts: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    fn of(whole: &'a str, known: &[&str]) -> Result<Self, String> {
        let mut parts: Vec<(&str, &str)> = Vec::new();
        for part in whole.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| {
                format!(
                    "`{}` in `{}` is not understood: expected `KEY=VALUE` and commas between, of {}",
                    printable(part),
                    printable(whole),
                    known.join(", ")
                )
            })?;
            if !known.contains(&key) {
                return Err(format!(
                    "`{}` is not a part of it: expected `KEY=VALUE` and commas between, of {}",
                    printable(key),
                    known.join(", ")
                ));
            }
            if key != "address" && parts.iter().any(|(earlier, _)| *earlier == key) {
                return Err(format!("`{key}` is given twice in `{}`", printable(whole)));
            }
            parts.push((key, value));
        }
        Ok(Self { whole, parts })
    }

    fn optional<T: FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<Option<T>, String> {
        let found = self.parts.iter().find(|(name, _)| *name == key);
        found
            .map(|(_, value)| value.parse().map_err(|error: T::Err| format!("`{key}`: {error}")))
            .transpose()
    }

    fn required<T: FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<T, String> {
        self.optional(key)?.ok_or_else(|| format!("`{}` lacks `{key}=…`", printable(self.whole)))
    }

    fn protocol(&self) -> Result<Protocol, String> {
        let protocol = self.optional::<countersign_api::resource::Protocol>("protocol")?;
        Ok(match protocol.unwrap_or_default() {
            countersign_api::resource::Protocol::Http => Protocol::Http,
            countersign_api::resource::Protocol::Tcp => Protocol::Tcp,
        })
    }
}

impl FromStr for Inbound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = Parts::of(text, &["service", "listen", "forward", "protocol"])?;
        let ListenAddress(listen) = parts.required("listen")?;
        let forward = match parts.required::<Local>("forward")? {
            Local::UnixAt(path) => Target::Unix(path.as_path().to_owned()),
            Local::Tcp(address) if address.socket_addr().port() != 0 => {
                Target::Tcp(address.socket_addr().to_string())
            }
            Local::Unix | Local::Tcp(_) => {
                return Err("`forward` must be a place where the program listens: `unix:/path` or `127.0.0.1:PORT`".to_owned());
            }
        };
        let service: Name = parts.required("service")?;
        Ok(Self(FixedInbound { service, listen, forward, protocol: parts.protocol()? }))
    }
}

impl FromStr for Outbound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = Parts::of(text, &["service", "local", "peer", "address", "protocol"])?;
        let local = match parts.required::<Local>("local")? {
            Local::UnixAt(path) => LocalPlace::Unix(path.as_path().to_owned()),
            Local::Tcp(address) => LocalPlace::Tcp(address.socket_addr()),
            Local::Unix => {
                return Err("`local` must be a place: `unix:/path` or `127.0.0.1:PORT`".to_owned());
            }
        };
        let addresses: Result<Vec<String>, String> = parts
            .parts
            .iter()
            .filter(|(key, _)| *key == "address")
            .map(|(_, value)| {
                value
                    .parse::<HostPort>()
                    .map(|address| address.to_string())
                    .map_err(|error| error.to_string())
            })
            .collect();
        let addresses = addresses?;
        if addresses.is_empty() {
            return Err(format!("`{}` lacks `address=…`", printable(text)));
        }
        let (service, peer): (Name, SpiffeId) =
            (parts.required("service")?, parts.required("peer")?);
        Ok(Self(FixedOutbound { service, local, addresses, peer, protocol: parts.protocol()? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_and_ways_are_read() {
        let Inbound(door) =
            "service=a,listen=127.0.0.1:0,forward=unix:/run/a.sock".parse().unwrap();
        assert_eq!(door.forward, Target::Unix("/run/a.sock".into()));
        let Outbound(way) =
            "service=a,local=tcp,peer=spiffe://x/a,address=a:1,address=b:2,protocol=tcp"
                .parse()
                .unwrap();
        assert_eq!((way.addresses.len(), way.protocol), (2, Protocol::Tcp));
    }

    #[test]
    fn what_is_incomplete_or_open_is_refused() {
        for text in [
            "",
            "service=a",
            "service=a,listen=127.0.0.1:0,forward=unix",
            "service=a,listen=127.0.0.1:0,forward=10.0.0.1:80",
            "service=a,listen=127.0.0.1:0,forward=tcp",
            "service=a,service=b,listen=127.0.0.1:0,forward=unix:/a",
            "service=a,listen=127.0.0.1:0,forward=unix:/a,peer=spiffe://x/a",
        ] {
            assert!(text.parse::<Inbound>().is_err(), "{text}");
        }
        for text in [
            "service=a,local=unix:/a,peer=spiffe://x/a",
            "service=a,local=0.0.0.0:1,peer=spiffe://x/a,address=a:1",
        ] {
            assert!(text.parse::<Outbound>().is_err(), "{text}");
        }
    }
}
