//! See `pg_totp_fuzz::files::csv`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pg_totp_fuzz::files::csv(data);
});
