-- Prints the functions of the router, made from the catalog of a shard: same names, parameters and defaults.
--
-- psql -X -v ON_ERROR_STOP=1 -d SHARD -f routes.sql | psql -X -v ON_ERROR_STOP=1 -d ROUTER
--
-- Run it again after ALTER EXTENSION pg_totp UPDATE, when shard.sql has run on all shards: functions that the extension no
-- longer has, or has with another signature, are dropped. For each function there are two: a PL/Proxy function in schema
-- totp_router, which decides where the call goes, and a function around it with the name that clients use. That one refuses
-- read-only transactions, passes totp.actor, reads the whole answer, and hides PL/Proxy's notices (it drops a connection
-- after an error) from the client.

\set QUIET on
\pset tuples_only on
\pset format unaligned
\pset pager off
BEGIN READ ONLY;
SET LOCAL search_path = pg_catalog, pg_temp;

-- What is called here, and what the router is made from, must come from shard.sql, so it must belong to superusers.
-- PostgreSQL records no owner for objects of its first superuser.
DO $$
DECLARE
  found record;
BEGIN
  FOR found IN
    SELECT 'schema' AS type, n.nspname::text AS identity, r.rolname AS owner
      FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner AND NOT r.rolsuper WHERE n.nspname = 'totp_shard'
    UNION ALL
    SELECT i.type, i.identity, r.rolname
      FROM pg_depend AS d
      JOIN pg_shdepend AS s ON (s.classid, s.objid, s.deptype) = (d.classid, d.objid, 'o')
                           AND s.dbid = (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
      JOIN pg_roles AS r ON r.oid = s.refobjid AND NOT r.rolsuper
     CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
     WHERE (d.refclassid, d.refobjid, d.deptype) = ('pg_namespace'::regclass, to_regnamespace('totp_shard'), 'n')
  LOOP
    RAISE EXCEPTION '% % belongs to another role', found.type, found.identity USING ERRCODE = 'insufficient_privilege',
      DETAIL = format('Role "%s", which is not a superuser, can change it.', found.owner),
      HINT = 'If you do not know what it is for, drop it, and run shard.sql here.';
  END LOOP;
END
$$;
SELECT extnamespace::regnamespace AS home FROM pg_extension WHERE extname = 'pg_totp' \gset

SELECT $$BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;$$;

-- Creates nothing if other roles could change it, or if their functions could be called instead. A function of the router
-- checks that; its owner shows that router.sql created it.
SELECT format($$DO $do$
DECLARE
  found record;
BEGIN
  IF NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) THEN
    RAISE EXCEPTION 'must be superuser to create the functions of the router' USING ERRCODE = 'insufficient_privilege',
      DETAIL = 'Some of them are PL/Proxy functions.', HINT = 'Run the script as a superuser.';
  ELSIF NOT EXISTS (SELECT FROM pg_proc AS p JOIN pg_roles AS r ON r.oid = p.proowner AND r.rolsuper
                     WHERE p.oid = to_regprocedure('totp_router.exposed(name, text[])')) THEN
    RAISE EXCEPTION 'this database is not a router' USING ERRCODE = 'insufficient_privilege',
      DETAIL = 'It has nothing that router.sql creates.', HINT = 'Run router.sql first, in an empty database.';
  END IF;
  FOR found IN SELECT * FROM totp_router.exposed(%1$L::name, %2$L::text[]) LOOP
    RAISE EXCEPTION '%%', found.message USING ERRCODE = 'insufficient_privilege', DETAIL = found.detail,
      HINT = found.hint || ' Then run the script again.';
  END LOOP;
  IF to_regnamespace(%3$L) IS NULL THEN
    CREATE SCHEMA %3$s AUTHORIZATION totp_router;
  END IF;
  GRANT USAGE, CREATE ON SCHEMA %3$s TO totp_router;
EXCEPTION WHEN unique_violation THEN -- another session was creating it
  RAISE EXCEPTION 'schema %3$s belongs to another role' USING ERRCODE = 'insufficient_privilege',
    DETAIL = 'Another session has just created it.', HINT = 'Run the script again.';
END
$do$;
SET LOCAL ROLE totp_router; -- which can replace only its own objects
DELETE FROM totp_router.capabilities;$$,
              n.nspname, ARRAY(SELECT DISTINCT r.name FROM totp_shard.routines AS r WHERE r.route NOT IN ('internal', 'step')), :'home')
  FROM pg_namespace AS n WHERE n.oid = :'home'::regnamespace;

