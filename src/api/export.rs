//! `totp_export`: every secret in clear, for a superuser who moves to another system.
//!
//! Owns the only way out for stored secrets. Must never write a row of it to disk, nor return one without an audit row.

use otp::OtpauthUri;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{IntoDatum, pg_extern, pg_sys};

use super::guard;
use super::rows::give;
use super::secret_text::SecretText;
use crate::audit;
use crate::clock;
use crate::error::Error;
use crate::keyring;
use crate::store::secrets::{self, Exported};
use crate::store::spi::Snapshot;
use crate::user::UserId;

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
    let snapshot = Snapshot::latest();
    let sealed = secrets::export(&snapshot, now)?;
    audit::exported(sealed.len(), now)?;
    let rows = sealed
        .into_iter()
        .map(|row| {
            let user_id = row.user_id.clone();
            exported(&snapshot, row).map_err(|error| error.of_user(&user_id))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let texts = rows.iter().map(|(user_id, device, state, uri)| [user_id, device, state, uri.0.as_str()]);
    let texts = texts.map(|row| row.map(IntoDatum::into_datum));
    // SAFETY: the columns are those of the SQL above.
    Ok(unsafe { give(fcinfo, texts) }?)
}

fn exported(snapshot: &Snapshot, row: Exported) -> Result<(String, String, String, SecretText), Error> {
    let secret = keyring::open_secret(snapshot, UserId::stored(&row.user_id), &row.secret)?;
    let uri = OtpauthUri { issuer: row.issuer, account: row.account_name, secret, parameters: row.secret.parameters };
    Ok((row.user_id, row.secret.device().as_str().into(), row.state, SecretText(uri.build())))
}
