//! See `pg_totp_fuzz::files::google`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pg_totp_fuzz::files::google(data);
});
