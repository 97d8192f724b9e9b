//! Settings of the programs, and what running ones were told.

mod shown;

pub(crate) use countersign_program::settings::{
    COMMON, Field, MaybeAddress, Program, Resolved, Settings, Takes, remember,
};

pub(crate) use self::shown::show;
