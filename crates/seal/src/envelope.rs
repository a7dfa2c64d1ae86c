//! The sealed format.
//!
//! Owns the header. Must never open data under another key than the one its header names.
//!
//! `version(1) | data key id(4, big endian) | nonce(12) | ciphertext | tag(16)`

use zeroize::Zeroizing;

use crate::context::{Context, VERSION};
use crate::datakey::{DataKey, KeyId};
use crate::gcm::{NONCE, OpenError, SealError, TAG};

/// Bytes before the nonce.
const HEADER: usize = 5;

/// Seals a plaintext for one place. The nonce must be random.
///
/// # Errors
/// [`SealError`] for more than 64 GiB, or a text of the context of more than 4 GiB.
pub fn seal(
    key: &DataKey,
    id: KeyId,
    nonce: [u8; NONCE],
    context: &Context,
    plaintext: &[u8],
) -> Result<Vec<u8>, SealError> {
    let associated_data = context.associated_data(id).ok_or(SealError)?;
    let mut sealed = Vec::with_capacity(HEADER + NONCE + plaintext.len() + TAG);
    sealed.push(VERSION);
    sealed.extend(id.get().to_be_bytes());
    context.cipher(key).seal(nonce, &associated_data, plaintext, &mut sealed)?;
    Ok(sealed)
}

/// Opens what [`seal`] sealed, with the same key, number and context.
///
/// # Errors
/// [`OpenError`] if anything differs.
pub fn open(key: &DataKey, id: KeyId, context: &Context, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let (named, body) = split(sealed)?;
    if named != id {
        return Err(OpenError);
    }
    let associated_data = context.associated_data(id).ok_or(OpenError)?;
    context.cipher(key).open(&associated_data, body)
}

/// Returns the number of the data key that the header names. It is not authenticated before [`open`].
///
/// # Errors
/// [`OpenError`] for another version or too few bytes.
pub fn key_id(sealed: &[u8]) -> Result<KeyId, OpenError> {
    split(sealed).map(|(id, _)| id)
}

/// Key id and body.
fn split(sealed: &[u8]) -> Result<(KeyId, &[u8]), OpenError> {
    match sealed.split_first_chunk::<HEADER>() {
        Some(([VERSION, id @ ..], body)) if body.len() >= NONCE + TAG => {
            Ok((KeyId::new(i32::from_be_bytes(*id)), body))
        }
        _ => Err(OpenError),
    }
}
