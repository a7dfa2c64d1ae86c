//! The column orders of a CSV.
//!
//! Owns which column is what. Must never guess the encoding of a secret from its characters: the column order says it.

use otp::Encoding;

use crate::date;

/// What a column has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Serial,
    Secret,
    User,
    Manufacturer,
    Model,
    /// The algorithm of the token: `totp`, `hotp`, `ocra`.
    Kind,
    /// The hash.
    Algorithm,
    Digits,
    Period,
    Expiry,
    /// One that is not needed.
    Other,
}

/// The order of the columns of a document.
pub(crate) enum Order {
    /// Columns with a meaning each.
    Columns(Columns),
    /// The log of Yubico's programming tool: event, time, slot, public id, private id, secret, and more.
    YubicoLog,
    /// The short form of that log: serial number, public id, private id or counter, secret, access code, time.
    Yubico,
}

/// Columns with a meaning each.
pub(crate) struct Columns {
    pub columns: Vec<Column>,
    /// How secrets are written.
    pub encoding: Encoding,
    /// Fewest columns of a row.
    pub least: usize,
}

/// Tells the order by the first record. The second value says whether that is a header, and no token.
pub(crate) fn order(first: &[&str]) -> Option<(Order, bool)> {
    let event = first.first()?.to_ascii_lowercase();
    if let Some(columns) = header(first) {
        return Some((Order::Columns(columns), true));
    }
    if ["logging start", "yubico otp", "oath-hotp"].contains(&event.as_str())
        || ["static password", "challenge-response", "configuration"].iter().any(|start| event.starts_with(start))
    {
        return Some((Order::YubicoLog, false));
    }
    let order = match first.len() {
        6 | 7 if date::parse(first[5]).is_some() => Order::Yubico,
        6 => Order::Columns(entra()),
        2..=5 => Order::Columns(oath()),
        _ => return None,
    };
    Some((order, false))
}

/// `upn,serial number,secret key,time interval,manufacturer,model`, in Microsoft Entra ID.
fn entra() -> Columns {
    use Column::*;
    let columns = vec![User, Serial, Secret, Period, Manufacturer, Model];
    Columns { columns, encoding: Encoding::Base32, least: 6 }
}

/// `serial,key,type,digits,time step`, as LinOTP and privacyIDEA call it OATH CSV.
fn oath() -> Columns {
    use Column::*;
    Columns { columns: vec![Serial, Secret, Kind, Digits, Period], encoding: Encoding::Hex, least: 2 }
}

/// Reads a header: a first record that names a secret and something else.
fn header(first: &[&str]) -> Option<Columns> {
    let (columns, encodings): (Vec<_>, Vec<_>) = first.iter().map(|name| named(name)).unzip();
    let encoding = encodings.into_iter().flatten().next()?;
    let known = || columns.iter().filter(|column| **column != Column::Other);
    let is_double = known().any(|column| known().filter(|other| *other == column).count() > 1);
    let least = columns.len();
    (known().count() > 1 && !is_double).then_some(Columns { columns, encoding, least })
}

/// Reads the name of a column, and how its secret is written.
fn named(name: &str) -> (Column, Option<Encoding>) {
    let is_kept = |c: &char| c.is_ascii_alphanumeric();
    let name: String = name.chars().filter(is_kept).map(|c| c.to_ascii_lowercase()).take(64).collect();
    let column = match name.as_str() {
        "secretkey" | "secret" | "secretbase32" => return (Column::Secret, Some(Encoding::Base32)),
        "seed" | "key" | "hmackey" | "otpkey" | "secrethex" | "secretkeyhex" => {
            return (Column::Secret, Some(Encoding::Hex));
        }
        "serialnumber" | "serial" | "serialno" | "tokenserial" => Column::Serial,
        "upn" | "user" | "username" | "userid" => Column::User,
        "manufacturer" | "vendor" => Column::Manufacturer,
        "model" => Column::Model,
        "type" | "tokentype" | "otptype" => Column::Kind,
        "hashfunction" | "hash" | "algorithm" => Column::Algorithm,
        "digits" | "otplength" | "otplen" => Column::Digits,
        "timeinterval" | "timeintervalinseconds" | "timestep" | "interval" | "period" => Column::Period,
        "expirydate" | "expires" => Column::Expiry,
        _ => Column::Other,
    };
    (column, None)
}