-- The router and the shards must compute the same partition for a user.
SELECT format($$DO $do$
BEGIN
  IF totp_router.partition_count() <> %s THEN
    RAISE EXCEPTION 'shard.sql and router.sql have different numbers of partitions';
  END IF;
END
$do$;$$, totp_shard.partition_count());
SELECT replace(pg_get_functiondef('totp_shard.partition(text)'::regprocedure), 'totp_shard.', 'totp_router.') || ';';

-- Drops functions that the extension no longer has after an update, or has with another signature: two of one name would
-- conflict.
SELECT format($$DO $do$
DECLARE
  old text;
BEGIN
  FOR old IN SELECT p.oid::regprocedure FROM pg_proc AS p
              WHERE p.pronamespace IN (%L::regnamespace, 'totp_router'::regnamespace) AND p.proowner = 'totp_router'::regrole
                AND p.proname ~ '^(totp|rotation)_'
                AND format('%%s.%%I(%%s) %%s', p.pronamespace::regnamespace, p.proname, pg_get_function_arguments(p.oid),
                           pg_get_function_result(p.oid)) <> ALL (%L::text[]) LOOP
    EXECUTE format('DROP ROUTINE %%s', old);
    IF old NOT LIKE 'totp_router.%%' THEN
      RAISE WARNING 'dropped %%, with the privileges on it', old USING HINT = 'Call totp_grant() again.';
    END IF;
  END LOOP;
END
$do$;$$, :'home', ARRAY(
    SELECT format('%I.%I(%s) %s', schema, name, arguments, router_result) FROM totp_shard.routines WHERE route NOT IN ('internal', 'step')
    UNION ALL
    SELECT format('totp_router.%I(%s%s) %s', name, CASE WHEN route <> 'user' THEN 'on_partition integer, ' END, remote_parameters, result)
      FROM totp_shard.routines WHERE route IN ('user', 'all', 'any', 'step')
    UNION ALL
    SELECT format('totp_router.%I(%s) %s', name, types, router_result) FROM totp_shard.routines WHERE shares_names));

-- --- Inside: PL/Proxy ------------------------------------------------------------------------------------------------

SELECT 'RESET ROLE;'; -- only a superuser can create PL/Proxy functions

SELECT format($$CREATE OR REPLACE FUNCTION totp_router.%I(%s) RETURNS %s LANGUAGE plproxy AS
$plproxy$ CLUSTER 'totp_%s'; RUN ON totp_router.partition($1); TARGET totp_shard.%I; $plproxy$;$$,
              name, remote_parameters, result, cluster, name)
  FROM totp_shard.routines WHERE route = 'user' ORDER BY name;

-- These take a partition of the shard on which they run.
SELECT format($$CREATE OR REPLACE FUNCTION totp_router.%I(on_partition integer, %s) RETURNS %s LANGUAGE plproxy AS
$plproxy$ CLUSTER 'totp_%s'; RUN ON on_partition; SELECT * FROM totp_shard.%I(%scaller::text); $plproxy$;$$,
              name, remote_parameters, result, cluster, name, names)
  FROM totp_shard.routines WHERE route IN ('all', 'any', 'step') ORDER BY name;

-- They belong to the router's role too, and nobody else can call them, whatever ALTER DEFAULT PRIVILEGES grants.
SELECT $$DO $do$
DECLARE
  r record;
BEGIN
  FOR r IN SELECT p.oid::regprocedure AS routine FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang AND l.lanname = 'plproxy'
            WHERE p.pronamespace = 'totp_router'::regnamespace LOOP
    EXECUTE format('ALTER ROUTINE %s OWNER TO totp_router', r.routine);
  END LOOP;
  FOR r IN SELECT p.oid::regprocedure AS routine, a.grantee
             FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang AND l.lanname = 'plproxy'
            CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
            WHERE p.pronamespace = 'totp_router'::regnamespace AND a.grantee <> p.proowner LOOP
    EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s CASCADE', r.routine,
                   CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END);
  END LOOP;
END
$do$;
SET LOCAL ROLE totp_router;$$;

-- --- Outside: what clients call --------------------------------------------------------------------------------------

