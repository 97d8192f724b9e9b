//! Moments and amounts, as people read them.

use std::time::Duration;

use countersign_identity::{DurationText, Timestamp};

/// A span in its one or two largest units: `3s`, `12m5s`, `2h10m`, `4d`.
pub(super) fn span(duration: Duration) -> String {
    let secs = duration.as_secs();
    let rounded = match secs {
        0..=3599 => secs,
        3600..=86_399 => secs / 60 * 60,
        _ => secs / 3600 * 3600,
    };
    DurationText(Duration::from_secs(rounded)).to_string()
}

/// How far away a moment is: `in 5m`, `3s ago`.
pub(super) fn relative(at: Timestamp, now: Timestamp) -> String {
    if now <= at {
        format!("in {}", span(at.since(now)))
    } else {
        format!("{} ago", span(now.since(at)))
    }
}

/// Bytes in MiB.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_their_largest_units() {
        for (secs, text) in
            [(0, "0s"), (59, "59s"), (725, "12m5s"), (7_825, "2h10m"), (360_000, "4d4h")]
        {
            assert_eq!(span(Duration::from_secs(secs)), text);
        }
        assert_eq!(mebibytes(1_572_864), "1.5 MiB");
    }
}
