-- The last part of the script, when every function exists: comments, capabilities, rights.

COMMENT ON FUNCTION totp_enroll(text, text, text, text, text, integer, integer, boolean) IS
  'Creates a secret for a device and returns it, this one time; it is pending until its first good code';
COMMENT ON FUNCTION totp_confirm(text, text, text, text) IS
  'Activates a secret of a device with its first good code, and a proof if the user has MFA';
COMMENT ON FUNCTION totp_check_confirm(text, text, text, text, integer) IS
  'Confirms as totp_confirm does; returns the reason, and a first set of recovery codes, too';
COMMENT ON FUNCTION totp_verify(text, text, text) IS
  'Returns true once for each good code of a user, and false for everything else';
COMMENT ON FUNCTION totp_check(text, text, text) IS
  'Checks a code as totp_verify does; returns the reason, the wrong guesses left, and the end of a lock too';
COMMENT ON FUNCTION totp_enabled(text) IS
  'Returns whether to ask this user for a code';
COMMENT ON FUNCTION totp_status(text) IS
  'Lists what is known about the secrets of a user';
COMMENT ON FUNCTION totp_list(text, integer, text) IS
  'Lists the devices of many users, page by page';
COMMENT ON FUNCTION totp_remove(text, text) IS
  'Removes a device of a user, or everything of the user if device is NULL';
COMMENT ON FUNCTION totp_keys() IS
  'Lists the data keys and the master key that each needs';
COMMENT ON FUNCTION totp_code_at(text, timestamptz, text, integer, integer) IS
  'Returns the code that an authenticator with this secret shows at that time';
COMMENT ON FUNCTION totp_reset(text, text) IS
  'Replaces a compromised secret: the old secrets of the device stop working now, and it gets a new one';
COMMENT ON FUNCTION totp_import(text, text, text, text, text, text, integer, integer, boolean, boolean, text, integer) IS
  'Imports an existing secret: an otpauth URI, base32, hex, base64, or raw bytes';
COMMENT ON FUNCTION totp_read_tokens(text, text, bytea, text) IS
  'Reads the tokens of a PSKC document, a CSV, or an export of Google Authenticator; stores nothing';
COMMENT ON FUNCTION totp_disable(text, text) IS
  'Disables a device of a user, or all devices if device is NULL';
COMMENT ON FUNCTION totp_enable(text, text) IS
  'Enables a device of a user, or all devices if device is NULL, in the state it had';
COMMENT ON FUNCTION totp_unlock(text) IS
  'Clears failures and locks of a user, but never the used codes';
COMMENT ON FUNCTION totp_rename_user(text, text) IS
  'Moves everything of a user to another user id';
COMMENT ON FUNCTION totp_recovery_codes(text, integer, text) IS
  'Creates a set of recovery codes and returns it, this one time; the old set stops working';
COMMENT ON FUNCTION totp_reset_recovery_codes(text, integer) IS
  'Creates a set of recovery codes without a proof, for the support desk';
COMMENT ON FUNCTION totp_unenroll(text, text, text) IS
  'Removes a device of a user with a proof; turns MFA off if device is NULL or the last one';
COMMENT ON FUNCTION totp_rename_device(text, text, text, text) IS
  'Gives a device another name';
COMMENT ON FUNCTION totp_resync(text, text, text, text) IS
  'Measures how far the clock of a token has drifted, by two codes in a row; signs nobody in';
COMMENT ON FUNCTION totp_move_device(text, text, text, text) IS
  'Moves a device with its state to another user, for the support desk';
COMMENT ON FUNCTION totp_recover(text, text) IS
  'Returns true once for each recovery code of a user, and false for everything else';
COMMENT ON FUNCTION totp_check_recover(text, text) IS
  'Checks a recovery code as totp_recover does; returns the reason too';
COMMENT ON FUNCTION totp_rotate_key() IS
  'Creates a data key, re-encrypts every secret, and destroys the old data keys, in one transaction';
COMMENT ON PROCEDURE totp_rotate_key_online(integer) IS
  'Does what totp_rotate_key does in committed batches; resumes a canceled rotation';
COMMENT ON FUNCTION totp.rotation_begin(integer) IS
  'First step of totp_rotate_key_online(): creates the new data key';
COMMENT ON FUNCTION totp.rotation_step(text, integer) IS
  'Second step of totp_rotate_key_online(): moves one batch';
COMMENT ON FUNCTION totp.rotation_end() IS
  'Last step of totp_rotate_key_online(): destroys the old data keys';
