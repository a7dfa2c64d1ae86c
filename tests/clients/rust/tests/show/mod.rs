//! Values as PostgreSQL writes them in JSON, without the quotes of a string.

use chrono::{DateTime, Utc};

/// Whether a value is what the server says it is.
pub trait Shows {
    fn shows(&self, expected: Option<&str>) -> bool;
}

impl<T: Shows> Shows for Option<T> {
    fn shows(&self, expected: Option<&str>) -> bool {
        match self {
            Some(value) => value.shows(expected),
            None => expected.is_none(),
        }
    }
}

impl Shows for DateTime<Utc> {
    fn shows(&self, expected: Option<&str>) -> bool {
        expected.is_some_and(|expected| DateTime::parse_from_rfc3339(expected).is_ok_and(|time| time == *self))
    }
}

impl Shows for Vec<u8> {
    fn shows(&self, expected: Option<&str>) -> bool {
        let hex: String = self.iter().map(|byte| format!("{byte:02x}")).collect();
        expected == Some(&format!("\\x{hex}"))
    }
}

impl Shows for Vec<String> {
    fn shows(&self, expected: Option<&str>) -> bool {
        expected == Some(&format!("{self:?}").replace("\", \"", "\",\""))
    }
}

impl Shows for Vec<i32> {
    fn shows(&self, expected: Option<&str>) -> bool {
        expected == Some(&format!("{self:?}").replace(", ", ","))
    }
}

/// void: there is nothing to read.
impl Shows for () {
    fn shows(&self, _: Option<&str>) -> bool {
        true
    }
}

macro_rules! shows_as_displayed {
    ($($type:ty),*) => {
        $(impl Shows for $type {
            fn shows(&self, expected: Option<&str>) -> bool {
                expected == Some(&self.to_string())
            }
        })*
    };
}
shows_as_displayed!(bool, i32, i64, f64, String);
