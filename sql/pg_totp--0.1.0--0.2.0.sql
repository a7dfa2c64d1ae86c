-- From 0.1.0 to 0.2.0: new tables for the sealed trail, and arguments at the end of functions. Most changes are in the library.

\echo Use "ALTER EXTENSION pg_totp UPDATE" to load this file. \quit

-- These check the rights of their caller, which SECURITY DEFINER would hide. Grants stay.
ALTER FUNCTION @extschema@.totp_export() SECURITY INVOKER;
ALTER FUNCTION @extschema@.totp_prune_audit(interval) SECURITY INVOKER;
ALTER FUNCTION @extschema@.totp_forget_unreadable(text) SECURITY INVOKER;

-- Comments in plainer words.
COMMENT ON SCHEMA totp IS 'Tables of extension pg_totp; use its functions, not the tables';
COMMENT ON COLUMN totp.data_keys.state IS 'current: seals new secrets; retiring: a rotation is moving its secrets to the current key';
COMMENT ON COLUMN totp.data_keys.created_at IS 'When the key was created';
COMMENT ON COLUMN totp.secrets.user_id IS 'Id of the user in the application, compared byte by byte';
COMMENT ON COLUMN totp.secrets.secret_id IS 'Number of the secret, never reused';
COMMENT ON COLUMN totp.secrets.algorithm IS 'SHA1, SHA256, or SHA512';
COMMENT ON COLUMN totp.secrets.digits IS 'Length of its codes: 6, 7, or 8';
COMMENT ON COLUMN totp.secrets.created_at IS 'When the secret was created or imported';
COMMENT ON COLUMN totp.secrets.expires_at IS 'When the pending secret expires';
COMMENT ON TABLE totp.used_codes IS 'Last used time step of each secret and used codes of each recovery set; changed in place, never UPDATE it';
COMMENT ON COLUMN totp.used_codes.time_step IS 'Highest time step whose code was accepted';
COMMENT ON COLUMN totp.used_codes.recovery_mask IS 'Bit n is set if recovery code n of the set is used; of a secret, the drift of its token';
COMMENT ON COLUMN totp.used_codes.secret_id IS 'Number of the secret or of the set of recovery codes';
COMMENT ON COLUMN totp.used_codes.user_id IS 'Id of the user';
COMMENT ON COLUMN totp.attempts.user_id IS 'Id of the user';
COMMENT ON COLUMN totp.recovery_codes.user_id IS 'Id of the user';
COMMENT ON COLUMN totp.recovery_codes.created_at IS 'When the set was created';
COMMENT ON TABLE totp.floor IS 'Cluster that last checked a code, and since when; changed in place, never UPDATE it';
COMMENT ON COLUMN totp.floor.control_inode IS 'Inodes and times of global/pg_control and backup_label.old, combined; differs in a copy of the data directory';
COMMENT ON COLUMN totp.floor.timeline IS 'Timeline of the WAL; negative until totp_acknowledge_restore() if there were recovery codes';
COMMENT ON COLUMN totp.floor.one IS 'Limits the table to one row';
COMMENT ON TABLE totp.audit_log IS 'Event, user, and actor of everything that happened; append-only for all but the owner';
COMMENT ON COLUMN totp.audit_log.event IS 'Name of the event, such as enrolled, failed, or locked';
COMMENT ON COLUMN totp.audit_log.user_id IS 'Id of the affected user';
COMMENT ON COLUMN totp.audit_log.device IS 'Name of the affected device';
COMMENT ON COLUMN totp.audit_log.actor IS 'Who did it: totp.actor, or else the session user';
COMMENT ON COLUMN totp.audit_log.detail IS 'Details of the event; never a code, secret, URI, or key';
COMMENT ON VIEW totp.rotation_progress IS 'Progress of an online rotation; empty if none is under way';
COMMENT ON COLUMN totp.rotation_progress.started_at IS 'When the new data key was created';
COMMENT ON FUNCTION @extschema@.totp_verify(text, text, text) IS
  'Returns true once for each good code of a user, and false for everything else';
