//! SPIFFE IDs, revisions, lifetimes, codes and the clock: pure types and their rules.
