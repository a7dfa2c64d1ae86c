//! The settings `totp.*`: who may change them, their ranges, and their defaults.
//!
//! Owns their names, ranges, and defaults. Must never hold key bytes, nor let a session weaken what the administrator set.

use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

use crate::backend;
use crate::error::Error;

const SECOND: i64 = 1_000_000;

static KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static ISSUER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static WINDOW_STEPS: GucSetting<i32> = GucSetting::<i32>::new(1);
static MAX_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(5);
static LOCKOUT: GucSetting<i32> = GucSetting::<i32>::new(30);
static LOCKOUT_MAX: GucSetting<i32> = GucSetting::<i32>::new(3600);
static HARD_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(100);
static RESYNC_STEPS: GucSetting<i32> = GucSetting::<i32>::new(20);
static LEARN_DRIFT: GucSetting<bool> = GucSetting::<bool>::new(true);
static ENROLLMENT_TTL: GucSetting<i32> = GucSetting::<i32>::new(3600);
static MAX_DEVICES: GucSetting<i32> = GucSetting::<i32>::new(10);
static REQUIRE_PROOF: GucSetting<bool> = GucSetting::<bool>::new(true);
static AUDIT_SUCCESS: GucSetting<bool> = GucSetting::<bool>::new(false);
static ACTOR: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static CLOCK: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// PostgreSQL may set our settings in parallel mode: a policy with `totp_enabled` can load the library there, and the values that
/// are configured would be dropped, for the rest of the session. No function that reads a setting runs in a worker.
const IN_PARALLEL: GucFlags = GucFlags::from_bits_retain(pg_sys::GUC_ALLOW_IN_PARALLEL as i32);

/// Returns the path of the master key file, if it is set.
pub fn key_file() -> Option<CString> {
    non_empty(&KEY_FILE)
}

/// Returns the default issuer, if it is set.
pub fn issuer() -> Option<String> {
    non_empty(&ISSUER).map(|s| s.to_string_lossy().into_owned())
}

/// Returns the steps accepted on each side of now.
pub fn window() -> otp::Window {
    otp::Window::new(WINDOW_STEPS.get()).unwrap_or_default()
}

/// Returns when a wrong code locks, and for how long.
pub fn lockout() -> otp::Policy {
    otp::Policy {
        max_attempts: MAX_ATTEMPTS.get(),
        lockout: i64::from(LOCKOUT.get()) * SECOND,
        lockout_max: i64::from(LOCKOUT_MAX.get()) * SECOND,
        hard_limit: HARD_LIMIT.get(),
    }
}

/// Returns how far from now the codes of a resynchronization may be, in steps. 0 for no resynchronization.
pub fn resync_steps() -> u8 {
    u8::try_from(RESYNC_STEPS.get()).unwrap_or(0)
}

/// Returns whether drift is learned from accepted codes.
pub fn learn_drift() -> bool {
    LEARN_DRIFT.get()
}

/// Returns the lifetime of a pending secret in microseconds.
pub fn enrollment_ttl() -> i64 {
    i64::from(ENROLLMENT_TTL.get()) * SECOND
}

/// Returns the maximum number of devices per user.
pub fn max_devices() -> usize {
    usize::try_from(MAX_DEVICES.get()).unwrap_or(1)
}

/// Returns whether a user who has MFA must prove it to bind another authenticator.
pub fn require_proof() -> bool {
    REQUIRE_PROOF.get()
}

/// Returns whether an accepted code is audited too.
pub fn audit_success() -> bool {
    AUDIT_SUCCESS.get()
}

/// Returns the actor that the application names: its first 256 bytes.
pub fn actor() -> Option<String> {
    non_empty(&ACTOR).map(|s| {
        let text = s.to_string_lossy();
        text[..text.floor_char_boundary(256)].to_owned()
    })
}

/// Returns the fixed time for tests, if it is set.
pub fn clock() -> Option<CString> {
    non_empty(&CLOCK)
}

fn non_empty(setting: &GucSetting<Option<CString>>) -> Option<CString> {
    // SAFETY: PostgreSQL keeps a string setting as a NULL or NUL-terminated pointer; nothing is freed while it is read.
    unsafe {
        let value = *setting.as_ptr();
        if value.is_null() || *value == 0 { None } else { Some(CStr::from_ptr(value).to_owned()) }
    }
}

/// Settings that no session may set, in lower case.
const RELOADED: [&[u8]; 8] = [
    b"totp.key_file",
    b"totp.max_attempts",
    b"totp.lockout",
    b"totp.lockout_max",
    b"totp.hard_limit",
    b"totp.require_proof",
    b"totp.resync_steps",
    b"totp.learn_drift",
];

/// Refuses a session whose client gave one of our settings at connection time, if PostgreSQL would drop the value now.
///
/// When the library is loaded, PostgreSQL drops a value that the client had no right to set, and with it the value that the
/// administrator configured: the session would run with the built-in defaults. No catalog is read, since the library may be
/// loaded before one can be read: by the postmaster, or at the start of a session, outside of a transaction.
pub fn refuse_startup_options() -> Result<(), Error> {
    // SAFETY: reads of backend state, before any of our settings is defined: every setting of the prefix is a
    // placeholder.
    unsafe {
        for setting in backend::all_settings() {
            let setting = &**setting;
            let name = CStr::from_ptr(setting.name).to_bytes().to_ascii_lowercase();
            let of_client = name.starts_with(b"totp.") && setting.reset_source == pg_sys::GucSource::PGC_S_CLIENT;
            if of_client && !is_kept(&name, setting.reset_scontext) {
                return Err(Error::StartupOption);
            }
        }
    }
    Ok(())
}