-- One user, one shard. A call without a user goes to no shard, and gets an answer even if one is dead. If the function
-- cannot be PL/pgSQL under its own name, since a parameter and a column of the result share a name, it is one inside.
SELECT format($$CREATE OR REPLACE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql %s SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS
$plpgsql$
DECLARE
  me CONSTANT text := totp_router.caller(%L);
BEGIN
%s  %s totp_router.%I(%sme);
END
$plpgsql$;$$, CASE WHEN shares_names THEN 'totp_router' ELSE schema END, name, CASE WHEN shares_names THEN types ELSE arguments END,
              result, volatility, CASE WHEN writes THEN name END,
              CASE WHEN name IN ('totp_verify', 'totp_confirm', 'totp_recover', 'totp_enabled', 'totp_resync')
                   THEN E'  IF $1 IS NULL THEN\n    RETURN false;\n  END IF;\n'
                   WHEN name = 'totp_status' THEN E'  IF $1 IS NULL THEN\n    RETURN;\n  END IF;\n'
                   WHEN name IN ('totp_check', 'totp_check_recover', 'totp_check_confirm')
                   -- A shard refuses a wrong number of recovery codes.
                   THEN format(E'  IF $1 IS NULL%s THEN\n    accepted := false;\n    reason := \'not_enrolled\';\n    RETURN NEXT;\n    RETURN;\n  END IF;\n',
                               CASE WHEN name = 'totp_check_confirm' THEN ' AND $5 BETWEEN 0 AND 20' END)
                   WHEN second_user IS NOT NULL THEN format(E'  PERFORM totp_router.same_shard($1, %s);\n', second_user)
                   ELSE '' END,
              CASE WHEN returns_set THEN 'RETURN QUERY SELECT * FROM' ELSE 'RETURN' END, name, numbers)
  FROM totp_shard.routines WHERE route = 'user' ORDER BY name;

SELECT format($$REVOKE ALL ON FUNCTION totp_router.%2$I(%6$s) FROM PUBLIC;
CREATE OR REPLACE FUNCTION %1$I.%2$I(%3$s) RETURNS %4$s LANGUAGE sql %5$s SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$sql$ SELECT * FROM totp_router.%2$I(%7$s) $sql$;$$, schema, name, arguments, result, volatility, types, rtrim(numbers, ', '))
  FROM totp_shard.routines WHERE route = 'user' AND shares_names ORDER BY name;

-- All shards, one after the other, with a column that names the shard.
SELECT format($$CREATE OR REPLACE FUNCTION %1$I.%2$I(%4$s) RETURNS %5$s LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS
$plpgsql$
#variable_conflict use_column
DECLARE
  me      CONSTANT text := totp_router.caller(%6$L);
  s       totp_router.each_shard;
  done    text[] := '{}';
  code    text;
  message text;
  detail  text;
  hint    text;
BEGIN
  FOR s IN SELECT * FROM totp_router.concerned(%2$L, %7$s, me) LOOP
    BEGIN
      RETURN QUERY SELECT a.*, s.name FROM totp_router.%2$I(s.partition, %8$sme) AS a;
    EXCEPTION WHEN OTHERS THEN
      GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
      PERFORM totp_router.failed(s.name, done, code, message, detail, hint);
    END;
    done := done || s.name;
  END LOOP;
END
$plpgsql$;$$, schema, name, parameters, arguments, router_result, CASE WHEN writes THEN name END,
              CASE WHEN name = 'totp_forget_unreadable' THEN '$1' ELSE 'NULL' END, numbers)
  FROM totp_shard.routines WHERE route = 'all' AND name <> 'totp_health' ORDER BY name;

-- The same for totp_health(), which also reports dead shards: it first calls each shard as a sign-in does. At the end it
-- reports roles that could take over the router. A parameter shares its name with a column, so it is PL/pgSQL inside.
SELECT format($$CREATE OR REPLACE FUNCTION totp_router.totp_health(%1$s) RETURNS %2$s LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS
$plpgsql$
#variable_conflict use_column
DECLARE
  me      CONSTANT text := totp_router.caller();
  s       totp_router.each_shard;
  answers boolean;
  done    text[] := '{}';
BEGIN
  IF $1 IS NULL THEN
    RAISE EXCEPTION 'argument "full" must not be null' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  FOR s IN SELECT * FROM totp_router.concerned(%3$L, NULL, me) LOOP
    answers := false;
    BEGIN
      PERFORM totp_router.ping(s.partition);
      answers := true;
      RETURN QUERY SELECT a.*, s.name FROM totp_router.totp_health(s.partition, $1, me) AS a;
      done := done || s.name;
    EXCEPTION WHEN OTHERS THEN
      RETURN QUERY SELECT 'shard', 'fail', CASE WHEN answers THEN 'It answers, but totp_health() ended in an error there: '
                                                ELSE 'It does not answer, and its users cannot sign in: ' END
                                           || SQLSTATE || ' ' || SQLERRM, false, s.name;
    END;
  END LOOP;
  RETURN QUERY SELECT m.check_name, m.status, m.detail, false, m.shard FROM totp_router.map_health(done) AS m;
  RETURN QUERY SELECT 'router', 'fail', concat_ws(' ', e.message || '.', e.detail, e.hint), false, NULL::text
                 FROM totp_router.exposed(%4$L::name, %5$L::text[]) AS e;
END
$plpgsql$;
REVOKE ALL ON FUNCTION totp_router.totp_health(%1$s) FROM PUBLIC;
CREATE OR REPLACE FUNCTION %4$I.totp_health(%6$s) RETURNS %2$s LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS
$sql$ SELECT * FROM totp_router.totp_health(%7$s) $sql$;$$, types, router_result, name, schema,
              ARRAY(SELECT DISTINCT r.name FROM totp_shard.routines AS r WHERE r.route NOT IN ('internal', 'step')),
              arguments, rtrim(numbers, ', '))
  FROM totp_shard.routines WHERE name = 'totp_health';

