//! `totp.secrets`: one row per secret. A device has at most one secret of each slot.
//!
//! The writers here are called with the user's row in `totp.attempts` locked and the current data key held.
//!
//! Owns the rows. Must never write a secret that is not sealed.

use otp::{Algorithm, Digits, Parameters, Period};
use pgrx::pg_sys;
use seal::KeyId;

use super::insert::insert_table;
use super::scan::{OpenTable, UserTable};
use super::shape;
use super::spi::{self, Row, Snapshot, bytes, int2, int4, statement, text, time};
use super::used_codes::{self, UsedCode};
use crate::backend;
use crate::error::Error;
use crate::timestamp::Timestamp;
use crate::user::{DeviceName, SecretId, UserId};

/// Which of a device's secrets, in the order of their names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Signs in.
    Active,
    /// Approved by the support desk: becomes active with its first good code.
    Pending,
    /// Not approved: a user who has MFA must also prove that they hold an authenticator.
    Proposed,
}

impl Slot {
    /// The name as the table stores it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Proposed => "proposed",
        }
    }

    /// Reads the name that the table stores.
    pub fn from_stored(name: &str) -> Result<Self, Error> {
        match name {
            "active" => Ok(Self::Active),
            "pending" => Ok(Self::Pending),
            "proposed" => Ok(Self::Proposed),
            _ => Err(Error::RowsAltered),
        }
    }
}

/// A stored secret, with everything that it is bound to except its user.
#[derive(Clone)]
pub struct SealedSecret {
    device: String,
    pub slot: Slot,
    pub secret_id: SecretId,
    pub sealed: Vec<u8>,
    pub parameters: Parameters,
}

impl SealedSecret {
    /// The device that it belongs to.
    pub fn device(&self) -> DeviceName<'_> {
        DeviceName::stored(&self.device)
    }

    /// Returns the sort key: active secrets first.
    pub fn order(&self) -> (bool, &str) {
        (self.slot != Slot::Active, &self.device)
    }

    /// Reads the columns device, slot, secret_id, version, key_id, sealed, algorithm, digits, and period, from `column` on.
    pub fn read(row: &Row, column: i32) -> Result<Self, Error> {
        Ok(Self {
            device: row.must(column)?,
            slot: Slot::from_stored(row.text(column + 1)?)?,
            secret_id: row.secret_id(column + 2)?,
            sealed: row.must(column + 5)?,
            parameters: read_parameters(row, column + 6)?,
        })
    }
}

/// Reads the columns algorithm, digits, and period, from `column` on.
fn read_parameters(row: &Row, column: i32) -> Result<Parameters, Error> {
    parameters(row.text(column)?, row.must(column + 1)?, row.must(column + 2)?)
}

/// Reads the columns created_at and period.
pub fn read_codes(row: &Row, created_at: i32, period: i32) -> Result<Codes, Error> {
    let period = Period::new(row.must::<i16>(period)?.into()).map_err(|_| Error::RowsAltered)?;
    Ok(Codes { created_at: row.time(created_at)?, period })
}

/// Converts the stored parameters of a secret.
pub fn parameters(algorithm: &str, digits: i16, period: i16) -> Result<Parameters, Error> {
    Ok(Parameters {
        algorithm: Algorithm::parse(algorithm).map_err(|_| Error::RowsAltered)?,
        digits: Digits::new(digits.into()).map_err(|_| Error::RowsAltered)?,
        period: Period::new(period.into()).map_err(|_| Error::RowsAltered)?,
    })
}

/// A secret of any user, to be exported.
pub struct Exported {
    pub user_id: String,
    pub state: String,
    pub issuer: Option<String>,
    pub account_name: String,
    pub secret: SealedSecret,
}

/// Which codes a secret has: since when, in steps of which length.
#[derive(Clone, Copy)]
pub struct Codes {
    pub created_at: Timestamp,
    pub period: Period,
}

/// The columns of a secret that lifecycle functions need.
pub struct Existing {
    device: String,
    pub slot: Slot,
    pub secret_id: SecretId,
    pub version: i32,
    pub enforced_since: Option<Timestamp>,
    pub codes: Codes,
    pub expires_at: Option<Timestamp>,
    pub disabled: bool,
}