COMMENT ON FUNCTION totp_forget_unreadable(text) IS
  'Removes what is sealed under a lost master key, and returns who must enroll again';
COMMENT ON FUNCTION totp_health(boolean) IS
  'Reports what is wrong, and what to do about it';
COMMENT ON FUNCTION totp_acknowledge_restore() IS
  'Ends the warning about recovery codes from before a failover or restore; for the owner';
COMMENT ON FUNCTION totp_stats(interval) IS
  'Counts audit rows of the given interval, by event';
COMMENT ON FUNCTION totp_metrics() IS
  'Returns counters and gauges for Prometheus: judged codes, devices, keys, and the cheap health checks';
COMMENT ON FUNCTION totp_prune_audit(interval) IS
  'Deletes audit rows older than the given interval; for the owner';
COMMENT ON FUNCTION totp_audit_verify(text, bigint) IS
  'Shows whether the audit trail was changed: one row per seal, and a last one about rows that are not sealed';
COMMENT ON PROCEDURE totp_audit_seal() IS
  'Seals the audit rows that are not sealed yet; for the owner, each minute';
COMMENT ON FUNCTION totp.seal_step() IS
  'First step of totp_audit_seal(): makes one seal';
COMMENT ON FUNCTION totp.seal_line(bigint) IS
  'Second step of totp_audit_seal(): writes its line to the server log';
COMMENT ON FUNCTION totp_export() IS
  'Returns the otpauth URI of every secret; for superusers, audited';
COMMENT ON FUNCTION totp_qr_svg(text) IS
  'Draws an otpauth URI as a QR code in SVG';
COMMENT ON FUNCTION totp_qr_png(text, integer) IS
  'Draws an otpauth URI as a QR code in PNG; scale is the width of a module in pixels';
COMMENT ON FUNCTION totp_qr_text(text) IS
  'Draws an otpauth URI as a QR code of Unicode half blocks, for a terminal';
COMMENT ON FUNCTION totp.record_right(boolean, text, text) IS
  'Writes the audit row of totp_grant or totp_revoke';
COMMENT ON FUNCTION totp.reseal(text, text, bigint, text, smallint, smallint, bytea, integer) IS
  'Seals a secret under another data key, for rotations';
COMMENT ON FUNCTION totp.reseal_recovery_codes(text, bigint, smallint, bytea, integer) IS
  'Seals a set of recovery codes under another data key, for rotations';

-- Returns the routines of a capability: 'verify', 'enroll', 'admin', or 'audit'.
CREATE FUNCTION totp.routines_of(capability text) RETURNS SETOF regprocedure
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
  WITH list(verify, enroll, audit, reserved) AS (
    SELECT ARRAY['totp_verify', 'totp_check', 'totp_recover', 'totp_check_recover', 'totp_enabled', 'totp_status'],
           ARRAY['totp_enroll', 'totp_confirm', 'totp_check_confirm', 'totp_recovery_codes', 'totp_unenroll',
                 'totp_rename_device', 'totp_resync', 'totp_qr_svg', 'totp_qr_png', 'totp_qr_text'],
           ARRAY['totp_stats', 'totp_metrics', 'totp_audit_verify', 'totp_keys'],
           ARRAY['totp_grant', 'totp_revoke', 'totp_prune_audit', 'totp_forget_unreadable', 'totp_acknowledge_restore',
                 'totp_export', 'totp_audit_seal', 'seal_step', 'seal_line', 'routines_of', 'record_right', 'reseal',
                 'reseal_recovery_codes'])
  SELECT p.oid::regprocedure
    FROM list
   CROSS JOIN pg_proc p
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'pg_totp'
   WHERE CASE capability WHEN 'verify' THEN p.proname = ANY (verify)
                         WHEN 'enroll' THEN p.proname = ANY (verify || enroll)
                         WHEN 'admin' THEN p.proname <> ALL (reserved)
                         WHEN 'audit' THEN p.proname = ANY (audit) END
$$;
COMMENT ON FUNCTION totp.routines_of(text) IS
  'Lists the routines of a capability, for totp_grant and totp_revoke';

