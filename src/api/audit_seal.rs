//! The steps of `totp_audit_seal`, which is a procedure in `sql/sealing.sql`: it commits after each seal.
//!
//! Owns the refusals. Must never make more than one seal in a transaction.

use pgrx::prelude::*;

#[pg_schema]
mod totp {
    use pgrx::pg_sys;
    use pgrx::pg_sys::panic::ErrorReport;
    use pgrx::prelude::*;

    use crate::api::guard;
    use crate::error::Error;
    use crate::store::audit_seals;
    use crate::store::spi::Snapshot;
    use crate::trail::anchor;
    use crate::trail::sealing::{self, Step};

    const CALLER: &str = "totp_audit_seal";

    /// First step: makes one seal. Returns no row if there is nothing to seal, or if another session is sealing.
    #[pg_extern(volatile, parallel_unsafe)]
    #[search_path(pg_catalog, pg_temp)]
    fn seal_step(
        fcinfo: pg_sys::FunctionCallInfo,
    ) -> Result<TableIterator<'static, (name!(seal_id, i64), name!(is_full, bool))>, ErrorReport> {
        guard::writable(CALLER)?;
        // SAFETY: that of this call.
        unsafe { guard::owner(fcinfo, CALLER) }?;
        Ok(TableIterator::new(match sealing::step()? {
            Step::Sealed { seal_id, is_full } => Some((seal_id, is_full)),
            Step::Nothing => None,
            Step::Busy => {
                pgrx::notice!("pg_totp: another session is sealing");
                None
            }
        }))
    }

    /// Second step, in another transaction: writes the line of the seal to the server log.
    #[pg_extern(volatile, parallel_unsafe)]
    #[search_path(pg_catalog, pg_temp)]
    fn seal_line(seal_id: Option<i64>, fcinfo: pg_sys::FunctionCallInfo) -> Result<(), ErrorReport> {
        guard::writable(CALLER)?;
        // SAFETY: that of this call.
        unsafe { guard::owner(fcinfo, CALLER) }?;
        let seal_id = seal_id.ok_or(Error::Null("seal_id"))?;
        if let Some(seal) = audit_seals::find(&Snapshot::latest(), seal_id)? {
            anchor::write(&seal);
        }
        Ok(())
    }
}
