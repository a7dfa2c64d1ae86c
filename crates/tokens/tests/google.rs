//! Exports of Google Authenticator.

mod support;

use data_encoding::BASE64;
use otp::{ParameterError, SecretError};
use proptest::prelude::*;
use support::{BASE32, NO_KEYS, read_with, row, shown};
use tokens::{Format::Google, Problem, ReadError};

const SECRET: &[u8] = b"12345678901234567890";

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// An account: secret, name, issuer, algorithm, digits, kind.
fn account(secret: &[u8], name: &str, issuer: &str, [algorithm, digits, kind]: [u64; 3]) -> Vec<u8> {
    [
        bytes(1, secret),
        bytes(2, name.as_bytes()),
        bytes(3, issuer.as_bytes()),
        number(4, algorithm),
        number(5, digits),
        number(6, kind),
    ]
    .concat()
}

/// A link with its place in an export: the number of links, and its index.
fn link(accounts: &[Vec<u8>], export: u64, [links, index]: [u64; 2]) -> String {
    let accounts: Vec<u8> = accounts.iter().flat_map(|account| bytes(1, account)).collect();
    let payload = [accounts, number(2, 1), number(3, links), number(4, index), number(5, export)].concat();
    let data = BASE64.encode(&payload).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("otpauth-migration://offline?data={data}")
}

fn rows(document: &str) -> Vec<(String, String, Option<Problem>)> {
    read_with(Google, document, &NO_KEYS).unwrap().iter().map(shown).collect()
}

/// The problem of an account with these numbers.
fn of_account(secret: &[u8], numbers: [u64; 3]) -> Option<Problem> {
    rows(&link(&[account(secret, "a", "b", numbers)], 1, [1, 0])).remove(0).2
}

#[test]
fn accounts_are_read_with_their_names_and_parameters() {
    let accounts = [
        account(SECRET, "alice@example.com", "Example", [1, 1, 2]),
        account(SECRET, "Example:bob", "Example", [2, 2, 2]),
        account(SECRET, "Other: carol", "", [3, 1, 2]),
        account(SECRET, "", "", [0, 0, 2]),
    ];
    assert_eq!(
        rows(&link(&accounts, 7, [1, 0])),
        [
            row("- Example - alice@example.com", &format!("{BASE32} SHA1 6 30"), None),
            row("- Example - bob", &format!("{BASE32} SHA256 8 30"), None),
            row("- Other - carol", &format!("{BASE32} SHA512 6 30"), None),
            row("- - - -", &format!("{BASE32} SHA1 6 30"), None),
        ]
    );
}

#[test]
fn accounts_of_other_kinds_are_named() {
    assert_eq!(of_account(SECRET, [1, 1, 1]), Some(Problem::Hotp));
    assert_eq!(of_account(SECRET, [1, 1, 0]), Some(Problem::NoAlgorithm));
    assert_eq!(of_account(SECRET, [1, 1, 3]), Some(Problem::OtherAlgorithm));
    assert_eq!(of_account(SECRET, [4, 1, 2]), Some(Problem::Parameter(ParameterError::Algorithm)));
    assert_eq!(of_account(SECRET, [1, 3, 2]), Some(Problem::Parameter(ParameterError::Digits)));
    assert_eq!(of_account(b"", [1, 1, 2]), Some(Problem::NoSecret));
    assert_eq!(of_account(b"123456789", [1, 1, 2]), Some(Problem::Secret(SecretError::TooShort)));
    assert_eq!(of_account(b"1234567890", [1, 1, 2]), Some(Problem::Secret(SecretError::Weak)));
    let not_utf8 = [bytes(1, SECRET), bytes(2, b"\xff"), number(6, 2)].concat();
    assert_eq!(rows(&link(&[not_utf8], 1, [1, 0])), [row("- - - -", &format!("{BASE32} SHA1 6 30"), Problem::Name)]);
}