impl Existing {
    /// The device that it belongs to.
    pub fn device(&self) -> DeviceName<'_> {
        DeviceName::stored(&self.device)
    }

    /// Returns whether the device was once confirmed, and is not disabled.
    pub fn is_enforced(&self) -> bool {
        self.enforced_since.is_some() && !self.disabled
    }

    /// Returns whether the device was never confirmed and its secret has expired.
    pub fn is_abandoned(&self, now: Timestamp) -> bool {
        self.enforced_since.is_none() && self.expires_at.is_some_and(|t| t <= now)
    }
}

/// A secret to store.
pub struct NewSecret<'a> {
    pub user: UserId<'a>,
    pub device: DeviceName<'a>,
    pub slot: Slot,
    pub secret_id: SecretId,
    pub version: i32,
    pub key_id: KeyId,
    pub sealed: &'a [u8],
    pub parameters: Parameters,
    pub issuer: Option<&'a str>,
    pub account_name: &'a str,
    pub created_at: Timestamp,
    pub confirmed_at: Option<Timestamp>,
    pub enforced_since: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    /// The used codes of the same secret, if it was here before.
    pub used: Option<UsedCode>,
}

/// The active secret that a confirmed one has replaced: its used codes, and which codes it had.
pub struct Replaced {
    pub used: UsedCode,
    pub codes: Codes,
}

/// How an authenticator shows a device, and how its codes are computed.
pub struct Labels {
    pub issuer: Option<String>,
    pub account_name: String,
    pub parameters: Parameters,
}

static TABLE: UserTable = UserTable { table: &shape::SECRETS, select: &SELECT };
insert_table!(NEW, &shape::SECRETS, &INSERT);