COMMENT ON FUNCTION @extschema@.totp_enabled(text) IS
  'Returns whether to ask this user for a code';
COMMENT ON FUNCTION @extschema@.totp_remove(text, text) IS
  'Removes a device of a user, or everything of the user if device is NULL';
COMMENT ON FUNCTION @extschema@.totp_keys() IS
  'Lists the data keys and the master key that each needs';
COMMENT ON FUNCTION @extschema@.totp_code_at(text, timestamptz, text, integer, integer) IS
  'Returns the code that an authenticator with this secret shows at that time';
COMMENT ON FUNCTION @extschema@.totp_reset(text, text) IS
  'Replaces a compromised secret: the old secrets of the device stop working now, and it gets a new one';
COMMENT ON FUNCTION @extschema@.totp_disable(text, text) IS
  'Disables a device of a user, or all devices if device is NULL';
COMMENT ON FUNCTION @extschema@.totp_enable(text, text) IS
  'Enables a device of a user, or all devices if device is NULL, in the state it had';
COMMENT ON FUNCTION @extschema@.totp_unlock(text) IS
  'Clears failures and locks of a user, but never the used codes';
COMMENT ON FUNCTION @extschema@.totp_rename_user(text, text) IS
  'Moves everything of a user to another user id';
COMMENT ON FUNCTION @extschema@.totp_recover(text, text) IS
  'Returns true once for each recovery code of a user, and false for everything else';
COMMENT ON FUNCTION @extschema@.totp_rotate_key() IS
  'Creates a data key, re-encrypts every secret, and destroys the old data keys, in one transaction';
COMMENT ON PROCEDURE @extschema@.totp_rotate_key_online(integer) IS
  'Does what totp_rotate_key does in committed batches; resumes a canceled rotation';
COMMENT ON FUNCTION totp.rotation_begin(integer) IS
  'First step of totp_rotate_key_online(): creates the new data key';
COMMENT ON FUNCTION totp.rotation_step(text, integer) IS
  'Second step of totp_rotate_key_online(): moves one batch';
COMMENT ON FUNCTION @extschema@.totp_forget_unreadable(text) IS
  'Removes what is sealed under a lost master key, and returns who must enroll again';
COMMENT ON FUNCTION @extschema@.totp_stats(interval) IS
  'Counts audit rows of the given interval, by event';
COMMENT ON FUNCTION @extschema@.totp_prune_audit(interval) IS
  'Deletes audit rows older than the given interval; for the owner';
COMMENT ON FUNCTION @extschema@.totp_export() IS
  'Returns the otpauth URI of every secret; for superusers, audited';
COMMENT ON FUNCTION @extschema@.totp_qr_svg(text) IS
  'Draws an otpauth URI as a QR code in SVG';
COMMENT ON FUNCTION @extschema@.totp_qr_png(text, integer) IS
  'Draws an otpauth URI as a QR code in PNG; scale is the width of a module in pixels';
COMMENT ON FUNCTION @extschema@.totp_qr_text(text) IS
  'Draws an otpauth URI as a QR code of Unicode half blocks, for a terminal';

SET LOCAL search_path = pg_catalog, pg_temp;

-- PostgreSQL 19 has REPACK (CONCURRENTLY), which would lose what changes in place meanwhile. It refuses these tables. They are
-- locked in the order of a sign-in, so that neither waits for the other. A transaction that read totp.secrets before, as by
-- totp_enabled(), has another order: in a deadlock PostgreSQL ends it or this script, which is then run again.
DO $$
BEGIN
  IF pg_catalog.current_setting('server_version_num')::integer OPERATOR(pg_catalog.>=) 190000 THEN
    LOCK TABLE totp.attempts, totp.used_codes, totp.secrets, totp.floor IN ACCESS EXCLUSIVE MODE;
    ALTER TABLE totp.attempts REPLICA IDENTITY NOTHING;
    ALTER TABLE totp.used_codes REPLICA IDENTITY NOTHING;
    ALTER TABLE totp.floor REPLICA IDENTITY NOTHING;
  END IF;
