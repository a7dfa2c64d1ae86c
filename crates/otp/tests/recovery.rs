//! Recovery codes.

use hex_literal::hex;
use otp::{Malformed, RecoveryCode, RecoverySet, UsedMask};
use proptest::prelude::*;

/// Bytes 0 to 14, their text and their hash, computed with Python's base64 and hashlib.
const BYTES: [u8; 15] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
const TEXT: &str = "AAAQEA-YEAUDA-OCAJBI-FQYDIO";
const HASH: [u8; 32] = hex!("aaff6254837cec4596c90052fa94cb265581ea8c0012a81f5f23f5349453c61e");

/// The hash of a text that is read, or the error.
fn read(text: &str) -> Result<[u8; 32], Malformed> {
    RecoveryCode::parse(text).map(|code| code.hash())
}

/// A set of codes that differ in one byte.
fn set(count: u8) -> RecoverySet {
    let codes: Vec<_> = (0..count).map(|n| RecoveryCode::from_random([n; 15])).collect();
    RecoverySet::from_codes(&codes).ok().unwrap()
}

#[test]
fn text_and_hash_are_the_published_ones() {
    let code = RecoveryCode::from_random(BYTES);
    assert_eq!(*code.render(), TEXT);
    assert_eq!(code.hash(), HASH);
    assert_eq!(*RecoveryCode::from_random([0xff; 15]).render(), "777777-777777-777777-777777");
}

#[test]
fn case_spaces_and_dashes_do_not_matter() {
    for text in [
        TEXT.to_owned(),
        TEXT.to_lowercase(),
        TEXT.replace('-', ""),
        TEXT.replace('-', " "),
        format!(" \t{}\r\n", TEXT.replace('-', " - ")),
        TEXT.replace('-', "\u{2010}"),
        TEXT.replace('-', "\u{2013}"),
        TEXT.replace('-', "\u{a0}\u{2212}\u{200b}"),
        "A-A-A-Q-E-A-Y-E-A-U-D-A-O-C-A-J-B-I-F-Q-Y-D-I-O".to_owned(),
    ] {
        assert_eq!(read(&text), Ok(HASH), "{text:?}");
    }
}

#[test]
fn everything_else_is_malformed() {
    let bare = TEXT.replace('-', "");
    let one_less = bare[1..].to_owned();
    let one_more = format!("{bare}A");
    let padded = format!("{bare}=");
    for text in ["", "-", "123456", &one_less, &one_more, &padded, &bare.replace('O', "0"), &bare.replace('I', "1")] {
        assert_eq!(read(text), Err(Malformed), "{text:?}");
    }
    assert_eq!(read(&bare.replace('Q', "Ｑ")), Err(Malformed));
    for text in ["A", "-", " ", "é"] {
        assert_eq!(read(&text.repeat(1 << 20)), Err(Malformed));
    }
    assert!(read(&format!("{TEXT}{}", " ".repeat(256 - 27))).is_ok());
    assert_eq!(read(&format!("{TEXT}{}", " ".repeat(257 - 27))), Err(Malformed));
}

#[test]
fn a_set_finds_each_of_its_codes_and_no_other() {
    for count in [1, 10, 20] {
        let set = set(count);
        assert_eq!(set.len(), usize::from(count));
        for n in 0..=255 {
            assert_eq!(set.find(&RecoveryCode::from_random([n; 15])), (n < count).then_some(n));
        }
    }
}

#[test]
fn a_set_has_one_to_twenty_codes() {
    for count in 0..=40usize {
        let codes: Vec<_> = (0..count).map(|n| RecoveryCode::from_random([n as u8; 15])).collect();
        assert_eq!(RecoverySet::from_codes(&codes).is_ok(), (1..=20).contains(&count));
    }
    for length in 0..=800 {
        let accepted = length % 32 == 0 && (1..=20).contains(&(length / 32));
        assert_eq!(RecoverySet::from_bytes(&vec![0; length]).is_ok(), accepted, "{length} bytes");
    }
}

#[test]
fn a_set_is_read_back_as_it_was_written() {
    let bytes = set(20).to_bytes();
    assert_eq!(bytes.len(), 640);
    assert_eq!(bytes[..32], RecoveryCode::from_random([0; 15]).hash());
    let back = RecoverySet::from_bytes(&bytes).ok().unwrap();
    assert_eq!(back.to_bytes(), bytes);
    assert_eq!(back.find(&RecoveryCode::from_random([19; 15])), Some(19));
}

#[test]
fn the_mask_marks_one_code_at_a_time() {
    let mut mask = UsedMask::NONE;
    for place in 0..20 {
        assert_eq!(mask.left(20), 20 - place);
        assert!(!mask.is_used(place));
        mask = mask.with_used(place);
        assert!(mask.is_used(place));
        assert_eq!(mask.with_used(place), mask);
    }
    assert_eq!((mask.left(20), mask.get()), (0, 0xfffff));
    assert_eq!(UsedMask::new(0b101).left(3), 1);
}

#[test]
fn a_place_that_no_set_has_counts_as_used() {
    for mask in [0, 1, -1, i32::MIN, i32::MAX].map(UsedMask::new) {
        for place in 20..=255 {
            assert!(mask.is_used(place));
            assert_eq!(mask.with_used(place), mask);
        }
        assert!(mask.left(255) <= 20);
    }
}

proptest! {
    #[test]
    fn round_trip(bytes in any::<[u8; 15]>()) {
        let code = RecoveryCode::from_random(bytes);
        let text = code.render();
        prop_assert_eq!(text.len(), 27);
        prop_assert_eq!(read(&text), Ok(code.hash()));
        prop_assert_eq!(text.replace('-', ""), data_encoding::BASE32_NOPAD.encode(&bytes));
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = read(&text);
    }
}
