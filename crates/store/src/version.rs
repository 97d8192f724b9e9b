//! How programs of different versions share one store.
//!
//! A newer program adds to the schema, and older ones go on beside it: their statements name the columns that they know, and
//! what is new is empty in the rows that they write. When a version changes what an older one relies on, its step says so, and
//! the head row says from then on which version a program has to know at least. It stands there because that is where
//! writers meet: a program of before finds it in the row that it has to lock, before it can write anything.

use std::path::Path;

use crate::{Result, StoreError};

/// A step from one version of the schema to the next. What was released never changes.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) ddl: &'static str,
    pub(crate) older: Older,
}

/// The steps that a program knows, from nothing on: as many as the version that it knows.
pub(crate) type Steps = &'static [Step];

/// The version that a program with these steps knows.
pub(crate) const fn known(steps: Steps) -> u64 {
    steps.len() as u64
}

/// Whether programs that do not know a step may go on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Older {
    /// They may: it only adds.
    GoOn,
    /// They may not: it changes what they rely on.
    Stop,
}

/// What a store says of its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schema {
    pub(crate) version: u64,
    /// Which version a program has to know to work on it.
    pub(crate) needs: u64,
}

impl Schema {
    /// Goes on only when a program that knows up to `known` may work on it.
    ///
    /// # Errors
    /// `NewerSchema`, else.
    pub(crate) fn check(self, known: u64, place: &Path) -> Result<()> {
        let Self { version: found, needs } = self;
        if needs <= known {
            return Ok(());
        }
        Err(StoreError::NewerSchema { path: place.to_owned(), found, needs, known })
    }

    /// Goes on only when such a program knows exactly this one. A copy that leaves out what it does not know is none, and
    /// what is not there yet cannot be read.
    ///
    /// # Errors
    /// `NewerSchema` or `OlderSchema`, else.
    pub(crate) fn check_whole(self, known: u64, place: &Path) -> Result<()> {
        Self { needs: self.version, ..self }.check_to_read(known, place)
    }

    /// Goes on only when such a program may read it as it is, without bringing it to its version first.
    ///
    /// # Errors
    /// `NewerSchema` or `OlderSchema`, else.
    pub(crate) fn check_to_read(self, known: u64, place: &Path) -> Result<()> {
        self.check(known, place)?;
        if self.version < known {
            let path = place.to_owned();
            return Err(StoreError::OlderSchema { path, found: self.version, known });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_program_goes_on_where_it_is_not_needed_to_know_more_but_copies_nothing() {
        let place = Path::new("place");
        let added = Schema { version: 5, needs: 3 };
        assert_eq!(added.check(3, place), Ok(()));
        assert!(added.check(2, place).is_err());
        assert!(added.check_whole(4, place).is_err());
        assert_eq!(added.check_whole(5, place), Ok(()));
        assert!(matches!(added.check_whole(6, place), Err(StoreError::OlderSchema { .. })));
        let changed = Schema { version: 5, needs: 5 };
        assert_eq!(
            changed.check(4, place).unwrap_err().to_string(),
            "`place` has schema 5, which takes a program that knows 5; this one knows up to 4: use a newer one"
        );
    }
}
