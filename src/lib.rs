//! pg_totp: TOTP secrets stored encrypted in PostgreSQL, codes checked by plain SQL.
//!
//! Reading order: `api/verify.rs` (the hot path), then the two pure crates `otp` and `seal`, then `inplace`.
//! Dependencies point one way: `api` uses `store`, `keyring`, `inplace`, `audit`; they use the pure crates.

// PostgreSQL errors cross Rust frames as panics: without unwinding they would end the backend.
#[cfg(not(panic = "unwind"))]
compile_error!("pg_totp must be built with panic = \"unwind\"");

mod api;
mod audit;
mod backend;
mod clock;
mod error;
mod inplace;
mod keyring;
mod random;
mod removed;
mod replay_floor;
mod server_log;
mod settings;
mod store;
#[cfg(any(test, feature = "pg_test"))]
mod tests;
mod timestamp;
mod user;

use pgrx::PgLogLevel;
use pgrx::pg_sys::panic::ErrorReport;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!("../sql/comments.sql", name = "comments", requires = ["tables"]);
pgrx::extension_sql_file!("../sql/rotation.sql", name = "rotation", requires = ["tables"]);
pgrx::extension_sql_file!("../sql/rights.sql", name = "rights", finalize);

/// PostgreSQL calls this when it loads the library: for the first call of a session, or earlier if it is preloaded. Then
/// there may be no session, no transaction, and no catalog.
#[pgrx::pg_guard]
extern "C-unwind" fn _PG_init() {
    // SAFETY: a backend has one thread. pgrx would add a backtrace, with paths of the build, to the DETAIL of errors.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    if let Err(error) = settings::refuse_startup_options() {
        ErrorReport::from(error).report(PgLogLevel::ERROR);
    }
    settings::register();
    store::relcache::watch();
}

#[cfg(test)]
pub mod pg_test {
    //! Setup that `cargo pgrx test` needs.

    /// Called once before the tests.
    pub fn setup(_options: Vec<&str>) {}

    /// Settings of the test server.
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec![]
    }
}
