//! The export of Google Authenticator: links that an app shows as QR codes.
//!
//! Owns their form and their fields. Must never stop at a line that is none.

use std::collections::{BTreeMap, BTreeSet};

use otp::{Algorithm, ParameterError, Secret};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use crate::base64;
use crate::error::ReadError;
use crate::problem::Problem;
use crate::protobuf::{Value, fields};
use crate::token::{self, MAX_TOKENS, Token, Tokens};

const SCHEME: &str = "otpauth-migration://offline?";

/// Reads links, one per line. An export of many accounts has several; the last token tells of those that are not there.
pub(crate) fn read(document: &str, tokens: &mut Tokens) -> Result<(), ReadError> {
    let mut exports: BTreeMap<u64, Export> = BTreeMap::new();
    let lines = || document.lines().map(str::trim).filter(|line| !line.is_empty());
    if !lines().any(|line| payload(line).is_some()) {
        return Err(ReadError::NoLink);
    }
    for line in lines() {
        tokens.between();
        match payload(line).as_ref().and_then(|payload| Link::read(payload)) {
            Some(link) => {
                let export = exports.entry(link.export).or_default();
                export.links = export.links.max(link.links);
                export.seen.insert(link.index);
                link.accounts.into_iter().try_for_each(|account| tokens.push(account))?;
            }
            None => tokens.push(Token::bad(Problem::Link))?,
        }
    }
    let incomplete = exports.values().filter(|export| (export.seen.len() as u64) < export.links);
    incomplete.into_iter().try_for_each(|_| tokens.push(Token::bad(Problem::MissingLink)))
}

/// What is known of one export.
#[derive(Default)]
struct Export {
    links: u64,
    seen: BTreeSet<u64>,
}

/// Returns the bytes of a link.
fn payload(line: &str) -> Option<Zeroizing<Vec<u8>>> {
    let scheme = line.get(..SCHEME.len())?;
    let query = line.get(SCHEME.len()..).filter(|_| scheme.eq_ignore_ascii_case(SCHEME))?;
    let data = query.split('&').find_map(|parameter| parameter.strip_prefix("data="))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(data.len()));
    bytes.extend(percent_decode_str(data));
    base64::decode(str::from_utf8(&bytes).ok()?)
}

/// A link with its accounts.
#[derive(Default)]
struct Link {
    accounts: Vec<Token>,
    links: u64,
    index: u64,
    export: u64,
}

impl Link {
    fn read(payload: &[u8]) -> Option<Link> {
        let mut link = Link::default();
        fields(payload, |field, value| {
            match (field, value) {
                // One more than is allowed shows that there are too many.
                (1, Value::Bytes(account)) if link.accounts.len() <= MAX_TOKENS => {
                    link.accounts.push(read_account(account)?);
                }
                (3, Value::Number(links)) => link.links = links,
                (4, Value::Number(index)) => link.index = index,
                (5, Value::Number(export)) => link.export = export,
                _ => {}
            }
            Some(())
        })?;
        Some(link)
    }
}

/// The fields of an account.
#[derive(Default)]
struct Account<'a> {
    secret: &'a [u8],
    name: &'a [u8],
    issuer: &'a [u8],
    algorithm: u64,
    digits: u64,
    kind: u64,
}

/// Reads an account. `None` if its form is broken.
fn read_account(message: &[u8]) -> Option<Token> {
    let mut account = Account::default();
    fields(message, |field, value| {
        match (field, value) {
            (1, Value::Bytes(secret)) => account.secret = secret,
            (2, Value::Bytes(name)) => account.name = name,
            (3, Value::Bytes(issuer)) => account.issuer = issuer,
            (4, Value::Number(algorithm)) => account.algorithm = algorithm,
            (5, Value::Number(digits)) => account.digits = digits,
            (6, Value::Number(kind)) => account.kind = kind,
            _ => {}
        }
        Some(())
    })?;
    let mut token = Token::default();
    read_names(&account, &mut token);
    let read = read_codes(&account, &mut token);
    token.settle(read);
    Some(token)
}

/// Reads the names. An account is often `issuer:account`, as in an otpauth URI.
fn read_names(account: &Account, token: &mut Token) {
    let mut text = |bytes| str::from_utf8(bytes).inspect_err(|_| token.note(Problem::Name)).unwrap_or_default();
    let (name, issuer) = (text(account.name), text(account.issuer));
    let (prefix, name) = name.split_once(':').unwrap_or(("", name));
    token.manufacturer = token.label(Some(if issuer.trim().is_empty() { prefix } else { issuer }));
    token.user_id = token.user(Some(name));
}

/// Reads the parameters and the secret. The period is always 30 seconds.
fn read_codes(account: &Account, token: &mut Token) -> Result<(), Problem> {
    match account.kind {
        0 => return Err(Problem::NoAlgorithm),
        1 => return Err(Problem::Hotp),
        2 => {}
        _ => return Err(Problem::OtherAlgorithm),
    }
    let algorithm = match account.algorithm {
        0 | 1 => Algorithm::Sha1,
        2 => Algorithm::Sha256,
        3 => Algorithm::Sha512,
        _ => return Err(ParameterError::Algorithm.into()),
    };
    let digits = match account.digits {
        0 | 1 => 6,
        2 => 8,
        _ => return Err(ParameterError::Digits.into()),
    };
    token.parameters = Some(token::parameters(algorithm, Some(digits), None)?);
    if account.secret.is_empty() {
        return Err(Problem::NoSecret);
    }
    token.take_secret(Secret::from_slice(account.secret))
}