END
$$;

-- What was pending counts as approved.
ALTER TABLE totp.secrets DROP CONSTRAINT secrets_slot_check;
ALTER TABLE totp.secrets ADD CONSTRAINT secrets_slot_check CHECK (
  slot OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'pending', 'proposed']));
COMMENT ON TABLE totp.secrets IS 'TOTP secrets, sealed; at most one per device and slot';
COMMENT ON COLUMN totp.secrets.slot IS 'active: signs in; pending: approved, becomes active with its first good code; proposed: that may need a proof too';

-- Sums of judgments, changed in place, as above. What two sessions contend for is a page, not a row, so each row has a page
-- of its own: a tenth of a page is to be filled, and two rows are more than that.
CREATE TABLE totp.counters (
  accepted            bigint    NOT NULL,
  wrong               bigint    NOT NULL,
  replayed            bigint    NOT NULL,
  locked              bigint    NOT NULL,
  recovery_codes_used bigint    NOT NULL,
  stripe              smallint  PRIMARY KEY,
  padding             char(400) COLLATE "C" NOT NULL DEFAULT ''
) USING heap WITH (fillfactor = 10);
INSERT INTO totp.counters SELECT 0, 0, 0, 0, 0, stripe FROM pg_catalog.generate_series(0, 15) AS stripe;
DO $$
BEGIN
  IF pg_catalog.current_setting('server_version_num')::integer OPERATOR(pg_catalog.>=) 190000 THEN
    ALTER TABLE totp.counters REPLICA IDENTITY NOTHING;
  END IF;
END
$$;

-- The counters are of this database in this cluster. A restored database begins with the rows of this script.
SELECT pg_catalog.pg_extension_config_dump('totp.counters', 'WHERE false');
COMMENT ON TABLE totp.counters IS 'Sums of judged codes, which outlive ROLLBACK; changed in place, never UPDATE it';
COMMENT ON COLUMN totp.counters.accepted IS 'Codes that were accepted';
COMMENT ON COLUMN totp.counters.wrong IS 'Wrong codes and wrong recovery codes';
COMMENT ON COLUMN totp.counters.replayed IS 'Codes and recovery codes that were used before';
COMMENT ON COLUMN totp.counters.locked IS 'Calls that were refused because of a lock';
COMMENT ON COLUMN totp.counters.recovery_codes_used IS 'Recovery codes that were accepted';
COMMENT ON COLUMN totp.counters.stripe IS 'Number of the row; a session adds to one, a sum over all rows is the counter';
COMMENT ON COLUMN totp.counters.padding IS 'Blanks, so that each row has its own page';

-- The sealed trail. Existing installations have no right on it.
-- Keys of the audit trail, wrapped as the data keys are, by a key of its own of the master key.
CREATE TABLE totp.audit_keys (
  key_id      integer     PRIMARY KEY,
  master_key  text        COLLATE "C" NOT NULL,
  wrapped     bytea       NOT NULL,
  created_at  timestamptz NOT NULL
) USING heap;

-- Seals of the audit trail. Read docs/design/trail.md. mac covers all other columns.
CREATE TABLE totp.audit_seals (
  seal_id           bigint         PRIMARY KEY,
  first_id          bigint         NOT NULL,
  last_id           bigint         NOT NULL,
  row_count         bigint         NOT NULL,
  newest_at         timestamptz,
  rows_mac          bytea          NOT NULL,
  holes             int8multirange NOT NULL,
  late              int8multirange NOT NULL,
  closed_seal       bigint         NOT NULL,
  pruned_seal       bigint         NOT NULL,
  next_xid          bigint,
  system_identifier bigint         NOT NULL,
  database          bigint         NOT NULL,
  timeline          bigint         NOT NULL,
  key_id            integer        NOT NULL,
  sealed_at         timestamptz    NOT NULL,
  previous_mac      bytea          NOT NULL,
  mac               bytea          NOT NULL
) USING heap;

