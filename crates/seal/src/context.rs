//! What sealed data is bound to.
//!
//! Owns the associated data. Two contexts must never have the same bytes: the length of each field is before it.

use crate::datakey::{DataKey, KeyId};
use crate::gcm::Cipher;

/// First byte of the associated data, and of sealed data.
pub(crate) const VERSION: u8 = 1;

/// The place of sealed data. It opens nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context<'a> {
    /// The secret of a device.
    Secret {
        /// Whose it is.
        user_id: &'a str,
        /// The device.
        device: &'a str,
        /// The number of the secret.
        secret_id: i64,
        /// The canonical name of the algorithm.
        algorithm: &'a str,
        /// Number of digits.
        digits: u8,
        /// Seconds.
        period: u16,
    },
    /// The hashes of a user's recovery codes.
    RecoveryCodes {
        /// Whose they are.
        user_id: &'a str,
        /// The number of the set.
        set_id: i64,
        /// Number of codes.
        count: u8,
    },
}

impl Context<'_> {
    /// Returns the cipher for this purpose.
    pub(crate) fn cipher<'k>(&self, key: &'k DataKey) -> &'k Cipher {
        match self {
            Context::Secret { .. } => &key.secret,
            Context::RecoveryCodes { .. } => &key.recovery_codes,
        }
    }

    /// `version(1) | purpose(1) | fields | key id`, each field and the key id as `length(4) | bytes`; numbers are big endian.
    ///
    /// `None` for a text of more than 4 GiB.
    pub(crate) fn associated_data(&self, id: KeyId) -> Option<Vec<u8>> {
        let id = id.get().to_be_bytes();
        match *self {
            Context::Secret { user_id, device, secret_id, algorithm, digits, period } => join(
                1,
                &[
                    user_id.as_bytes(),
                    device.as_bytes(),
                    &secret_id.to_be_bytes(),
                    algorithm.as_bytes(),
                    &[digits],
                    &period.to_be_bytes(),
                    &id,
                ],
            ),
            Context::RecoveryCodes { user_id, set_id, count } => {
                join(2, &[user_id.as_bytes(), &set_id.to_be_bytes(), &[count], &id])
            }
        }
    }
}

fn join(purpose: u8, fields: &[&[u8]]) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(2 + fields.iter().map(|field| 4 + field.len()).sum::<usize>());
    data.extend([VERSION, purpose]);
    for field in fields {
        data.extend(u32::try_from(field.len()).ok()?.to_be_bytes());
        data.extend_from_slice(field);
    }
    Some(data)
}
