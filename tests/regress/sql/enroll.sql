-- Enroll, confirm, sign in, remove: what a user of one device sees.
-- Secrets are random, so nothing here prints one; codes come from totp_code_at, at a fixed time.
SET totp.clock = '2030-01-01 12:00:00+00';

SELECT totp_enabled('alice');
SELECT totp_verify('alice', '000000');

SELECT secret, otpauth_uri FROM totp_enroll('alice', 'alice@example.com', 'Example') \gset
SELECT length(:'secret') AS base32_characters,
       replace(:'otpauth_uri', :'secret', 'SECRET') AS otpauth_uri;
SELECT totp_enabled('alice');
SELECT device, state, account_name, issuer, algorithm, digits, period, version FROM totp_status('alice');

SELECT totp_code_at(:'secret', '2030-01-01 11:59:30+00') AS before,
       totp_code_at(:'secret', '2030-01-01 12:00:00+00') AS now,
       totp_code_at(:'secret', '2030-01-01 12:00:30+00') AS after \gset

-- The first good code confirms the device, and counts once.
SELECT totp_confirm('alice', :'before');
SELECT totp_enabled('alice');
SELECT accepted, reason, matched_device FROM totp_check('alice', :'before');
SELECT totp_verify('alice', :'now');
SELECT totp_verify('alice', :'now');
SELECT accepted, reason, matched_device FROM totp_check('alice', :'now');
SELECT totp_verify('alice', :'after', device => 'default');

-- What cannot be a code is refused, and is never an error.
SELECT reason FROM totp_check('alice', '12345');
SELECT reason FROM totp_check('alice', '');
SELECT totp_verify('alice', NULL), totp_verify(NULL, '000000');
SELECT reason FROM totp_check('nobody', '000000');

SELECT totp_remove('alice');
SELECT totp_enabled('alice');
SELECT count(*) FROM totp_status('alice');