SELECT pg_catalog.pg_extension_config_dump('totp.audit_keys', '');
SELECT pg_catalog.pg_extension_config_dump('totp.audit_seals', '');
COMMENT ON TABLE totp.audit_keys IS 'Keys that seal the audit trail, wrapped by a master key';
COMMENT ON COLUMN totp.audit_keys.key_id IS 'Number of the key, from the same sequence as the data keys';
COMMENT ON COLUMN totp.audit_keys.master_key IS 'Fingerprint of the master key that wraps it';
COMMENT ON COLUMN totp.audit_keys.wrapped IS 'The key, encrypted';
COMMENT ON COLUMN totp.audit_keys.created_at IS 'When the key was created';

COMMENT ON TABLE totp.audit_seals IS 'Seals of the audit trail; check them with totp_audit_verify()';
COMMENT ON COLUMN totp.audit_seals.seal_id IS 'Number of the seal, without a gap';
COMMENT ON COLUMN totp.audit_seals.first_id IS 'First id of its range, which follows that of the seal before';
COMMENT ON COLUMN totp.audit_seals.last_id IS 'Last id of its range';
COMMENT ON COLUMN totp.audit_seals.row_count IS 'How many rows it covers';
COMMENT ON COLUMN totp.audit_seals.newest_at IS 'When the latest of these rows happened';
COMMENT ON COLUMN totp.audit_seals.rows_mac IS 'HMAC-SHA-256 over these rows';
COMMENT ON COLUMN totp.audit_seals.holes IS 'Ids of its range that no row had';
COMMENT ON COLUMN totp.audit_seals.late IS 'Rows in holes of earlier seals that were committed since, and are covered by this one';
COMMENT ON COLUMN totp.audit_seals.closed_seal IS 'No transaction can fill a hole of seals up to this one any more';
COMMENT ON COLUMN totp.audit_seals.pruned_seal IS 'Rows of seals up to this one were deleted by totp_prune_audit()';
COMMENT ON COLUMN totp.audit_seals.next_xid IS 'Transactions that were writing audit rows have lower ids; NULL: not known';
COMMENT ON COLUMN totp.audit_seals.system_identifier IS 'System identifier of the cluster';
COMMENT ON COLUMN totp.audit_seals.database IS 'OID of the database';
COMMENT ON COLUMN totp.audit_seals.timeline IS 'Timeline of the WAL';
COMMENT ON COLUMN totp.audit_seals.key_id IS 'Key of totp.audit_keys';
COMMENT ON COLUMN totp.audit_seals.sealed_at IS 'When it was made';
COMMENT ON COLUMN totp.audit_seals.previous_mac IS 'The MAC of the seal before';
COMMENT ON COLUMN totp.audit_seals.mac IS 'HMAC-SHA-256 over all other columns';

-- Arguments as they are, but other properties.
ALTER FUNCTION @extschema@.totp_enabled(text) COST 800 PARALLEL RESTRICTED;
ALTER FUNCTION @extschema@.totp_qr_svg(text) STRICT;
ALTER FUNCTION @extschema@.totp_qr_png(text, integer) STRICT;
ALTER FUNCTION @extschema@.totp_qr_text(text) STRICT;
ALTER FUNCTION @extschema@.totp_code_at(text, timestamptz, text, integer, integer) STRICT;

-- Functions with new arguments, columns, or contents. The old one is renamed, and dropped at the end: a view that uses it is
-- in the way, and PostgreSQL names it.
ALTER FUNCTION @extschema@.totp_enroll(text, text, text, text, text, integer, integer, boolean)
  RENAME TO totp_enroll_0_1_0;
