//! Codes: reading, computing, comparing.

use hmac::{EagerHash, Hmac, KeyInit, Mac};
use otp::{Algorithm, Code, Digits, Malformed, Secret, TimeStep, code_at_step};
use proptest::prelude::*;
use subtle::ConstantTimeEq;

/// The digits of a candidate that is read, or the error.
fn read(text: &str) -> Result<String, Malformed> {
    Code::parse(text).map(|code| code.render().to_string())
}

/// RFC 4226 section 5.3 once more, as its reference code has it.
fn reference<D: EagerHash>(key: &[u8], counter: u64, digits: usize) -> String {
    let mac = Hmac::<D>::new_from_slice(key).unwrap().chain_update(counter.to_be_bytes()).finalize().into_bytes();
    let offset = usize::from(mac[mac.len() - 1] & 0xf);
    let word = u32::from_be_bytes(mac[offset..offset + 4].try_into().unwrap()) & 0x7fffffff;
    format!("{:010}", word).split_off(10 - digits)
}

#[test]
fn a_candidate_is_six_to_eight_digits() {
    for digits in ["000000", "123456", "1234567", "12345678", "00000000", "999999"] {
        assert_eq!(read(digits), Ok(digits.to_owned()));
        let code = Code::parse(digits).ok().unwrap();
        assert_eq!(code.len(), digits.len());
        for n in 6..=8 {
            assert_eq!(code.has(Digits::new(n).unwrap()), digits.len() == n as usize);
        }
    }
    for bad in ["", "1", "12345", "123456789", "0000000000"] {
        assert_eq!(read(bad), Err(Malformed), "{bad:?}");
    }
}

#[test]
fn separators_of_unicode_are_ignored_anywhere() {
    for text in [
        "123 456",
        " 123456",
        "123456\n",
        "1 2 3 4 5 6",
        "\t12\r\n34\u{b}\u{c}56 ",
        "123-456",
        "123\u{a0}456",
        "123\u{3000}456",
        "123\u{202f}456",
        "\u{feff}123456",
        "123\u{200b}456",
        "\u{202a}123456\u{202c}",
        "123\u{2010}456",
        "123\u{2013}456",
        "123\u{2212}456",
        "12\u{ad}34\u{2060}56",
    ] {
        assert_eq!(read(text), Ok("123456".to_owned()), "{text:?}");
    }
}

#[test]
fn nothing_else_is_a_code() {
    for bad in [
        "+123456",
        "123.456",
        "12345a",
        "0x1234",
        "1e5000",
        "123456;",
        "12345\0",
        "123456\0",
        // Digits that are not ASCII: full width, Arabic, mathematical; superscripts; marks that join; a blank that is a letter.
        "１２３４５６",
        "١٢٣٤٥٦",
        "𝟏𝟐𝟑𝟒𝟓𝟔",
        "12345²",
        "123456\u{301}",
        "123\u{3164}456",
        "123\u{fe0f}456",
    ] {
        assert_eq!(read(bad), Err(Malformed), "{bad:?}");
    }
    for n in 0..=255u8 {
        let text = format!("12345{}", char::from(n));
        assert_eq!(read(&text).is_ok(), n.is_ascii_digit(), "byte {n}");
    }
}

#[test]
fn a_megabyte_is_refused() {
    for text in ["1", " ", "\0", "é"] {
        assert_eq!(read(&text.repeat(1 << 20)), Err(Malformed));
    }
    assert_eq!(read(&format!("123456{}", " ".repeat(1 << 20))), Err(Malformed));
    assert!(read(&format!("123456{}", " ".repeat(250))).is_ok());
    assert_eq!(read(&format!("123456{}", " ".repeat(251))), Err(Malformed));
}

#[test]
fn leading_zeros_are_kept() {
    let secret = Secret::from_slice(b"12345678901234567890");
    // Found by search: the truncated number of step 10281 is 92555.
    for (digits, text) in [(6, "092555"), (7, "0092555"), (8, "00092555")] {
        let code = code_at_step(&secret, Algorithm::Sha1, Digits::new(digits).unwrap(), TimeStep::new(10281));
        assert_eq!(*code.render(), text);
    }
    // RFC 6238 appendix B: 07081804.
    let code = code_at_step(&secret, Algorithm::Sha1, Digits::new(8).unwrap(), TimeStep::new(37037036));
    assert_eq!(*code.render(), "07081804");
    assert!(bool::from(code.ct_eq(&Code::parse("07081804").ok().unwrap())));
    assert!(!bool::from(code.ct_eq(&Code::parse("7081804").ok().unwrap())));
}

#[test]
fn codes_are_equal_in_every_digit_or_not() {
    let code = |text: &str| Code::parse(text).ok().unwrap();
    let equal = |a: &str, b: &str| bool::from(code(a).ct_eq(&code(b)));
    assert!(equal("12345678", "1234 5678"));
    for place in 0..8 {
        let mut other = "12345678".to_owned();
        other.replace_range(place..place + 1, "0");
        assert!(!equal("12345678", &other));
    }
    assert!(!equal("123456", "1234560"));
    assert!(!equal("000000", "0000000"));
}

#[test]
fn every_step_has_a_code() {
    let secret = Secret::from_slice(b"12345678901234567890");
    for step in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX] {
        let code = code_at_step(&secret, Algorithm::Sha1, Digits::SIX, TimeStep::new(step));
        assert_eq!(*code.render(), reference::<sha1::Sha1>(secret.as_bytes(), step as u64, 6));
    }
}

proptest! {
    #[test]
    fn what_unicode_calls_a_separator_is_dropped_and_nothing_else(
        dropped in "[\\p{White_Space}\\p{Dash}\\p{Cf}]", kept in "[^\\p{White_Space}\\p{Dash}\\p{Cf}\\p{Cn}]",
    ) {
        prop_assert_eq!(read(&format!("123{dropped}456")), Ok("123456".to_owned()), "{:?}", dropped);
        prop_assert_eq!(read(&format!("123{kept}456")).is_ok(), kept.bytes().all(|byte| byte.is_ascii_digit()), "{:?}", kept);
    }

    #[test]
    fn codes_are_those_of_the_reference(
        key in prop::collection::vec(any::<u8>(), 0..=300), step in any::<i64>(), digits in 6i32..=8,
    ) {
        let secret = Secret::from_slice(&key);
        let digits = Digits::new(digits).unwrap();
        let n = usize::from(digits.get());
        let compute = |algorithm| code_at_step(&secret, algorithm, digits, TimeStep::new(step)).render().to_string();
        prop_assert_eq!(compute(Algorithm::Sha1), reference::<sha1::Sha1>(&key, step as u64, n));
        prop_assert_eq!(compute(Algorithm::Sha256), reference::<sha2::Sha256>(&key, step as u64, n));
        prop_assert_eq!(compute(Algorithm::Sha512), reference::<sha2::Sha512>(&key, step as u64, n));
    }

    #[test]
    fn a_rendered_code_is_read_back(digits in "[0-9]{6,8}") {
        prop_assert_eq!(read(&digits), Ok(digits));
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = read(&text);
    }
}
