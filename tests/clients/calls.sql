-- The calls whose answers every driver reads. calls(client) makes users of that client and returns them in the order in
-- which a driver must make them. A function that is missing here fails tests/clients/python/test_calls.py.

CREATE ROLE reader;

-- Columns and types of what stands before the first parenthesis of a call: a function, or a view.
CREATE FUNCTION answer(name text, OUT columns text[], OUT types text[]) LANGUAGE sql STABLE AS $$
  WITH routine AS (SELECT * FROM pg_proc WHERE oid = to_regproc(name)),
  answer AS (
    SELECT c.name, c.type, c.number
      FROM routine, unnest(proargnames, proallargtypes, proargmodes) WITH ORDINALITY AS c (name, type, mode, number)
     WHERE c.mode = 't'
    UNION ALL SELECT proname, prorettype, 1 FROM routine WHERE prokind = 'f' AND prorettype <> 'record'::regtype
    UNION ALL SELECT attname, atttypid, attnum FROM pg_attribute WHERE attrelid = to_regclass(name) AND attnum > 0)
  SELECT array_agg(a.name::text ORDER BY number), array_agg(format_type(a.type, NULL) ORDER BY number) FROM answer AS a
$$;

-- args: the parameters of the call, all of type text.
-- error: the SQLSTATE that the call ends with.
-- statement: returns the columns of the call, and in the column "expected" what they are, as the server writes them in JSON.
-- columns, types: what it returns before "expected".
CREATE FUNCTION calls(client text)
RETURNS TABLE (number bigint, call text, args text[], error text, statement text, columns text[], types text[])
LANGUAGE plpgsql AS $function$
DECLARE
  secret  CONSTANT text := 'GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ';
  new     CONSTANT text := 'JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP';
  uri     CONSTANT text := 'otpauth://totp/Example:alice?issuer=Example&secret=' || secret;
  now_    CONSTANT timestamptz := current_setting('totp.clock');
  code    CONSTANT text := totp_code_at(secret, now_);
  next    CONSTANT text := totp_code_at(secret, now_ + interval '30 s');
  last CONSTANT text := totp_code_at(secret, now_ + interval '90 s');
  after_next CONSTANT text := totp_code_at(secret, now_ + interval '60 s');
  of_new  CONSTANT text := totp_code_at(new, now_);
  other   CONSTANT text := substr(md5(client), 1, 16); -- the fingerprint of a master key that nobody has
  codes   text[];
  name    text;
