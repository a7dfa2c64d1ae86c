//! The audit of `totp_grant` and `totp_revoke`, which are in `sql/rights.sql`.
//!
//! Owns the record of a capability. Must never record for anyone but the owner of the extension: it would be forged.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{pg_extern, pg_sys};

use super::guard;
use crate::audit;
use crate::clock;
use crate::error::Error;

const CAPABILITIES: [&str; 4] = ["verify", "enroll", "admin", "audit"];

/// Records that a capability is granted, or else revoked. For the two functions.
#[pg_extern(sql = r#"
CREATE FUNCTION totp.record_right(granted boolean, role text, capability text) RETURNS void
STRICT VOLATILE PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
"#)]
fn record_right(
    granted: bool,
    role: &str,
    capability: &str,
    fcinfo: pg_sys::FunctionCallInfo,
) -> Result<(), ErrorReport> {
    guard::writable(if granted { "totp_grant" } else { "totp_revoke" })?;
    // SAFETY: that of this call.
    unsafe { guard::owner(fcinfo, "record_right") }?;
    if !CAPABILITIES.contains(&capability) {
        return Err(Error::Capability.into());
    }
    Ok(audit::right(granted, role, capability, clock::now()?)?)
}
