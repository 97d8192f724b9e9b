//! A trust domain's state: an ordered map with a change feed, and the log beside it.