ALTER FUNCTION @extschema@.totp_grant(name, text) RENAME TO totp_grant_0_1_0;
ALTER FUNCTION @extschema@.totp_confirm(text, text, text) RENAME TO totp_confirm_0_1_0;
ALTER FUNCTION @extschema@.totp_check(text, text, text) RENAME TO totp_check_0_1_0;
ALTER FUNCTION @extschema@.totp_recovery_codes(text, integer) RENAME TO totp_recovery_codes_0_1_0;
ALTER FUNCTION @extschema@.totp_status(text) RENAME TO totp_status_0_1_0;
ALTER FUNCTION @extschema@.totp_health() RENAME TO totp_health_0_1_0;
ALTER FUNCTION @extschema@.totp_import(text, text, text, text, text, text, integer, integer, boolean, boolean)
  RENAME TO totp_import_0_1_0;

-- A session with the library of 0.1.0 must not go on to stage approved secrets.
CREATE FUNCTION @extschema@.totp_enroll(
  user_id text, account_name text DEFAULT NULL, issuer text DEFAULT NULL, device text DEFAULT 'default',
  algorithm text DEFAULT 'SHA1', digits integer DEFAULT 6, period integer DEFAULT 30, keep_current boolean DEFAULT true
) RETURNS TABLE (secret text, otpauth_uri text)
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_enroll_v2_wrapper';

CREATE FUNCTION @extschema@.totp_confirm(
  user_id text, code text, device text DEFAULT 'default', proof text DEFAULT NULL
) RETURNS boolean
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_confirm_v2_wrapper';

CREATE FUNCTION @extschema@.totp_recovery_codes(user_id text, count integer DEFAULT 10, proof text DEFAULT NULL)
RETURNS SETOF text
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_recovery_codes_v2_wrapper';

CREATE FUNCTION @extschema@.totp_check(user_id text, code text, device text DEFAULT NULL)
RETURNS TABLE (accepted boolean, reason text, matched_device text, attempts_left integer, retry_at timestamptz,
               retry_after integer)
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_check_v2_wrapper';

CREATE FUNCTION @extschema@.totp_status(user_id text)
RETURNS TABLE (device text, state text, account_name text, issuer text, algorithm text, digits integer, period integer,
               version integer, created_at timestamptz, confirmed_at timestamptz, last_used_at timestamptz, uses bigint,
               failures integer, locked_until timestamptz, recovery_codes_left integer, locked boolean,
               recovery_failures integer, recovery_locked boolean, recovery_locked_until timestamptz,
               approved boolean, drift integer)
LANGUAGE c STABLE SECURITY DEFINER PARALLEL RESTRICTED COST 4000
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_status_v2_wrapper';

CREATE FUNCTION @extschema@.totp_health("full" boolean DEFAULT false)
RETURNS TABLE (check_name text, status text, detail text, "full" boolean)
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_health_v2_wrapper';

CREATE FUNCTION @extschema@.totp_import(
  user_id text, secret text, account_name text DEFAULT NULL, issuer text DEFAULT NULL, device text DEFAULT 'default',
  algorithm text DEFAULT 'SHA1', digits integer DEFAULT 6, period integer DEFAULT 30, confirmed boolean DEFAULT false,
  allow_weak boolean DEFAULT false, encoding text DEFAULT NULL, drift integer DEFAULT 0
) RETURNS text
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_import_v2_wrapper';

-- It grants the new functions too, and is audited.
CREATE FUNCTION totp.record_right(granted boolean, role text, capability text) RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'record_right_wrapper';
COMMENT ON FUNCTION totp.record_right(boolean, text, text) IS
  'Writes the audit row of totp_grant or totp_revoke';

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
CREATE FUNCTION @extschema@.totp_grant(role name, capability text) RETURNS void
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
COMMENT ON FUNCTION @extschema@.totp_grant(name, text) IS
  'Grants a role one capability: verify, enroll, admin, or audit';

-- Revokes from a role what totp_grant() gives with a capability. What another capability of the role needs too stays: that
-- capability counts if the role has all of it, and is not a part of the revoked one.
CREATE FUNCTION @extschema@.totp_revoke(role name, capability text) RETURNS void
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
COMMENT ON FUNCTION @extschema@.totp_revoke(name, text) IS
  'Revokes one capability from a role: verify, enroll, admin, or audit';