-- Any shard: the first one that answers.
SELECT format($$CREATE OR REPLACE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS
$plpgsql$
DECLARE
  s       record;
  message text;
BEGIN
  FOR s IN SELECT e.partition FROM totp_router.each_shard AS e ORDER BY random() LOOP
    BEGIN
      %s totp_router.%I(s.partition, %stotp_router.caller());%s
    EXCEPTION WHEN OTHERS THEN
      IF NOT totp_router.is_dead(SQLSTATE) THEN
        RAISE;
      END IF;
      message := SQLERRM;
    END;
  END LOOP;
  RAISE EXCEPTION 'no shard answers' USING ERRCODE = 'connection_failure', DETAIL = message;
END
$plpgsql$;$$, schema, name, arguments, result, CASE WHEN returns_set THEN 'RETURN QUERY SELECT * FROM' ELSE 'RETURN' END, name, numbers,
              CASE WHEN returns_set THEN ' RETURN;' ELSE '' END)
  FROM totp_shard.routines WHERE route = 'any' ORDER BY name;

SELECT format($$CREATE OR REPLACE %s %I.%I(%s) %s LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS
$plpgsql$
BEGIN
  RAISE EXCEPTION 'cannot execute %s() on a router' USING ERRCODE = 'feature_not_supported', HINT = 'Call it on each shard.';
END
$plpgsql$;$$, CASE kind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, schema, name, arguments, 'RETURNS ' || result, name)
  FROM totp_shard.routines WHERE route = 'refused' ORDER BY name;

