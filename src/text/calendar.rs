//! `strftime_now` of chat templates: a time as text, by the directives that prompts use.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
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

/// `datetime.strftime` for the directives that prompts use; any other is an error, not a guess.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .map(|elapsed| elapsed.as_secs())
        .unwrap_or(0);
    let date = Date::from_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let hour_of_twelve = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let directive = characters.next().unwrap_or_default();
        let (directive, is_unpadded) = match directive {
            '-' => (characters.next().unwrap_or_default(), true),
            other => (other, false),
        };
        let two = |value: u64| match is_unpadded {
            true => value.to_string(),
            false => format!("{value:02}"),
        };
        match directive {
            'Y' => out.push_str(&date.year.to_string()),
            'y' => out.push_str(&two(date.year % 100)),
            'm' => out.push_str(&two(date.month as u64 + 1)),
            'd' => out.push_str(&two(date.day)),
            'j' if is_unpadded => out.push_str(&date.day_of_year.to_string()),
            'j' => out.push_str(&format!("{:03}", date.day_of_year)),
            'B' => out.push_str(MONTHS[date.month]),
            'b' | 'h' => out.push_str(&MONTHS[date.month][..3]),
            'A' => out.push_str(WEEKDAYS[date.weekday]),
            'a' => out.push_str(&WEEKDAYS[date.weekday][..3]),
            'H' => out.push_str(&two(hour)),
            'I' => out.push_str(&two(hour_of_twelve)),
            'M' => out.push_str(&two(minute)),
            'S' => out.push_str(&two(second)),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => out.push_str(&format!(
                "{}-{:02}-{:02}",
                date.year,
                date.month + 1,
                date.day
            )),
            'T' => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            '%' => out.push('%'),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "strftime_now: a directive that is not known",
                ));
            }
        }
    }
    Ok(out)
}

/// A day of the Gregorian calendar.
struct Date {
    year: u64,
    /// 0 is January.
    month: usize,
    day: u64,
    /// 1 is 1 January.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: usize,
}

impl Date {
    /// The date that lies `days` days after 1 January 1970. Eras of 400 years, which all have
    /// 146,097 days, counted from 1 March 0000, so that the leap day is the last of its year.
    fn from_days(days: u64) -> Self {
        let shifted = days + 719_468;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let month = (month_from_march as usize + 2) % 12;
        let year = shifted / 146_097 * 400 + year_of_era + u64::from(month < 2);
        let is_leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        Date {
            year,
            month,
            day: from_march - (153 * month_from_march + 2) / 5 + 1,
            day_of_year: match month {
                0 | 1 => from_march - 305,
                _ => from_march + 60 + u64::from(is_leap),
            },
            weekday: ((days + 4) % 7) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Seconds and texts by `date -u -d @SECONDS`.
        for (seconds, expected) in [
            (0, "Thursday 1 January 1970 01/01/70 12:00:00 AM 001"),
            (
                951_782_400,
                "Tuesday 29 February 2000 02/29/00 12:00:00 AM 060",
            ),
            (
                951_868_799,
                "Tuesday 29 February 2000 02/29/00 11:59:59 PM 060",
            ),
            (
                951_868_800,
                "Wednesday 1 March 2000 03/01/00 12:00:00 AM 061",
            ),
            (
                1_735_689_599,
                "Tuesday 31 December 2024 12/31/24 11:59:59 PM 366",
            ),
            (
                4_107_542_399,
                "Sunday 28 February 2100 02/28/00 11:59:59 PM 059",
            ),
            (
                4_107_542_400,
                "Monday 1 March 2100 03/01/00 12:00:00 AM 060",
            ),
        ] {
            let text = strftime("%A %-d %B %Y %m/%d/%y %I:%M:%S %p %j", at(seconds)).unwrap();
            assert_eq!(text, expected);
        }
        assert!(strftime("%Q", at(0)).is_err());
        assert!(strftime("%", at(0)).is_err());
        assert_eq!(
            strftime("%d %b %Y, 100%%", at(0)).unwrap(),
            "01 Jan 1970, 100%"
        );
    }
}
