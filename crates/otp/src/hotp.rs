//! HOTP: the code of one counter (RFC 4226).
//!
//! Owns the key schedule of HMAC and the truncation: the only place where a secret is hashed. Must never know that the counter
//! is a time, nor fail: RFC 2104 accepts keys of every length.

use hmac::digest::common::Key;
use hmac::{EagerHash, Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::algorithm::Algorithm;
use crate::code::Code;
use crate::parameters::Digits;
use crate::secret::Secret;

/// HMAC under one secret, both pads already hashed. Clone it per message (RFC 2104 section 4). Wiped when dropped.
pub(crate) struct Keyed<D: EagerHash>(Hmac<D>);

impl<D: EagerHash> Keyed<D> {
    /// Uses a whole block as the key, since `new_from_slice` returns an error that no key causes.
    pub(crate) fn new(secret: &Secret) -> Keyed<D> {
        let mut block = Key::<Hmac<D>>::default();
        fill_block::<D>(secret, &mut block);
        let keyed = Keyed(Hmac::new(&block));
        block.as_mut_slice().zeroize();
        keyed
    }

    /// Computes the code of one counter (RFC 4226 section 5.3).
    ///
    /// The counter is hashed as eight bytes, big endian; a negative one as its two's complement.
    pub(crate) fn code(&self, digits: Digits, counter: i64) -> Code {
        let mac = self.0.clone().chain_update(counter.to_be_bytes()).finalize();
        Code::from_number(truncate(mac.as_bytes()), digits)
    }
}

/// Truncates a MAC to 31 bits (RFC 4226 section 5.3): four bytes from the offset in the low four bits of the last byte,
/// without the top bit.
fn truncate(mac: &[u8]) -> u32 {
    let offset = mac.last().map_or(0, |last| usize::from(last & 0x0f));
    // Offset and four bytes end at byte 19; the shortest MAC has 20.
    let word = mac.iter().skip(offset).take(4).fold(0, |word, byte| word << 8 | u32::from(*byte));
    word & 0x7fff_ffff
}

/// Pads a secret to one block, and hashes it first if it is longer (RFC 2104 section 2).
fn fill_block<D: EagerHash>(secret: &Secret, block: &mut [u8]) {
    let mut hashed = hmac::digest::Output::<D>::default();
    let key = if secret.as_bytes().len() > block.len() {
        hashed = D::digest(secret.as_bytes());
        hashed.as_slice()
    } else {
        secret.as_bytes()
    };
    block.iter_mut().zip(key).for_each(|(slot, byte)| *slot = *byte);
    hashed.as_mut_slice().zeroize();
}

// Not beside the bytes of the secret: it compares what HMAC makes of them.
impl Secret {
    /// Returns whether both have the same codes under an algorithm, as a secret and the same secret with zeros appended do
    /// (RFC 2104 section 2). Takes the same time for all bytes.
    pub fn same_codes_as(&self, other: &Secret, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::Sha1 => same_block::<Sha1>(self, other),
            Algorithm::Sha256 => same_block::<Sha256>(self, other),
            Algorithm::Sha512 => same_block::<Sha512>(self, other),
        }
    }
}

/// Returns whether two secrets fill the same block. Padding and hashing can make the same block of different secrets.
fn same_block<D: EagerHash>(one: &Secret, other: &Secret) -> bool {
    let mut blocks = [Key::<Hmac<D>>::default(), Key::<Hmac<D>>::default()];
    fill_block::<D>(one, &mut blocks[0]);
    fill_block::<D>(other, &mut blocks[1]);
    let same = blocks[0].as_slice().ct_eq(blocks[1].as_slice());
    blocks.iter_mut().for_each(|block| block.as_mut_slice().zeroize());
    same.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a Wycheproof file through the key schedule above; returns how many vectors were checked, and how many were valid.
    fn run<D: EagerHash>(file: &str) -> (usize, usize) {
        let file: serde_json::Value = serde_json::from_str(file).unwrap();
        let groups = file["testGroups"].as_array().unwrap();
        let tests = groups.iter().flat_map(|group| group["tests"].as_array().unwrap());
        let results = tests.map(|test| {
            let bytes = |name: &str| hex::decode(test[name].as_str().unwrap()).unwrap();
            let keyed = Keyed::<D>::new(&Secret::from_slice(&bytes("key")));
            let mac = keyed.0.clone().chain_update(bytes("msg")).finalize().into_bytes();
            let tag = bytes("tag");
            let valid = mac[..tag.len()] == tag;
            assert_eq!(valid, test["result"] == "valid", "test {}", test["tcId"]);
            valid
        });
        let results: Vec<bool> = results.collect();
        (results.len(), results.iter().filter(|valid| **valid).count())
    }

    #[test]
    fn wycheproof_hmac_sha1() {
        let file = include_str!("../tests/vectors/wycheproof/hmac_sha1_test.json");
        assert_eq!(run::<Sha1>(file), (170, 66));
    }

    #[test]
    fn wycheproof_hmac_sha256() {
        let file = include_str!("../tests/vectors/wycheproof/hmac_sha256_test.json");
        assert_eq!(run::<Sha256>(file), (174, 66));
    }

    #[test]
    fn wycheproof_hmac_sha512() {
        let file = include_str!("../tests/vectors/wycheproof/hmac_sha512_test.json");
        assert_eq!(run::<Sha512>(file), (174, 66));
    }
}
