//! The sealed format: what opens, and everything that must not.

use hex_literal::hex;
use proptest::prelude::*;
use seal::{Context, DataKey, KeyId, OpenError};
use zeroize::Zeroizing;

const NONCE: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const ID: KeyId = KeyId::new(7);
const SECRET: Context<'static> =
    Context::Secret { user_id: "alice", device: "phone", secret_id: 42, algorithm: "SHA1", digits: 6, period: 30 };
const RECOVERY_CODES: Context<'static> = Context::RecoveryCodes { user_id: "alice", set_id: 42, count: 10 };

/// A data key of bytes 32 to 63.
fn data_key() -> DataKey {
    DataKey::from_random(Zeroizing::new(std::array::from_fn(|n| 32 + n as u8)))
}

fn seal(context: &Context, plaintext: &[u8]) -> Vec<u8> {
    seal::seal(&data_key(), ID, NONCE, context, plaintext).unwrap()
}

fn open(context: &Context, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    seal::open(&data_key(), ID, context, sealed).map(|plaintext| plaintext.to_vec())
}

#[test]
fn the_format_is_the_documented_one() {
    // Computed with HKDF and AESGCM of Python's cryptography, from the description alone.
    let secret = hex!(
        "01 00000007 000102030405060708090a0b a041c1e768e13044c853a033e77b9d86648a22a7 7c0e6c8d7e9d0d42203f99772be8d010"
    );
    assert_eq!(seal(&SECRET, b"12345678901234567890"), secret);
    assert_eq!(open(&SECRET, &secret), Ok(b"12345678901234567890".to_vec()));
    let hashes = hex!(
        "01 00000007 000102030405060708090a0b 73a66a53b68070f784a5486d11ed4c4a078eaa0fddb64534d7092baaf75d3f86"
        "3cd40b604bb44841d3cd773889f842301d71b702cd56f99aed4f6884c0caa4f6 8afa6397753394379895ca874b9e05d8"
    );
    assert_eq!(seal(&RECOVERY_CODES, &[0xab; 64]), hashes);
}

#[test]
fn every_bit_counts() {
    for context in [SECRET, RECOVERY_CODES] {
        let sealed = seal(&context, b"12345678901234567890");
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&context, &flipped), Err(OpenError), "bit {bit}");
        }
    }
}

#[test]
fn every_length_counts() {
    let sealed = seal(&SECRET, b"12345678901234567890");
    for length in 0..sealed.len() {
        assert_eq!(open(&SECRET, &sealed[..length]), Err(OpenError), "{length} bytes");
    }
    assert_eq!(open(&SECRET, &[&sealed[..], &[0]].concat()), Err(OpenError));
}

#[test]
fn every_field_counts() {
    let with = |change: fn(&mut Fields)| {
        let mut fields =
            Fields { user_id: "alice", device: "phone", secret_id: 42, algorithm: "SHA1", digits: 6, period: 30 };
        change(&mut fields);
        fields
    };
    let changes: [fn(&mut Fields); 12] = [
        |f| f.user_id = "bob",
        |f| f.user_id = "Alice",
        |f| f.user_id = "",
        |f| f.device = "tablet",
        |f| f.secret_id = 43,
        |f| f.secret_id = 42 << 32,
        |f| f.algorithm = "SHA256",
        |f| f.digits = 8,
        |f| f.period = 60,
        |f| f.period = 30 << 8,
        // Bytes that only move from one field to the next: the length before each field differs.
        |f| (f.user_id, f.device) = ("alicep", "hone"),
        |f| (f.user_id, f.device) = ("phone", "alice"),
    ];
    let sealed = seal(&with(|_| ()).context(), b"12345678901234567890");
    assert!(open(&with(|_| ()).context(), &sealed).is_ok());
    for (n, change) in changes.into_iter().enumerate() {
        assert_eq!(open(&with(change).context(), &sealed), Err(OpenError), "change {n}");
    }

    let sealed = seal(&RECOVERY_CODES, &[1; 32]);
    for (user_id, set_id, count) in [("bob", 42, 10), ("alice", 41, 10), ("alice", 42, 9)] {
        assert_eq!(open(&Context::RecoveryCodes { user_id, set_id, count }, &sealed), Err(OpenError));
    }
    assert!(open(&RECOVERY_CODES, &sealed).is_ok());
}

