//! Lets unmodified gRPC clients in: rewrites `:authority` before our HTTP/2 stack reads it.
//!
//! gRPC's C core and Java send the percent-encoded path of a Unix socket as `:authority`, which
//! `http::uri::Authority` refuses, so h2 resets the stream before any handler. The filter sits between the
//! accepted socket and tonic, decodes each header block, and writes `:authority: localhost`. Nothing on this
//! socket decides by the authority, so nothing is lost.
//!
//! It promises: whatever it lets through is a well-framed client's side of HTTP/2 with the same frames in the same
//! order; every other byte stays as it was. What it re-encodes is stateless (literals without indexing), so that the
//! far side's table stays empty. It is bounded in frame size, block size, list size, field count and CONTINUATION
//! count, and refuses the connection beyond them. It does not judge header fields: that is h2's work.

mod frames;
mod hpack;
mod huffman;
mod stream;

pub use frames::{AuthorityFilter, FilterRefused};
pub use stream::FilteredStream;