-- New functions.
CREATE FUNCTION @extschema@.totp_check_confirm(
  user_id text, code text, device text DEFAULT 'default', proof text DEFAULT NULL,
  recovery_codes integer DEFAULT 0
) RETURNS TABLE (accepted boolean, reason text, matched_device text, attempts_left integer, retry_at timestamptz,
                 retry_after integer, recovery_codes text[])
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_check_confirm_wrapper';

CREATE FUNCTION @extschema@.totp_check_recover(user_id text, recovery_code text)
RETURNS TABLE (accepted boolean, reason text, attempts_left integer, retry_at timestamptz, retry_after integer)
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_check_recover_wrapper';

CREATE FUNCTION @extschema@.totp_reset_recovery_codes(user_id text, count integer DEFAULT 10) RETURNS SETOF text
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_reset_recovery_codes_wrapper';

CREATE FUNCTION @extschema@.totp_unenroll(user_id text, proof text, device text DEFAULT NULL) RETURNS boolean
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_unenroll_wrapper';

CREATE FUNCTION @extschema@.totp_rename_device(user_id text, device text, new_device text, proof text DEFAULT NULL)
RETURNS boolean
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_rename_device_wrapper';

CREATE FUNCTION @extschema@.totp_resync(user_id text, code1 text, code2 text, device text DEFAULT 'default')
RETURNS boolean
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_resync_wrapper';

CREATE FUNCTION @extschema@.totp_move_device(user_id text, device text, new_user_id text, new_device text)
RETURNS boolean
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_move_device_wrapper';

CREATE FUNCTION @extschema@.totp_metrics() RETURNS TABLE (metric text, value double precision, help text)
LANGUAGE c VOLATILE STRICT SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_metrics_wrapper';

CREATE FUNCTION @extschema@.totp_list("after" text DEFAULT NULL, "max" integer DEFAULT 100, "prefix" text DEFAULT '')
RETURNS TABLE (user_id text, device text, state text, account_name text, issuer text, created_at timestamptz,
               confirmed_at timestamptz, last_used_at timestamptz, uses bigint, failures integer, locked boolean,
               locked_until timestamptz, recovery_codes_left integer)
LANGUAGE c STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_list_wrapper';

CREATE FUNCTION @extschema@.totp_acknowledge_restore() RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_acknowledge_restore_wrapper';

CREATE FUNCTION @extschema@.totp_audit_verify(anchor text DEFAULT NULL, since_seal bigint DEFAULT NULL)
RETURNS TABLE (seal_id bigint, first_id bigint, last_id bigint, status text, problem text)
LANGUAGE c VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'totp_audit_verify_wrapper';

CREATE FUNCTION totp.seal_step() RETURNS TABLE (seal_id bigint, is_full boolean)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'seal_step_wrapper';

CREATE FUNCTION totp.seal_line(seal_id bigint) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
SET search_path TO pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'seal_line_wrapper';

-- The sealing of the audit trail. It commits after each seal, so it is SECURITY INVOKER without SET, and every name and operator
-- in it is qualified. The functions that it calls ask who calls.
CREATE PROCEDURE @extschema@.totp_audit_seal()
LANGUAGE plpgsql
AS $$
DECLARE
  seal bigint;
  more boolean;
BEGIN
  LOOP
    SELECT step.seal_id, step.is_full INTO seal, more FROM totp.seal_step() AS step;
    COMMIT;
    EXIT WHEN seal IS NULL;
    PERFORM totp.seal_line(seal);
    COMMIT;
    EXIT WHEN NOT more;
  END LOOP;
END
$$;

COMMENT ON FUNCTION @extschema@.totp_audit_verify(text, bigint) IS
  'Shows whether the audit trail was changed: one row per seal, and a last one about rows that are not sealed';
COMMENT ON PROCEDURE @extschema@.totp_audit_seal() IS
  'Seals the audit rows that are not sealed yet; for the owner, each minute';
