//! The otpauth URI that an authenticator scans: the Key URI format of Google Authenticator.
//!
//! Owns its writing and its reading. Must never hold a secret outside a wiped buffer, nor repeat any of
//! its input in an error.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

use crate::algorithm::Algorithm;
use crate::names;
use crate::parameter_error::ParameterError;
use crate::parameters::{Digits, Parameters, Period};
use crate::secret::{Secret, SecretError};

/// Longest URI read, in bytes.
const MAX_URI: usize = 8192;

/// Everything but the unreserved characters of RFC 3986 section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A secret with its parameters and its names.
pub struct OtpauthUri {
    /// Who the account is with. `None`: the URI names nobody.
    pub issuer: Option<String>,
    /// Whose account it is.
    pub account: String,
    /// The shared secret.
    pub secret: Secret,
    /// Its parameters.
    pub parameters: Parameters,
}

impl OtpauthUri {
    /// `otpauth://totp/Issuer:account?secret=…&issuer=…&algorithm=SHA1&digits=6&period=30`, percent-encoded as in
    /// RFC 3986 section 2: a space is `%20`. Without an issuer its two places are left out.
    ///
    /// Check the names with [`check_label`](crate::names::check_label) and [`check_account`](crate::names::check_account) before.
    pub fn build(&self) -> Zeroizing<String> {
        let secret = self.secret.to_base32();
        let labels = self.account.len() + 2 * self.issuer.as_deref().map_or(0, str::len);
        // Room for all of it at once, so that no copy of the secret is left behind: a label triples at most,
        // and the constant parts have less than 100 bytes.
        let mut uri = Zeroizing::new(String::with_capacity(100 + 3 * labels + secret.len()));
        uri.push_str("otpauth://totp/");
        if let Some(issuer) = &self.issuer {
            uri.extend(utf8_percent_encode(issuer, RESERVED));
            uri.push(':');
        }
        uri.extend(utf8_percent_encode(&self.account, RESERVED));
        uri.push_str("?secret=");
        uri.push_str(&secret);
        if let Some(issuer) = &self.issuer {
            uri.push_str("&issuer=");
            uri.extend(utf8_percent_encode(issuer, RESERVED));
        }
        let Parameters { algorithm, digits, period } = self.parameters;
        uri.push_str("&algorithm=");
        uri.push_str(algorithm.as_str());
        uri.push_str("&digits=");
        uri.push_str(&digits.get().to_string());
        uri.push_str("&period=");
        uri.push_str(&period.get().to_string());
        uri
    }
}

/// What a URI says. Its names are cleaned, so they pass [`check_label`](crate::names::check_label) and
/// [`check_account`](crate::names::check_account).
pub struct ReadUri {
    /// Who the account is with, if the URI names anyone.
    pub issuer: Option<String>,
    /// Whose account it is, if the URI names anyone.
    pub account: Option<String>,
    /// The shared secret.
    pub secret: Secret,
    /// Its parameters.
    pub parameters: Parameters,
}

impl ReadUri {
    /// Reads an otpauth URI of type `totp`.
    ///
    /// Scheme, type, parameter names, and values of `algorithm` are read in any case, parameters in any order. Unknown
    /// parameters that say nothing about the codes are ignored; the defaults are SHA1, 6 digits, and 30 seconds, also for an empty parameter.
    /// Type, secret, algorithm, digits, and period are read strictly. Names are cleaned and refuse nothing: they are for display.
    /// The length of the secret is not checked; see [`Secret::check_length`].
    ///
    /// # Errors
    /// One [`UriError`] per rule.
    pub fn parse(uri: &str) -> Result<ReadUri, UriError> {
        if uri.len() > MAX_URI {
            return Err(UriError::TooLong);
        }
        let (label, query) = split(uri.trim_ascii())?;
        refuse_other_codes(query)?;
        let (issuer, account) = read_names(label, query);
        let secret = read_parameter(query, "secret")?.ok_or(UriError::NoSecret)?;
        Ok(ReadUri { issuer, account, secret: Secret::from_base32(&secret)?, parameters: read_parameters(query)? })
    }
}

/// Splits `otpauth://totp/label?query` into label and query, still encoded. The label may be missing, with its slash.
fn split(uri: &str) -> Result<(&str, &str), UriError> {
    let (scheme, rest) = uri.split_once("://").ok_or(UriError::Malformed)?;
    let end = rest.find(['/', '?']).ok_or(UriError::Malformed)?;
    let (kind, rest) = rest.split_at(end);
    if !scheme.eq_ignore_ascii_case("otpauth") {
        return Err(UriError::Malformed);
    }
    if !kind.eq_ignore_ascii_case("totp") {
        return Err(UriError::Type);
    }
    let (label, query) = rest.split_once('?').ok_or(UriError::NoSecret)?;
    Ok((label.strip_prefix('/').unwrap_or(label), without_fragment(query)?))
}

/// Drops an empty fragment. Keeps one without a parameter: it is the rest of a name, or refused as part of a value.
/// Refuses another: readers that drop it would read other parameters.
fn without_fragment(query: &str) -> Result<&str, UriError> {
    match query.split_once('#') {
        Some((query, "")) => Ok(query),
        Some((_, fragment)) if fragment.contains(['&', '=', '?']) => Err(UriError::Malformed),
        _ => Ok(query),
    }
}

