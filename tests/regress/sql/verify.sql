-- totp_verify: true once for each good code, on any device or on a named one.
SET totp.clock = '2030-01-01 12:00:00+00';
SELECT secret AS phone FROM totp_enroll('grace', device => 'phone') \gset
\set tablet KRSXG5CTMVRXEZLUKN2XAZLSKRSXG5CT
SELECT totp_import('grace', :'tablet', device => 'tablet', algorithm => 'SHA256', digits => 8, period => 60) IS NOT NULL AS imported;
SELECT totp_code_at(:'phone', '2030-01-01 11:58:30+00') AS phone_too_old, totp_code_at(:'phone', '2030-01-01 11:59:30+00') AS phone_before,
       totp_code_at(:'phone', '2030-01-01 12:00:00+00') AS phone_now, totp_code_at(:'phone', '2030-01-01 12:00:30+00') AS phone_after,
       totp_code_at(:'phone', '2030-01-01 12:01:00+00') AS phone_too_new,
       totp_code_at(:'tablet', '2030-01-01 12:00:00+00', 'SHA256', 8, 60) AS tablet_now,
       totp_code_at(:'tablet', '2030-01-01 12:01:00+00', 'SHA256', 8, 60) AS tablet_after \gset

-- The first good code confirms.
SELECT totp_verify('grace', :'phone_before') AS confirms, totp_enabled('grace');
SELECT device, state, uses FROM totp_status('grace');

-- Each step once, and never one below the last.
SELECT totp_verify('grace', :'phone_after') AS newest;
SELECT totp_verify('grace', :'phone_now') AS older, totp_verify('grace', :'phone_after') AS again;
SELECT failures FROM totp_status('grace');

-- Outside of the window it is a wrong code. The other device is as good as the first; its name, if given, must be right.
SELECT totp_verify('grace', :'phone_too_old') AS too_old, totp_verify('grace', :'phone_too_new') AS too_new;
SELECT totp_verify('grace', :'tablet_now', 'phone') AS other_device, totp_verify('grace', :'tablet_now', 'watch') AS no_device;
SELECT failures FROM totp_status('grace') WHERE device = 'tablet';
SELECT totp_verify('grace', :'tablet_now', device => 'tablet') AS right_device;
SELECT failures FROM totp_status('grace') WHERE device = 'tablet';
SELECT totp_verify(user_id => 'grace', code => ' ' || :'tablet_after' || ' ') AS any_device;
SELECT device, state, uses, last_used_at AT TIME ZONE 'UTC' AS last_used_at FROM totp_status('grace');

-- The window is a setting.
SET totp.clock = '2030-01-01 13:00:00+00';
SELECT totp_code_at(:'phone', '2030-01-01 12:59:00+00') AS two_before, totp_code_at(:'phone', '2030-01-01 13:00:00+00') AS now,
       totp_code_at(:'phone', '2030-01-01 13:00:30+00') AS one_after, totp_code_at(:'phone', '2030-01-01 13:01:00+00') AS two_after \gset
SET totp.window_steps = 2;
SELECT totp_verify('grace', :'two_before') AS two_before;
SET totp.window_steps = 0;
SELECT totp_verify('grace', :'one_after') AS one_after, totp_verify('grace', :'now') AS now;
SET totp.window_steps = 1;
SELECT totp_verify('grace', :'two_after') AS two_after, totp_verify('grace', :'one_after') AS one_after;
SET totp.window_steps = 3;
RESET totp.window_steps;

-- A denied user is denied in every way of asking.
SELECT totp_verify('grace', '000000') IS NOT TRUE AS denied, totp_verify('nobody', '000000'), totp_verify(NULL, NULL);
SELECT count(*) AS let_in FROM (VALUES ('grace')) AS users(id) WHERE totp_verify(id, NULL);
SELECT totp_remove('grace');
