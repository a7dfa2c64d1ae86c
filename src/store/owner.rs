//! The owner of the extension.
//!
//! Owns the question who that is. Must never ask about the session user.

use super::spi::{Snapshot, statement};
use crate::error::Error;

// totp_grant() does the same check. A superuser has the privileges of every role.
statement!(reads IS_CURRENT_USER(), c"
SELECT EXISTS (SELECT FROM pg_catalog.pg_extension
                WHERE extname = 'pg_totp' AND pg_catalog.pg_has_role(current_user, extowner, 'USAGE'))");

/// Returns whether the current user has the privileges of the extension's owner.
pub fn is_current_user() -> Result<bool, Error> {
    IS_CURRENT_USER.with(|s| s.first(&Snapshot::latest(), &[], |row| row.must(1)))?.ok_or(Error::RowsAltered)
}