/// Refuses what would be ignored as an unknown parameter, though the codes depend on it: `encoder`, by which a Steam code has
/// letters, and a parameter after `&amp;`.
fn refuse_other_codes(query: &str) -> Result<(), UriError> {
    if values(query, "encoder").any(|name| !name.is_empty()) {
        return Err(UriError::Encoder);
    }
    let is_given = |name| values(query, name).next().is_some();
    if ["amp;secret", "amp;algorithm", "amp;digits", "amp;period", "amp;encoder"].into_iter().any(is_given) {
        return Err(UriError::Html);
    }
    Ok(())
}

/// Reads issuer and account of a label `issuer:account` or `account`, also with a colon after it. The parameter `issuer` wins over the label.
fn read_names(label: &str, query: &str) -> (Option<String>, Option<String>) {
    let label = names::decode(label);
    let (prefix, account) = label.split_once(':').unwrap_or(("", &label));
    let prefix = names::clean_issuer(prefix);
    (read_issuer(query, prefix.as_deref()).or(prefix), names::clean_account(account.trim_end_matches(':')))
}

/// Reads the parameter `issuer`, the last one that is not empty. `+` is a plus sign, as RFC 3986 has it, unless the label has a
/// space there: then a form encoder wrote it.
fn read_issuer(query: &str, prefix: Option<&str>) -> Option<String> {
    let decoded = |value: &str| names::clean_issuer(&names::decode(value));
    values(query, "issuer")
        .filter_map(|value| {
            decoded(&value.replace('+', " ")).filter(|form| Some(form.as_str()) == prefix).or_else(|| decoded(value))
        })
        .last()
}

/// Reads algorithm, digits, and period. An empty one counts as missing.
fn read_parameters(query: &str) -> Result<Parameters, UriError> {
    let mut parameters = Parameters::default();
    let read = |name| read_parameter(query, name).map(|value| value.filter(|value| !value.is_empty()));
    if let Some(name) = read("algorithm")? {
        parameters.algorithm = Algorithm::parse(&name)?;
    }
    if let Some(digits) = read("digits")? {
        parameters.digits = Digits::new(number(&digits).ok_or(ParameterError::Digits)?)?;
    }
    if let Some(seconds) = read("period")? {
        parameters.period = Period::new(number(&seconds).ok_or(ParameterError::Period)?)?;
    }
    Ok(parameters)
}

/// Returns the decoded value of a parameter that decides, so it may appear once.
fn read_parameter(query: &str, name: &str) -> Result<Option<Zeroizing<String>>, UriError> {
    let mut values = values(query, name);
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(UriError::Duplicate),
        (Some(value), None) => decode(value).map(Some),
        (None, None) => Ok(None),
    }
}

/// Returns the values of all parameters of this name, in any case, still encoded.
fn values<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(candidate, _)| candidate.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Decodes percent-encoding (RFC 3986 section 2.1). Strict: two hexadecimal digits follow every `%`, the result is UTF-8.
fn decode(text: &str) -> Result<Zeroizing<String>, UriError> {
    if !text.split('%').skip(1).all(names::is_escape) {
        return Err(UriError::Encoding);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    bytes.extend(percent_decode_str(text));
    let text = str::from_utf8(&bytes).map_err(|_| UriError::Encoding)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Reads a number that consists only of decimal digits: `parse` would accept a sign.
fn number(text: &str) -> Option<i32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A URI that is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not `otpauth://type/label?parameters`.
    #[error("invalid otpauth URI")]
    Malformed,
    /// More than 8192 bytes.
    #[error("otpauth URI is too long")]
    TooLong,
    /// Not of type `totp`.
    #[error("otpauth URI is not of type totp")]
    Type,
    /// A `%` without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("invalid percent-encoding in otpauth URI")]
    Encoding,
    /// A known parameter appears twice.
    #[error("duplicate parameter in otpauth URI")]
    Duplicate,
    /// A parameter `encoder`: the codes are not decimal.
    #[error("otpauth URI has an encoder")]
    Encoder,
    /// A parameter that decides follows `&amp;`.
    #[error("otpauth URI is escaped for HTML")]
    Html,
    /// No parameter `secret`.
    #[error("otpauth URI has no secret")]
    NoSecret,
    /// The secret cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A parameter is outside its range.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
}

impl UriError {
    /// Returns the accepted range, as a sentence.
    pub const fn detail(&self) -> &'static str {
        match self {
            UriError::Malformed => "Its form is otpauth://totp/issuer:account?secret=SECRET&issuer=issuer.",
            UriError::TooLong => "An otpauth URI has at most 8192 bytes.",
            UriError::Type => "Only otpauth://totp/ is supported. The type hotp counts codes and has no time steps.",
            UriError::Encoding => "Two hexadecimal digits must follow each %, and the decoded text must be UTF-8.",
            UriError::Duplicate => "Each of secret, algorithm, digits, and period may be given once.",
            UriError::Encoder => "Only decimal codes are supported. The encoder steam makes codes with letters.",
            UriError::Html => "Write & instead of &amp;.",
            UriError::NoSecret => "The parameter secret is required.",
            UriError::Secret(error) => error.detail(),
            UriError::Parameter(error) => error.detail(),
        }
    }
}
