//! Dates of XML (xs:dateTime).
//!
//! Owns their form and the calendar. Must never read a clock.

/// Reads `2030-01-31T12:00:00`, with a fraction, which is dropped, and with `Z` or an offset like `+01:00`; UTC without. Returns Unix
/// seconds.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let (date, rest) = text.trim_ascii().split_once(['T', ' '])?;
    let (time, offset) = rest.split_at(rest.find(['Z', '+', '-']).unwrap_or(rest.len()));
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    number(fraction, fraction.len())?;
    Some(days(date)? * 86_400 + clock(time)? - read_offset(offset)?)
}

/// Reads `2030-01-31`, in the Gregorian calendar, as days since 1970.
fn days(date: &str) -> Option<i64> {
    let (year, rest) = date.split_once('-')?;
    let (month, day) = rest.split_once('-')?;
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    let lengths = [31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = lengths.get(..usize::try_from(month - 1).ok()?)?.iter().sum::<i64>();
    let length = *lengths.get(usize::try_from(month - 1).ok()?)?;
    if year == 0 || !(1..=length).contains(&day) {
        return None;
    }
    let years = year - 1;
    let to_year = years * 365 + years / 4 - years / 100 + years / 400;
    Some(to_year + before + day - 1 - 719_162) // 1970 began 719162 days after the first of January of the year 1
}

/// Reads `23:59:59` as seconds of the day.
fn clock(time: &str) -> Option<i64> {
    let (hours, rest) = time.split_once(':')?;
    let (minutes, seconds) = rest.split_once(':')?;
    let (hours, minutes, seconds) = (number(hours, 2)?, number(minutes, 2)?, number(seconds, 2)?);
    (hours < 24 && minutes < 60 && seconds < 60).then_some(hours * 3600 + minutes * 60 + seconds)
}

/// Reads `Z`, `+01:00`, or nothing, as seconds.
fn read_offset(offset: &str) -> Option<i64> {
    if matches!(offset, "" | "Z") {
        return Some(0);
    }
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    (hours <= 14 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Reads exactly so many digits. Of many, only whether they are digits.
fn number(text: &str, digits: usize) -> Option<i64> {
    let is_number = text.len() == digits && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.bytes().fold(0i64, |n, byte| n.wrapping_mul(10).wrapping_add(i64::from(byte - b'0'))))
}
