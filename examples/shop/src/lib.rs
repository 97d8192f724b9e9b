//! The three small services of the example: plain HTTP, no TLS.
