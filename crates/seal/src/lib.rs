//! Sealed bytes: envelope encryption and unsealing.
