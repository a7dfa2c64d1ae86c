//! `totp.reseal`, `totp.reseal_recovery_codes`: what a rotation calls for each row, so that it is one UPDATE.
//!
//! They stand beside the tables, for the owner only: sealed bytes in, sealed bytes out.

use pgrx::prelude::*;

#[pg_schema]
mod totp {
    use otp::{Algorithm, Digits, Parameters, Period};
    use pgrx::pg_sys::panic::ErrorReport;
    use pgrx::prelude::*;
    use seal::KeyId;

    use crate::error::Error;
    use crate::keyring;

    /// Opens a secret and seals it under another data key, which the rotation holds.
    #[pg_extern(volatile, parallel_unsafe)]
    #[allow(clippy::too_many_arguments)]
    fn reseal(
        user_id: &str,
        device: &str,
        secret_id: i64,
        algorithm: &str,
        digits: i16,
        period: i16,
        sealed: &[u8],
        key_id: i32,
    ) -> Result<Vec<u8>, ErrorReport> {
        let parameters = Parameters {
            algorithm: Algorithm::parse(algorithm).map_err(|_| Error::RowsAltered)?,
            digits: Digits::new(digits.into()).map_err(|_| Error::RowsAltered)?,
            period: Period::new(period.into()).map_err(|_| Error::RowsAltered)?,
        };
        let context = keyring::secret_context(user_id, device, secret_id, parameters);
        Ok(keyring::reseal(KeyId::new(key_id), &context, sealed)?)
    }

    /// Opens a set of recovery codes and seals it under another data key, which the rotation holds.
    #[pg_extern(volatile, parallel_unsafe)]
    fn reseal_recovery_codes(
        user_id: &str,
        set_id: i64,
        count: i16,
        sealed: &[u8],
        key_id: i32,
    ) -> Result<Vec<u8>, ErrorReport> {
        let count = u8::try_from(count).map_err(|_| Error::RowsAltered)?;
        let context = seal::Context::RecoveryCodes { user_id, set_id, count };
        Ok(keyring::reseal(KeyId::new(key_id), &context, sealed)?)
    }
}
