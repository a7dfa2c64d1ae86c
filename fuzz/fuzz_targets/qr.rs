//! See `pg_totp_fuzz::codes::qr`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pg_totp_fuzz::codes::qr(data);
});
