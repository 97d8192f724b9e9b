//! The control plane: attest, issue, publish, administer and watch.