struct Fields {
    user_id: &'static str,
    device: &'static str,
    secret_id: i64,
    algorithm: &'static str,
    digits: u8,
    period: u16,
}

impl Fields {
    fn context(&self) -> Context<'static> {
        let Fields { user_id, device, secret_id, algorithm, digits, period } = *self;
        Context::Secret { user_id, device, secret_id, algorithm, digits, period }
    }
}

#[test]
fn a_purpose_does_not_open_the_other() {
    assert_eq!(open(&RECOVERY_CODES, &seal(&SECRET, &[1; 32])), Err(OpenError));
    assert_eq!(open(&SECRET, &seal(&RECOVERY_CODES, &[1; 32])), Err(OpenError));
    // Not by the associated data alone: the same nonce and plaintext give another ciphertext.
    assert_ne!(seal(&SECRET, &[1; 32])[17..49], seal(&RECOVERY_CODES, &[1; 32])[17..49]);
}

#[test]
fn the_key_and_its_number_count() {
    let sealed = seal(&SECRET, &[1; 20]);
    assert_eq!(seal::key_id(&sealed), Ok(ID));
    let other = DataKey::from_random(Zeroizing::new([1; 32]));
    assert!(seal::open(&other, ID, &SECRET, &sealed).is_err());
    for id in [6, 8, -7, 0].map(KeyId::new) {
        assert!(seal::open(&data_key(), id, &SECRET, &sealed).is_err());
        // Nor does it help to write the other number into the header.
        let mut renamed = sealed.clone();
        renamed[1..5].copy_from_slice(&id.get().to_be_bytes());
        assert!(seal::open(&data_key(), id, &SECRET, &renamed).is_err());
        assert_eq!(seal::key_id(&renamed), Ok(id));
    }
}

#[test]
fn what_is_no_sealed_data_names_no_key() {
    let sealed = seal(&SECRET, b"");
    assert_eq!(sealed.len(), 33);
    assert_eq!(seal::key_id(&sealed), Ok(ID));
    assert_eq!(seal::key_id(&sealed[..32]), Err(OpenError));
    assert_eq!(seal::key_id(&[]), Err(OpenError));
    for version in (0..=255).filter(|version| *version != 1) {
        let mut other = sealed.clone();
        other[0] = version;
        assert_eq!(seal::key_id(&other), Err(OpenError));
    }
}

proptest! {
    #[test]
    fn what_is_sealed_opens(
        key in any::<[u8; 32]>(), id in any::<i32>(), nonce in any::<[u8; 12]>(),
        user_id in any::<String>(), device in any::<String>(), secret_id in any::<i64>(), algorithm in any::<String>(),
        digits in any::<u8>(), period in any::<u16>(), plaintext in prop::collection::vec(any::<u8>(), 0..700),
    ) {
        let (key, id) = (DataKey::from_random(Zeroizing::new(key)), KeyId::new(id));
        let (user_id, device, algorithm) = (&*user_id, &*device, &*algorithm);
        for context in [
            Context::Secret { user_id, device, secret_id, algorithm, digits, period },
            Context::RecoveryCodes { user_id, set_id: secret_id, count: digits },
        ] {
            let sealed = seal::seal(&key, id, nonce, &context, &plaintext).unwrap();
            prop_assert_eq!(sealed.len(), 33 + plaintext.len());
            prop_assert_eq!(seal::key_id(&sealed), Ok(id));
            let opened = seal::open(&key, id, &context, &sealed);
            prop_assert_eq!(opened.map(|opened| opened.to_vec()), Ok(plaintext.clone()));
        }
    }

    #[test]
    fn two_contexts_open_each_other_only_if_they_are_equal(
        a in ("[ab]{0,3}", "[ab]{0,3}", 0i64..3), b in ("[ab]{0,3}", "[ab]{0,3}", 0i64..3),
    ) {
        fn context((user_id, device, secret_id): &(String, String, i64)) -> Context<'_> {
            Context::Secret { user_id, device, secret_id: *secret_id, algorithm: "SHA1", digits: 6, period: 30 }
        }
        prop_assert_eq!(open(&context(&b), &seal(&context(&a), b"x")).is_ok(), a == b);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert_eq!(open(&SECRET, &bytes), Err(OpenError));
    }
}
