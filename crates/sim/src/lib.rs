//! The whole system in one process on simulated time.
