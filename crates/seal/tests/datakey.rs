//! Wrapping data keys, and the fingerprint of the master key.

use hex_literal::hex;
use proptest::prelude::*;
use seal::{Context, DataKey, Fingerprint, InvalidFingerprint, KeyId, MasterKey, OpenError};
use zeroize::Zeroizing;

const NONCE: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
const ID: KeyId = KeyId::new(7);

/// A master key of bytes 0 to 31, and a data key of bytes 32 to 63.
fn keys() -> (MasterKey, DataKey) {
    let bytes = |first: u8| Zeroizing::new(std::array::from_fn(|n| first + n as u8));
    (MasterKey::from_bytes(bytes(0)), DataKey::from_random(bytes(32)))
}

/// Computed with HKDF and AESGCM of Python's cryptography, from the description alone.
const WRAPPED: [u8; 61] = hex!(
    "01 000102030405060708090a0b 834baef7e5dfacccd455a486a2545e51e4f0dd4fcd47cb4984d65ada9f5aa140"
    "06f2188753f77d736dd7211afce9ee2f"
);

/// Whether two data keys are the same: each opens what the other sealed.
fn same(a: &DataKey, b: &DataKey) -> bool {
    let context = Context::RecoveryCodes { user_id: "u", set_id: 1, count: 1 };
    let opens = |a, b| seal::open(b, ID, &context, &seal::seal(a, ID, NONCE, &context, b"x").unwrap()).is_ok();
    opens(a, b) && opens(b, a)
}

#[test]
fn the_format_is_the_documented_one() {
    let (master, key) = keys();
    assert_eq!(key.wrap(&master, ID, NONCE).unwrap(), WRAPPED);
    assert!(same(&DataKey::unwrap(&master, ID, &WRAPPED).ok().unwrap(), &key));
}

#[test]
fn every_bit_and_every_length_counts() {
    let (master, _) = keys();
    for bit in 0..WRAPPED.len() * 8 {
        let mut flipped = WRAPPED;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(DataKey::unwrap(&master, ID, &flipped).err(), Some(OpenError), "bit {bit}");
    }
    for length in 0..WRAPPED.len() {
        assert!(DataKey::unwrap(&master, ID, &WRAPPED[..length]).is_err(), "{length} bytes");
    }
    assert!(DataKey::unwrap(&master, ID, &[&WRAPPED[..], &[0]].concat()).is_err());
}

#[test]
fn the_number_and_the_master_key_count() {
    let (master, _) = keys();
    for id in [0, 6, 8, -7, 7 << 8] {
        assert!(DataKey::unwrap(&master, KeyId::new(id), &WRAPPED).is_err());
    }
    let other = MasterKey::from_bytes(Zeroizing::new([1; 32]));
    assert!(DataKey::unwrap(&other, ID, &WRAPPED).is_err());
}

#[test]
fn a_fingerprint_is_sixteen_lower_case_hexadecimal_digits() {
    // Computed with HKDF of Python's cryptography.
    let fingerprint = keys().0.fingerprint();
    assert_eq!(fingerprint.to_string(), "8e8b8f2a06870874");
    assert_eq!(Fingerprint::parse("8e8b8f2a06870874"), Ok(fingerprint));
    assert_eq!(Fingerprint::parse("8E8B8F2A06870874"), Ok(fingerprint));
    for bad in ["", "8e8b8f2a0687087", "8e8b8f2a068708740", "8e8b8f2a0687087g", " 8e8b8f2a0687087", "８e8b8f2a06870"] {
        assert_eq!(Fingerprint::parse(bad), Err(InvalidFingerprint), "{bad:?}");
    }
    let zeros = Fingerprint::parse("0000000000000001").unwrap();
    assert_eq!(zeros.to_string(), "0000000000000001");
}

proptest! {
    #[test]
    fn what_is_wrapped_unwraps(
        master in any::<[u8; 32]>(), key in any::<[u8; 32]>(), id in any::<i32>(), nonce in any::<[u8; 12]>(),
    ) {
        let master = MasterKey::from_bytes(Zeroizing::new(master));
        let key = DataKey::from_random(Zeroizing::new(key));
        let wrapped = key.wrap(&master, KeyId::new(id), nonce).unwrap();
        prop_assert_eq!(wrapped.len(), 61);
        prop_assert!(same(&DataKey::unwrap(&master, KeyId::new(id), &wrapped).ok().unwrap(), &key));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(DataKey::unwrap(&keys().0, ID, &bytes).is_err());
    }
}