BEGIN
  PERFORM totp_forget_unreadable(master_key) FROM totp_keys() WHERE NOT master_key_loaded; -- of a client that failed
  FOREACH name IN ARRAY ARRAY['active', 'checked', 'locked', 'waiting', 'devices', 'own', 'stock', 'lost'] LOOP
    PERFORM totp_import(client || '/' || name, secret, issuer => 'Example', confirmed => true);
  END LOOP;
  FOREACH name IN ARRAY ARRAY['pending', 'first', 'locked', 'waiting'] LOOP
    PERFORM totp_import(client || '/' || name, new, device => 'new');
  END LOOP;
  codes := ARRAY(SELECT totp_reset_recovery_codes(client || '/active'));
  PERFORM totp_reset_recovery_codes(client || '/' || n) FROM unnest(ARRAY['locked', 'waiting', 'lost']) AS n;

  -- One is locked without end, one for half a minute.
  UPDATE totp.attempts SET (failures, recovery_failures, locked_until, recovery_locked_until, last_failed_at)
                         = (100, 100, 'infinity', 'infinity', now_) WHERE user_id = client || '/locked';
  UPDATE totp.attempts SET (failures, recovery_failures, locked_until, recovery_locked_until, last_failed_at)
                         = (5, 5, now_ + interval '30 s', now_ + interval '30 s', now_) WHERE user_id = client || '/waiting';
  -- The secret and the recovery codes of one are sealed under a master key that is lost.
  INSERT INTO totp.data_keys
    SELECT nextval('totp.key_ids'), 'retiring', other, wrapped, created_at FROM totp.data_keys WHERE state = 'current';
  UPDATE totp.secrets SET key_id = currval('totp.key_ids') WHERE user_id = client || '/lost';
  UPDATE totp.recovery_codes SET key_id = currval('totp.key_ids') WHERE user_id = client || '/lost';

  RETURN QUERY
  WITH made (number, call, args, error) AS (
    SELECT row_number() OVER (), listed.* FROM (VALUES
      ('totp_keys()', '{}'::text[], NULL::text),
      ('totp_forget_unreadable($1)', ARRAY[other], NULL),
      ('totp_health()', '{}', NULL),
      ('totp_health(CAST(CAST($1 AS text) AS boolean))', '{true}', NULL),
      ('totp_enroll($1, issuer => $2)', ARRAY[client || '/new', 'Example'], NULL),
      ('totp_import($1, $2)', ARRAY[client || '/imported', uri], NULL),
      ('totp_import($1, $2)', ARRAY[client || '/imported', 'x'], '22023'),
      ('totp_confirm($1, $2, $3)', ARRAY[client || '/pending', of_new, 'new'], NULL),
      ('totp_check_confirm($1, $2, $3, recovery_codes => 10)', ARRAY[client || '/first', of_new, 'new'], NULL),
      ('totp_check_confirm($1, $2, $3)', ARRAY[client || '/waiting', of_new, 'new'], NULL),
      ('totp_check_confirm($1, $2, $3)', ARRAY[client || '/locked', of_new, 'new'], NULL),
      ('totp_verify($1, $2)', ARRAY[client || '/active', code], NULL),
      ('totp_verify($1, $2)', ARRAY[client || '/active', 'no code'], NULL),
      ('totp_check($1, $2)', ARRAY[client || '/checked', code], NULL),
      ('totp_check($1, $2)', ARRAY[client || '/checked', code], NULL),
      ('totp_check($1, $2)', ARRAY[client || '/waiting', code], NULL),
      ('totp_check($1, $2)', ARRAY[client || '/locked', code], NULL),
      ('totp_check($1, $2)', ARRAY[client || '/nobody', code], NULL),
      ('totp_check_recover($1, $2)', ARRAY[client || '/active', codes[1]], NULL),
      ('totp_check_recover($1, $2)', ARRAY[client || '/waiting', codes[1]], NULL),
      ('totp_check_recover($1, $2)', ARRAY[client || '/locked', codes[1]], NULL),
      ('totp_recover($1, $2)', ARRAY[client || '/active', codes[2]], NULL),
      ('totp_enabled($1)', ARRAY[client || '/active'], NULL),
      ('totp_status($1)', ARRAY[client || '/active'], NULL),
      ('totp_status($1)', ARRAY[client || '/waiting'], NULL),
      ('totp_status($1)', ARRAY[client || '/locked'], NULL),
      ('totp_list($1, 2)', ARRAY[client || '/'], NULL),
      ('totp_list(prefix => $1)', ARRAY[client || '/locked'], NULL),
      ('totp_list(prefix => $1)', ARRAY[client || '/waiting'], NULL),
      ('totp_list(max => CAST(CAST($1 AS text) AS integer))', '{0}', '22023'),
      ('totp_recovery_codes($1, proof => $2)', ARRAY[client || '/devices', code], NULL),
      ('totp_recovery_codes($1)', ARRAY[client || '/devices'], '42501'),
      ('totp_reset_recovery_codes($1)', ARRAY[client || '/devices'], NULL),
      ('totp_rename_device($1, ''default'', ''phone'', proof => $2)', ARRAY[client || '/own', code], NULL),
      ('totp_resync($1, $2, $3, ''phone'')', ARRAY[client || '/own', next, after_next], NULL),
      ('totp_unenroll($1, $2)', ARRAY[client || '/own', last], NULL),
      ('totp_move_device($1, ''default'', $2, ''token'')', ARRAY[client || '/stock', client || '/owner'], NULL),
      ('totp_reset($1)', ARRAY[client || '/devices'], NULL),
      ('totp_disable($1)', ARRAY[client || '/checked'], NULL),
      ('totp_enable($1)', ARRAY[client || '/checked'], NULL),
      ('totp_rename_user($1, $2)', ARRAY[client || '/checked', client || '/renamed'], NULL),
      ('totp_unlock($1)', ARRAY[client || '/locked'], NULL),
      ('totp_remove($1)', ARRAY[client || '/devices'], NULL),
      ('totp_qr_svg($1)', ARRAY[uri], NULL),
      ('totp_qr_png($1)', ARRAY[uri], NULL),
      ('totp_qr_text($1)', ARRAY[uri], NULL),
      ('totp_code_at($1, ''2030-01-01 12:00:00+00'')', ARRAY[secret], NULL),
      ('totp_read_tokens($1, ''csv'')', ARRAY[E'serial,secret,period,expires\n1,' || secret || ',30,2030-01-01T00:00:00Z'], NULL),
      ('totp_read_tokens($1, ''csv'')', ARRAY[E'upn,serial number,secret key,time interval,manufacturer,model\nalice,2,' || secret || ',30,ACME,T1'], NULL),
      ('totp_read_tokens($1, ''csv'')', ARRAY[E'serial,secret,type\n1,' || secret || ',hotp'], NULL),
      ('totp_read_tokens($1)', ARRAY['no XML'], '22023'),
      ('totp_qr_svg($1)', '{NULL}', NULL),
      ('totp_qr_png($1)', '{NULL}', NULL),
      ('totp_qr_text($1)', '{NULL}', NULL),
      ('totp_code_at($1, ''2030-01-01 12:00:00+00'')', '{NULL}', NULL),
      ('totp_rotate_key()', '{}', NULL),
      ('totp.rotation_begin(1000)', '{}', NULL),
      ('totp.rotation_progress', '{}', NULL),
      ('CALL totp_rotate_key_online()', '{}', NULL),
      ('totp_stats()', '{}', NULL),
      ('totp_metrics()', '{}', NULL),
      ('totp_grant(''reader'', $1)', ARRAY['verify'], NULL),
      ('totp_revoke(''reader'', $1)', ARRAY['verify'], NULL),
      ('totp_prune_audit(''100 years'')', '{}', NULL),
      ('totp_acknowledge_restore()', '{}', NULL),
      ('CALL totp_audit_seal()', '{}', NULL),
      ('totp_audit_verify()', '{}', NULL),
      ('totp_export()', '{}', NULL)) AS listed
    UNION ALL
    -- Every function of a user with NULL for the id: those that judge return an answer, the others raise.
    SELECT 1000 + p.oid::bigint, format('%s($1%s)', p.proname, repeat(', ''x''', p.pronargs - p.pronargdefaults - 1)), '{NULL}',
           CASE WHEN p.proname NOT IN ('totp_verify', 'totp_check', 'totp_confirm', 'totp_check_confirm', 'totp_recover',
                                       'totp_check_recover', 'totp_enabled', 'totp_status', 'totp_resync') THEN '22023' END
      FROM functions p WHERE p.pronargs > 0 AND p.proargnames[1] = 'user_id')
  SELECT made.*,
         coalesce('SELECT r.*, ARRAY(SELECT value FROM json_each_text(row_to_json(r))) AS expected FROM (SELECT * FROM '
                  || CASE WHEN made.call NOT LIKE 'CALL %' THEN made.call END || ') AS r', made.call),
         (answer(CASE WHEN made.call NOT LIKE 'CALL %' THEN split_part(made.call, '(', 1) END)).*
    FROM made ORDER BY made.number;
END
$function$;

-- What the calls must reach: what is not of the extension's own use.
CREATE VIEW functions AS
  SELECT p.* FROM pg_proc p
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
   WHERE e.extname = 'pg_totp' AND p.pronamespace <> 'totp'::regnamespace;
