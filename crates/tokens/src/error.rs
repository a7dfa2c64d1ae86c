//! Why a whole document cannot be read.
//!
//! Owns the messages. Must never hold any part of the input.

/// A document that cannot be read, or not with these keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not the name of a format.
    #[error("invalid format of a token document")]
    Format,
    /// More bytes than are read.
    #[error("token document is too large")]
    TooLarge,
    /// More tokens than are read.
    #[error("token document has too many tokens")]
    TooManyTokens,
    /// Not well-formed XML.
    #[error("token document is not valid XML")]
    Xml,
    /// A DTD, or a reference to an entity.
    #[error("token document has a DTD or an entity")]
    Entity,
    /// Elements inside each other, or in one package, without end.
    #[error("token document is nested too deeply or has too large a part")]
    Nesting,
    /// XML of another kind.
    #[error("token document is not PSKC")]
    NotPskc,
    /// Another version of PSKC.
    #[error("token document has another version of PSKC")]
    Version,
    /// A CSV with columns of an unknown order.
    #[error("columns of the token document are not known")]
    Columns,
    /// No line is a link of an export.
    #[error("token document has no otpauth-migration link")]
    NoLink,
    /// A key is needed, and there is none.
    #[error("token document is encrypted with a key")]
    KeyNeeded,
    /// A password is needed, and there is none.
    #[error("token document is encrypted with a password")]
    PasswordNeeded,
    /// The key is not of the length that the cipher needs.
    #[error("key has the wrong length for the token document")]
    KeyLength,
    /// The key derivation is incomplete, or not PBKDF2 with HMAC.
    #[error("key derivation of the token document is not supported")]
    Derivation,
    /// More iterations than are done.
    #[error("key derivation of the token document has too many iterations")]
    Iterations,
    /// No MAC matches.
    #[error("key or password does not open the token document")]
    WrongKey,
}

impl ReadError {
    /// Returns what is accepted, as a sentence.
    pub const fn detail(&self) -> &'static str {
        match self {
            ReadError::Format => "The format must be pskc, csv, or google.",
            ReadError::TooLarge => "A document has at most 16 MB.",
            ReadError::TooManyTokens => "A document has at most 200000 tokens.",
            ReadError::Xml => "A tag is missing or misplaced, or a character is not allowed there.",
            ReadError::Entity => "DTDs, and entities other than those of XML itself, are not read.",
            ReadError::Nesting => {
                "Elements may be 32 deep and have 32 attributes. A package may have 100000 tags and pieces of text."
            }
            ReadError::NotPskc => {
                "Its root must be KeyContainer, with the encryption key and the MAC method before the packages."
            }
            ReadError::Version => "Only version 1.0 of PSKC is read.",
            ReadError::Columns => "The column orders of OATH, Entra, and Yubico are known.",
            ReadError::NoLink => "Each line must be one link that begins with otpauth-migration://offline?data=.",
            ReadError::KeyNeeded => "Its key is needed in argument key.",
            ReadError::PasswordNeeded => "Its password is needed in argument password.",
            ReadError::KeyLength => "A key has 16, 24, or 32 bytes, as the cipher of the document says.",
            ReadError::Derivation => {
                "PBKDF2 with HMAC and SHA1, SHA224, SHA256, SHA384, or SHA512 is supported, with a salt of its own in the document."
            }
            ReadError::Iterations => "At most 2000000 iterations are done.",
            ReadError::WrongKey => {
                "No MAC of an encrypted value matches. The key or password is wrong, or the document was changed."
            }
        }
    }
}