-- What the router does itself. Each step of the rotation is a transaction of its shard. The COMMIT raises an error in a
-- transaction block, as on one server. A procedure with a COMMIT must be SECURITY INVOKER without SET, so every name in it
-- is qualified, and the caller can execute what it calls.
SELECT format($$CREATE OR REPLACE PROCEDURE %s.totp_rotate_key_online(%s)
LANGUAGE plpgsql AS
$plpgsql$
BEGIN
  PERFORM totp.rotation_allowed();
  COMMIT;
  PERFORM totp.rotate_online(batch_size);
END
$plpgsql$;
CREATE OR REPLACE FUNCTION totp.rotation_allowed() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$plpgsql$
BEGIN
  PERFORM totp_router.caller('totp_rotate_key_online');
END
$plpgsql$;
CREATE OR REPLACE FUNCTION totp.rotate_online(batch_size integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$plpgsql$
DECLARE
  me   CONSTANT text := totp_router.caller('totp_rotate_key_online');
  s    totp_router.each_shard;
  step record;
  done bigint;
BEGIN
  FOR s IN SELECT * FROM totp_router.concerned('totp_rotate_key', NULL, me) LOOP
    PERFORM totp_router.rotation_begin(s.partition, batch_size, me);
    done := 0;
    LOOP
      SELECT NULL::bigint AS moved, NULL::text AS last_user INTO step;
      LOOP
        SELECT r.moved, r.last_user INTO step FROM totp_router.rotation_step(s.partition, step.last_user, batch_size, me) AS r;
        EXIT WHEN step.last_user IS NULL;
        done := done + step.moved;
      END LOOP;
      EXIT WHEN totp_router.rotation_end(s.partition, me);
    END LOOP;
    RAISE NOTICE 'pg_totp: rotation of shard "%%" complete, %% secrets moved', s.name, done;
  END LOOP;
END
$plpgsql$;
REVOKE ALL ON FUNCTION totp.rotation_allowed(), totp.rotate_online(integer) FROM PUBLIC;
INSERT INTO totp_router.capabilities SELECT c, r FROM unnest(%L::text[]) AS c, unnest('{totp.rotation_allowed(),totp.rotate_online(integer)}'::text[]) AS r;$$,
              :'home', arguments, capabilities)
  FROM totp_shard.routines WHERE name = 'totp_rotate_key_online';

SELECT format($$CREATE OR REPLACE FUNCTION %1$s.totp_grant(role name, capability text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS
$plpgsql$
DECLARE
  r record;
BEGIN
  IF role IS NULL OR capability IS NULL OR capability NOT IN ('verify', 'enroll', 'admin', 'audit') THEN
    RAISE EXCEPTION 'invalid capability' USING ERRCODE = 'invalid_parameter_value',
      DETAIL = 'Accepted are verify, enroll, admin and audit, each for one role.';
  END IF;
  IF NOT pg_has_role(current_user, 'totp_router', 'USAGE') THEN
    RAISE EXCEPTION 'permission denied for function totp_grant' USING ERRCODE = 'insufficient_privilege',
      HINT = 'Only the owner of the router grants its capabilities.';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
    RAISE EXCEPTION 'role "%%" does not exist', role USING ERRCODE = 'undefined_object',
      HINT = 'Name one role. Nothing of pg_totp is ever granted to PUBLIC.';
  END IF;
  FOR r IN SELECT c.routine::regprocedure FROM totp_router.capabilities AS c WHERE c.capability = $2 LOOP
    EXECUTE format('GRANT EXECUTE ON ROUTINE %%s TO %%I', r.routine, role);
  END LOOP;
  EXECUTE format('GRANT USAGE ON SCHEMA %1$s TO %%I', role);
  IF capability IN ('admin', 'audit') THEN -- for admin: totp_rotate_key_online() calls its steps there
    EXECUTE format('GRANT USAGE ON SCHEMA totp TO %%I', role);
  END IF;
  IF capability = 'audit' THEN
    EXECUTE format('GRANT SELECT ON totp.audit_log TO %%I', role);
  END IF;
END
$plpgsql$;$$, :'home');

-- As totp_revoke() of the extension: what another capability of the role needs too stays.
SELECT format($$CREATE OR REPLACE FUNCTION %1$s.totp_revoke(role name, capability text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS
$plpgsql$
DECLARE
  holder  CONSTANT oid := (SELECT oid FROM pg_roles WHERE rolname = role);
  kept    text[];
  revoked text[];
  r       text;
BEGIN
  IF role IS NULL OR capability IS NULL OR capability NOT IN ('verify', 'enroll', 'admin', 'audit') THEN
    RAISE EXCEPTION 'invalid capability' USING ERRCODE = 'invalid_parameter_value',
      DETAIL = 'Accepted are verify, enroll, admin and audit, each of one role.';
  END IF;
  IF NOT pg_has_role(current_user, 'totp_router', 'USAGE') THEN
    RAISE EXCEPTION 'permission denied for function totp_revoke' USING ERRCODE = 'insufficient_privilege',
      HINT = 'Only the owner of the router revokes its capabilities.';
  END IF;
  IF holder IS NULL THEN
    RAISE EXCEPTION 'role "%%" does not exist', role USING ERRCODE = 'undefined_object',
      HINT = 'Name one role. Nothing of pg_totp is ever granted to PUBLIC.';
  END IF;
  IF holder = 'totp_router'::regrole THEN
    RAISE EXCEPTION 'role "%%" owns functions of the router', role USING ERRCODE = 'invalid_parameter_value',
      DETAIL = 'An owner has the privileges without a grant, and the functions run with them.';
  END IF;
  kept := ARRAY(
    SELECT c FROM unnest(ARRAY['admin', 'enroll', 'verify', 'audit']) AS c
     WHERE c <> ALL (CASE $2 WHEN 'enroll' THEN ARRAY['enroll', 'verify']
                             WHEN 'admin' THEN ARRAY['admin', 'enroll', 'verify'] ELSE ARRAY[$2] END)
       AND NOT EXISTS (SELECT FROM totp_router.capabilities AS f JOIN pg_proc AS p ON p.oid = f.routine::regprocedure
                        WHERE f.capability = c AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee = holder))
       AND (c <> 'audit' OR EXISTS (SELECT FROM pg_class AS t CROSS JOIN LATERAL aclexplode(t.relacl) AS a
                                     WHERE t.oid = 'totp.audit_log'::regclass AND a.grantee = holder)));
  revoked := ARRAY(SELECT f.routine FROM totp_router.capabilities AS f WHERE f.capability = $2
                   EXCEPT SELECT f.routine FROM totp_router.capabilities AS f WHERE f.capability = ANY (kept));
  IF revoked = '{}' AND capability <> 'audit' THEN
    RAISE WARNING 'role "%%" keeps capability %%', role, capability
      USING DETAIL = format('It is a part of capability %%s, which the role has.', kept[1]),
            HINT = 'Revoke that capability instead.';
    RETURN;
  END IF;
  FOREACH r IN ARRAY revoked LOOP
    EXECUTE format('REVOKE EXECUTE ON ROUTINE %%s FROM %%I', r, role);
  END LOOP;
  IF capability = 'audit' THEN
    EXECUTE format('REVOKE SELECT ON totp.audit_log FROM %%I', role);
  END IF;
  IF capability IN ('admin', 'audit') AND NOT kept && ARRAY['admin', 'audit'] THEN
    EXECUTE format('REVOKE USAGE ON SCHEMA totp FROM %%I', role);
  END IF;
  FOREACH r IN ARRAY revoked LOOP
    IF has_function_privilege(holder, r::regprocedure, 'EXECUTE') THEN
      RAISE WARNING 'role "%%" can still call %%', role, r;
      EXIT;
    END IF;
  END LOOP;
END
$plpgsql$;$$, :'home');

-- --- Owners, rights, comments ----------------------------------------------------------------------------------------

SELECT format($$REVOKE ALL ON ROUTINE %1$I.%2$I(%3$s) FROM PUBLIC;
COMMENT ON ROUTINE %1$I.%2$I(%3$s) IS %4$L;$$, schema, name, parameters, comment)
  FROM totp_shard.routines WHERE route NOT IN ('internal', 'step') ORDER BY name;

SELECT format('INSERT INTO totp_router.capabilities VALUES (%L, %L);', capability, routine)
  FROM totp_shard.routines, unnest(capabilities) AS capability WHERE route NOT IN ('internal', 'step') ORDER BY name, capability;

-- --- The audit log of all shards, and which shard a row is of ----------------------------------------------------------

-- If the columns have changed, everything is created again, and the roles that could read it still can.
SELECT format($$DO $do$
DECLARE
  is_old  CONSTANT boolean := EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('totp_router.audit_row'))
                              AND %1$L <> (SELECT string_agg(format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
                                             FROM pg_attribute AS a WHERE a.attrelid = to_regclass('totp_router.audit_row') AND a.attnum > 0);
  readers text;
BEGIN
  IF is_old THEN
    readers := (SELECT string_agg(coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC'), ', ') FROM pg_class AS c, aclexplode(c.relacl) AS a
                 WHERE c.oid = 'totp.audit_log'::regclass AND a.grantee <> c.relowner);
    DROP TABLE totp_router.audit_row CASCADE;
  END IF;
  CREATE TABLE IF NOT EXISTS totp_router.audit_row (%2$s);
  CREATE OR REPLACE VIEW totp.audit_log AS
  SELECT a.*, substr(c.relname, length('audit_log_') + 1) AS shard FROM totp_router.audit_row AS a JOIN pg_class AS c ON c.oid = a.tableoid;
  COMMENT ON VIEW totp.audit_log IS 'The audit logs of all shards';
  IF readers <> '' THEN
    EXECUTE format('GRANT SELECT ON totp.audit_log TO %%s', readers);
  END IF;
  IF is_old THEN
    PERFORM totp_router.apply();
  END IF;
END
$do$;$$, string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum),
         string_agg(format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                           CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE "C"' END), ', ' ORDER BY a.attnum))
  FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
 WHERE a.attrelid = 'totp.audit_log'::regclass AND a.attnum > 0 AND NOT a.attisdropped;

-- Nobody else may use the functions inside.
SELECT format($$REVOKE ALL ON FUNCTION totp_router.partition(text) FROM PUBLIC;
RESET ROLE;
DO $do$
BEGIN
  IF 'totp_router'::regrole <> (SELECT n.nspowner FROM pg_namespace AS n WHERE n.oid = %1$L::regnamespace) THEN
    REVOKE CREATE ON SCHEMA %1$s FROM totp_router;
  END IF;
END
$do$;
COMMIT;$$, :'home');
COMMIT;
