//! `strftime_now`: the time, in UTC.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats a time as Python's `strftime` does in English.
///
/// # Errors
/// For a format that is not known.
pub fn strftime(now: SystemTime, format: &str) -> Result<String, String> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day, of_year) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let twelve = (hour + 11) % 12 + 1;
    let weekday = DAYS[(days % 7) as usize];
    let name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (padded, directive) = match rest.next() {
            Some('-') => (false, rest.next()),
            directive => (true, directive),
        };
        let mut number = |value: u64, width: usize| {
            let _ = if padded { write!(out, "{value:0width$}") } else { write!(out, "{value}") };
        };
        match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(twelve, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(of_year, 3),
            Some('B') => out += name,
            Some('b') => out += &name[..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('F') => _ = write!(out, "{year:04}-{month:02}-{day:02}"),
            Some('T') => _ = write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('Z' | 'z') => {}
            Some('%') => out.push('%'),
            other => {
                let other = other.map_or(String::new(), String::from);
                return Err(format!("strftime_now: the format %{other} is not known"));
            }
        }
    }
    Ok(out)
}

/// Year, month, day of the month and day of the year, from days since 1970.
fn date(days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 400 years have 146097 days.
    let (mut year, mut left) = (1970 + days / 146_097 * 400, days % 146_097);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let (of_year, mut month) = (left + 1, 1);
    loop {
        let length = match month {
            2 => 28 + u64::from(leap(year)),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if left < length {
            return (year, month, left + 1, of_year);
        }
        left -= length;
        month += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_pythons() {
        // Made with datetime.fromtimestamp(t, UTC).strftime.
        for (seconds, format, expected) in [
            (0, "%d %B %Y, %A", "01 January 1970, Thursday"),
            (1_767_323_040, "%d %b %Y %H:%M", "02 Jan 2026 03:04"),
            (1_709_210_096, "%Y-%m-%d %I:%M:%S %p %j %a", "2024-02-29 12:34:56 PM 060 Thu"),
            (4_107_542_399, "%-d.%-m.%y %F %T", "28.2.00 2100-02-28 23:59:59"),
            (4_107_542_400, "%d %m %j%%", "01 03 060%"),
        ] {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(strftime(now, format).unwrap(), expected);
        }
        assert!(strftime(UNIX_EPOCH, "%Q").unwrap_err().contains("%Q"));
    }
}
