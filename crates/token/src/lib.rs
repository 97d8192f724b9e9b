//! Keys in hardware tokens, by PKCS#11: used, and not seen. Some sign; one may open the key file of a server.
//!
//! A key is named by a URI (RFC 7512), `pkcs11:token=ROOTS;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so`. The PIN
//! comes from a file or the environment, and is never part of it. A token is opened anew for each signature: keys that
//! lie in tokens sign seldom, and one that is away is noticed when it is needed, and not before.
//!
//! Modules are foreign code in this process, which blocks, and may never return: all of it happens on threads of its own, and
//! whoever waits for it gives up after a while. This crate refuses to know what
//! is signed. No other crate knows PKCS#11.

mod bounded;
mod module;
mod pin;
mod uri;
mod vault;
mod wrap;

pub use pin::PinFrom;
pub use uri::{BadTokenUri, TokenUri};
pub use vault::Tokens;
pub use wrap::TokenWrap;
