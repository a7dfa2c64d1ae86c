//! What is wrong with one token.
//!
//! Owns what is said about it. Must never hold any part of the input.

use otp::{ParameterError, SecretError};

/// Why a token cannot be imported as it is. Stops no other token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// RFC 4226.
    Hotp,
    /// RFC 6287.
    Ocra,
    /// A PIN, which RFC 6030 section 5.2 packs like a key.
    Pin,
    /// The codes of a YubiKey that are neither.
    YubicoOtp,
    /// A password that a YubiKey types.
    StaticPassword,
    /// A row of a log that programs no secret.
    NoToken,
    /// Another algorithm.
    OtherAlgorithm,
    /// No algorithm is named.
    NoAlgorithm,
    /// HOTP, or a secret for challenges, which an authenticator can make TOTP codes of.
    HotpOrChallenge,
    /// The PIN policy of RFC 6030 section 5.1 has the user type more than the code.
    PinWithCode,
    /// The policy limits how often the token may be used.
    LimitedUses,
    /// The policy allows other uses only.
    KeyUsage,
    /// The policy has parts that RFC 6030 does not have, which forbids any use (section 5).
    UnknownPolicy,
    /// Codes with letters, or with a check digit.
    Encoding,
    /// Algorithm, digits, or period outside their ranges.
    Parameter(ParameterError),
    /// Further from the right time than an import takes.
    Drift,
    /// A number that is none.
    Number,
    /// There is no secret.
    NoSecret,
    /// The secret cannot be read or used. [`SecretError::Weak`]: it can, if weak secrets are allowed.
    Secret(SecretError),
    /// A value that is neither in clear nor encrypted.
    Value,
    /// Triple DES.
    TripleDes,
    /// Camellia.
    Camellia,
    /// Another cipher, or none is named.
    Cipher,
    /// RSA.
    Certificate,
    /// An encryption or a digest that only drafts of RFC 6030 have.
    DraftEncryption,
    /// AES-CBC without a MAC.
    NoMac,
    /// A MAC without its method.
    NoMacMethod,
    /// A MAC that is no HMAC with SHA-1 or SHA-2, or with a key that is not in the document.
    MacMethod,
    /// The MAC, or the integrity check of a key wrap, fails.
    Mac,
    /// What the MAC covers does not decrypt.
    Decryption,
    /// Text that is no label.
    Name,
    /// An expiry date that is none.
    Expiry,
    /// A serial number that another token has too.
    SerialTwice,
    /// A row of a CSV with too few or too many columns.
    Columns,
    /// A line that is no link.
    Link,
    /// The document has not every link of the export.
    MissingLink,
}

impl Problem {
    /// Returns it as a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Problem::Hotp => "HOTP is not supported: it counts codes and has no time steps.",
            Problem::Ocra => "OCRA is not supported: it answers challenges and has no time steps.",
            Problem::Pin => "It is a PIN and not a token.",
            Problem::YubicoOtp => "Yubico OTP is not supported: it counts codes and has no time steps.",
            Problem::StaticPassword => "It is a static password and not a token.",
            Problem::NoToken => "The row has no token.",
            Problem::OtherAlgorithm => "Its algorithm is not TOTP.",
            Problem::NoAlgorithm => "It does not say that its algorithm is TOTP.",
            Problem::HotpOrChallenge => {
                "The format does not tell HOTP, which is not supported, from challenge and response with HMAC-SHA1."
            }
            Problem::PinWithCode => "Its policy has the user type a PIN with the code.",
            Problem::LimitedUses => "Its policy limits the number of uses.",
            Problem::KeyUsage => "Its policy does not allow one-time codes.",
            Problem::UnknownPolicy => "Its policy has unknown parts.",
            Problem::Encoding => "Its codes do not consist of decimal digits alone, or have a check digit.",
            Problem::Parameter(error) => error.detail(),
            Problem::Drift => "Its clock drift is more than 60 steps.",
            Problem::Number => "One of its numbers cannot be read.",
            Problem::NoSecret => "It has no secret.",
            Problem::Secret(error) => error.detail(),
            Problem::Value => "One of its values is neither in clear nor encrypted.",
            Problem::TripleDes => "It is encrypted with 3DES, which is not supported.",
            Problem::Camellia => "It is encrypted with Camellia, which is not supported.",
            Problem::Cipher => "It is encrypted with a cipher that is not supported.",
            Problem::Certificate => "It is encrypted for an X.509 certificate, which is not supported.",
            Problem::DraftEncryption => "It is protected as in a draft of RFC 6030, which is not supported.",
            Problem::NoMac => "It is encrypted without a MAC, so a change of it would not be noticed.",
            Problem::NoMacMethod => "It has a MAC, but the document names no MAC method.",
            Problem::MacMethod => "Its MAC method is not supported.",
            Problem::Mac => "Its MAC does not match: it was changed.",
            Problem::Decryption => "It does not decrypt.",
            Problem::Name => {
                "One of its names is longer than 256 bytes, or has a colon, a control character, or a space at its start."
            }
            Problem::Expiry => "Its expiry date cannot be read.",
            Problem::SerialTwice => "Another token in the document has the same serial number.",
            Problem::Columns => "The row has too few or too many columns.",
            Problem::Link => "The line is not an otpauth-migration link.",
            Problem::MissingLink => "Another link of this export is missing.",
        }
    }
}

impl From<ParameterError> for Problem {
    fn from(error: ParameterError) -> Problem {
        Problem::Parameter(error)
    }
}

impl From<SecretError> for Problem {
    fn from(error: SecretError) -> Problem {
        Problem::Secret(error)
    }
}
