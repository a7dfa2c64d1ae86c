-- totp_check: totp_verify with its reason, the guesses left and the end of a lock.
SET totp.clock = '2030-01-01 12:00:00+00';
SET timezone = 'UTC';
SELECT secret FROM totp_enroll('carol', device => 'phone') \gset
SELECT totp_code_at(:'secret', '2030-01-01 12:00:00+00') AS now, totp_code_at(:'secret', '2030-01-01 12:00:30+00') AS after \gset
-- A code that no step of the window has.
SELECT candidate AS wrong FROM generate_series(100000, 100009) AS candidate
 WHERE candidate::text NOT IN (:'now', :'after', totp_code_at(:'secret', '2030-01-01 11:59:30+00'), totp_code_at(:'secret', '2030-01-01 12:01:00+00')) LIMIT 1 \gset

SELECT * FROM totp_check('nobody', '123456');
SELECT * FROM totp_check('carol', 'garbage');
SELECT * FROM totp_check('carol', :'wrong', 'tablet');
SELECT * FROM totp_check('carol', :'wrong');
SELECT * FROM totp_check('carol', :'now');
SELECT * FROM totp_check('carol', :'now');
SELECT * FROM totp_check('carol', :'after', device => 'phone');

-- Five wrong codes lock for 30 seconds. While locked nothing is charged, used up or lengthened.
-- Each has other white space: PostgreSQL calls a function in FROM only once for the same arguments.
SELECT reason, attempts_left, retry_at FROM generate_series(1, 5) AS n, totp_check('carol', repeat(' ', n) || :'wrong') ORDER BY n;
SELECT * FROM totp_check('carol', :'wrong');
SELECT * FROM totp_check('carol', 'garbage');
SET totp.clock = '2030-01-01 12:00:29.999999+00';
SELECT * FROM totp_check('carol', :'wrong');
SELECT failures, locked_until FROM totp_status('carol');

-- After the lock there is one guess; a wrong one locks twice as long.
SET totp.clock = '2030-01-01 12:00:30+00';
SELECT reason, attempts_left, retry_at FROM generate_series(1, 2) AS n, totp_check('carol', repeat(' ', n) || :'wrong') ORDER BY n;
SET totp.clock = '2030-01-01 12:01:30+00';
SELECT totp_code_at(:'secret', '2030-01-01 12:01:30+00') AS now \gset
SELECT attempts_left, retry_at FROM totp_check('carol', 'garbage');
SELECT * FROM totp_check('carol', :'now');
SELECT failures, locked_until FROM totp_status('carol');

-- What was noted of it.
SELECT event, user_id, device, actor = session_user AS by_us, count(*) FROM totp.audit_log WHERE user_id = 'carol'
 GROUP BY event, user_id, device, by_us ORDER BY event COLLATE "C", device;
SELECT totp_remove('carol');
