//! Random bytes from the operating system. A generator in user space would not be reseeded in a forked backend.
//!
//! Owns the only source of secrets, keys, and nonces. Must never return bytes after a failure.

use zeroize::Zeroizing;

use crate::error::Error;

/// Returns bytes that are no secret, such as a nonce, or that their receiver wipes.
pub fn bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

/// Returns a key.
pub fn key() -> Result<Zeroizing<[u8; 32]>, Error> {
    let mut key = Zeroizing::new([0; 32]);
    fill(&mut *key)?;
    Ok(key)
}

/// Returns the bytes of a secret.
pub fn secret_bytes(len: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut bytes = Zeroizing::new(vec![0; len]);
    fill(&mut bytes)?;
    Ok(bytes)
}

fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|_| Error::Random)
}
