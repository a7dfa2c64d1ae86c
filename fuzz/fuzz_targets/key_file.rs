//! See `pg_totp_fuzz::keys::key_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pg_totp_fuzz::keys::key_file(data);
});