#[test]
fn an_export_of_several_links_is_complete_or_says_so() {
    let one = |name: &str, place| link(&[account(SECRET, name, "I", [1, 1, 2])], 99, place);
    let all = [one("a", [3, 0]), one("b", [3, 1]), one("c", [3, 2])];
    let users = |document: &str| {
        let tokens = read_with(Google, document, &NO_KEYS).unwrap();
        tokens
            .into_iter()
            .map(|token| token.problem.map_or_else(|| Ok(token.user_id.unwrap()), Err))
            .collect::<Vec<_>>()
    };
    let ok = |names: &[&str]| names.iter().map(|name| Ok((*name).to_owned())).collect::<Vec<_>>();
    assert_eq!(users(&all.join("\n")), ok(&["a", "b", "c"]));
    assert_eq!(users(&format!("{}\r\n\r\n  {}\n{}\n", all[2], all[0], all[1])), ok(&["c", "a", "b"]));
    assert_eq!(users(&all[..2].join("\n")), [ok(&["a", "b"]), vec![Err(Problem::MissingLink)]].concat());
    // One link twice does not make up for another.
    assert_eq!(users(&[&*all[0], &all[0], &all[1]].join("\n")).last(), Some(&Err(Problem::MissingLink)));
    // Two exports have numbers of their own.
    let other = link(&[account(SECRET, "d", "I", [1, 1, 2])], 100, [1, 0]);
    assert_eq!(users(&format!("{}\n{other}", all.join("\n"))), ok(&["a", "b", "c", "d"]));
}

#[test]
fn a_line_that_is_no_link_stops_no_other() {
    let good = link(&[account(SECRET, "a", "I", [1, 1, 2])], 1, [1, 0]);
    let bad = [
        "x",
        "otpauth://totp/a?secret=AAAA",
        "otpauth-migration://offline?data=%%%",
        "otpauth-migration://offline?x=y",
    ];
    for line in bad {
        let rows = rows(&format!("{line}\n{good}"));
        assert_eq!((rows[0].2, rows[1].2), (Some(Problem::Link), None), "{line}");
        assert_eq!(read_with(Google, line, &NO_KEYS).err(), Some(ReadError::NoLink));
    }
    assert_eq!(read_with(Google, "", &NO_KEYS).err(), Some(ReadError::NoLink));
    assert_eq!(rows(&good.replace("otpauth", "OTPAUTH")).len(), 1);
    assert_eq!(rows(&good.replace("?data", "?v=1&data")).len(), 1);
}

#[test]
fn a_message_that_is_cut_off_or_malformed_is_no_link() {
    let payload = bytes(1, &account(SECRET, "a", "I", [1, 1, 2]));
    let of = |payload: &[u8]| rows(&format!("otpauth-migration://offline?data={}", BASE64.encode(payload)));
    assert_eq!(of(&payload)[0].2, None);
    for end in 1..payload.len() {
        assert_eq!(of(&payload[..end]), [row("- - - -", "-", Problem::Link)], "{end}");
    }
    // Unknown fields of every kind are skipped; groups, which are no longer in use, are not.
    let known: Vec<u8> = [payload.clone(), number(9, u64::MAX), bytes(10, b"x")].concat();
    let fixed = [vec![11 << 3 | 1], vec![0; 8], vec![12 << 3 | 5], vec![0; 4]].concat();
    assert_eq!(of(&[known, fixed].concat())[0].2, None);
    for tail in [
        vec![11 << 3 | 1, 0],
        vec![12 << 3 | 5],
        vec![3],
        vec![4],
        vec![0xff; 11],
        [vec![10], vec![0xff; 9], vec![1]].concat(),
    ] {
        assert_eq!(of(&[payload.clone(), tail].concat())[0].2, Some(Problem::Link));
    }
}

proptest! {
    #[test]
    fn every_account_comes_back(secret in proptest::collection::vec(any::<u8>(), 16..128), name in "[a-z]{1,40}", algorithm in 1u64..4, digits in 1u64..3) {
        let rows = rows(&link(&[account(&secret, &name, "I", [algorithm, digits, 2])], 5, [1, 0]));
        let base32 = data_encoding::BASE32_NOPAD.encode(&secret);
        let hash = ["SHA1", "SHA256", "SHA512"][algorithm as usize - 1];
        prop_assert_eq!(&rows[0], &row(&format!("- I - {name}"), &format!("{base32} {hash} {} 30", [6, 8][digits as usize - 1]), None));
    }

    #[test]
    fn no_bytes_panic(payload in proptest::collection::vec(any::<u8>(), 0..80)) {
        let document = format!("otpauth-migration://offline?data={}", BASE64.encode(&payload));
        for token in read_with(Google, &document, &NO_KEYS).unwrap_or_default() {
            prop_assert!(token.secret.is_none() || token.parameters.is_some());
        }
    }
}
