//! rustls with SVIDs: rotation, peer verification, admission and the register of live connections.
