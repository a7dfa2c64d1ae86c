-- totp_remove: one device, or everything of a user.
SET totp.clock = '2030-01-01 12:00:00+00';
SELECT secret AS phone FROM totp_enroll('erin', device => 'phone') \gset
SELECT secret AS bob FROM totp_enroll('bob') \gset
SELECT totp_verify('erin', totp_code_at(:'phone', '2030-01-01 12:00:00+00')), totp_verify('bob', totp_code_at(:'bob', '2030-01-01 12:00:00+00'));
SELECT secret AS tablet FROM totp_enroll('erin', device => 'tablet') \gset
SELECT secret AS staged FROM totp_enroll('erin', device => 'phone') \gset

SELECT totp_remove('nobody') AS nobody, totp_remove('erin', 'watch') AS no_device;
BEGIN;
SELECT totp_remove('erin');
SELECT count(*) FROM totp_status('erin');
ROLLBACK;
SELECT device, state FROM totp_status('erin');

-- A device with an active and a staged secret is one device.
SELECT totp_remove('erin', device => 'phone');
SELECT device, state FROM totp_status('erin');
SELECT totp_enabled('erin');
SELECT totp_verify('erin', totp_code_at(:'phone', '2030-01-01 12:00:30+00')) AS removed, totp_verify('erin', totp_code_at(:'tablet', '2030-01-01 12:00:00+00')) AS left;

SELECT totp_enroll('erin', device => 'watch') IS NOT NULL AS enrolled;
SELECT totp_remove('erin');
SELECT totp_remove('erin');
SELECT * FROM totp_check('erin', '123456');

-- Nothing of the user is left but what happened; another user is not touched.
SELECT (SELECT count(*) FROM totp.secrets WHERE user_id = 'erin') AS secrets, (SELECT count(*) FROM totp.used_codes WHERE user_id = 'erin') AS used_codes,
       (SELECT count(*) FROM totp.attempts WHERE user_id = 'erin') AS attempts;
SELECT event, device FROM totp.audit_log WHERE user_id = 'erin' ORDER BY id;
SELECT device, state FROM totp_status('bob');

SELECT totp_remove('');
SELECT totp_remove(NULL);
SELECT totp_remove('bob', '');
SELECT totp_remove('bob', NULL);
