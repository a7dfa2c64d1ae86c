//! A CSV of tokens: RFC 4180, and what spreadsheets make of it.
//!
//! Owns the records, and what a row of each order means. Must never leave a copy of a record behind.

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use otp::{Algorithm, Encoding, Secret};
use zeroize::{Zeroize, Zeroizing};

use crate::columns::{self, Column, Columns, Order};
use crate::date;
use crate::error::ReadError;
use crate::problem::Problem;
use crate::token::{self, Token, Tokens};

/// Longest record in bytes.
const MAX_RECORD: usize = 16 * 1024;
/// Most columns.
const MAX_COLUMNS: usize = 64;

/// Reads records, of which the first says the order of the columns.
pub(crate) fn read(document: &str, tokens: &mut Tokens) -> Result<(), ReadError> {
    let mut records = Records::new(document);
    let mut known = None;
    while records.advance() {
        tokens.between();
        let fields = records.fields();
        if fields.as_ref().is_some_and(|fields| fields.iter().all(|field| field.is_empty())) {
            continue;
        }
        let order = match &known {
            Some(order) => order,
            None => {
                let (order, is_header) = fields.as_deref().and_then(columns::order).ok_or(ReadError::Columns)?;
                let order = known.insert(order);
                if is_header {
                    continue;
                }
                order
            }
        };
        match fields {
            None => tokens.push(Token::bad(Problem::Columns))?,
            Some(fields) => read_row(order, &fields).map_or(Ok(()), |token| tokens.push(token))?,
        }
    }
    if known.is_some() { Ok(()) } else { Err(ReadError::Columns) }
}

/// Reads a row. `None` for one that is no token by its form.
fn read_row(order: &Order, fields: &[&str]) -> Option<Token> {
    let mut token = Token::default();
    let read = match order {
        Order::Columns(columns) => read_columns(columns, fields, &mut token),
        Order::YubicoLog if fields.first().is_some_and(|event| event.eq_ignore_ascii_case("logging start")) => {
            return None;
        }
        Order::YubicoLog => read_yubico_log(fields, &mut token),
        Order::Yubico => read_yubico(fields, &mut token),
    };
    token.settle(read);
    Some(token)
}

/// Reads a row of columns with a meaning each. Empty columns at the end, which spreadsheets add, do not matter.
fn read_columns(order: &Columns, fields: &[&str], token: &mut Token) -> Result<(), Problem> {
    let find = |column| {
        let place = order.columns.iter().position(|other| *other == column)?;
        fields.get(place).copied().filter(|field| !field.is_empty())
    };
    let more = fields.get(order.columns.len()..).unwrap_or_default();
    if fields.len() < order.least || more.iter().any(|field| !field.is_empty()) {
        return Err(Problem::Columns);
    }
    token.serial = token.label(find(Column::Serial));
    token.manufacturer = token.label(find(Column::Manufacturer));
    token.model = token.label(find(Column::Model));
    token.user_id = token.user(find(Column::User));
    match find(Column::Expiry).map(date::parse) {
        Some(None) => token.note(Problem::Expiry),
        date => token.expires_at = date.flatten(),
    }
    // A column of time steps says it too: HOTP has none.
    let has_steps = !order.columns.contains(&Column::Kind) && order.columns.contains(&Column::Period);
    check_kind(find(Column::Kind).or(has_steps.then_some("totp")))?;
    let number = |column| find(column).map(|field| field.parse::<i64>().map_err(|_| Problem::Number)).transpose();
    let algorithm = find(Column::Algorithm).map_or(Ok(Algorithm::Sha1), Algorithm::parse)?;
    token.parameters = Some(token::parameters(algorithm, number(Column::Digits)?, number(Column::Period)?)?);
    take_secret(find(Column::Secret), order.encoding, token)
}

fn check_kind(kind: Option<&str>) -> Result<(), Problem> {
    match kind.map(str::to_ascii_lowercase).as_deref() {
        Some("totp") => Ok(()),
        Some("hotp") => Err(Problem::Hotp),
        Some("ocra") => Err(Problem::Ocra),
        Some("pin") => Err(Problem::Pin),
        Some(_) => Err(Problem::OtherAlgorithm),
        None => Err(Problem::NoAlgorithm),
    }
}

