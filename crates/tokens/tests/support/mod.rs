//! What the tests of documents share: a row to compare, and documents to read.

#![allow(dead_code)] // each test file uses a part of it

use tokens::{Format, Keys, Problem, ReadError, Token, read};

pub const NO_KEYS: Keys = Keys { key: None, password: None };
/// The secret of the vectors of RFC 6238, `12345678901234567890`.
pub const BASE32: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
pub const BASE64: &str = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTA=";
pub const HEX: &str = "3132333435363738393031323334353637383930";

/// A token as text: serial, manufacturer, model, user; secret, algorithm, digits, period; and the problem.
pub fn shown(token: &Token) -> (String, String, Option<Problem>) {
    let text = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let names = [&token.serial, &token.manufacturer, &token.model, &token.user_id].map(text).join(" ");
    let codes = match (&token.secret, token.parameters) {
        (Some(secret), Some(parameters)) => {
            let (algorithm, digits) = (parameters.algorithm.as_str(), parameters.digits.get());
            format!("{} {algorithm} {digits} {}", *secret.to_base32(), parameters.period.get())
        }
        (None, _) => "-".to_owned(),
        (Some(_), None) => panic!("a secret without parameters"),
    };
    (names, codes, token.problem)
}

pub fn row(names: &str, codes: &str, problem: impl Into<Option<Problem>>) -> (String, String, Option<Problem>) {
    (names.to_owned(), codes.to_owned(), problem.into())
}

pub fn read_with(format: Format, document: &str, keys: &Keys) -> Result<Vec<Token>, ReadError> {
    read(format, document, keys, &mut || {})
}

/// The problem of the only token of a document.
pub fn problem(format: Format, document: &str, keys: &Keys) -> Option<Problem> {
    let tokens = read_with(format, document, keys).unwrap();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].secret.is_none(), tokens[0].problem.is_some());
    tokens[0].problem
}

/// A PSKC document of these elements.
pub fn container(elements: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
        <KeyContainer Version="1.0" xmlns="urn:ietf:params:xml:ns:keyprov:pskc"
            xmlns:ds="http://www.w3.org/2000/09/xmldsig#" xmlns:xenc="http://www.w3.org/2001/04/xmlenc#"
            xmlns:xenc11="http://www.w3.org/2009/xmlenc11#" xmlns:pkcs5="http://www.rsasecurity.com/rsalabs/pkcs/schemas/pkcs-5v2-0#">
        {elements}</KeyContainer>"#
    )
}

/// A package with a TOTP key that has these elements.
pub fn package(serial: &str, elements: &str) -> String {
    format!(
        r#"<KeyPackage><DeviceInfo><Manufacturer>ACME</Manufacturer><SerialNo>{serial}</SerialNo></DeviceInfo>
        <Key Id="1" Algorithm="urn:ietf:params:xml:ns:keyprov:pskc:totp">{elements}</Key></KeyPackage>"#
    )
}

/// The data of a key in clear.
pub fn plain_secret() -> String {
    format!("<Data><Secret><PlainValue>{BASE64}</PlainValue></Secret></Data>")
}

/// An encrypted value, with its MAC if there is one.
pub fn encrypted(name: &str, algorithm: &str, cipher: &str, mac: Option<&str>) -> String {
    let mac = mac.map(|mac| format!("<ValueMAC>{mac}</ValueMAC>")).unwrap_or_default();
    format!("<{name}><EncryptedValue>{}</EncryptedValue>{mac}</{name}>", cipher_data(algorithm, cipher))
}

pub fn cipher_data(algorithm: &str, cipher: &str) -> String {
    format!(
        r#"<xenc:EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#{algorithm}"/>
        <xenc:CipherData><xenc:CipherValue>{cipher}</xenc:CipherValue></xenc:CipherData>"#
    )
}
