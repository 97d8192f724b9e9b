//! Dates as HTTP writes them (RFC 9110, 5.6.7).

use countersign_identity::Timestamp;

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn http_date(moment: Timestamp) -> String {
    let (year, month, day, hour, minute, second) = moment.civil();
    // The epoch was a Thursday.
    let weekday = index(moment.secs().div_euclid(86_400).rem_euclid(7));
    let (weekday, month) = (DAYS[weekday], MONTHS[index(month - 1)]);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

fn index(number: i64) -> usize {
    usize::try_from(number).expect("days and months are counted from 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_standard() {
        let date = |secs| http_date(Timestamp::from_secs(secs));
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(1_795_262_400), "Sat, 21 Nov 2026 12:00:00 GMT");
    }
}
