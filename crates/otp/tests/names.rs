//! Names: their rule, and the cleaning of those that a URI brings.

use otp::{NameError, check_account, check_label, clean_account, clean_issuer};
use proptest::prelude::*;

#[test]
fn names_have_a_rule() {
    for good in ["a", "Example Corp", "alice@example.com", "Zoë", &"x".repeat(256), "50%", "a/b?c#d&e=f", "\u{202e}"] {
        assert_eq!(check_label(good), Ok(()));
    }
    assert_eq!(check_label(""), Err(NameError::Empty));
    assert_eq!(check_label(&"x".repeat(257)), Err(NameError::TooLong));
    assert_eq!(check_label(&"é".repeat(129)), Err(NameError::TooLong));
    assert_eq!(check_label(&"x".repeat(1 << 20)), Err(NameError::TooLong));
    for bad in [":", "a:b", "a:", ":b"] {
        assert_eq!(check_label(bad), Err(NameError::Colon));
    }
    for bad in ["\0", "a\nb", "a\tb", "\u{7f}", "\u{85}", "a\r"] {
        assert_eq!(check_label(bad), Err(NameError::Control));
    }
}

#[test]
fn an_account_begins_with_no_space() {
    assert_eq!(check_account(" alice"), Err(NameError::LeadingSpace));
    assert_eq!(check_account("alice b"), Ok(()));
    assert_eq!(check_account(""), Err(NameError::Empty));
}

#[test]
fn a_clean_name_stays_as_it_is() {
    for name in ["a", "Example Corp ", "Zoë", "שלום", "مرحبا", "👩🏽‍🚀", "\u{200b}", "\u{feff}x", "100%", "\u{a0}", "a  b"]
    {
        assert_eq!(clean_issuer(name).as_deref(), Some(name));
        assert_eq!(clean_account(name).as_deref(), Some(name));
    }
    assert_eq!(clean_issuer(" Ex").as_deref(), Some(" Ex"));
}

#[test]
fn a_colon_is_a_space_and_what_cannot_be_shown_is_dropped() {
    assert_eq!(clean_issuer("a:b").as_deref(), Some("a b"));
    assert_eq!(clean_account(": a:b:").as_deref(), Some("a b "));
    assert_eq!(clean_account("\u{202e} \n a\tb\u{85}").as_deref(), Some("ab"));
    for bidirectional in
        "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}".chars()
    {
        assert_eq!(clean_issuer(&format!("a{bidirectional}b")).as_deref(), Some("ab"));
        assert_eq!(clean_account(&format!("{bidirectional} a")).as_deref(), Some("a"));
    }
    for nothing in ["", "\n", "\u{202e}\0"] {
        assert_eq!(clean_issuer(nothing), None);
    }
    for nothing in [" ", ":", " : ", "\u{202e} "] {
        assert_eq!(clean_account(nothing), None);
    }
}

#[test]
fn a_long_name_is_cut_between_characters() {
    assert_eq!(clean_account(&"x".repeat(1 << 20)), Some("x".repeat(256)));
    assert_eq!(clean_issuer(&"日".repeat(100)), Some("日".repeat(85)));
    assert_eq!(clean_issuer(&format!("x{}", "🔐".repeat(64))), Some(format!("x{}", "🔐".repeat(63))));
    // Nothing shorter takes the place of what did not fit.
    assert_eq!(clean_issuer(&format!("{}éx", "x".repeat(255))), Some("x".repeat(255)));
}

proptest! {
    #[test]
    fn any_text_is_cleaned_to_a_name_or_to_nothing(text in "[\\PC\\p{Cf}\\p{Cc}: %]{0,300}") {
        if let Some(name) = clean_issuer(&text) {
            prop_assert_eq!(check_label(&name), Ok(()));
            prop_assert_eq!(clean_issuer(&name), Some(name));
        }
        if let Some(name) = clean_account(&text) {
            prop_assert_eq!(check_account(&name), Ok(()));
            prop_assert_eq!(clean_account(&name), Some(name));
        }
    }
}
