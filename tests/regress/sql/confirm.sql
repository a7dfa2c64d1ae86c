-- totp_confirm: a pending secret becomes the active one with its first good code, and the one before it dies.
SET totp.clock = '2030-01-01 12:00:00+00';
SELECT secret AS first FROM totp_enroll('dave') \gset
SELECT totp_code_at(:'first', '2030-01-01 12:00:00+00') AS code \gset
SELECT candidate AS wrong FROM generate_series(100000, 100009) AS candidate
 WHERE candidate::text NOT IN (:'code', totp_code_at(:'first', '2030-01-01 11:59:30+00'), totp_code_at(:'first', '2030-01-01 12:00:30+00')) LIMIT 1 \gset

SELECT totp_confirm('dave', :'wrong') AS wrong, totp_confirm('dave', 'garbage') AS garbage, totp_confirm('dave', :'code', 'phone') AS other_device,
       totp_confirm('nobody', :'code') AS nobody, totp_confirm('dave', NULL) AS no_code, totp_confirm(NULL, :'code') AS no_user,
       totp_confirm('dave', :'code', NULL) AS no_device;
SELECT device, state, version, failures, confirmed_at FROM totp_status('dave');
SELECT totp_enabled('dave') AS before, totp_confirm('dave', :'code') AS confirmed;
SELECT totp_enabled('dave') AS after, totp_confirm('dave', :'code') AS again, totp_verify('dave', :'code') AS sign_in;
SELECT device, state, version, failures, confirmed_at AT TIME ZONE 'UTC' AS confirmed_at FROM totp_status('dave');

-- A staged replacement. The user has MFA, so it needs a proof: here a code of the device as it is. A wrong code uses up no proof.
SELECT secret AS second FROM totp_enroll('dave', algorithm => 'SHA512') \gset
SELECT totp_code_at(:'first', '2030-01-01 12:00:30+00') AS old_code, totp_code_at(:'second', '2030-01-01 12:00:00+00', 'SHA512') AS new_code \gset
SELECT totp_confirm('dave', :'old_code', proof => :'old_code') AS code_of_the_old_one;
SELECT device, state, algorithm, version FROM totp_status('dave');
SELECT totp_confirm('dave', :'new_code');
SELECT reason FROM totp_check_confirm('dave', :'new_code');
SELECT totp_confirm('dave', code => :'new_code', device => 'default', proof => :'old_code') AS confirmed;
SELECT device, state, algorithm, version FROM totp_status('dave');
SELECT totp_verify('dave', :'old_code') AS old_secret;

-- A pending secret does not wait for ever.
SELECT secret AS third FROM totp_enroll('dave') \gset
SET totp.clock = '2030-01-01 13:00:00+00';
SELECT totp_confirm('dave', totp_code_at(:'third', '2030-01-01 13:00:00+00')) AS expired;
SELECT totp_verify('dave', totp_code_at(:'second', '2030-01-01 13:00:00+00', 'SHA512')) AS old_one;

SELECT event, device, detail FROM totp.audit_log WHERE user_id = 'dave' AND event IN ('enrolled', 'confirmed') ORDER BY id;
SELECT totp_remove('dave');
