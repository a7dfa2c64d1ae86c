//! See `pg_totp_fuzz::keys::data_key`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pg_totp_fuzz::keys::data_key(data);
});
