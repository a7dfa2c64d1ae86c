//! Encodings of a secret, and what is surely base32.

use data_encoding::{BASE32_NOPAD, BASE64, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
use otp::encoding::read_base32_only;
use otp::{Encoding, ParameterError, SecretError};
use proptest::prelude::*;

fn read(encoding: Encoding, text: &str) -> Result<Vec<u8>, SecretError> {
    encoding.read(text).map(|secret| secret.as_bytes().to_vec())
}

/// What is read of a text of unknown origin.
fn surely(text: &str) -> Result<Vec<u8>, SecretError> {
    read_base32_only(text).map(|secret| secret.as_bytes().to_vec())
}

const BYTES: &[u8] = b"12345678901234567890";

#[test]
fn encodings_have_names_in_any_case() {
    for (name, encoding) in [
        ("base32", Encoding::Base32),
        ("hex", Encoding::Hex),
        ("base64", Encoding::Base64),
        ("raw", Encoding::Raw),
        ("BASE64", Encoding::Base64),
    ] {
        assert_eq!(Encoding::parse(name), Ok(encoding));
    }
    for bad in ["", "base16", "hexadecimal", "text", " hex", "base64url"] {
        assert_eq!(Encoding::parse(bad), Err(ParameterError::Encoding), "{bad:?}");
    }
}

#[test]
fn each_encoding_is_read() {
    assert_eq!(read(Encoding::Base32, "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"), Ok(BYTES.to_vec()));
    assert_eq!(read(Encoding::Base32, "gEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"), Ok(BYTES.to_vec()));
    for hex in
        ["3132333435363738393031323334353637383930", "31323334 35363738\u{a0}39303132-33343536\u{2013}37383930\n"]
    {
        assert_eq!(read(Encoding::Hex, hex), Ok(BYTES.to_vec()));
    }
    assert_eq!(read(Encoding::Hex, "aBcDeF"), Ok(vec![0xab, 0xcd, 0xef]));
    for base64 in
        ["MTIzNDU2Nzg5MDEyMzQ1Njc4OTA=", "MTIzNDU2Nzg5MDEyMzQ1Njc4OTA", " MTIz NDU2\u{200b}Nzg5MDEyMzQ1Njc4OTA = \n"]
    {
        assert_eq!(read(Encoding::Base64, base64), Ok(BYTES.to_vec()));
    }
    assert_eq!(read(Encoding::Base64, "+/-_"), read(Encoding::Base64, "-_+/"));
    assert_eq!(read(Encoding::Base64, "-_+/"), Ok(vec![0xfb, 0xff, 0xbf]));
    for raw in ["aIcnGqTjf2bAAxQzPqAL", " a b ", "é", "==", ""] {
        assert_eq!(read(Encoding::Raw, raw), Ok(raw.as_bytes().to_vec()));
    }
}

#[test]
fn all_else_is_refused() {
    for bad in ["1", "123", "0x12", "1g", "12:34", "１２", "12=", "é"] {
        assert_eq!(read(Encoding::Hex, bad), Err(SecretError::Hex), "{bad:?}");
    }
    for bad in ["A", "AB*D", "A=BC", "é", "MTIzNDU2Nzg5MDEyMzQ1Njc4OTB", "AAAAA", "AA\u{2013}A"] {
        assert_eq!(read(Encoding::Base64, bad), Err(SecretError::Base64), "{bad:?}");
    }
    assert_eq!(read(Encoding::Base32, "GEZD0"), Err(SecretError::Symbol));
    for encoding in [Encoding::Base32, Encoding::Hex, Encoding::Base64, Encoding::Raw] {
        assert!(read(encoding, &"A".repeat(1024)).is_ok(), "{encoding:?}");
        assert_eq!(read(encoding, &"A".repeat(1025)), Err(SecretError::TooLong), "{encoding:?}");
        assert_eq!(read(encoding, &"A".repeat(1 << 20)), Err(SecretError::TooLong), "{encoding:?}");
    }
}

#[test]
fn raw_text_and_hexadecimal_digits_are_not_surely_base32() {
    assert_eq!(surely("aIcnGqTjf2bAAxQzPqAL"), Err(SecretError::Ambiguous));
    for digits in [32, 40, 64, 128] {
        for text in ["23456723AB", "23456723ab", "ABCDEFABCD"] {
            let text: String = text.chars().cycle().take(digits).collect();
            assert_eq!(surely(&text), Err(SecretError::Ambiguous), "{text}");
            assert_eq!(surely(&format!("{}-{} ", &text[..4], &text[4..])), Err(SecretError::Ambiguous), "{text}");
        }
    }
    // One letter that is no hexadecimal digit, or another number of them.
    assert_eq!(surely(&format!("G{}", "23456723AB".repeat(4))).err(), Some(SecretError::Incomplete));
    assert!(surely(&format!("G{}", &"23456723AB".repeat(4)[1..])).is_ok());
    assert!(surely(&"23456723AB".repeat(8)).is_ok());
    assert!(surely("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ").is_ok());
    assert!(surely("gezd gnbv gy3t qojq gezd gnbv gy3t qojq").is_ok());
    assert_eq!(surely("3132333435363738393031323334353637383930"), Err(SecretError::Symbol));
}

proptest! {
    #[test]
    fn what_others_encode_is_read_back(bytes in prop::collection::vec(any::<u8>(), 1..=128)) {
        for (encoding, text) in [
            (Encoding::Base32, BASE32_NOPAD.encode(&bytes)), (Encoding::Hex, HEXLOWER.encode(&bytes)),
            (Encoding::Hex, HEXUPPER.encode(&bytes)), (Encoding::Base64, BASE64.encode(&bytes)),
            (Encoding::Base64, BASE64URL_NOPAD.encode(&bytes)),
        ] {
            prop_assert_eq!(read(encoding, &text), Ok(bytes.clone()), "{:?} {}", encoding, text);
        }
    }

    #[test]
    fn what_is_surely_base32_is_read_as_base32(text in "[A-Z2-7]{16,70}") {
        if let Ok(bytes) = surely(&text) {
            prop_assert_eq!(read(Encoding::Base32, &text), Ok(bytes));
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = surely(&text);
        for encoding in [Encoding::Base32, Encoding::Hex, Encoding::Base64, Encoding::Raw] {
            let _ = read(encoding, &text);
        }
    }
}
