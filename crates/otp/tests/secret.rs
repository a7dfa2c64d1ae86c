//! Secrets and their base32 form.

use data_encoding::{BASE32, BASE32_NOPAD};
use otp::{Algorithm, Digits, Secret, SecretError, TimeStep, code_at_step};
use proptest::prelude::*;
use sha1::{Digest, Sha1};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The bytes of a secret that is read, or the error.
fn read(text: &str) -> Result<Vec<u8>, SecretError> {
    Secret::from_base32(text).map(|secret| secret.as_bytes().to_vec())
}

#[test]
fn rfc_4648_section_10() {
    let vectors = [
        ("f", "MY======"),
        ("fo", "MZXQ===="),
        ("foo", "MZXW6==="),
        ("foob", "MZXW6YQ="),
        ("fooba", "MZXW6YTB"),
        ("foobar", "MZXW6YTBOI======"),
    ];
    for (bytes, padded) in vectors {
        assert_eq!(read(padded), Ok(bytes.as_bytes().to_vec()));
        assert_eq!(*Secret::from_slice(bytes.as_bytes()).to_base32(), padded.trim_end_matches('='));
    }
}

#[test]
fn case_spaces_dashes_and_padding_do_not_matter() {
    let expected = Ok(b"12345678901234567890".to_vec());
    for text in [
        "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ",
        "gezdgnbvgy3tqojqgezdgnbvgy3tqojq",
        "gezd gnbv gy3t qojq GEZD GNBV GY3T QOJQ",
        "  GEZD-GNBV\tGY3T\nQOJQ\r\nGEZD\u{b}GNBV\u{c}GY3TQOJQ - ",
        "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ======",
        "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ == = \n",
        "\u{feff}GEZDGNBV\u{a0}GY3TQOJQ\u{2013}GEZDGNBV\u{200b}GY3TQOJQ =\u{a0}=\u{200b}",
    ] {
        assert_eq!(read(text), expected, "{text:?}");
    }
}

#[test]
fn every_other_character_is_refused() {
    let good = "GEZDGNBVGY3TQOJQ";
    // Digits that base32 leaves out, padding in the middle, other punctuation, look-alikes.
    for bad in ["0", "1", "8", "9", "=", "_", "+", "/", ".", ",", "\0", "\u{7f}", "é", "Ａ", "２", "\u{301}"] {
        for at in [0, 7] {
            let mut text = good.to_owned();
            text.insert_str(at, bad);
            assert_eq!(read(&text), Err(SecretError::Symbol), "{bad:?} at {at}");
        }
    }
    for n in 0..=255u8 {
        let text = format!("{}{good}", char::from(n));
        let accepted =
            n.is_ascii_alphabetic() || (b'2'..=b'7').contains(&n) || b"- \t\n\x0b\x0c\r\x85\xa0\xad".contains(&n);
        assert_eq!(read(&text) != Err(SecretError::Symbol), accepted, "byte {n}");
    }
}

#[test]
fn a_lost_character_is_seen() {
    for length in 1..=40 {
        let expected = !matches!(length % 8, 1 | 3 | 6);
        assert_eq!(read(&"A".repeat(length)) != Err(SecretError::Incomplete), expected, "{length} characters");
    }
    for nothing in ["", " ", "-", "====", " - = "] {
        assert_eq!(read(nothing), Err(SecretError::TooShort));
    }
}

#[test]
fn bits_after_the_last_byte_are_ignored() {
    // 26 random characters are 16 bytes and two bits.
    let bytes = read(&format!("{}A", "7".repeat(25))).unwrap();
    for last in ["B", "C", "D"] {
        assert_eq!(read(&format!("{}{last}", "7".repeat(25))), Ok(bytes.clone()));
    }
    assert_ne!(read(&format!("{}E", "7".repeat(25))), Ok(bytes));
}

#[test]
fn the_length_rule() {
    for length in 0..=300 {
        let secret = Secret::from_slice(&vec![1; length]);
        let (strict, weak) = match length {
            0..10 => (Err(SecretError::TooShort), Err(SecretError::TooShort)),
            10..16 => (Err(SecretError::Weak), Ok(())),
            16..=128 => (Ok(()), Ok(())),
            _ => (Err(SecretError::TooLong), Err(SecretError::TooLong)),
        };
        assert_eq!((secret.check_length(false), secret.check_length(true)), (strict, weak), "{length} bytes");
    }
}

#[test]
fn a_megabyte_is_refused() {
    for text in ["A", " ", "=", "é"] {
        assert_eq!(read(&text.repeat(1 << 20)), Err(SecretError::TooLong));
    }
    assert!(read(&"A".repeat(1024)).is_ok());
    assert_eq!(read(&"A".repeat(1025)), Err(SecretError::TooLong));
    // The longest secret fits with separators to spare.
    let longest = BASE32.encode(&[0xff; 128]);
    let spaced: String = longest.chars().flat_map(|c| [' ', c]).collect();
    assert_eq!(read(&spaced), Ok(vec![0xff; 128]));
}

#[test]
fn same_as_compares_every_byte() {
    let secret = Secret::from_slice(&[5; 20]);
    assert!(secret.same_as(&Secret::from_slice(&[5; 20])));
    for place in 0..20 {
        let mut bytes = [5; 20];
        bytes[place] ^= 0x80;
        assert!(!secret.same_as(&Secret::from_slice(&bytes)));
    }
    assert!(!secret.same_as(&Secret::from_slice(&[5; 19])));
    assert!(!secret.same_as(&Secret::from_slice(&[])));
}

/// RFC 2104 section 2: a key is padded with zeros, and hashed first if it is longer than a block.
#[test]
fn secrets_with_the_same_codes() {
    let same = |one: &[u8], other: &[u8], algorithm| {
        let (one, other) = (Secret::from_slice(one), Secret::from_slice(other));
        let codes = |step| {
            let code = |secret| code_at_step(secret, algorithm, Digits::new(8).unwrap(), TimeStep::new(step));
            bool::from(code(&one).ct_eq(&code(&other)))
        };
        let same = one.same_codes_as(&other, algorithm);
        assert_eq!(same, (0..5).all(codes));
        same
    };
    let short = [7; 20];
    let padded = [&short[..], &[0; 5]].concat();
    let long = [9; 65];
    assert!(same(&short, &padded, Algorithm::Sha1));
    assert!(same(&short, &padded, Algorithm::Sha512));
    assert!(!same(&short, &[7; 21], Algorithm::Sha1));
    assert!(same(&long, &Sha1::digest(long), Algorithm::Sha1));
    assert!(!same(&long, &Sha1::digest(long), Algorithm::Sha512));
    assert!(same(&long, &Sha256::digest(long), Algorithm::Sha256));
    assert!(!same(&long, &Sha256::digest(long), Algorithm::Sha512));
}

proptest! {
    #[test]
    fn round_trip(bytes in prop::collection::vec(any::<u8>(), 1..=128)) {
        let text = Secret::from_slice(&bytes).to_base32();
        prop_assert_eq!(&*text, &BASE32_NOPAD.encode(&bytes));
        prop_assert_eq!(read(&text), Ok(bytes));
    }

    #[test]
    fn whatever_the_library_reads_is_read_alike(text in "[A-Z2-7]{1,210}") {
        if let Ok(bytes) = BASE32_NOPAD.decode(text.as_bytes()) {
            prop_assert_eq!(read(&text), Ok(bytes));
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = read(&text);
    }
}
