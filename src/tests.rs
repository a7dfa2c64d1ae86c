//! Tests that run inside a backend, each in a transaction that is rolled back. What needs several sessions, a restart
//! or a real COMMIT is tested in `tests/cluster`, what is visible in SQL in `tests/regress`.
//!
//! Owns samples of every error. Must never test what a regression test can show.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::inplace::{self, Outcome, Target};
    use crate::keyring;
    use crate::server_log::quoted;
    use crate::store::attempts::{self, Attempts};
    use crate::store::health::Sampled;
    use crate::store::spi::Snapshot;
    use crate::store::{data_keys, secrets};
    use crate::user::UserId;

    /// A master key for this backend, as an operator would give it in the environment.
    fn with_master_key() {
        // SAFETY: a backend has one thread.
        unsafe { std::env::set_var("TOTP_ENCRYPTION_KEY", "0123456789abcdef".repeat(4)) };
    }

    const ALICE: UserId<'static> = UserId::stored("alice");

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

    /// Lists samples of an enum, each beside the pattern that it fits. The `match` does not compile if a variant is missing.
    macro_rules! samples {
        ($type:ty; $($pattern:pat => [$($sample:expr),+ $(,)?],)+) => {{
            fn has_sample(value: &$type) {
                match value {
                    $($pattern => (),)+
                }
            }
            let mut samples: Vec<$type> = vec![];
            $($(
                let sample = $sample;
                assert!(matches!(&sample, $pattern), "{} does not fit {}", stringify!($sample), stringify!($pattern));
                has_sample(&sample);
                samples.push(sample);
            )+)+
            samples
        }};
    }

    fn samples_of_every_error() -> Vec<Error> {
        use otp::{NameError, ParameterError, QrError, SecretError, UriError};
        use tokens::ReadError;
        samples![Error;
            Error::Null(_) => [Error::Null("user_id")],
            Error::NameLength(_) => [Error::NameLength("user_id")],
            Error::Parameter(ParameterError::Algorithm) => [ParameterError::Algorithm.into()],
            Error::Parameter(ParameterError::Digits) => [ParameterError::Digits.into()],
            Error::Parameter(ParameterError::Period) => [ParameterError::Period.into()],
            Error::Parameter(ParameterError::Window) => [ParameterError::Window.into()],
            Error::Parameter(ParameterError::Encoding) => [ParameterError::Encoding.into()],
            Error::Secret(SecretError::Symbol) => [SecretError::Symbol.into()],
            Error::Secret(SecretError::Incomplete) => [SecretError::Incomplete.into()],
            Error::Secret(SecretError::Ambiguous) => [SecretError::Ambiguous.into()],
            Error::Secret(SecretError::Hex) => [SecretError::Hex.into()],
            Error::Secret(SecretError::Base64) => [SecretError::Base64.into()],
            Error::Secret(SecretError::TooShort) => [SecretError::TooShort.into()],
            Error::Secret(SecretError::Weak) => [SecretError::Weak.into()],
            Error::Secret(SecretError::TooLong) => [SecretError::TooLong.into()],
            Error::Uri(UriError::Malformed) => [UriError::Malformed.into()],
            Error::Uri(UriError::TooLong) => [UriError::TooLong.into()],
            Error::Uri(UriError::Type) => [UriError::Type.into()],
            Error::Uri(UriError::Encoding) => [UriError::Encoding.into()],
            Error::Uri(UriError::Duplicate) => [UriError::Duplicate.into()],
            Error::Uri(UriError::Encoder) => [UriError::Encoder.into()],
            Error::Uri(UriError::Html) => [UriError::Html.into()],
            Error::Uri(UriError::NoSecret) => [UriError::NoSecret.into()],
            Error::Uri(UriError::Secret(_)) => [UriError::Secret(SecretError::Symbol).into()],
            Error::Uri(UriError::Parameter(_)) => [UriError::Parameter(ParameterError::Digits).into()],
            Error::Name(NameError::Empty) => [NameError::Empty.into()],
            Error::Name(NameError::TooLong) => [NameError::TooLong.into()],
            Error::Name(NameError::Colon) => [NameError::Colon.into()],
            Error::Name(NameError::Control) => [NameError::Control.into()],
            Error::Name(NameError::LeadingSpace) => [NameError::LeadingSpace.into()],
            Error::UserIdAsName(_) => [Error::UserIdAsName(NameError::Colon)],
            Error::EncodingNeeded(_) => [Error::EncodingNeeded(SecretError::Ambiguous)],
            Error::UriWithEncoding => [Error::UriWithEncoding],
            Error::Tokens(ReadError::Format) => [ReadError::Format.into()],
            Error::Tokens(ReadError::TooLarge) => [ReadError::TooLarge.into()],
            Error::Tokens(ReadError::TooManyTokens) => [ReadError::TooManyTokens.into()],
            Error::Tokens(ReadError::Xml) => [ReadError::Xml.into()],
            Error::Tokens(ReadError::Entity) => [ReadError::Entity.into()],
            Error::Tokens(ReadError::Nesting) => [ReadError::Nesting.into()],
            Error::Tokens(ReadError::NotPskc) => [ReadError::NotPskc.into()],
            Error::Tokens(ReadError::Version) => [ReadError::Version.into()],
            Error::Tokens(ReadError::Columns) => [ReadError::Columns.into()],
            Error::Tokens(ReadError::NoLink) => [ReadError::NoLink.into()],
            Error::Tokens(ReadError::KeyNeeded) => [ReadError::KeyNeeded.into()],
            Error::Tokens(ReadError::PasswordNeeded) => [ReadError::PasswordNeeded.into()],
            Error::Tokens(ReadError::KeyLength) => [ReadError::KeyLength.into()],
            Error::Tokens(ReadError::Derivation) => [ReadError::Derivation.into()],
            Error::Tokens(ReadError::Iterations) => [ReadError::Iterations.into()],
            Error::Tokens(ReadError::WrongKey) => [ReadError::WrongKey.into()],
            Error::Qr(QrError::TooLong) => [QrError::TooLong.into()],
            Error::Qr(QrError::Scale) => [QrError::Scale.into()],
            Error::Qr(QrError::Png) => [QrError::Png.into()],
            Error::RecoveryCount => [Error::RecoveryCount],
            Error::FirstRecoveryCount => [Error::FirstRecoveryCount],
            Error::OfUser(..) => [Error::DoesNotOpen.of_user("alice"), Error::RecoveryCount.of_user("a\nlice")],
            Error::SecretOfOtherDevice => [Error::SecretOfOtherDevice],
            Error::UserExists => [Error::UserExists],
            Error::TimeRange => [Error::TimeRange],
            Error::Clock => [Error::Clock],
            Error::TooManyDevices => [Error::TooManyDevices],
            Error::DeviceDisabled => [Error::DeviceDisabled],
            Error::DeviceExists => [Error::DeviceExists],
            Error::ProofRequired => [Error::ProofRequired],
            Error::ReplacementNeedsProof => [Error::ReplacementNeedsProof],
            Error::NoSuchDevice => [Error::NoSuchDevice],
            Error::Standby(_) => [Error::Standby("totp_verify")],
            Error::ReadOnly(_) => [Error::ReadOnly("totp_verify")],
            Error::Parallel(_) => [Error::Parallel("totp_verify")],
            Error::Isolation(_) => [Error::Isolation("totp_rotate_key")],
            Error::BatchSize => [Error::BatchSize],
            Error::Age => [Error::Age],
            Error::Anchor => [Error::Anchor],
            Error::Capability => [Error::Capability],
            Error::Restricted(_) => [Error::Restricted("totp_verify")],
            Error::SuperuserOnly => [Error::SuperuserOnly],
            Error::OwnerOnly(_) => [Error::OwnerOnly("totp_prune_audit")],
            Error::RotationOnly(_) => [Error::RotationOnly("reseal")],
            Error::CallerUnknown(_) => [Error::CallerUnknown("totp_export")],
            Error::OwnCopy => [Error::OwnCopy],
            Error::StartupOption => [Error::StartupOption],
            Error::NothingToRotate => [Error::NothingToRotate],
            Error::MasterKeyLoaded => [Error::MasterKeyLoaded],
            Error::NoKeyOfMaster => [Error::NoKeyOfMaster],
            Error::NoMasterKey => [Error::NoMasterKey],
            Error::KeyFile { .. } => [Error::KeyFile { line: 0, rule: RULE }, Error::KeyFile { line: 3, rule: RULE }],
            Error::KeyEnvironment { .. } => [Error::KeyEnvironment { rule: RULE }],
            Error::MasterKeyNotLoaded(_) => [Error::MasterKeyNotLoaded(seal::Fingerprint::parse("0123456789abcdef").unwrap())],
            Error::UnusedMasterKeyNotLoaded(_) => [Error::UnusedMasterKeyNotLoaded(seal::Fingerprint::parse("0123456789abcdef").unwrap())],
            Error::NoDataKey(_) => [Error::NoDataKey(seal::KeyId::new(1))],
            Error::DoesNotOpen => [Error::DoesNotOpen],
            Error::RowsAltered => [Error::RowsAltered],
            Error::TableAltered(_) => [Error::TableAltered("attempts")],
            Error::TableRewritten(_) => [Error::TableRewritten("attempts")],
            Error::TableRepackable(..) => [Error::TableRepackable("attempts", "totp.attempts".into())],
            Error::TableDistributed(_) => [Error::TableDistributed("attempts")],
            Error::Random => [Error::Random],
            Error::Drift => [Error::Drift],
            Error::PageSize => [Error::PageSize],
            Error::Internal(_) => [Error::Internal("run a query")],
        ]
    }

    /// A sentence as a key file rule is one: the rules themselves are looked at below.
    const RULE: &str = "A key must be good.";

    fn every_key_file_rule() -> Vec<&'static str> {
        use keyring::FileRule;
        use seal::Rule;
        let of_text = samples![Rule;
            Rule::NoKey => [Rule::NoKey],
            Rule::NotAscii => [Rule::NotAscii],
            Rule::Form => [Rule::Form],
            Rule::RepeatedDigit => [Rule::RepeatedDigit],
            Rule::Duplicate => [Rule::Duplicate],
        ];
        let of_file = samples![FileRule;
            FileRule::Exists => [FileRule::Exists],
            FileRule::Permitted => [FileRule::Permitted],
            FileRule::Readable => [FileRule::Readable],
            FileRule::Regular => [FileRule::Regular],
            FileRule::Owner => [FileRule::Owner],
            FileRule::Mode => [FileRule::Mode],
            FileRule::ModeOfRoot => [FileRule::ModeOfRoot],
            FileRule::Outside => [FileRule::Outside],
            FileRule::Text => [FileRule::Text],
            FileRule::Short => [FileRule::Short],
        ];
        of_text.into_iter().map(Rule::as_str).chain(of_file.into_iter().map(FileRule::as_str)).collect()
    }

    /// PostgreSQL's guide for DETAIL and HINT: whole sentences.
    fn assert_sentences(text: &str) {
        assert!(text.starts_with(|first: char| first.is_uppercase()), "no capital: {text}");
        assert!(text.ends_with('.') && !text.ends_with(".."), "no full stop: {text}");
        assert!(!text.contains("  ") && !text.contains('\n'), "white space: {text}");
    }

    #[pg_test]
    fn messages_are_in_the_style_of_postgresql() {
        for error in samples_of_every_error() {
            let report = ErrorReport::from(error);
            let message = report.message();
            assert!(message.starts_with(|first: char| first.is_lowercase()), "a capital: {message}");
            assert!(!message.ends_with('.'), "a full stop: {message}");
            assert!(!message.contains("SPI_"), "a C function: {message}");
            [report.detail(), report.hint()].into_iter().flatten().for_each(assert_sentences);
        }
        every_key_file_rule().into_iter().for_each(assert_sentences);
        assert_sentences(otp::recovery::InvalidRecoverySet.detail());
    }

    #[pg_test]
    fn a_change_in_place_outlives_its_subtransaction() {
        attempts::lock_or_insert(ALICE).unwrap();
        // SAFETY: begun and rolled back in this order; nothing in between raises.
        unsafe { pg_sys::BeginInternalSubTransaction(std::ptr::null()) };
        let found = attempts::find(ALICE).unwrap().unwrap();
        let outcome =
            inplace::change_one(Target::open(&found.address).unwrap(), |row: &mut Attempts| row.codes.failures = 3)
                .unwrap();
        assert!(matches!(outcome, Outcome::Decided((), Some(_))));
        drop(found);
        // SAFETY: as above.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        assert_eq!(failures("alice"), 3);
    }

    #[pg_test]
    fn a_decision_that_changes_nothing_writes_nothing() {
        attempts::lock_or_insert(ALICE).unwrap();
        let found = attempts::find(ALICE).unwrap().unwrap();
        let outcome =
            inplace::change_one(Target::open(&found.address).unwrap(), |row: &mut Attempts| row.codes.failures)
                .unwrap();
        assert!(matches!(outcome, Outcome::Decided(0, None)));
    }

    #[pg_test]
    fn a_row_that_is_gone_is_looked_up_again() {
        attempts::lock_or_insert(ALICE).unwrap();
        let found = attempts::find(ALICE).unwrap().unwrap();
        assert!(attempts::delete(ALICE).unwrap());
        let outcome = inplace::change_one(Target::open(&found.address).unwrap(), |_: &mut Attempts| ()).unwrap();
        assert!(matches!(outcome, Outcome::LookAgain));
    }

    #[pg_test]
    fn a_deleted_row_is_read_as_it_was_when_it_went() {
        attempts::lock_or_insert(ALICE).unwrap();
        let found = attempts::find(ALICE).unwrap().unwrap();
        inplace::change_one(Target::open(&found.address).unwrap(), |row: &mut Attempts| row.codes.failures = 7)
            .unwrap();
        assert_eq!(attempts::take(ALICE).unwrap().unwrap().codes.failures, 7);
    }

    #[pg_test]
    fn an_unlogged_table_is_not_changed_in_place() {
        attempts::lock_or_insert(ALICE).unwrap();
        Spi::run("ALTER TABLE totp.attempts SET UNLOGGED").unwrap();
        let found = attempts::find(ALICE).unwrap().unwrap();
        let target = Target::<Attempts>::open(&found.address);
        assert!(matches!(target, Err(Error::TableAltered("attempts"))));
    }

    #[pg_test]
    fn a_data_key_that_was_replaced_under_its_id_is_noticed() {
        with_master_key();
        Spi::run("SELECT totp_enroll('alice')").unwrap();
        // What DROP EXTENSION and CREATE EXTENSION in one session amount to: another key, the same id.
        let id = data_keys::current(&Snapshot::latest()).unwrap().unwrap().id.get();
        Spi::run("DELETE FROM totp.secrets; DELETE FROM totp.used_codes; DELETE FROM totp.data_keys").unwrap();
        Spi::run(&format!("SELECT setval('totp.key_ids', {id}, false)")).unwrap();
        Spi::run("SELECT totp_enroll('alice')").unwrap();
        let current = data_keys::current(&Snapshot::latest()).unwrap().unwrap();
        assert_eq!(current.id.get(), id);

        let snapshot = Snapshot::latest();
        let stored = secrets::sealed_of_user(&snapshot, ALICE).unwrap();
        keyring::forget();
        assert!(keyring::open_secret(&snapshot, ALICE, &stored[0]).is_ok());
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

    #[pg_test]
    fn a_sample_says_no_more_than_it_knows() {
        let said = |rows, scale| {
            let sample = Sampled { rows, scale };
            (sample.at_least(), sample.about(), sample.at_most())
        };
        assert_eq!(said(7, 1.0), (7, 7, 7)); // it is the table
        assert_eq!(said(0, 30.0), (0, 0, 90));
        assert_eq!(said(9, 30.0), (0, 270, 630));
        assert_eq!(said(100, 30.0), (2_100, 3_000, 3_990));
    }
}
