//! Portable Symmetric Key Container: RFC 6030.
//!
//! Owns what its elements mean, and the older names of its drafts. Must never return a key that its policy does not allow
//! for one-time codes, nor look at a signature: who trusts a document checks it before.

use otp::{Algorithm, Parameters, Secret};
use zeroize::Zeroizing;

use crate::base64;
use crate::cipher::{Cipher, fragment};
use crate::date;
use crate::encryption::{Derivation, Encrypted, Encryption, Hash, Keys, MacMethod, Source, Stop};
use crate::error::ReadError;
use crate::problem::Problem;
use crate::token::{self, Token, Tokens};
use crate::xml::{Document, Element};

/// Names of an algorithm: of a key in RFC 6030, and in its drafts.
const ALGORITHM: [&str; 4] = ["Algorithm", "algorithm", "KeyAlgorithm", "SecretAlgorithm"];

/// Reads a document: first how it is encrypted, then package by package.
pub(crate) fn read(document: &str, keys: &Keys, tokens: &mut Tokens) -> Result<(), ReadError> {
    let mut xml = Document::new(document);
    check_root(&xml.root()?)?;
    let (mut source, mut mac) = (Source::Shared, Err(Problem::NoMacMethod));
    let first = loop {
        let Some(child) = xml.next_child()? else { return Ok(()) };
        match child.name() {
            "EncryptionKey" => source = read_source(&child),
            "EncryptionMethod" => source = Source::Unsupported(Problem::DraftEncryption),
            "MACMethod" => mac = read_mac_method(&child),
            "MACAlgorithm" | "DigestMethod" => mac = Err(Problem::DraftEncryption),
            "KeyPackage" | "Device" => break child,
            _ => {}
        }
    };
    let mut encryption = Encryption::new(keys, source, mac);
    let mut next = Some(first);
    while let Some(child) = next {
        match child.name() {
            "KeyPackage" | "Device" => read_package(&child, &mut encryption, tokens)?,
            "EncryptionKey" | "EncryptionMethod" | "MACMethod" => return Err(ReadError::NotPskc), // what was read did not use it
            _ => {}
        }
        next = xml.next_child()?;
    }
    encryption.finish()
}

fn check_root(root: &Element) -> Result<(), ReadError> {
    match (root.name(), root.attribute(&["Version", "version"])) {
        ("KeyContainer", None | Some("1" | "1.0")) | ("SecretContainer", _) => Ok(()),
        ("KeyContainer", _) => Err(ReadError::Version),
        _ => Err(ReadError::NotPskc),
    }
}

// --- How it is encrypted: section 6 ----------------------------------------------

fn read_source(key: &Element) -> Source {
    match key.find(&["DerivedKey", "KeyDerivationMethod"]) {
        Some(method) => Source::Derived(read_derivation(method)),
        None if key.child("DerivedKey").is_some() => Source::Derived(None),
        None if key.child("X509Data").is_some() => Source::Unsupported(Problem::Certificate),
        None if key.child("EncryptedKey").is_some() => Source::Unsupported(Problem::Cipher),
        None => Source::Shared,
    }
}

/// Reads the parameters of PBKDF2. `None` if one is missing, or not supported.
fn read_derivation(method: &Element) -> Option<Derivation> {
    if fragment(method.attribute(&ALGORITHM)?) != "pbkdf2" {
        return None;
    }
    let parameters = method.child("PBKDF2-params")?;
    let salt = base64::decode(&parameters.find(&["Salt", "Specified"])?.text())?;
    let number = |name| parameters.child(name)?.text().trim().parse::<u64>().ok();
    Some(Derivation {
        hash: parameters.child("PRF").map_or(Some(Hash::Sha1), read_prf)?,
        salt: salt.to_vec(),
        iterations: u32::try_from(number("IterationCount")?).unwrap_or(u32::MAX),
        key_len: usize::try_from(number("KeyLength")?).ok()?,
    })
}

/// Reads the function under PBKDF2: an attribute, or text, as python-pskc writes it. Without either it is HMAC-SHA-1.
fn read_prf(prf: &Element) -> Option<Hash> {
    let text = prf.text();
    let name = prf.attribute(&ALGORITHM).unwrap_or(text.trim());
    if name.is_empty() { Some(Hash::Sha1) } else { Hash::parse(name) }
}

fn read_mac_method(method: &Element) -> Result<MacMethod, Problem> {
    let hash = method.attribute(&ALGORITHM).and_then(Hash::parse).ok_or(Problem::MacMethod)?;
    match method.child("MACKey") {
        Some(key) => Ok(MacMethod { hash, key: Some(read_encrypted(key)?) }),
        None if method.child("MACKeyReference").is_some() => Err(Problem::MacMethod),
        None => Ok(MacMethod { hash, key: None }),
    }
}

