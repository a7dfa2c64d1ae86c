//! `totp_audit_verify`: shows whether the audit trail was changed.
//!
//! Owns the check of its arguments. Must never write anything: it works on a standby.

use pgrx::PgLogLevel;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::guard;
use crate::trail::anchor::Anchor;
use crate::trail::verification::{Finding, Verification};

/// Returns one row per seal, one per deviation, and a last one about rows that are not sealed.
#[pg_extern(security_definer, volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn totp_audit_verify(
    anchor: default!(Option<&str>, "NULL"),
    since_seal: default!(Option<i64>, "NULL"),
) -> Result<
    TableIterator<
        'static,
        (
            name!(seal_id, Option<i64>),
            name!(first_id, Option<i64>),
            name!(last_id, Option<i64>),
            name!(status, String),
            name!(problem, Option<String>),
        ),
    >,
    ErrorReport,
> {
    guard::not_parallel("totp_audit_verify")?;
    let anchor = anchor.map(Anchor::parse).transpose()?;
    let mut verification = Verification::begin(anchor, since_seal)?;
    // PostgreSQL asks for row after row, and keeps them: a trail of years has more than fit into memory.
    Ok(TableIterator::new(std::iter::from_fn(move || match verification.next_finding() {
        Ok(finding) => finding.map(|Finding { seal_id, first_id, last_id, status, problem }| {
            (seal_id, first_id, last_id, status.to_owned(), problem)
        }),
        Err(error) => {
            ErrorReport::from(error).report(PgLogLevel::ERROR);
            None
        }
    })))
}
