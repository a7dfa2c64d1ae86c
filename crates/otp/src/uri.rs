//! The otpauth URI that an authenticator scans: the Key URI format of Google Authenticator.
//!
//! Owns its writing, its reading, and the rule for its names. Must never hold a secret outside a wiped buffer, nor repeat any of
//! its input in an error.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use zeroize::Zeroizing;

use crate::algorithm::Algorithm;
use crate::parameter_error::ParameterError;
use crate::parameters::{Digits, Parameters, Period};
use crate::secret::{Secret, SecretError};

/// Longest URI read, in bytes.
const MAX_URI: usize = 8192;

/// Longest issuer or account name in bytes.
const MAX_LABEL: usize = 256;

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
    /// Check the names with [`check_label`] and [`check_account`] before.
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

    /// Reads an otpauth URI of type `totp`.
    ///
    /// Scheme, type, parameter names, and values of `algorithm` are read in any case, parameters in any order. Unknown
    /// parameters are ignored; the defaults are SHA1, 6 digits, and 30 seconds. Spaces after the colon of the label are dropped.
    /// An empty issuer means none. `+` is a plus sign, as RFC 3986 has it, not a space as in HTML forms.
    /// The length of the secret is not checked; see [`Secret::check_length`].
    ///
    /// # Errors
    /// One [`UriError`] per rule. An issuer before the colon must equal the parameter `issuer` if both are given.
    pub fn parse(uri: &str) -> Result<OtpauthUri, UriError> {
        if uri.len() > MAX_URI {
            return Err(UriError::TooLong);
        }
        let (label, query) = split(uri.trim_ascii())?;
        let (issuer, account) = read_label(label, read_parameter(query, "issuer")?)?;
        let secret = read_parameter(query, "secret")?.ok_or(UriError::NoSecret)?;
        Ok(OtpauthUri { issuer, account, secret: Secret::from_base32(&secret)?, parameters: read_parameters(query)? })
    }
}

/// Checks that a text can be an issuer or an account name: 1 to 256 bytes, no colon, no control character.
///
/// # Errors
/// The [`UriError`] of the rule that it breaks.
pub fn check_label(label: &str) -> Result<(), UriError> {
    if label.is_empty() {
        Err(UriError::EmptyLabel)
    } else if label.len() > MAX_LABEL {
        Err(UriError::LongLabel)
    } else if label.contains(':') {
        Err(UriError::Colon)
    } else if label.contains(char::is_control) {
        Err(UriError::Control)
    } else {
        Ok(())
    }
}

/// Checks that a text can be an account name: a label that does not begin with a space, which readers of the URI drop.
///
/// # Errors
/// The [`UriError`] of the rule that it breaks.
pub fn check_account(account: &str) -> Result<(), UriError> {
    if account.starts_with(' ') { Err(UriError::LeadingSpace) } else { check_label(account) }
}

/// Splits `otpauth://totp/label?query` into label and query, still encoded.
fn split(uri: &str) -> Result<(&str, &str), UriError> {
    let (scheme, rest) = uri.split_once("://").ok_or(UriError::Malformed)?;
    let (kind, rest) = rest.split_once('/').ok_or(UriError::Malformed)?;
    // A fragment would silently truncate a name.
    if !scheme.eq_ignore_ascii_case("otpauth") || rest.contains('#') {
        return Err(UriError::Malformed);
    }
    if !kind.eq_ignore_ascii_case("totp") {
        return Err(UriError::Type);
    }
    let (label, query) = rest.split_once('?').ok_or(UriError::NoSecret)?;
    // Checks unknown parameters too, which nobody decodes.
    decode(query)?;
    Ok((label, query))
}

/// Reads issuer and account of a label `issuer:account` or `account`. The parameter `issuer` wins over the label.
fn read_label(label: &str, issuer: Option<Zeroizing<String>>) -> Result<(Option<String>, String), UriError> {
    let label = decode(label)?;
    let (prefix, account) = match label.split_once(':') {
        Some((prefix, account)) => (prefix, account.trim_start_matches(' ')),
        None => ("", label.as_str()),
    };
    let named = issuer.as_deref().map_or("", String::as_str);
    if !prefix.is_empty() && !named.is_empty() && prefix != named {
        return Err(UriError::IssuerMismatch);
    }
    let issuer = if named.is_empty() { prefix } else { named };
    check_label(account)?;
    if issuer.is_empty() {
        return Ok((None, account.to_owned()));
    }
    check_label(issuer)?;
    Ok((Some(issuer.to_owned()), account.to_owned()))
}

/// Reads algorithm, digits, and period.
fn read_parameters(query: &str) -> Result<Parameters, UriError> {
    let mut parameters = Parameters::default();
    if let Some(name) = read_parameter(query, "algorithm")? {
        parameters.algorithm = Algorithm::parse(&name)?;
    }
    if let Some(digits) = read_parameter(query, "digits")? {
        parameters.digits = Digits::new(number(&digits).ok_or(ParameterError::Digits)?)?;
    }
    if let Some(seconds) = read_parameter(query, "period")? {
        parameters.period = Period::new(number(&seconds).ok_or(ParameterError::Period)?)?;
    }
    Ok(parameters)
}

/// Returns the decoded value of a parameter that may appear once.
fn read_parameter(query: &str, name: &str) -> Result<Option<Zeroizing<String>>, UriError> {
    let mut values = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(candidate, _)| candidate.eq_ignore_ascii_case(name));
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(UriError::Duplicate),
        (Some((_, value)), None) => decode(value).map(Some),
        (None, None) => Ok(None),
    }
}

/// Decodes percent-encoding (RFC 3986 section 2.1). Strict: two hexadecimal digits follow every `%`, the result is UTF-8.
fn decode(text: &str) -> Result<Zeroizing<String>, UriError> {
    let is_encoded = |rest: &str| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !text.split('%').skip(1).all(is_encoded) {
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

/// A URI or a name that is not accepted.
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
    /// No parameter `secret`.
    #[error("otpauth URI has no secret")]
    NoSecret,
    /// The label names another issuer than the parameter.
    #[error("otpauth URI names two issuers")]
    IssuerMismatch,
    /// An empty name.
    #[error("account name or issuer is empty")]
    EmptyLabel,
    /// A name of more than 256 bytes.
    #[error("account name or issuer is too long")]
    LongLabel,
    /// A colon in a name.
    #[error("account name or issuer contains a colon")]
    Colon,
    /// A control character in a name.
    #[error("account name or issuer contains a control character")]
    Control,
    /// A space at the start of an account name.
    #[error("account name begins with a space")]
    LeadingSpace,
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
            UriError::Duplicate => "Each of secret, issuer, algorithm, digits, and period may be given once.",
            UriError::NoSecret => "The parameter secret is required.",
            UriError::IssuerMismatch => "The issuer before the colon must equal the parameter issuer.",
            UriError::EmptyLabel | UriError::LongLabel | UriError::Colon | UriError::Control => {
                "An account name or issuer must be 1 to 256 bytes long, without a colon or a control character."
            }
            UriError::LeadingSpace => "Authenticators drop spaces at the start of an account name.",
            UriError::Secret(error) => error.detail(),
            UriError::Parameter(error) => error.detail(),
        }
    }
}