fn read_encrypted(value: &Element) -> Result<Encrypted, Problem> {
    let data = value.find(&["CipherData", "CipherValue"]).and_then(|data| base64::decode(&data.text()));
    let method = value.child("EncryptionMethod");
    let scheme = method.and_then(|method| method.child("EncryptionScheme")).or(method);
    let algorithm = scheme.and_then(|scheme| scheme.attribute(&ALGORITHM));
    Ok(Encrypted { cipher: algorithm.map_or(Err(Problem::Cipher), Cipher::parse), data: data.ok_or(Problem::Value)? })
}

// --- Its keys: sections 4 and 5 --------------------------------------------------

fn read_package(package: &Element, encryption: &mut Encryption, tokens: &mut Tokens) -> Result<(), ReadError> {
    tokens.between();
    let device = Device::read(package);
    let mut keys = package.children(&["Key", "Secret"]).peekable();
    if keys.peek().is_none() {
        let mut token = Token::bad(Problem::NoSecret);
        device.describe(None, &mut token);
        return tokens.push(token);
    }
    for key in keys {
        tokens.between();
        let mut token = Token::default();
        device.describe(Some(key), &mut token);
        match read_key(key, encryption, &mut token) {
            Ok(()) => {}
            Err(Stop::Token(problem)) => token.settle(Err(problem)),
            Err(Stop::Document(error)) => return Err(error),
        }
        tokens.push(token)?;
    }
    Ok(())
}

/// What the keys of a package share. Read once for all of them: there may be many, and the texts may be long.
struct Device(Token);

impl Device {
    fn read(package: &Element) -> Device {
        let device = package.child("DeviceInfo").or(package.child("DeviceId"));
        let mut shared = Token::default();
        shared.serial = shared.label(text(device, "SerialNo").as_ref().map(|text| text.as_str()));
        shared.manufacturer = shared.label(text(device, "Manufacturer").as_ref().map(|text| text.as_str()));
        shared.model = shared.label(text(device, "Model").as_ref().map(|text| text.as_str()));
        shared.user_id = shared.user(text(device, "UserId").as_ref().map(|text| text.as_str()));
        read_expiry(&[text(device, "ExpiryDate"), text(device, "Expiry")], &mut shared);
        Device(shared)
    }

    /// Fills in what is for display: device, user, and the earlier expiry date.
    fn describe(&self, key: Option<&Element>, token: &mut Token) {
        let Device(shared) = self;
        token.serial = shared.serial.clone();
        token.manufacturer = shared.manufacturer.clone();
        token.model = shared.model.clone();
        token.expires_at = shared.expires_at;
        if let Some(problem) = shared.problem {
            token.note(problem);
        }
        token.user_id = match text(key, "UserId") {
            Some(user) => token.user(Some(user.as_str())),
            None => shared.user_id.clone(),
        };
        let policy = key.and_then(|key| key.child("Policy"));
        read_expiry(&[text(policy, "ExpiryDate"), text(key, "ExpiryDate")], token);
    }
}

fn text(element: Option<&Element>, name: &str) -> Option<Zeroizing<String>> {
    element.and_then(|element| element.child(name)).map(|child| child.text())
}

/// Keeps the earliest date.
fn read_expiry(dates: &[Option<Zeroizing<String>>], token: &mut Token) {
    for date in dates.iter().flatten() {
        match date::parse(date) {
            Some(date) => token.expires_at = Some(token.expires_at.map_or(date, |before| before.min(date))),
            None => token.note(Problem::Expiry),
        }
    }
}

fn read_key(key: &Element, encryption: &mut Encryption, token: &mut Token) -> Result<(), Stop> {
    check_algorithm(key)?;
    check_policy(key)?;
    let period = read_number(key, "TimeInterval", encryption)?;
    token.parameters = Some(read_parameters(key, period)?);
    token.take_drift(read_number(key, "TimeDrift", encryption)?.unwrap_or(0))?;
    let secret = match read_value(data(key, "Secret").ok_or(Problem::NoSecret)?, encryption)? {
        Value::Plain(text) => base64::decode(&text).ok_or(Problem::Secret(otp::SecretError::Base64))?,
        Value::Bytes(bytes) => bytes,
    };
    Ok(token.take_secret(Secret::from_bytes(secret))?)
}

fn check_algorithm(key: &Element) -> Result<(), Problem> {
    let algorithm = key.attribute(&ALGORITHM).ok_or(Problem::NoAlgorithm)?;
    match algorithm.rsplit([':', '#']).next().unwrap_or(algorithm).trim().to_ascii_lowercase().as_str() {
        "totp" => Ok(()),
        "hotp" => Err(Problem::Hotp),
        "ocra" => Err(Problem::Ocra),
        "pin" => Err(Problem::Pin),
        "yubikey-aes" => Err(Problem::YubicoOtp),
        _ => Err(Problem::OtherAlgorithm),
    }
}

