//! Text that is shown once. Our copy is wiped as soon as PostgreSQL has its own.
//!
//! Owns the way of a secret to the client. Must never be printed in any other way.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::{IntoDatum, pg_sys};
use zeroize::Zeroizing;

/// A secret, a URI with it, or a recovery code, on its way to the client as `text`.
pub struct SecretText(pub Zeroizing<String>);

pgrx::pgrx_sql_entity_graph::impl_sql_translatable!(SecretText, "TEXT");

impl IntoDatum for SecretText {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        self.0.as_str().into_datum()
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

// SAFETY: returns a datum of the declared SQL type, allocated in PostgreSQL's memory.
unsafe impl BoxRet for SecretText {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: as above.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}
