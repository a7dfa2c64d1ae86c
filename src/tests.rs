//! Tests that run inside a backend, each in a transaction that is rolled back. What needs several sessions, a restart
//! or a real COMMIT is tested in `tests/cluster`, what is visible in SQL in `tests/regress`.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::inplace::{self, Outcome, Target};
    use crate::keyring;
    use crate::log::quoted;
    use crate::store::attempts::{self, Attempts};
    use crate::store::spi::Snapshot;
    use crate::store::{data_keys, secrets};

    /// A master key for this backend, as an operator would give it in the environment.
    fn with_master_key() {
        // SAFETY: a backend has one thread.
        unsafe { std::env::set_var("TOTP_ENCRYPTION_KEY", "0123456789abcdef".repeat(4)) };
    }

    fn failures(user_id: &str) -> i64 {
        Spi::get_one_with_args("SELECT failures FROM totp.attempts WHERE user_id = $1", &[user_id.into()])
            .unwrap()
            .unwrap()
    }

    #[pg_test]
    fn quoted_values_stay_on_their_line() {
        assert_eq!(quoted("alice"), r#""alice""#);
        assert_eq!(quoted("a\"b\\c"), r#""a\"b\\c""#);
        assert_eq!(quoted("a\nb\u{1b}[31m\u{202e}é"), r#""a\u{a}b\u{1b}[31m\u{202e}\u{e9}""#);
    }

    #[pg_test]
    fn messages_are_in_the_style_of_postgresql() {
        let errors = [
            Error::Null("user_id"),
            Error::NameLength("user_id"),
            Error::Clock,
            Error::TooManyDevices,
            Error::DeviceDisabled,
            Error::NoSuchDevice,
            Error::Standby("totp_verify"),
            Error::ReadOnly("totp_verify"),
            Error::Parallel("totp_verify"),
            Error::Isolation("totp_rotate_key"),
            Error::NoMasterKey,
            Error::KeyFile { line: 3, rule: "rule" },
            Error::KeyEnvironment { rule: "rule" },
            Error::NoDataKey(1),
            Error::DoesNotOpen,
            Error::RowsAltered,
            Error::TableAltered("attempts"),
            Error::NothingToRotate,
            Error::OwnCopy,
            Error::OwnCopy,
            Error::NotForgettable,
            Error::UserExists,
            Error::SecretOfOtherDevice,
            Error::SuperuserOnly,
            Error::Restricted("totp_verify"),
            Error::OwnerOnly("totp_prune_audit"),
            Error::RotationOnly("reseal"),
            Error::CallerUnknown("totp_export"),
            Error::StartupOption,
        ];
        for error in errors {
            let report = ErrorReport::from(error);
            let first = report.message().chars().next().unwrap();
            assert!(first.is_lowercase(), "{}", report.message());
            assert!(!report.message().ends_with('.'), "{}", report.message());
            assert!(report.hint().is_none_or(|h| h.ends_with('.')), "{:?}", report.hint());
        }
    }

    #[pg_test]
    fn a_change_in_place_outlives_its_subtransaction() {
        attempts::lock_or_insert("alice").unwrap();
        // SAFETY: begun and rolled back in this order; nothing in between raises.
        unsafe { pg_sys::BeginInternalSubTransaction(std::ptr::null()) };
        let (address, _snapshot) = attempts::find("alice").unwrap().unwrap();
        let outcome =
            inplace::change_one(Target::open(&address).unwrap(), |row: &mut Attempts| row.codes.failures = 3).unwrap();
        assert!(matches!(outcome, Outcome::Decided((), Some(_))));
        drop(_snapshot);
        // SAFETY: as above.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        assert_eq!(failures("alice"), 3);
    }

    #[pg_test]
    fn a_decision_that_changes_nothing_writes_nothing() {
        attempts::lock_or_insert("alice").unwrap();
        let (address, _snapshot) = attempts::find("alice").unwrap().unwrap();
        let outcome =
            inplace::change_one(Target::open(&address).unwrap(), |row: &mut Attempts| row.codes.failures).unwrap();
        assert!(matches!(outcome, Outcome::Decided(0, None)));
    }

    #[pg_test]
    fn a_row_that_is_gone_is_looked_up_again() {
        attempts::lock_or_insert("alice").unwrap();
        let (address, _snapshot) = attempts::find("alice").unwrap().unwrap();
        assert!(attempts::delete("alice").unwrap());
        let outcome = inplace::change_one(Target::open(&address).unwrap(), |_: &mut Attempts| ()).unwrap();
        assert!(matches!(outcome, Outcome::LookAgain));
    }

    #[pg_test]
    fn a_deleted_row_is_read_as_it_was_when_it_went() {
        attempts::lock_or_insert("alice").unwrap();
        let (address, _snapshot) = attempts::find("alice").unwrap().unwrap();
        inplace::change_one(Target::open(&address).unwrap(), |row: &mut Attempts| row.codes.failures = 7).unwrap();
        assert_eq!(attempts::take("alice").unwrap().unwrap().codes.failures, 7);
    }

    #[pg_test]
    fn an_unlogged_table_is_not_changed_in_place() {
        attempts::lock_or_insert("alice").unwrap();
        Spi::run("ALTER TABLE totp.attempts SET UNLOGGED").unwrap();
        let (address, _snapshot) = attempts::find("alice").unwrap().unwrap();
        let target = Target::<Attempts>::open(&address);
        assert!(matches!(target, Err(Error::TableAltered("attempts"))));
    }

    #[pg_test]
    fn a_data_key_that_was_replaced_under_its_id_is_noticed() {
        with_master_key();
        Spi::run("SELECT totp_enroll('alice')").unwrap();
        // What DROP EXTENSION and CREATE EXTENSION in one session amount to: another key, the same id.
        let id = data_keys::current(&Snapshot::latest()).unwrap().unwrap().id;
        Spi::run("DELETE FROM totp.secrets; DELETE FROM totp.used_codes; DELETE FROM totp.data_keys").unwrap();
        Spi::run(&format!("SELECT setval('totp.key_ids', {id}, false)")).unwrap();
        Spi::run("SELECT totp_enroll('alice')").unwrap();
        let current = data_keys::current(&Snapshot::latest()).unwrap().unwrap();
        assert_eq!(current.id, id);

        let snapshot = Snapshot::latest();
        let stored = secrets::sealed_of_user(&snapshot, "alice").unwrap();
        keyring::forget();
        assert!(keyring::open_secret(&snapshot, "alice", &stored[0]).is_ok());
    }

    #[pg_test(error = "sealed value does not open")]
    fn a_secret_moved_to_another_user_does_not_open() {
        with_master_key();
        Spi::run("SELECT totp_enroll('alice'), totp_enroll('bob')").unwrap();
        Spi::run(
            "UPDATE totp.secrets b SET sealed = a.sealed FROM totp.secrets a
              WHERE a.user_id = 'alice' AND b.user_id = 'bob'",
        )
        .unwrap();
        Spi::run("SELECT totp_verify('bob', '000000')").unwrap();
    }
}