COMMENT ON FUNCTION totp.seal_step() IS
  'First step of totp_audit_seal(): makes one seal';
COMMENT ON FUNCTION totp.seal_line(bigint) IS
  'Second step of totp_audit_seal(): writes its line to the server log';
CREATE FUNCTION @extschema@.totp_read_tokens(
  document text, format text DEFAULT 'pskc', key bytea DEFAULT NULL, password text DEFAULT NULL
) RETURNS TABLE (serial text, manufacturer text, model text, user_id text, secret text, algorithm text, digits integer,
                 period integer, drift integer, expires_at timestamptz, problem text)
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'totp_read_tokens_wrapper';

COMMENT ON FUNCTION @extschema@.totp_enroll(text, text, text, text, text, integer, integer, boolean) IS
  'Creates a secret for a device and returns it, this one time; it is pending until its first good code';
COMMENT ON FUNCTION @extschema@.totp_confirm(text, text, text, text) IS
  'Activates a secret of a device with its first good code, and a proof if the user has MFA';
COMMENT ON FUNCTION @extschema@.totp_check(text, text, text) IS
  'Checks a code as totp_verify does; returns the reason, the wrong guesses left, and the end of a lock too';
COMMENT ON FUNCTION @extschema@.totp_status(text) IS
  'Lists what is known about the secrets of a user';
COMMENT ON FUNCTION @extschema@.totp_health(boolean) IS
  'Reports what is wrong, and what to do about it';
COMMENT ON FUNCTION
  @extschema@.totp_import(text, text, text, text, text, text, integer, integer, boolean, boolean, text, integer) IS
  'Imports an existing secret: an otpauth URI, base32, hex, base64, or raw bytes';
COMMENT ON FUNCTION @extschema@.totp_check_confirm(text, text, text, text, integer) IS
  'Confirms as totp_confirm does; returns the reason, and a first set of recovery codes, too';
COMMENT ON FUNCTION @extschema@.totp_check_recover(text, text) IS
  'Checks a recovery code as totp_recover does; returns the reason too';
COMMENT ON FUNCTION @extschema@.totp_recovery_codes(text, integer, text) IS
  'Creates a set of recovery codes and returns it, this one time; the old set stops working';
COMMENT ON FUNCTION @extschema@.totp_reset_recovery_codes(text, integer) IS
  'Creates a set of recovery codes without a proof, for the support desk';
COMMENT ON FUNCTION @extschema@.totp_unenroll(text, text, text) IS
  'Removes a device of a user with a proof; turns MFA off if device is NULL or the last one';
COMMENT ON FUNCTION @extschema@.totp_rename_device(text, text, text, text) IS
  'Gives a device another name';
COMMENT ON FUNCTION @extschema@.totp_resync(text, text, text, text) IS
  'Measures how far the clock of a token has drifted, by two codes in a row; signs nobody in';
COMMENT ON FUNCTION @extschema@.totp_metrics() IS
  'Returns counters and gauges for Prometheus: judged codes, devices, keys, and the cheap health checks';
COMMENT ON FUNCTION @extschema@.totp_move_device(text, text, text, text) IS
  'Moves a device with its state to another user, for the support desk';
COMMENT ON FUNCTION @extschema@.totp_list(text, integer, text) IS
  'Lists the devices of many users, page by page';
COMMENT ON FUNCTION @extschema@.totp_acknowledge_restore() IS
  'Ends the warning about recovery codes from before a failover or restore; for the owner';
COMMENT ON FUNCTION @extschema@.totp_read_tokens(text, text, bytea, text) IS
  'Reads the tokens of a PSKC document, a CSV, or an export of Google Authenticator; stores nothing';

