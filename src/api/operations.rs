//! `totp_stats`, `totp_prune_audit`, `totp_export`, `totp_code_at`: for operators and auditors.

use otp::{OtpauthUri, Secret, TimeStep};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::secret_text::SecretText;
use super::{arguments, guard, in_memory};
use crate::audit;
use crate::clock::{self, Timestamp};
use crate::error::Error;
use crate::keyring;
use crate::store;
use crate::store::secrets::{self, Exported};
use crate::store::spi::Snapshot;

/// Counts audit rows of the given interval, by event: how many, of how many users, and the time of the last one.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_stats(
    since: default!(Option<Interval>, "'1 day'"),
) -> Result<
    TableIterator<
        'static,
        (name!(event, String), name!(count, i64), name!(users, i64), name!(last_at, Option<TimestampWithTimeZone>)),
    >,
    ErrorReport,
> {
    guard::not_parallel("totp_stats")?;
    let since = bounded(since.ok_or(Error::Null("since"))?)?;
    let rows = store::audit_log::stats(clock::now()?, since)?;
    Ok(TableIterator::new(rows.into_iter().map(|r| (r.event, r.count, r.users, r.last_at.to_sql()))))
}

/// Deletes audit rows older than the given interval. Returns how many. For the owner only.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_prune_audit(older_than: Option<Interval>, fcinfo: pg_sys::FunctionCallInfo) -> Result<i64, ErrorReport> {
    guard::writable("totp_prune_audit")?;
    // SAFETY: that of this call.
    unsafe { guard::owner(fcinfo, "totp_prune_audit") }?;
    let older_than = bounded(older_than.ok_or(Error::Null("older_than"))?)?;
    // A month has 28 to 31 days: if the signs of the fields differ, the current day decides whether the sum is positive.
    let fields = [older_than.months().into(), older_than.days().into(), older_than.micros()];
    if fields.iter().any(|field| *field < 0) || fields == [0; 3] {
        return Err(Error::Age.into());
    }
    let pruned = store::audit_log::prune(clock::now()?, older_than)?;
    audit::pruned(pruned);
    Ok(pruned)
}

/// Refuses a field of more than 1000 years, so that now minus the interval is a valid time. Fields that cancel out would
/// still overflow.
fn bounded(age: Interval) -> Result<Interval, Error> {
    const DAY: u64 = 86_400_000_000;
    let is_small = age.months().unsigned_abs() <= 12_000
        && age.days().unsigned_abs() <= 365_250
        && age.micros().unsigned_abs() <= 365_250 * DAY;
    if is_small { Ok(age) } else { Err(Error::Age) }
}

/// Returns the otpauth URI of every secret that is active or can become active. For superusers only; audited.
#[pg_extern(sql = r#"
CREATE FUNCTION totp_export() RETURNS TABLE (user_id text, device text, state text, otpauth_uri text)
STRICT VOLATILE PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn totp_export(fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
    guard::writable("totp_export")?;
    // SAFETY: that of this call.
    unsafe { guard::superuser(fcinfo, "totp_export") }?;
    let now = clock::now()?;
    audit::exported(now)?;
    let snapshot = Snapshot::latest();
    let rows = secrets::export(&snapshot, now)?
        .into_iter()
        .map(|row| {
            let user_id = row.user_id.clone();
            exported(&snapshot, row).map_err(|error| error.of_user(&user_id))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let texts = rows.iter().map(|(user_id, device, state, uri)| [user_id, device, state, uri.0.as_str()]);
    // SAFETY: the columns are those of the SQL above.
    Ok(unsafe { in_memory::give(fcinfo, texts) }?)
}

fn exported(snapshot: &Snapshot, row: Exported) -> Result<(String, String, String, SecretText), Error> {
    let secret = keyring::open_secret(snapshot, &row.user_id, &row.secret)?;
    let uri = OtpauthUri { issuer: row.issuer, account: row.account_name, secret, parameters: row.secret.parameters };
    Ok((row.user_id, row.secret.device, row.state, SecretText(uri.build())))
}

/// Returns the code that an authenticator with this secret shows at that time (RFC 6238 section 4).
#[pg_extern(immutable, parallel_safe)]
fn totp_code_at(
    secret: Option<&str>,
    at: Option<TimestampWithTimeZone>,
    algorithm: default!(Option<&str>, "'SHA1'"),
    digits: default!(Option<i32>, 6),
    period: default!(Option<i32>, 30),
) -> Result<SecretText, ErrorReport> {
    let parameters = arguments::parameters(algorithm, digits, period)?;
    let secret = Secret::from_base32(secret.ok_or(Error::Null("secret"))?).map_err(Error::from)?;
    let at = Timestamp::from_sql(at.ok_or(Error::Null("at"))?).ok_or(Error::TimeRange)?;
    let step = TimeStep::at(at.unix_seconds(), parameters.period);
    Ok(SecretText(otp::code_at_step(&secret, parameters.algorithm, parameters.digits, step).render()))
}
