-- totp_status, totp_enabled: what is known of a user. They only read.
SET totp.clock = '2030-01-01 12:00:00+00';
SET timezone = 'UTC';
SELECT * FROM totp_status('frank');
SELECT totp_enabled('frank'), totp_enabled(NULL), totp_enabled('');

SELECT secret AS phone FROM totp_enroll('frank', 'frank@example.com', 'Example', device => 'phone', algorithm => 'sha-512', digits => 7, period => 45) \gset
SELECT secret AS tablet FROM totp_enroll('frank', device => 'tablet') \gset
\x on
SELECT * FROM totp_status('frank');
\x off
SELECT totp_enabled('frank') AS while_pending;

SET totp.clock = '2030-01-01 12:00:45+00';
SELECT totp_verify('frank', totp_code_at(:'phone', '2030-01-01 12:00:45+00', 'SHA512', 7, 45));
SELECT totp_verify('frank', totp_code_at(:'phone', '2030-01-01 12:01:30+00', 'SHA512', 7, 45));
\x on
SELECT * FROM totp_status('frank');
\x off
SELECT totp_enabled('frank') AS since_confirmed;

-- A staged device has two rows. What is staged needs a proof now, unless the support desk has approved it.
SELECT totp_import('frank', 'KRSXG5CTMVRXEZLUKN2XAZLSKRSXG5CT', device => 'tablet') IS NOT NULL AS imported;
SELECT secret AS replacement FROM totp_enroll('frank', device => 'phone') \gset
SELECT device, state, algorithm, digits, period, version, confirmed_at, uses, approved FROM totp_status('frank');

-- A lost phone, and its replacement that nobody confirms, never switch the second factor off.
SELECT secret AS replacement FROM totp_reset('frank', 'phone') \gset
SELECT device, state, version FROM totp_status('frank');
SELECT totp_enabled('frank') AS while_pending_again;
SET totp.clock = '2030-01-02 12:00:00+00';
SELECT totp_enabled('frank') AS when_expired;
SELECT totp_remove('frank', 'phone');
SELECT totp_enabled('frank') AS when_removed;

-- They work where nothing may be written.
BEGIN READ ONLY;
SELECT totp_enabled('frank');
SELECT device, state FROM totp_status('frank');
COMMIT;
SELECT totp_remove('frank');
