-- totp_keys: the data keys, and the master key that each needs.
SET totp.clock = '2030-01-01 12:00:00+00';
SET timezone = 'UTC';
-- The first enrollment in a database creates the first key.
SELECT totp_enroll('heidi') IS NOT NULL AS enrolled, totp_enroll('bob', device => 'phone') IS NOT NULL AS enrolled;
SELECT key_id > 0 AS key_id, state, secrets, master_key ~ '^[0-9a-f]{16}$' AS master_key, master_key_loaded FROM totp_keys();
SELECT count(DISTINCT key_id) FROM totp.secrets;
SELECT totp_remove('heidi');
SELECT state, secrets FROM totp_keys();
-- A key in the table is wrapped, and the settings hold no key at all.
SELECT octet_length(wrapped) > 32 AS wrapped FROM totp.data_keys;
SELECT current_setting('totp.key_file') <> '' AS has_key_file;
SELECT totp_remove('bob');
