//! The SQL functions, one file per family. They check arguments, call the code that does the work, and shape the answer.
//!
//! | functions | file |
//! |---|---|
//! | `totp_verify`, `totp_check` | `verify.rs`; what they do with a code: `judgment.rs`, `matching.rs` |
//! | `totp_confirm`, `totp_check_confirm` | `confirm.rs`; what makes a secret count: `binding.rs`, `proof.rs` |
//! | `totp_resync` | `resync.rs` |
//! | `totp_enroll`, `totp_reset`, and the rules by which a secret is stored | `enroll.rs` |
//! | `totp_import` | `import.rs` |
//! | `totp_read_tokens` | `read_tokens.rs` |
//! | `totp_recover`, `totp_check_recover` | `recovery.rs` |
//! | `totp_recovery_codes`, `totp_reset_recovery_codes` | `recovery_codes.rs` |
//! | `totp_enabled`, `totp_status` | `status.rs` |
//! | `totp_list` | `list.rs` |
//! | `totp_disable`, `totp_enable`, `totp_remove`, `totp_unenroll`, `totp_unlock` | `lifecycle.rs` |
//! | `totp_rename_user`, `totp_rename_device`, `totp_move_device` | `rename.rs` |
//! | `totp_keys`, `totp_forget_unreadable` | `keys.rs` |
//! | `totp_rotate_key`, the steps of `totp_rotate_key_online`, `totp.reseal`, `totp.reseal_recovery_codes` | `rotation.rs` |
//! | `totp_stats`, `totp_prune_audit` | `audit.rs` |
//! | the steps of `totp_audit_seal` | `audit_seal.rs` |
//! | `totp_audit_verify` | `audit_verify.rs` |
//! | `totp_export` | `export.rs` |
//! | `totp_qr_svg`, `totp_qr_png`, `totp_qr_text`, `totp_code_at` | `qr.rs` |
//! | `totp_health` | `health/` |
//! | `totp_metrics` | `metrics.rs` |
//! | `totp_acknowledge_restore` | `restore.rs` |
//! | `totp.record_right` | `rights.rs` |
//!
//! `old_sql.rs` has what the SQL of 0.1.0 calls.
//!
//! `totp_rotate_key_online` is a procedure in `sql/rotation.sql`, `totp_audit_seal` one in `sql/sealing.sql`, and `totp_grant` and `totp_revoke` are functions in
//! `sql/rights.sql`.
//!
//! Owns what a caller sees. Must never run an SQL statement, which is in `store`, nor touch a page.

mod answer;
mod arguments;
mod audit;
mod audit_seal;
mod audit_verify;
mod binding;
mod confirm;
mod enroll;
mod export;
mod guard;
mod health;
mod import;
mod judgment;
mod keys;
mod lifecycle;
mod list;
mod matching;
mod metrics;
mod old_sql;
mod proof;
mod qr;
mod read_tokens;
mod recovery;
mod recovery_codes;
mod rename;
mod restore;
mod resync;
mod rights;
mod rotation;
mod rows;
mod secret_text;
mod status;
mod verify;
