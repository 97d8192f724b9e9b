//! One line of the table of settings.

/// How many values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// One.
    One,
    /// Any number: the flag repeated, a TOML list, or in the environment with blanks between.
    Many,
    /// None: the flag alone says yes; elsewhere `true` or `false`.
    Nothing,
}

/// A setting: flag, environment variable and TOML key of one name.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name on the command line.
    pub flag: &'static str,
    /// What its value is called in the help.
    pub value: &'static str,
    /// What it is, for people.
    pub help: &'static str,
    /// How many values it takes.
    pub takes: Takes,
    /// Its value when nobody says anything.
    pub default: Option<&'static str>,
    /// Never shown again, once it was given.
    pub secret: bool,
    /// Not for people.
    pub hidden: bool,
}

impl Field {
    /// A setting with one value.
    pub const fn one(flag: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { flag, value, help, takes: Takes::One, default: None, secret: false, hidden: false }
    }

    /// A setting with any number of values.
    pub const fn many(flag: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { takes: Takes::Many, ..Self::one(flag, value, help) }
    }

    /// A setting that is on or off.
    pub const fn switch(flag: &'static str, help: &'static str) -> Self {
        Self { takes: Takes::Nothing, ..Self::one(flag, "", help) }
    }

    /// The same with a default.
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// The same, never shown.
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// The same, left out of the help.
    pub const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// Its name in a TOML file.
    pub fn key(&self) -> String {
        self.flag.replace('-', "_")
    }

    /// Its environment variable.
    pub fn variable(&self) -> String {
        format!("COUNTERSIGN_{}", self.key().to_uppercase())
    }

    /// The values of its environment variable.
    pub(super) fn split(&self, text: &str) -> Vec<String> {
        match self.takes {
            Takes::Many => text.split_whitespace().map(str::to_owned).collect(),
            Takes::One | Takes::Nothing => vec![text.to_owned()],
        }
    }
}