/// Returns whether PostgreSQL keeps a startup option. `context` says whether a superuser connected.
fn is_kept(name: &[u8], context: pg_sys::GucContext::Type) -> bool {
    let of_superuser = matches!(context, pg_sys::GucContext::PGC_SU_BACKEND | pg_sys::GucContext::PGC_SUSET);
    name == b"totp.actor" || (of_superuser && !RELOADED.contains(&name))
}

/// Defines every setting and reserves the prefix. Called once, when the library is loaded.
pub fn register() {
    string(c"totp.key_file", c"Path of the master key file.", &KEY_FILE, GucContext::Sighup, GucFlags::SUPERUSER_ONLY);
    issuer_setting();
    integer(
        c"totp.window_steps",
        c"Time steps accepted before and after the current one.",
        &WINDOW_STEPS,
        0,
        2,
        GucContext::Suset,
        GucFlags::empty(),
    );
    integer(
        c"totp.max_attempts",
        c"Wrong codes until the first lock.",
        &MAX_ATTEMPTS,
        1,
        100,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    integer(
        c"totp.lockout",
        c"Length of the first lock. Each later lock is twice as long.",
        &LOCKOUT,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    integer(
        c"totp.lockout_max",
        c"Maximum length of a lock.",
        &LOCKOUT_MAX,
        1,
        604_800,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    integer(
        c"totp.hard_limit",
        c"Wrong codes in a row after which only totp_unlock() helps.",
        &HARD_LIMIT,
        1,
        100,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    integer(
        c"totp.resync_steps",
        c"Time steps that totp_resync() searches before and after the current one.",
        &RESYNC_STEPS,
        0,
        60,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    boolean(c"totp.learn_drift", c"Learns the drift of a token from accepted codes.", &LEARN_DRIFT, GucContext::Sighup);
    integer(
        c"totp.enrollment_ttl",
        c"Lifetime of a pending secret.",
        &ENROLLMENT_TTL,
        60,
        2_592_000,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
    integer(
        c"totp.max_devices",
        c"Maximum number of devices per user.",
        &MAX_DEVICES,
        1,
        20,
        GucContext::Suset,
        GucFlags::empty(),
    );
    boolean(
        c"totp.require_proof",
        c"A user who has MFA must prove it to bind another authenticator.",
        &REQUIRE_PROOF,
        GucContext::Sighup,
    );
    boolean(c"totp.audit_success", c"Writes an audit row for every accepted code.", &AUDIT_SUCCESS, GucContext::Suset);
    string(c"totp.actor", c"Actor to record in the audit log.", &ACTOR, GucContext::Userset, GucFlags::empty());
    string(c"totp.clock", c"Fixed time, for tests only.", &CLOCK, GucContext::Suset, GucFlags::empty());
    // SAFETY: the prefix is a NUL-terminated literal.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"totp".as_ptr()) }
}

fn issuer_setting() {
    // SAFETY: the hook reads its argument, and raises nothing.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"totp.issuer",
            c"Issuer of new secrets if the call names none.",
            c"",
            &ISSUER,
            GucContext::Suset,
            GucFlags::empty(),
            Some(check_issuer),
            None,
            None,
        );
    }
}

/// PostgreSQL calls this before `totp.issuer` gets a value. A value from before the library was loaded is checked when it is
/// loaded: PostgreSQL then warns, and takes the default.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn check_issuer(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL gives a pointer to a NULL or NUL-terminated text. It only reads the detail.
    unsafe {
        let is_good = (*value).is_null() || is_issuer(CStr::from_ptr(*value).to_bytes());
        if !is_good {
            pg_sys::GUC_check_errdetail_string = ISSUER_RULE.as_ptr().cast_mut();
        }
        is_good
    }
}

const ISSUER_RULE: &CStr =
    c"An issuer must be at most 256 bytes long, in UTF-8, without a colon or a control character.";

/// Returns whether `totp.issuer` can have this value. An empty one means no issuer.
pub fn is_issuer(value: &[u8]) -> bool {
    value.is_empty() || str::from_utf8(value).is_ok_and(|value| otp::check_label(value).is_ok())
}

fn string(
    name: &'static CStr,
    about: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    context: GucContext,
    flags: GucFlags,
) {
    GucRegistry::define_string_guc(name, about, c"", setting, context, flags | IN_PARALLEL);
}

fn boolean(name: &'static CStr, about: &'static CStr, setting: &'static GucSetting<bool>, context: GucContext) {
    GucRegistry::define_bool_guc(name, about, c"", setting, context, IN_PARALLEL);
}

fn integer(
    name: &'static CStr,
    about: &'static CStr,
    setting: &'static GucSetting<i32>,
    min: i32,
    max: i32,
    context: GucContext,
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(name, about, c"", setting, min, max, context, flags | IN_PARALLEL);
}
