//! Parsers of `crates/tokens`: PSKC, CSV, and exports of Google Authenticator.

use otp::{Secret, check_account};
use tokens::{Format, Keys, MAX_TOKENS, Token, read};

/// The key of the encrypted documents in the corpus: that of RFC 6030 figure 6. No password, or the fuzzer would find out that
/// two million iterations take seconds.
const KEY: [u8; 16] = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56, 0x78, 0x90, 0x12];

/// A PSKC document.
pub fn pskc(data: &[u8]) -> bool {
    has_tokens(Format::Pskc, data)
}

/// A CSV.
pub fn csv(data: &[u8]) -> bool {
    has_tokens(Format::Csv, data)
}

/// Links of an export.
pub fn google(data: &[u8]) -> bool {
    has_tokens(Format::Google, data)
}

/// A document is read to its end or refused; each token that is read is one that an import takes, and has a problem if not.
/// The caller is asked before each. Returns whether there is a token without a problem.
fn has_tokens(format: Format, data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let mut asked = 0;
    let keys = Keys { key: Some(&KEY), password: None };
    let Ok(tokens) = read(format, &text, &keys, &mut || asked += 1) else { return false };
    assert!(tokens.len() <= MAX_TOKENS);
    // The token for links that are missing comes after all lines.
    assert!(asked >= tokens.len() || format == Format::Google);
    tokens.iter().for_each(check);
    tokens.iter().any(|token| token.problem.is_none())
}

fn check(token: &Token) {
    assert!(token.secret.is_some() || token.problem.is_some());
    if let Some(secret) = &token.secret {
        assert!(token.parameters.is_some());
        assert!(secret.check_length(true).is_ok());
        let again = Secret::from_base32(&secret.to_base32()).expect("its own form");
        assert!(again.same_as(secret));
    }
    assert!((-60..=60).contains(&token.drift));
    for label in [&token.serial, &token.manufacturer, &token.model].into_iter().flatten() {
        assert!(check_account(label).is_ok() && label.trim() == label);
    }
    if let Some(user) = &token.user_id {
        assert!((1..=256).contains(&user.len()) && !user.contains(char::is_control));
    }
}