-- Gives the new functions the owner and the grants of the old ones, and drops these. A grant in this script would count as one
-- of the extension, which pg_dump leaves out, so pg_init_privs gets what a fresh installation has.
DO $update$
DECLARE
  of_extension regprocedure[] := ARRAY(
    SELECT d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_totp'
     WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e');
  function_ record;
  grant_    record;
BEGIN
  FOR function_ IN
    SELECT new.oid::regprocedure AS name, old.oid::regprocedure AS old, old.proowner::regrole AS owner,
           coalesce(old.proacl, acldefault('f', old.proowner)) AS grants
      FROM pg_proc new
      LEFT JOIN pg_proc old ON old.oid = ANY (of_extension) AND old.proname = new.proname || '_0_1_0'
     WHERE new.oid = ANY (of_extension)
       AND new.proname IN ('totp_enroll', 'totp_grant', 'totp_confirm', 'totp_check', 'totp_status', 'totp_health', 'totp_recovery_codes',
                           'totp_import', 'totp_check_confirm', 'totp_check_recover', 'totp_reset_recovery_codes', 'totp_unenroll',
                           'totp_rename_device', 'totp_resync', 'totp_move_device', 'totp_metrics', 'totp_list', 'totp_acknowledge_restore', 'totp_audit_verify', 'totp_audit_seal', 'seal_step', 'seal_line', 'totp_read_tokens', 'totp_revoke', 'routines_of', 'record_right')
  LOOP
    IF function_.old IS NOT NULL THEN
      EXECUTE format('ALTER FUNCTION %s OWNER TO %s', function_.name, function_.owner);
      EXECUTE format('DROP FUNCTION %s', function_.old);
    END IF;
    FOR grant_ IN
      SELECT a.grantee FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
       WHERE p.oid = function_.name AND a.grantee <> p.proowner
    LOOP
      EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s', function_.name,
        CASE WHEN grant_.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grant_.grantee)) END);
    END LOOP;
    FOR grant_ IN
      SELECT a.grantee, bool_or(a.is_grantable) AS is_grantable FROM aclexplode(function_.grants) a
       WHERE a.grantee <> function_.owner
       GROUP BY a.grantee
    LOOP
      EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %s%s', function_.name,
        CASE WHEN grant_.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grant_.grantee)) END,
        CASE WHEN grant_.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    UPDATE pg_init_privs i
       SET initprivs = (SELECT array_agg(a) FROM unnest(i.initprivs) a CROSS JOIN LATERAL aclexplode(ARRAY[a]) e
                         WHERE e.grantee = p.proowner)
      FROM pg_proc p
     WHERE p.oid = function_.name AND i.objoid = p.oid AND i.classoid = 'pg_proc'::regclass;
    -- PostgreSQL 17 and newer remember the roles named there.
    DELETE FROM pg_shdepend
     WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND classid = 'pg_proc'::regclass AND objid = function_.name AND deptype = 'i';
  END LOOP;
END
$update$;

-- Functions of 0.1.0 name the library with its folder, '$libdir/'. From now on dynamic_library_path says where it is.
DO $update$
DECLARE
  function_ record;
BEGIN
  FOR function_ IN
    SELECT pg_get_functiondef(p.oid) AS definition, p.probin
      FROM pg_proc p
      JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
      JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'pg_totp'
     WHERE p.probin <> 'MODULE_PATHNAME'
  LOOP
    EXECUTE replace(function_.definition, 'AS ' || quote_literal(function_.probin), 'AS ' || quote_literal('MODULE_PATHNAME'));
  END LOOP;
END
$update$;

-- The same for new tables: ALTER DEFAULT PRIVILEGES may have granted them to others.
DO $update$
DECLARE
  table_ CONSTANT regclass[] := ARRAY['totp.counters', 'totp.audit_keys', 'totp.audit_seals'];
  grant_ record;
BEGIN
  FOR grant_ IN
    SELECT c.oid::regclass AS name, a.grantee FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
     WHERE c.oid = ANY (table_) AND a.grantee <> c.relowner
  LOOP
    EXECUTE format('REVOKE ALL ON %s FROM %s', grant_.name,
      CASE WHEN grant_.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grant_.grantee)) END);
  END LOOP;
END
$update$;
