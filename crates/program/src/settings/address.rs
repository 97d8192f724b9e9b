//! Where to listen.

use std::net::SocketAddr;

/// An address, or nowhere.
#[derive(Clone, Copy, Debug)]
pub struct MaybeAddress(pub Option<SocketAddr>);

impl std::str::FromStr for MaybeAddress {
    type Err = countersign_api::resource::BadAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        text.parse().map(|countersign_api::resource::ListenAddress(address)| Self(Some(address)))
    }
}
