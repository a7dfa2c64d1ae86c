//! The master key file.

use proptest::prelude::*;
use seal::{Fingerprint, KeyFileError, MasterKey, MasterKeys, Rule};
use zeroize::Zeroizing;

/// Bytes 0 to 31, 32 to 63, 64 to 95.
const A: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const B: &str = "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f";
const C: &str = "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f";

fn fingerprint(key: &str) -> Fingerprint {
    let mut bytes = [0; 32];
    hex::decode_to_slice(key, &mut bytes).unwrap();
    MasterKey::from_bytes(Zeroizing::new(bytes)).fingerprint()
}

fn names(keys: Result<MasterKeys, KeyFileError>) -> Result<Vec<Fingerprint>, KeyFileError> {
    keys.map(|keys| keys.iter().map(MasterKey::fingerprint).collect())
}

fn file(text: &str) -> Result<Vec<Fingerprint>, KeyFileError> {
    names(MasterKeys::from_file_text(text))
}

fn env(text: &str) -> Result<Vec<Fingerprint>, KeyFileError> {
    names(MasterKeys::from_env_text(text))
}

fn error(line: usize, rule: Rule) -> Result<Vec<Fingerprint>, KeyFileError> {
    Err(KeyFileError { line, rule })
}

#[test]
fn one_key_per_line_the_first_is_current() {
    let text = format!("{A}\n{B}\n{C}\n");
    assert_eq!(file(&text), Ok([A, B, C].map(fingerprint).to_vec()));
    let keys = MasterKeys::from_file_text(&text).ok().unwrap();
    assert_eq!(keys.current().fingerprint(), fingerprint(A));
    for key in [A, B, C] {
        assert_eq!(keys.find(&fingerprint(key)).map(MasterKey::fingerprint), Some(fingerprint(key)));
    }
    assert!(keys.find(&Fingerprint::parse("0000000000000000").unwrap()).is_none());
}

#[test]
fn comments_blank_lines_and_white_space_do_not_matter() {
    let expected = Ok([A, B].map(fingerprint).to_vec());
    for text in [
        format!("{A}\n{B}"),
        format!("{A}\r\n{B}\r\n"),
        format!("\n\n  \t{A}  \n\n{B}\t\n\n"),
        format!("# current\n{A}\n# old, made by Zoë\n{B}"),
        format!("{A} # current\n#{C}\n   # {C}\n{B}# old"),
        format!("{}\n{}", A.to_uppercase(), B.to_uppercase()),
    ] {
        assert_eq!(file(&text), expected, "{text:?}");
        assert_eq!(env(&text), expected, "{text:?}");
    }
}

#[test]
fn commas_separate_in_the_environment_only() {
    let expected = Ok([A, B, C].map(fingerprint).to_vec());
    for text in [format!("{A},{B},{C}"), format!(" {A} , {B},\n,,{C},"), format!("{A},{B} # x, y\n{C}")] {
        assert_eq!(env(&text), expected, "{text:?}");
        assert_eq!(file(&text).err().map(|error| error.rule), Some(Rule::Form));
    }
    assert_eq!(env(&format!("{A},\n{B},123")), error(2, Rule::Form));
}

#[test]
fn a_key_has_exactly_64_hexadecimal_characters() {
    let swapped = A.replace('f', "g");
    for bad in [&A[1..], &format!("{A}0"), &A[..32], &swapped, &format!("0x{A}"), "x", "0", &format!("{A} {B}")] {
        assert_eq!(file(bad), error(1, Rule::Form), "{bad:?}");
        assert_eq!(file(&format!("# comment\n\n{A}\n{bad}\n{B}")), error(4, Rule::Form), "{bad:?}");
    }
    let inside = format!("{} {}", &A[..32], &A[32..]);
    assert_eq!(file(&inside), error(1, Rule::Form));
    for bad in [format!("\u{feff}{A}"), format!("{A}\u{a0}"), A.replace('0', "０"), format!("{A}é")] {
        assert_eq!(file(&bad), error(1, Rule::NotAscii), "{bad:?}");
    }
}

#[test]
fn one_digit_repeated_is_no_key() {
    for digit in "0123456789abcdefABCDEF".chars() {
        let key = digit.to_string().repeat(64);
        assert_eq!(file(&key), error(1, Rule::RepeatedDigit), "{digit}");
        assert_eq!(file(&format!("{A}\n{key}")), error(2, Rule::RepeatedDigit), "{digit}");
    }
    assert_eq!(file(&"fF".repeat(32)), error(1, Rule::RepeatedDigit));
    assert!(file(&format!("{}1", "0".repeat(63))).is_ok());
    assert!(file(&format!("1{}", "0".repeat(63))).is_ok());
}

#[test]
fn a_key_comes_once() {
    assert_eq!(file(&format!("{A}\n{A}")), error(2, Rule::Duplicate));
    assert_eq!(file(&format!("{A}\n\n{B}\n{}", A.to_uppercase())), error(4, Rule::Duplicate));
    assert_eq!(env(&format!("{A},{B},{B}")), error(1, Rule::Duplicate));
}

#[test]
fn there_is_a_key() {
    for text in ["", "\n", "  ", "# nothing", "#\n#\n\n"] {
        assert_eq!(file(text), error(0, Rule::NoKey), "{text:?}");
        assert_eq!(env(text), error(0, Rule::NoKey), "{text:?}");
    }
    assert_eq!(env(",,"), error(0, Rule::NoKey));
}

#[test]
fn an_error_names_line_and_rule() {
    let error = MasterKeys::from_file_text(&format!("{A}\n{B}0")).err().unwrap();
    assert_eq!(error.to_string(), "line 2: A key must be exactly 64 hexadecimal characters.");
}

proptest! {
    #[test]
    fn no_error_holds_any_part_of_the_text(text in "([0-9a-f]{60,68}[\n, #]){0,4}") {
        if let Some(error) = MasterKeys::from_file_text(&text).err() {
            let shown = format!("{error} {error:?}");
            prop_assert!(text.split(['\n', ',', ' ', '#']).all(|key| key.is_empty() || !shown.contains(&key[..8])));
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = (file(&text), env(&text));
    }
}