-- Grants a role a capability. SECURITY INVOKER, so that it grants nothing that its caller may not grant.
CREATE FUNCTION totp_grant(role name, capability text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  home    CONSTANT regnamespace := (SELECT extnamespace FROM pg_extension WHERE extname = 'pg_totp');
  routine regprocedure;
BEGIN
  IF role IS NULL OR capability IS NULL OR capability NOT IN ('verify', 'enroll', 'admin', 'audit') THEN
    RAISE EXCEPTION 'invalid capability' USING ERRCODE = 'invalid_parameter_value',
      DETAIL = 'Accepted are verify, enroll, admin and audit, each for one role.';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_totp' AND pg_has_role(current_user, extowner, 'USAGE')) THEN
    RAISE EXCEPTION 'permission denied for function totp_grant' USING ERRCODE = 'insufficient_privilege',
      HINT = 'Only the owner of the extension grants its capabilities.';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
    RAISE EXCEPTION 'role "%" does not exist', role USING ERRCODE = 'undefined_object',
      HINT = 'Name one role. Nothing of pg_totp is ever granted to PUBLIC.';
  END IF;

  PERFORM totp.record_right(true, role, capability);
  FOR routine IN SELECT totp.routines_of(capability) LOOP
    EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', routine, role);
  END LOOP;
  IF NOT has_schema_privilege(role, home::oid, 'USAGE') THEN
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO %I', home, role);
  END IF;
  -- For admin, who runs totp_rotate_key_online(): it calls its steps there.
  IF capability IN ('admin', 'audit') THEN
    EXECUTE format('GRANT USAGE ON SCHEMA totp TO %I', role);
    EXECUTE format('GRANT SELECT ON totp.rotation_progress TO %I', role);
  END IF;
  IF capability = 'audit' THEN
    EXECUTE format('GRANT SELECT ON totp.audit_log, totp.audit_seals TO %I', role);
  END IF;
END
$$;
COMMENT ON FUNCTION totp_grant(name, text) IS
  'Grants a role one capability: verify, enroll, admin, or audit';

-- Revokes from a role what totp_grant() gives with a capability. What another capability of the role needs too stays: that
-- capability counts if the role has all of it, and is not a part of the revoked one.
CREATE FUNCTION totp_revoke(role name, capability text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  home    CONSTANT regnamespace := (SELECT extnamespace FROM pg_extension WHERE extname = 'pg_totp');
  holder  CONSTANT oid := (SELECT oid FROM pg_roles WHERE rolname = role);
  kept    text[];         -- capabilities
  revoked regprocedure[];
  routine regprocedure;
  rest    record;
BEGIN
  IF role IS NULL OR capability IS NULL OR capability NOT IN ('verify', 'enroll', 'admin', 'audit') THEN
    RAISE EXCEPTION 'invalid capability' USING ERRCODE = 'invalid_parameter_value',
      DETAIL = 'Accepted are verify, enroll, admin and audit, each of one role.';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_totp' AND pg_has_role(current_user, extowner, 'USAGE')) THEN
    RAISE EXCEPTION 'permission denied for function totp_revoke' USING ERRCODE = 'insufficient_privilege',
      HINT = 'Only the owner of the extension revokes its capabilities.';
  END IF;
  IF holder IS NULL THEN
    RAISE EXCEPTION 'role "%" does not exist', role USING ERRCODE = 'undefined_object',
      HINT = 'Name one role. Nothing of pg_totp is ever granted to PUBLIC.';
  END IF;
  IF EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_totp' AND extowner = holder)
     OR EXISTS (SELECT FROM totp.routines_of(capability) AS r JOIN pg_proc p ON p.oid = r WHERE p.proowner = holder) THEN
    RAISE EXCEPTION 'role "%" owns functions of the extension', role USING ERRCODE = 'invalid_parameter_value',
      DETAIL = 'An owner has the privileges without a grant, and the functions run with them.';
  END IF;

  kept := ARRAY(
    SELECT c FROM unnest(ARRAY['admin', 'enroll', 'verify', 'audit']) AS c
     WHERE c <> ALL (CASE capability WHEN 'enroll' THEN ARRAY['enroll', 'verify']
                                     WHEN 'admin' THEN ARRAY['admin', 'enroll', 'verify'] ELSE ARRAY[capability] END)
       AND NOT EXISTS (SELECT FROM totp.routines_of(c) AS r JOIN pg_proc p ON p.oid = r
                        WHERE NOT EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = holder))
       AND (c <> 'audit' OR EXISTS (SELECT FROM pg_class t CROSS JOIN LATERAL aclexplode(t.relacl) a
                                     WHERE t.oid = to_regclass('totp.audit_log') AND a.grantee = holder)));
  revoked := ARRAY(SELECT totp.routines_of(capability) EXCEPT SELECT totp.routines_of(c) FROM unnest(kept) AS c);
  IF revoked = '{}' AND capability <> 'audit' THEN
    RAISE WARNING 'role "%" keeps capability %', role, capability
      USING DETAIL = format('It is a part of capability %s, which the role has.', kept[1]),
            HINT = 'Revoke that capability instead.';
    RETURN;
  END IF;

  PERFORM totp.record_right(false, role, capability);
  FOREACH routine IN ARRAY revoked LOOP
    EXECUTE format('REVOKE EXECUTE ON ROUTINE %s FROM %I', routine, role);
  END LOOP;
  IF capability = 'audit' THEN
    EXECUTE format('REVOKE SELECT ON totp.audit_log, totp.audit_seals FROM %I', role);
  END IF;
  IF capability IN ('admin', 'audit') AND NOT kept && ARRAY['admin', 'audit'] THEN
    EXECUTE format('REVOKE SELECT ON totp.rotation_progress FROM %I', role);
    EXECUTE format('REVOKE USAGE ON SCHEMA totp FROM %I', role);
  END IF;
  -- USAGE on the schema of the functions goes with the last of them, unless it may be for something else in that schema.
  IF NOT EXISTS (SELECT FROM pg_depend d
                   JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'pg_totp'
                   JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                  CROSS JOIN LATERAL aclexplode(p.proacl) a
                  WHERE a.grantee = holder)
     AND NOT EXISTS (SELECT FROM pg_namespace n WHERE n.oid = home AND n.nspowner = holder)
     AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = home AND d.deptype = 'n'
                        AND NOT EXISTS (SELECT FROM pg_extension e
                                         WHERE e.extname = 'pg_totp'
                                           AND ((d.classid, d.objid) = ('pg_extension'::regclass, e.oid)
                                                OR EXISTS (SELECT FROM pg_depend m
                                                            WHERE (m.classid, m.objid) = (d.classid, d.objid) AND m.deptype = 'e'
                                                              AND (m.refclassid, m.refobjid) = ('pg_extension'::regclass, e.oid))))) THEN
    EXECUTE format('REVOKE USAGE ON SCHEMA %s FROM %I', home, role);
  END IF;

  FOR rest IN
    SELECT 'call ' || p.oid::regprocedure AS action, p.proacl AS acl
      FROM pg_proc p WHERE p.oid = ANY (revoked) AND has_function_privilege(holder, p.oid, 'EXECUTE')
     UNION ALL
    SELECT 'read totp.audit_log', t.relacl
      FROM pg_class t
     WHERE capability = 'audit' AND t.oid = to_regclass('totp.audit_log') AND has_table_privilege(holder, t.oid, 'SELECT')
     LIMIT 1
  LOOP
    RAISE WARNING 'role "%" can still %', role, rest.action
      USING DETAIL = coalesce((SELECT format('Role "%s" granted that.', pg_get_userbyid(a.grantor)) FROM aclexplode(rest.acl) a
                                WHERE a.grantee = holder LIMIT 1),
                              'It is a superuser, or may do so through another role or PUBLIC.');
  END LOOP;
