//! How much of what a policy permits: `@rate("100/s")` and `@concurrent("8")` before it.

use std::time::Duration;

use cedar_policy::{ActionConstraint, Effect, Policy};

use crate::compile::annotation;
use crate::schema::CONNECT;

/// How much of what a policy permits, to each workload that it permits it to, at each enforcement point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How often.
    pub rate: Option<Rate>,
    /// How many at once.
    pub concurrent: Option<u32>,
}

/// So many in each span, all of them at once if need be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; not 0.
    pub count: u32,
    /// In which span.
    pub span: Duration,
}

impl Limit {
    /// What the annotations of a policy say; `None` when they say nothing.
    pub(crate) fn of(policy: &Policy) -> Result<Option<Self>, String> {
        let (rate, concurrent) = (annotation(policy, RATE), annotation(policy, CONCURRENT));
        if rate.is_none() && concurrent.is_none() {
            return Ok(None);
        }
        match policy.effect() {
            Effect::Permit => {}
            Effect::Forbid => {
                return Err(format!(
                    "a `forbid` permits nothing that `@{RATE}` or `@{CONCURRENT}` could limit"
                ));
            }
        }
        if is_of_connections(policy) {
            return Err(format!(
                "`@{RATE}` and `@{CONCURRENT}` limit requests, and this policy permits connections"
            ));
        }
        let rate = rate.map(read_rate).transpose()?;
        let concurrent =
            concurrent.map(|text| number(text).ok_or_else(|| bad(CONCURRENT, text, "8")));
        Ok(Some(Self { rate, concurrent: concurrent.transpose()? }))
    }
}

fn is_of_connections(policy: &Policy) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => false,
        ActionConstraint::Eq(action) => action.id().unescaped() == CONNECT,
        ActionConstraint::In(actions) => {
            actions.iter().all(|action| action.id().unescaped() == CONNECT)
        }
    }
}

fn read_rate(text: &str) -> Result<Rate, String> {
    let bad = || bad(RATE, text, "100/s");
    let (count, unit) = text.split_once('/').ok_or_else(bad)?;
    let span = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        _ => return Err(bad()),
    };
    Ok(Rate { count: number(count).ok_or_else(bad)?, span })
}

/// Digits alone, of a number between 1 and [`COUNT_MAX`].
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && (1..=COUNT_MAX).contains(number));
    number.filter(|_| !text.starts_with('0'))
}

fn bad(annotation: &str, text: &str, example: &str) -> String {
    let shown: String = text.chars().take(40).collect();
    let unit = if annotation == RATE { " and `/s`, `/m` or `/h`" } else { "" };
    format!(
        "annotation `@{annotation}(\"{shown}\")`: expected a number from 1 to {COUNT_MAX}{unit}, such as `@{annotation}(\"{example}\")`"
    )
}

const RATE: &str = "rate";
const CONCURRENT: &str = "concurrent";
const COUNT_MAX: u32 = 1_000_000;

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    fn read(annotations: &str, policy: &str) -> Result<Option<Limit>, String> {
        Limit::of(&Policy::from_str(&format!("{annotations} {policy}")).unwrap())
    }

    const PERMIT: &str = "permit (principal, action, resource);";

    #[test]
    fn limits_are_read_as_they_are_written() {
        let limit = |count, secs, concurrent| {
            let rate = Some(Rate { count, span: Duration::from_secs(secs) });
            Ok(Some(Limit { rate, concurrent }))
        };
        assert_eq!(read("", PERMIT), Ok(None));
        assert_eq!(read("@rate(\"100/s\")", PERMIT), limit(100, 1, None));
        assert_eq!(read("@rate(\"1/m\") @concurrent(\"8\")", PERMIT), limit(1, 60, Some(8)));
        assert_eq!(read("@rate(\"1000000/h\")", PERMIT), limit(1_000_000, 3600, None));
        let some = Limit { rate: None, concurrent: Some(1) };
        assert_eq!(read("@concurrent(\"1\")", PERMIT), Ok(Some(some)));
    }

    #[test]
    fn what_would_limit_nothing_or_everything_is_refused() {
        for annotation in [
            "@rate(\"\")",
            "@rate(\"100\")",
            "@rate(\"0/s\")",
            "@rate(\"-1/s\")",
            "@rate(\"+1/s\")",
            "@rate(\"1/d\")",
            "@rate(\"1/s \")",
            "@rate(\"01/s\")",
            "@rate(\"1000001/s\")",
            "@rate(\"1/s/s\")",
            "@rate",
            "@concurrent(\"0\")",
            "@concurrent(\"8/s\")",
            "@concurrent(\"99999999999\")",
            "@concurrent(\"1.5\")",
        ] {
            assert!(read(annotation, PERMIT).is_err(), "{annotation}");
        }
        for policy in [
            "forbid (principal, action, resource);",
            "permit (principal, action == Action::\"connect\", resource);",
            "permit (principal, action in [Action::\"connect\"], resource);",
        ] {
            assert!(read("@rate(\"1/s\")", policy).is_err(), "{policy}");
        }
    }
}