/// Checks the policy. What is unknown in it forbids any use (section 5).
fn check_policy(key: &Element) -> Result<(), Problem> {
    const KNOWN: [&str; 5] = ["StartDate", "ExpiryDate", "NumberOfTransactions", "KeyUsage", "PINPolicy"];
    let Some(policy) = key.child("Policy") else { return Ok(()) };
    let pin = policy.child("PINPolicy").and_then(|pin| pin.attribute(&["PINUsageMode"]));
    let mut usages = policy.children(&["KeyUsage"]).peekable();
    if !policy.names().all(|name| KNOWN.contains(&name)) {
        Err(Problem::UnknownPolicy)
    } else if policy.child("NumberOfTransactions").is_some() {
        Err(Problem::LimitedUses)
    } else if usages.peek().is_some() && !usages.any(|usage| usage.text().trim() == "OTP") {
        Err(Problem::KeyUsage)
    } else if pin.is_some_and(|mode| mode != "Local") {
        Err(Problem::PinWithCode)
    } else {
        Ok(())
    }
}

/// Reads hash and digits (section 4.3.4).
fn read_parameters(key: &Element, period: Option<i64>) -> Result<Parameters, Problem> {
    let suite = key.find(&["AlgorithmParameters", "Suite"]).map(|suite| suite.text());
    let suite = suite.as_ref().map(|suite| suite.trim()).filter(|suite| !suite.is_empty());
    let algorithm = suite.map_or(Ok(Algorithm::Sha1), Algorithm::parse)?;
    let format = key.find(&["AlgorithmParameters", "ResponseFormat"]).or(key.find(&["Usage", "ResponseFormat"]));
    let attribute = |names| format.and_then(|format| format.attribute(names)).map(str::trim);
    if attribute(&["Encoding", "Format", "format"]).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("DECIMAL"))
        || attribute(&["CheckDigits", "CheckDigit"]).is_some_and(|check| !matches!(check, "false" | "0"))
    {
        return Err(Problem::Encoding);
    }
    let length = attribute(&["Length", "length"]);
    let digits = length.map(|length| length.parse::<i64>().map_err(|_| Problem::Number)).transpose()?;
    Ok(token::parameters(algorithm, digits, period)?)
}

/// Finds a part of the data of a key: an element of this name or, in drafts, `Data` with this name.
fn data<'e, 'a>(key: &'e Element<'a>, name: &str) -> Option<&'e Element<'a>> {
    key.children(&["Data"]).find_map(|data| {
        let named = data.attribute(&["Name"]).is_some_and(|attribute| attribute.eq_ignore_ascii_case(name));
        data.child(name).or(named.then_some(data))
    })
}

/// A value: text as in the document, or bytes that were encrypted.
enum Value {
    Plain(Zeroizing<String>),
    Bytes(Zeroizing<Vec<u8>>),
}

fn read_value(value: &Element, encryption: &mut Encryption) -> Result<Value, Stop> {
    let mac = value.child("ValueMAC");
    if let Some(plain) = value.child("PlainValue") {
        Ok(Value::Plain(plain.text()))
    } else if let Some(encrypted) = value.child("EncryptedValue") {
        let encrypted = read_encrypted(encrypted)?;
        let mac = mac.map(|mac| base64::decode(&mac.text()).ok_or(Problem::Value)).transpose()?;
        Ok(Value::Bytes(encryption.open(&encrypted, mac.as_ref().map(|mac| mac.as_slice()))?))
    } else if let Some(plain) = value.child("Value") {
        let is_encrypted = mac.is_some() || value.child("ValueDigest").is_some();
        if is_encrypted { Err(Problem::DraftEncryption.into()) } else { Ok(Value::Plain(plain.text())) }
    } else {
        Err(Problem::Value.into())
    }
}

/// Reads a number: decimal digits or, where programs differ, the bytes of a big-endian integer.
fn read_number(key: &Element, name: &str, encryption: &mut Encryption) -> Result<Option<i64>, Stop> {
    let Some(value) = data(key, name) else { return Ok(None) };
    let number = match read_value(value, encryption)? {
        Value::Plain(text) => match text.trim().parse() {
            Ok(number) => Some(number),
            Err(_) => base64::decode(&text).and_then(|bytes| integer(&bytes)),
        },
        Value::Bytes(bytes) => integer(&bytes),
    };
    number.map(Some).ok_or(Problem::Number.into())
}

fn integer(bytes: &[u8]) -> Option<i64> {
    if let Some(number) = str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()) {
        return Some(number);
    }
    match *bytes {
        [a, b, c, d] => Some(i32::from_be_bytes([a, b, c, d]).into()),
        [] | [_, _, _, _, _, _, _, _, _, ..] => None,
        _ => Some(bytes.iter().fold(0i64, |number, byte| number << 8 | i64::from(*byte))),
    }
}