END
$$;
COMMENT ON FUNCTION totp_revoke(name, text) IS
  'Revokes one capability from a role: verify, enroll, admin, or audit';

-- Revokes everything from PUBLIC, and what ALTER DEFAULT PRIVILEGES granted to others. A loop, so that a new function or
-- table cannot be forgotten.
DO $$
DECLARE
  grant_ record;
BEGIN
  FOR grant_ IN
    SELECT 'ROUTINE' AS kind, p.oid::pg_catalog.regprocedure::pg_catalog.text AS name, a.grantee
      FROM pg_catalog.pg_proc p
      JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
                                 AND d.objid OPERATOR(pg_catalog.=) p.oid
      JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid AND e.extname OPERATOR(pg_catalog.=) 'pg_totp'
      CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
     WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
       AND a.grantee OPERATOR(pg_catalog.<>) p.proowner
    UNION ALL
    SELECT CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::pg_catalog.regclass::pg_catalog.text, a.grantee
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace AND n.nspname OPERATOR(pg_catalog.=) 'totp'
      CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
     WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p', 'v', 'S']::pg_catalog."char"[]) AND a.grantee OPERATOR(pg_catalog.<>) c.relowner
    UNION ALL
    SELECT 'SCHEMA', 'totp', a.grantee
      FROM pg_catalog.pg_namespace n
      CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a
     WHERE n.nspname OPERATOR(pg_catalog.=) 'totp' AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner
  LOOP
    EXECUTE pg_catalog.format('REVOKE ALL ON %s %s FROM %s', grant_.kind, grant_.name,
      CASE WHEN grant_.grantee OPERATOR(pg_catalog.=) 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grant_.grantee)) END);
  END LOOP;
END
$$;
