//! pg_totp: TOTP secrets stored encrypted in PostgreSQL, codes checked by plain SQL.
//!
//! Reading order: `api/mod.rs` (the functions and their files), `api/verify.rs` (the hot path), the pure crates `otp`,
//! `seal`, and `tokens`, then `inplace`.
//!
//! # The law
//!
//! `api` → `removed`, `audit` (with `audit_lines`), `counters`, `replay_floor`, `trail` → `keyring` → `store` → `inplace` → `backend`, `error`. Beside them are the
//! small modules that each of these may use (`user`, `timestamp`, `clock`, `settings`, `server_log`, `random`) and the pure
//! crates, which know nothing of PostgreSQL. No arrow runs upward, but one, through SQL text: the UPDATE of a rotation in
//! `store/rotation.rs` calls `totp.reseal` and `totp.reseal_recovery_codes`, which are in `api/rotation.rs`.
//!
//! # The lock order
//!
//! A call takes its locks in this order, and leaves out what it does not need.
//!
//! 1. The set of data keys, EXCLUSIVE: who adds or destroys a key (`store/data_keys.rs`).
//! 2. Data keys, in the order of their numbers: SHARE for who writes rows of a user, EXCLUSIVE for who destroys the key.
//!    Sign-ins with a confirmed device hold none, so a rotation does not stop them. A writer who holds one, and then a user,
//!    may take a newer one in SHARE mode: who destroys keys waits for the older one first.
//! 3. The row of the user in `totp.attempts`: one writer per user. A rotation takes the rows of a batch in the order of the
//!    ids, and skips those that are held. `totp_forget_unreadable` takes one user after the other, and holds every data key,
//!    so no other writer is there. `totp_rename_user` and `totp_move_device` take the old id, then the new one: of two in
//!    opposite directions PostgreSQL ends one with 40P01.
//! 4. Other rows of that user.
//! 5. Pages of rows that change in place: `attempts` before `used_codes`, or `floor` alone, or `counters` alone if nobody else
//!    has it. They are released within the
//!    change. All other locks last until the end of the transaction.
//!
//! Locks of tables are not in the list. All are weak ones that do not conflict with each other (ACCESS SHARE, ROW EXCLUSIVE);
//! a sign-in takes those of `attempts`, `used_codes`, and `secrets` before its snapshot.
//!
//! Owns the order of the SQL files, and what happens when the library is loaded. Must never read a catalog then.

// PostgreSQL errors cross Rust frames as panics: without unwinding they would end the backend.
#[cfg(not(panic = "unwind"))]
compile_error!("pg_totp must be built with panic = \"unwind\"");

mod api;
mod audit;
mod audit_lines;
mod backend;
mod clock;
mod counters;
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
mod trail;
mod user;

use pgrx::PgLogLevel;
use pgrx::pg_sys::panic::ErrorReport;

pgrx::pg_module_magic!(name, version);

pgrx::extension_sql_file!("../sql/tables.sql", name = "tables", bootstrap);
pgrx::extension_sql_file!("../sql/comments.sql", name = "comments", requires = ["tables"]);
pgrx::extension_sql_file!("../sql/rotation.sql", name = "rotation", requires = ["tables"]);
pgrx::extension_sql_file!("../sql/sealing.sql", name = "sealing", requires = ["tables"]);
pgrx::extension_sql_file!("../sql/rights.sql", name = "rights", finalize);

/// PostgreSQL calls this when it loads the library: for the first call of a session, or earlier if it is preloaded. Then
/// there may be no session, no transaction, and no catalog.
#[pgrx::pg_guard]
extern "C-unwind" fn _PG_init() {
    backend::hide_backtraces();
    if let Err(error) = settings::refuse_startup_options() {
        ErrorReport::from(error).report(PgLogLevel::ERROR);
    }
    settings::register();
    store::relcache::watch();
    audit_lines::watch();
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
