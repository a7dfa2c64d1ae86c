//! Every error of the extension: its SQLSTATE, message, detail, and hint, each in one place.
//!
//! Messages are constant. DETAIL and HINT are whole sentences: a test in
//! `tests.rs` goes through every variant.
//!
//! Owns all text of errors. Must never get a secret, a code, a key, or a path.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::panic::ErrorReport;

use crate::server_log::quoted;

/// What can go wrong. A wrong code is not an error: it is an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("argument \"{0}\" must not be null")]
    Null(&'static str),
    #[error("invalid length of argument \"{0}\"")]
    NameLength(&'static str),
    #[error("{0}")]
    Parameter(#[from] otp::ParameterError),
    #[error("{0}")]
    Secret(#[from] otp::SecretError),
    #[error("{0}")]
    Uri(#[from] otp::UriError),
    #[error("{0}")]
    Tokens(#[from] tokens::ReadError),
    #[error("{0}")]
    Name(#[from] otp::NameError),
    /// The user id is the account name if the caller gives none.
    #[error("{0}")]
    UserIdAsName(otp::NameError),
    /// Not base32, or not surely, and the caller named no encoding.
    #[error("{0}")]
    EncodingNeeded(otp::SecretError),
    #[error("an encoding is given for an otpauth URI")]
    UriWithEncoding,
    #[error("{0}")]
    Qr(#[from] otp::QrError),
    #[error("invalid number of recovery codes")]
    RecoveryCount,
    #[error("invalid number of recovery codes")]
    FirstRecoveryCount,
    #[error("invalid drift")]
    Drift,
    #[error("{1}")]
    OfUser(String, Box<Error>),
    #[error("another device of this user has this secret")]
    SecretOfOtherDevice,
    #[error("user already exists")]
    UserExists,
    #[error("time is out of range")]
    TimeRange,
    #[error("invalid value for setting \"totp.clock\"")]
    Clock,
    #[error("too many devices for this user")]
    TooManyDevices,
    #[error("device already exists")]
    DeviceExists,
    #[error("a proof of an authenticator is required")]
    ProofRequired,
    /// For an enrollment that would end the active secret now.
    #[error("a proof of an authenticator is required")]
    ReplacementNeedsProof,
    #[error("device is disabled")]
    DeviceDisabled,
    #[error("no such user or device")]
    NoSuchDevice,
    #[error("cannot execute {0}() on a standby")]
    Standby(&'static str),
    #[error("cannot execute {0}() in a read-only transaction")]
    ReadOnly(&'static str),
    #[error("cannot execute {0}() in parallel mode")]
    Parallel(&'static str),
    #[error("cannot execute {0}() at this isolation level")]
    Isolation(&'static str),
    #[error("invalid batch size")]
    BatchSize,
    #[error("invalid number of users")]
    PageSize,
    #[error("invalid anchor")]
    Anchor,
    #[error("invalid age")]
    Age,
    #[error("invalid capability")]
    Capability,
    #[error("cannot execute {0}() within security-restricted operation")]
    Restricted(&'static str),
    #[error("permission denied to export secrets")]
    SuperuserOnly,
    #[error("permission denied for function {0}")]
    OwnerOnly(&'static str),
    #[error("permission denied for function {0}")]
    RotationOnly(&'static str),
    #[error("permission denied for function {0}")]
    CallerUnknown(&'static str),
    #[error("cannot judge a code of a user who was renamed or imported in this transaction")]
    OwnCopy,
    #[error("settings of pg_totp cannot be given as startup options")]
    StartupOption,
    #[error("nothing to rotate")]
    NothingToRotate,
    #[error("master key is loaded")]
    MasterKeyLoaded,
    #[error("no data key is wrapped by this master key")]
    NoKeyOfMaster,
    #[error("no master key is loaded")]
    NoMasterKey,
    #[error("master key file is not valid")]
    KeyFile { line: usize, rule: &'static str },
    #[error("environment variable TOTP_ENCRYPTION_KEY is not valid")]
    KeyEnvironment { rule: &'static str },
    #[error("sealed under master key {0}, which is not loaded")]
    MasterKeyNotLoaded(seal::Fingerprint),
    /// As above, for a key whose data keys seal nothing: it may have been thrown away.
    #[error("sealed under master key {0}, which is not loaded")]
    UnusedMasterKeyNotLoaded(seal::Fingerprint),
    #[error("sealed under data key {}, which does not exist", .0.get())]
    NoDataKey(seal::KeyId),
    #[error("sealed value does not open")]
    DoesNotOpen,
    #[error("rows of schema \"totp\" are missing or altered")]
    RowsAltered,
    #[error("table \"totp.{0}\" is missing or altered")]
    TableAltered(&'static str),
    #[error("cannot judge a code in the transaction that rewrote table \"totp.{0}\"")]
    TableRewritten(&'static str),
    /// REPACK (CONCURRENTLY) would take it, or that partition of it: the name as SQL needs it.
    #[error("replica identity of table \"totp.{0}\" is not NOTHING")]
    TableRepackable(&'static str, String),
    #[error("table \"totp.{0}\" is distributed by Citus")]
    TableDistributed(&'static str),
    #[error("could not generate random bytes")]
    Random,
    /// What could not be done. PostgreSQL or a file failed in a way that has no other error.
    #[error("could not {0}")]
    Internal(&'static str),
}

impl Error {
    fn sqlstate(&self) -> PgSqlErrorCode {
        use PgSqlErrorCode::*;
        match self {
            Self::OfUser(_, error) => error.sqlstate(),
            Self::Null(_) | Self::NameLength(_) | Self::Parameter(_) | Self::Secret(_) | Self::Uri(_) => {
                ERRCODE_INVALID_PARAMETER_VALUE
            }
            Self::Name(_)
            | Self::UserIdAsName(_)
            | Self::EncodingNeeded(_)
            | Self::UriWithEncoding
            | Self::Tokens(_) => ERRCODE_INVALID_PARAMETER_VALUE,
            Self::Qr(_) | Self::RecoveryCount | Self::FirstRecoveryCount => ERRCODE_INVALID_PARAMETER_VALUE,
            Self::SecretOfOtherDevice | Self::UserExists | Self::DeviceExists => ERRCODE_INVALID_PARAMETER_VALUE,
            Self::TimeRange | Self::Clock | Self::Drift => ERRCODE_INVALID_PARAMETER_VALUE,
            Self::NoSuchDevice => ERRCODE_UNDEFINED_OBJECT,
            Self::TooManyDevices => ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            Self::DeviceDisabled | Self::TableRewritten(_) | Self::TableRepackable(..) | Self::TableDistributed(_) => {
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
            }
            Self::Standby(_) | Self::ReadOnly(_) => ERRCODE_READ_ONLY_SQL_TRANSACTION,
            Self::Parallel(_) => ERRCODE_INVALID_TRANSACTION_STATE,
            Self::Isolation(_) => ERRCODE_ACTIVE_SQL_TRANSACTION,
            Self::BatchSize
            | Self::PageSize
            | Self::MasterKeyLoaded
            | Self::NoKeyOfMaster
            | Self::Age
            | Self::Anchor
            | Self::Capability => ERRCODE_INVALID_PARAMETER_VALUE,
            Self::Restricted(_) | Self::SuperuserOnly | Self::OwnerOnly(_) | Self::RotationOnly(_) => {
                ERRCODE_INSUFFICIENT_PRIVILEGE
            }
            Self::CallerUnknown(_) | Self::StartupOption => ERRCODE_INSUFFICIENT_PRIVILEGE,
            Self::ProofRequired | Self::ReplacementNeedsProof => ERRCODE_INSUFFICIENT_PRIVILEGE,
            Self::NothingToRotate | Self::OwnCopy => ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::NoMasterKey | Self::KeyFile { .. } | Self::KeyEnvironment { .. } => ERRCODE_CONFIG_FILE_ERROR,
            Self::MasterKeyNotLoaded(_) | Self::UnusedMasterKeyNotLoaded(_) => ERRCODE_CONFIG_FILE_ERROR,
            Self::DoesNotOpen | Self::RowsAltered | Self::TableAltered(_) | Self::NoDataKey(_) => {
                ERRCODE_DATA_CORRUPTED
            }
            Self::Random | Self::Internal(_) => ERRCODE_INTERNAL_ERROR,
        }
    }

    /// Adds the user to the detail, for a call that is one of many in a statement.
    pub fn of_user(self, user_id: &str) -> Self {
        Self::OfUser(quoted(user_id), Box::new(self))
    }

    /// Returns the DETAIL of the message.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::OfUser(user, error) => {
                let detail = error.detail().map_or(String::new(), |detail| format!(" {detail}"));
                Some(format!("The call was for user {user}.{detail}"))
            }
            Self::NameLength(_) => Some("It must be 1 to 256 bytes long.".into()),
            Self::Parameter(e) => Some(e.detail().into()),
            Self::Secret(e) | Self::EncodingNeeded(e) => Some(e.detail().into()),
            Self::Uri(e) => Some(e.detail().into()),
            Self::Tokens(e) => Some(e.detail().into()),
            Self::Name(e) | Self::UserIdAsName(e) => Some(e.detail().into()),
            Self::UriWithEncoding => Some("The secret in an otpauth URI is always base32.".into()),
            Self::Qr(e) => Some(e.detail().into()),
            Self::Anchor => Some("It must be a line \"totp: event=audit_sealed seal=… last=… rows=… mac=…\" of the server log, or its part from \"seal=\" on.".into()),
            Self::Age => Some("The interval must be positive and at most 1000 years.".into()),
            Self::Capability => Some("Accepted are verify, enroll, admin and audit.".into()),
            Self::BatchSize => Some("It must be 1 to 100000.".into()),
            Self::PageSize => Some("It must be 1 to 10000.".into()),
            Self::RecoveryCount => Some("It must be 1 to 20.".into()),
            Self::FirstRecoveryCount => Some("It must be 0, for none, to 20.".into()),
            Self::Drift => Some("It must be -60 to 60 steps.".into()),
            Self::TableDistributed(_) => {
                Some("Its rows are in other tables, and a move of these would make used codes good again.".into())
            }
            Self::TimeRange => Some("It must be between the years -4712 and 294276.".into()),
            Self::TableRepackable(..) => {
                Some("REPACK (CONCURRENTLY) could take the table, and would bring used codes and failures back.".into())
            }
            Self::CallerUnknown(_) => {
                Some("The function is SECURITY DEFINER, so it does not know who called it.".into())
            }
            Self::KeyFile { line, rule, .. } if *line > 0 => Some(format!("Line {line}: {rule}")),
            Self::KeyFile { rule, .. } | Self::KeyEnvironment { rule } => Some((*rule).into()),
            _ => None,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::OfUser(_, error) => error.hint(),
            Self::UnusedMasterKeyNotLoaded(key) => Some(format!(
                "Nothing is sealed under its data keys. If it was thrown away, run SELECT * FROM totp_forget_unreadable('{key}'). \
                 If not, add it again to the file that totp.key_file names, below the current one."
            )),
            Self::TableRepackable(_, name) => {
                Some(format!("Run ALTER TABLE {name} REPLICA IDENTITY NOTHING, and what else totp_health() says."))
            }
            _ => self.constant_hint().map(str::to_owned),
        }
    }

    fn constant_hint(&self) -> Option<&'static str> {
        match self {
            Self::UserIdAsName(_) => {
                Some("The account name is the user id by default. Give another one in argument account_name.")
            }
            Self::EncodingNeeded(_) => Some(
                "Say what it is in argument encoding: 'base32', 'hex', 'base64', or 'raw' for the bytes of the text.",
            ),
            Self::UriWithEncoding => Some("Leave out argument encoding."),
            Self::TooManyDevices => Some("Remove a device with totp_remove(), or raise totp.max_devices."),
            Self::SecretOfOtherDevice => Some("Each code would count twice. Remove the other device first."),
            Self::UserExists => Some("Choose another id, or remove that user with totp_remove()."),
            Self::DeviceExists => Some("Choose another name, or remove that device first."),
            Self::ProofRequired => {
                Some("Pass a current code of an active device, or a recovery code, in argument proof.")
            }
            Self::ReplacementNeedsProof => Some(
                "Leave keep_current true and confirm the new secret with a recovery code as proof, or call totp_reset().",
            ),
            Self::DeviceDisabled => Some("Enable it with totp_enable(), or remove it with totp_remove()."),
            Self::Standby(_) => {
                Some("Call it on the primary. Only there can a code be used up and a guess be counted.")
            }
            Self::ReadOnly(_) => Some("Call it in a read-write transaction."),
            Self::Parallel(_) => Some("Call it outside of parallel queries."),
            Self::NoMasterKey => Some(
                "Set totp.key_file to a file with a master key (openssl rand -hex 32) and reload the configuration.",
            ),
            Self::KeyFile { .. } => Some(
                "Fix the file that totp.key_file names: one key of 64 hexadecimal characters per line, current key first.",
            ),
            Self::KeyEnvironment { .. } => {
                Some("Fix the variable and restart the server, or set totp.key_file instead.")
            }
            Self::MasterKeyNotLoaded(_) => {
                Some("Add that master key again to the file that totp.key_file names, below the current one.")
            }
            Self::NoDataKey(_) => Some("Restore table totp.data_keys from a backup."),
            Self::RowsAltered => Some("See totp_health(). Restore the rows from a backup, or enroll the user again."),
            Self::TableAltered(_) => {
                Some("Restore it as a logged table of access method heap with its original columns.")
            }
            Self::TableRewritten(_) => Some("Commit first. A rollback would undo what was judged."),
            Self::TableDistributed(_) => Some(
                "Restore a dump of the extension and its rows in a database where no table of schema \"totp\" is distributed.",
            ),
            Self::Isolation(_) => Some("Call it in a transaction of isolation level READ COMMITTED."),
            Self::Restricted(_) => {
                Some("Call it in a separate statement, not from an index, a materialized view, or similar.")
            }
            Self::SuperuserOnly => Some("Only a superuser can export secrets."),
            Self::OwnerOnly(_) => {
                Some("Only the owner of the extension, a member of that role, or a superuser may call it.")
            }
            Self::RotationOnly(_) => Some("Only a key rotation may call it."),
            Self::CallerUnknown(_) => Some("Update the extension with ALTER EXTENSION pg_totp UPDATE."),
            Self::StartupOption => Some(
                "Connect without them. Only totp.actor is allowed there, and for a superuser what a session can set.",
            ),
            Self::OwnCopy => Some("Commit first. A rollback would undo what was judged."),
            Self::NothingToRotate => Some("The first enrollment creates the first data key."),
            Self::MasterKeyLoaded | Self::NoKeyOfMaster => {
                Some("Name a fingerprint that totp_keys() shows as not loaded.")
            }
            Self::Clock => Some("Set totp.clock to a timestamp, or reset it to use the real time."),
            _ => None,
        }
    }
}

impl From<Error> for ErrorReport {
    #[track_caller]
    fn from(error: Error) -> Self {
        let mut report = ErrorReport::new(error.sqlstate(), error.to_string(), "pg_totp");
        if let Some(detail) = error.detail() {
            report = report.set_detail(detail);
        }
        if let Some(hint) = error.hint() {
            report = report.set_hint(hint);
        }
        report
    }
}