statement!(reads SELECT(TEXTOID), c"
SELECT user_id, device, slot, secret_id, version, key_id, sealed, algorithm, digits, period, issuer, account_name,
       created_at, confirmed_at, enforced_since, expires_at, disabled_at, tableoid, ctid, xmin
  FROM totp.secrets
 WHERE user_id = $1");
statement!(writes INSERT(TEXTOID, TEXTOID, TEXTOID, INT8OID, INT4OID, INT4OID, BYTEAOID, TEXTOID, INT2OID, INT2OID,
                         TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID), c"
INSERT INTO totp.secrets (user_id, device, slot, secret_id, version, key_id, sealed, algorithm, digits, period,
                          issuer, account_name, created_at, confirmed_at, enforced_since, expires_at, disabled_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)");
statement!(writes DELETE(TEXTOID, INT8OID), c"DELETE FROM totp.secrets WHERE user_id = $1 AND secret_id = $2");
statement!(writes DELETE_ALL(TEXTOID), c"DELETE FROM totp.secrets WHERE user_id = $1");
statement!(reads ACTIVE(TEXTOID, TEXTOID), c"
SELECT secret_id, created_at, period FROM totp.secrets WHERE user_id = $1 AND device = $2 AND slot = 'active'");
statement!(writes ACTIVATE(TEXTOID, INT8OID, TIMESTAMPTZOID), c"
UPDATE totp.secrets
   SET slot = 'active', confirmed_at = $3, enforced_since = coalesce(enforced_since, $3), expires_at = NULL
 WHERE user_id = $1 AND secret_id = $2 AND slot <> 'active'");
statement!(reads EXPORT(TIMESTAMPTZOID), c"
SELECT user_id,
       CASE WHEN disabled_at IS NOT NULL THEN 'disabled' WHEN slot = 'active' THEN 'active' ELSE 'pending' END AS state,
       issuer, account_name,
       device, slot, secret_id, version, key_id, sealed, algorithm, digits, period
  FROM totp.secrets s
 WHERE (expires_at IS NULL OR expires_at > $1)
   AND (slot <> 'proposed'
        OR NOT EXISTS (SELECT FROM totp.secrets m WHERE m.user_id = s.user_id AND m.enforced_since IS NOT NULL))
 ORDER BY user_id, device, slot");
statement!(reads LABELS(TEXTOID, TEXTOID), c"
SELECT issuer, account_name, algorithm, digits, period FROM totp.secrets
 WHERE user_id = $1 AND device = $2
 ORDER BY slot LIMIT 1");
statement!(writes SET_DISABLED(TEXTOID, TEXTOID, TIMESTAMPTZOID), c"
UPDATE totp.secrets SET disabled_at = $3
 WHERE user_id = $1 AND ($2 IS NULL OR device = $2) AND (disabled_at IS NULL) = ($3 IS NOT NULL)
RETURNING device");
statement!(writes RENAME(TEXTOID, INT8OID, TEXTOID, TEXTOID, INT4OID, BYTEAOID), c"
UPDATE totp.secrets SET user_id = $3, device = $4, key_id = $5, sealed = $6 WHERE user_id = $1 AND secret_id = $2");
/// The first column of a [`SealedSecret`] in the table, and some that come after it.
pub const SEALED_COLUMNS: i32 = 2;
const VERSION: i32 = 5;
const PERIOD: i32 = 10;
pub const CREATED_AT: i32 = 13;
pub const ENFORCED_SINCE: i32 = 15;
pub const EXPIRES_AT: i32 = 16;
pub const DISABLED_AT: i32 = 17;

/// Opens the table for reading. Errors: XX001 if it is altered.
pub fn open() -> Result<OpenTable, Error> {
    TABLE.open(pg_sys::AccessShareLock)
}

/// Returns the secrets of a user, by device, active before pending.
pub fn of_user(snapshot: &Snapshot, user: UserId) -> Result<Vec<Existing>, Error> {
    let mut secrets = open()?.rows_of(user, snapshot, |_, row| {
        Ok(Existing {
            device: row.must(SEALED_COLUMNS)?,
            slot: Slot::from_stored(row.text(SEALED_COLUMNS + 1)?)?,
            secret_id: row.secret_id(SEALED_COLUMNS + 2)?,
            version: row.must(VERSION)?,
            enforced_since: row.time_or_null(ENFORCED_SINCE),
            codes: read_codes(row, CREATED_AT, PERIOD)?,
            expires_at: row.time_or_null(EXPIRES_AT),
            disabled: row.time_or_null(DISABLED_AT).is_some(),
        })
    })?;
    secrets.sort_by(|a, b| (&a.device, a.slot).cmp(&(&b.device, b.slot)));
    Ok(secrets)
}

/// Returns a secret id that was never used before.
pub fn next_id() -> Result<SecretId, Error> {
    super::next_number(c"secret_ids").map(SecretId::new)
}

/// Stores a secret, and the row of its used codes.
pub fn insert(new: &NewSecret) -> Result<(), Error> {
    let used = UsedCode { secret_id: new.secret_id, ..new.used.unwrap_or(UsedCode::none(new.secret_id)) };
    used_codes::insert(new.user, &used)?;
    NEW.insert(|| {
        Ok([
            spi::user(new.user),
            text(new.device.as_str()),
            text(new.slot.as_str()),
            spi::secret_id(new.secret_id),
            int4(new.version),
            spi::key_id(new.key_id),
            bytes(new.sealed),
            text(new.parameters.algorithm.as_str()),
            int2(new.parameters.digits.get().into()),
            int2(new.parameters.period.get()),
            new.issuer.and_then(text),
            text(new.account_name),
            time(new.created_at),
            new.confirmed_at.and_then(time),
            new.enforced_since.and_then(time),
            new.expires_at.and_then(time),
            None,
        ])
    })
}

/// Removes a secret and the row of its used codes. Returns the last contents of that row.
pub fn delete(user: UserId, secret_id: SecretId) -> Result<UsedCode, Error> {
    let used = used_codes::delete(user, secret_id)?;
    DELETE.with(|s| s.change_one(&[spi::user(user), spi::secret_id(secret_id)]))?;
    Ok(used)
}

/// Does the same, to insert that row again.
pub fn take(user: UserId, secret_id: SecretId) -> Result<UsedCode, Error> {
    let used = used_codes::take(user, secret_id)?;
    DELETE.with(|s| s.change_one(&[spi::user(user), spi::secret_id(secret_id)]))?;
    Ok(used)
}

/// Removes every secret of a user and the rows of their used codes. Returns the last contents of those rows.
pub fn delete_all(user: UserId) -> Result<Vec<UsedCode>, Error> {
    let used = used_codes::delete_all(user)?;
    DELETE_ALL.with(|s| s.count(&[spi::user(user)]))?;
    Ok(used)
}

/// Makes a secret the active one of the device. Deletes an older active one, and returns its used codes and which
/// codes it had.
pub fn activate(
    user: UserId,
    device: DeviceName,
    secret_id: SecretId,
    at: Timestamp,
) -> Result<Option<Replaced>, Error> {
    let args = [spi::user(user), text(device.as_str())];
    let old =
        ACTIVE.with(|s| s.first(&Snapshot::latest(), &args, |row| Ok((row.secret_id(1)?, read_codes(row, 2, 3)?))))?;
    let old = old.map(|(old, codes)| Ok::<_, Error>(Replaced { used: delete(user, old)?, codes })).transpose()?;
    // The commit of this transaction is flushed, whatever synchronous_commit says.
    backend::force_sync_commit();
    ACTIVATE.with(|s| s.change_one(&[spi::user(user), spi::secret_id(secret_id), time(at)]))?;
    Ok(old)
}

/// Returns the sealed secrets of a user, active ones first.
pub fn sealed_of_user(snapshot: &Snapshot, user: UserId) -> Result<Vec<SealedSecret>, Error> {
    let mut secrets = open()?.rows_of(user, snapshot, |_, row| SealedSecret::read(row, SEALED_COLUMNS))?;
    secrets.sort_by(|a, b| (a.slot, &a.device).cmp(&(b.slot, &b.device)));
    Ok(secrets)
}

/// Returns the secrets of all users, except pending ones that have expired, and those that nobody has approved, of
/// a user who has MFA: an import approves.
pub fn export(snapshot: &Snapshot, now: Timestamp) -> Result<Vec<Exported>, Error> {
    // The keys of these secrets are read under the same snapshot, so a wait for them comes before it.
    shape::DATA_KEYS.open(pg_sys::AccessShareLock)?.lock_parts(pg_sys::AccessShareLock);
    EXPORT.with(|s| {
        s.rows(snapshot, &[time(now)], |row| {
            Ok(Exported {
                user_id: row.must(1)?,
                state: row.must(2)?,
                issuer: row.get(3),
                account_name: row.must(4)?,
                secret: SealedSecret::read(row, 5)?,
            })
        })
    })
}

/// Returns issuer, account name, and parameters of a device: of what was only proposed if there is nothing else.
pub fn labels(snapshot: &Snapshot, user: UserId, device: DeviceName) -> Result<Option<Labels>, Error> {
    LABELS.with(|s| {
        s.first(snapshot, &[spi::user(user), text(device.as_str())], |row| {
            Ok(Labels { issuer: row.get(1), account_name: row.must(2)?, parameters: read_parameters(row, 3)? })
        })
    })
}

/// Disables devices, or enables them again if `at` is `None`. Returns the devices that changed.
pub fn set_disabled(user: UserId, device: Option<DeviceName>, at: Option<Timestamp>) -> Result<Vec<String>, Error> {
    let args = [spi::user(user), device.and_then(|d| text(d.as_str())), at.and_then(time)];
    let mut devices: Vec<String> = SET_DISABLED.with(|s| s.rows(&Snapshot::latest(), &args, |row| row.must(1)))?;
    devices.sort_unstable();
    devices.dedup();
    Ok(devices)
}

/// Moves a secret, sealed again, to another user id and device.
pub fn rename(
    user: UserId,
    secret_id: SecretId,
    new_user: UserId,
    new_device: DeviceName,
    key: KeyId,
    sealed: &[u8],
) -> Result<(), Error> {
    RENAME.with(|s| {
        s.change_one(&[
            spi::user(user),
            spi::secret_id(secret_id),
            spi::user(new_user),
            text(new_device.as_str()),
            spi::key_id(key),
            bytes(sealed),
        ])
    })
}