/// Reads a row of the log. Of what it can program, only HMAC-SHA1 makes TOTP codes: 6 digits every 30 seconds, by an app.
fn read_yubico_log(fields: &[&str], token: &mut Token) -> Result<(), Problem> {
    token.manufacturer = Some("Yubico".to_owned());
    let event = fields.first().map(|event| event.to_ascii_lowercase()).unwrap_or_default();
    match event.as_str() {
        "challenge-response: hmac-sha1" => {}
        "oath-hotp" => return Err(Problem::Hotp),
        "yubico otp" | "challenge-response: yubico otp" => return Err(Problem::YubicoOtp),
        event if event.starts_with("static password") => return Err(Problem::StaticPassword),
        _ => return Err(Problem::NoToken),
    }
    token.parameters = Some(token::parameters(Algorithm::Sha1, None, None)?);
    take_secret(fields.get(5).copied(), Encoding::Hex, token)
}

/// Reads a row of the short form, where HOTP without a public id and HMAC-SHA1 look alike.
fn read_yubico(fields: &[&str], token: &mut Token) -> Result<(), Problem> {
    let [serial, public, private, secret, _, _, rest @ ..] = fields else { return Err(Problem::Columns) };
    if rest.iter().any(|field| !field.is_empty()) {
        return Err(Problem::Columns);
    }
    token.manufacturer = Some("Yubico".to_owned());
    token.serial = token.label(Some(serial));
    match (*public, *private) {
        ("", "0") => token.note(Problem::HotpOrChallenge),
        ("", "") => return Err(Problem::StaticPassword),
        (_, private) if private.len() == 12 => return Err(Problem::YubicoOtp),
        _ => return Err(Problem::Hotp),
    }
    token.parameters = Some(token::parameters(Algorithm::Sha1, None, None)?);
    take_secret(Some(secret), Encoding::Hex, token)
}

fn take_secret(text: Option<&str>, encoding: Encoding, token: &mut Token) -> Result<(), Problem> {
    let secret: Secret = encoding.read(text.filter(|text| !text.is_empty()).ok_or(Problem::NoSecret)?)?;
    token.take_secret(secret)
}

/// The records of a document, one after the other in one buffer.
struct Records<'a> {
    reader: Reader,
    rest: &'a [u8],
    record: Zeroizing<Vec<u8>>,
    ends: [usize; MAX_COLUMNS],
    /// `None`: the record is too long.
    columns: Option<usize>,
}

impl<'a> Records<'a> {
    fn new(document: &'a str) -> Records<'a> {
        let reader = ReaderBuilder::new().delimiter(delimiter(document)).comment(Some(b'#')).build();
        let record = Zeroizing::new(vec![0; MAX_RECORD]);
        Records { reader, rest: document.as_bytes(), record, ends: [0; MAX_COLUMNS], columns: None }
    }

    /// Goes on to the next record. Of one that is too long only the end is found.
    fn advance(&mut self) -> bool {
        let (mut written, mut columns, mut fits) = (0, 0, true);
        loop {
            let (output, ends) = (&mut self.record[written..], &mut self.ends[columns..]);
            let (result, read, more, more_columns) = self.reader.read_record(self.rest, output, ends);
            self.rest = &self.rest[read..];
            (written, columns) = (written + more, columns + more_columns);
            match result {
                ReadRecordResult::InputEmpty => {} // once more without input: that ends the last record
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    (written, columns, fits) = (0, 0, false)
                }
                ReadRecordResult::Record => {
                    self.columns = fits.then_some(columns);
                    return true;
                }
                ReadRecordResult::End => {
                    self.record.zeroize();
                    return false;
                }
            }
        }
    }

    /// Returns the fields of the record, without white space around them. `None` if it is too long.
    fn fields(&self) -> Option<Vec<&str>> {
        let ends = self.ends.get(..self.columns?)?;
        let starts = std::iter::once(&0).chain(ends);
        let field = |(start, end): (&usize, &usize)| str::from_utf8(self.record.get(*start..*end)?).ok();
        starts.zip(ends).map(|place| field(place).map(str::trim)).collect()
    }
}

/// Finds what separates columns: the most frequent of three in the first line that is no comment.
fn delimiter(document: &str) -> u8 {
    let first = document.lines().find(|line| !line.trim().is_empty() && !line.starts_with('#')).unwrap_or_default();
    let count = |delimiter: &u8| first.bytes().filter(|byte| byte == delimiter).count();
    [b'\t', b';', b','].into_iter().max_by_key(count).unwrap_or(b',')
}
