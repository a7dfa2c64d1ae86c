-- The router: psql -v ON_ERROR_STOP=1 -d DATABASE -f router.sql
--
-- As a superuser, in an empty database with encoding UTF8, once. Needs PL/Proxy (Debian: postgresql-15-plproxy) and
-- postgres_fdw. Then, in this order:
--   INSERT INTO totp_router.shards …; INSERT INTO totp_router.partitions …;    the servers, and which of them serves what
--   psql -d SHARD -f routes.sql | psql -d ROUTER                              the functions, made from the catalog of a shard
--   SELECT totp_router.apply();                                               gives the map to PL/Proxy; again after each change
-- The router holds no secret, no key and no state of a user, only a map and functions that forward calls.

BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;

-- Nothing of this may exist yet, except the role, which another database of the server may use too. Objects that others
-- created or can change would run with the rights of the router, or of a superuser who calls it.
DO $$
DECLARE
  found record;
BEGIN
  IF NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) THEN
    RAISE EXCEPTION 'must be superuser to run router.sql' USING ERRCODE = 'insufficient_privilege',
      DETAIL = 'It creates PL/Proxy functions.', HINT = 'Run it as a superuser.';
  END IF;
  FOR found IN
    SELECT 'schema' AS kind, n.nspname AS name, n.nspowner AS owner FROM pg_namespace AS n WHERE n.nspname IN ('totp_router', 'totp')
    UNION ALL
    SELECT 'server', s.srvname, s.srvowner FROM pg_foreign_server AS s
     WHERE s.srvname ~ '^totp_(verify|enroll|audit|admin|owner|audit_log_.*)$'
  LOOP
    RAISE EXCEPTION '% "%" already exists', found.kind, found.name USING ERRCODE = 'insufficient_privilege',
      DETAIL = format('It belongs to role "%s".', pg_get_userbyid(found.owner)),
      HINT = 'Run router.sql once, in an empty database.';
  END LOOP;
END
$$;

-- The owner of all of this. The functions run with its rights; nobody else can use the connections to the shards.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'totp_router') THEN
    CREATE ROLE totp_router NOLOGIN;
  END IF;
END
$$;
CREATE SCHEMA totp_router AUTHORIZATION totp_router;
CREATE SCHEMA totp AUTHORIZATION totp_router;

-- Returns roles other than superusers that could make the functions of the router do what they are not meant for: through
-- the functions of these names in schema home, and all objects inside. Used by routes.sql, which then refuses, and by
-- totp_health(). It belongs to the superuser who runs this script: routes.sql recognizes it by that.
CREATE FUNCTION totp_router.exposed(home name, names text[]) RETURNS TABLE (message text, detail text, hint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  -- A schema of pg_database_owner, like public, belongs to the owner of the database.
  WITH trusted AS (
    SELECT r.oid FROM pg_roles AS r WHERE r.rolsuper OR r.rolname = 'totp_router'
    UNION ALL
    SELECT 'pg_database_owner'::regrole FROM pg_database AS d JOIN pg_roles AS r ON r.oid = d.datdba
     WHERE d.datname = current_database() AND r.rolsuper
  ), place AS (
    SELECT n.oid, n.nspname, n.nspowner, n.nspacl FROM pg_namespace AS n WHERE n.nspname IN ('totp_router', 'totp', home)
  )
  SELECT 'role "totp_router" is not for the router alone', format('Role "%s" is a member of it.', m.rolname),
         format('REVOKE totp_router FROM %I, or drop the role.', m.rolname)
    FROM pg_auth_members AS a JOIN pg_roles AS m ON m.oid = a.member
   WHERE a.roleid = 'totp_router'::regrole AND NOT m.rolsuper
  UNION ALL
  SELECT 'role "totp_router" can do more than own the router', 'The router needs it to have no attribute.',
         'ALTER ROLE totp_router NOLOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS, or drop it.'
    FROM pg_roles AS r
   WHERE r.rolname = 'totp_router'
     AND (r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
  UNION ALL
  SELECT 'role "totp_router" has default privileges', 'Objects that it creates would be open to others.',
         'Look at \ddp, and revoke them by ALTER DEFAULT PRIVILEGES FOR ROLE totp_router.'
    FROM pg_default_acl AS a WHERE a.defaclrole = 'totp_router'::regrole
  UNION ALL
  SELECT format('schema %I belongs to another role', p.nspname),
         format('Role "%s" can drop what is in it, and create it again.', pg_get_userbyid(p.nspowner)),
         'If you do not know what it is for, drop it. Otherwise check what is in it, and give it to a superuser.'
    FROM place AS p WHERE p.nspowner NOT IN (TABLE trusted)
  UNION ALL
  SELECT format('schema %I is open to others', p.nspname),
         format('Functions that %s creates there could be called instead of the intended ones.', g.grantee),
         format('REVOKE CREATE ON SCHEMA %I FROM %s. Then check what is in it.', p.nspname, g.grantee)
    FROM place AS p CROSS JOIN LATERAL aclexplode(p.nspacl) AS a
   CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS g(grantee)
   WHERE a.privilege_type = 'CREATE' AND a.grantee <> p.nspowner AND a.grantee NOT IN (TABLE trusted)
  UNION ALL
  SELECT format('%s %s belongs to another role', i.type, i.identity),
         format('Role "%s" can change it.', pg_get_userbyid(s.refobjid)), 'If you do not know what it is for, drop it.'
    FROM place AS p
    JOIN pg_depend AS d ON (d.refclassid, d.refobjid, d.deptype) = ('pg_namespace'::regclass, p.oid, 'n')
    JOIN pg_shdepend AS s ON (s.classid, s.objid, s.deptype) = (d.classid, d.objid, 'o')
                         AND s.dbid = (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
    LEFT JOIN pg_proc AS f ON (d.classid, d.objid) = ('pg_proc'::regclass, f.oid)
   CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
   WHERE s.refobjid NOT IN (TABLE trusted) AND (p.nspname IN ('totp_router', 'totp') OR f.proname = ANY (names))
  UNION ALL
  SELECT format('table %s is open to triggers of others', c.oid::regclass),
         format('What a trigger of %s does is done by who writes to it.', g.grantee),
         format('REVOKE TRIGGER ON %s FROM %s.', c.oid::regclass, g.grantee)
    FROM place AS p JOIN pg_class AS c ON c.relnamespace = p.oid CROSS JOIN LATERAL aclexplode(c.relacl) AS a
   CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS g(grantee)
   WHERE p.nspname IN ('totp_router', 'totp') AND a.privilege_type = 'TRIGGER' AND a.grantee NOT IN (TABLE trusted)
  UNION ALL
  SELECT format('trigger %I on table %s runs a function of another role', t.tgname, c.oid::regclass),
         format('Role "%s" can change it.', pg_get_userbyid(f.proowner)), 'If you do not know what it is for, drop it.'
    FROM place AS p JOIN pg_class AS c ON c.relnamespace = p.oid
    JOIN pg_trigger AS t ON t.tgrelid = c.oid AND NOT t.tgisinternal JOIN pg_proc AS f ON f.oid = t.tgfoid
   WHERE p.nspname IN ('totp_router', 'totp') AND f.proowner NOT IN (TABLE trusted)
  UNION ALL
  SELECT format('server %I belongs to another role', s.srvname),
         format('Role "%s" can redirect the calls.', pg_get_userbyid(s.srvowner)), 'Drop it, and call totp_router.apply().'
    FROM pg_foreign_server AS s
   WHERE s.srvname ~ '^totp_(verify|enroll|audit|admin|owner|audit_log_.*)$' AND s.srvowner NOT IN (TABLE trusted)
$$;
GRANT EXECUTE ON FUNCTION totp_router.exposed(name, text[]) TO totp_router;
DO $$
DECLARE
  found record;
BEGIN
  FOR found IN SELECT * FROM totp_router.exposed('totp_router'::name, '{}'::text[]) LOOP
    RAISE EXCEPTION '%', found.message USING ERRCODE = 'insufficient_privilege', DETAIL = found.detail,
      HINT = found.hint || ' Then run the script again.';
  END LOOP;
END
$$;

-- Not in the first schema of the session's search_path, which may be anyone's.
CREATE EXTENSION IF NOT EXISTS plproxy SCHEMA pg_catalog;
CREATE EXTENSION IF NOT EXISTS postgres_fdw SCHEMA pg_catalog;
GRANT USAGE ON FOREIGN DATA WRAPPER plproxy, postgres_fdw TO totp_router;
SET LOCAL ROLE totp_router;

-- Returns the number of partitions. It must be the same here and in shard.sql, and can never change.
CREATE FUNCTION totp_router.partition_count() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 16';

-- --- The map -----------------------------------------------------------------------------------------------------

CREATE TABLE totp_router.shards (
  name             text PRIMARY KEY CHECK (name ~ '^[a-z0-9_]{1,32}$'),
  connection       text NOT NULL,
  audit_connection text,
  slow_connection  text,
  CHECK (concat_ws(' ', connection, audit_connection, slow_connection) ~ '^([a-z_]+=[^ ''\\]+ *)+$'),
  CHECK (concat_ws(' ', connection, audit_connection, slow_connection) !~ '\m(user|password)=')
);
COMMENT ON TABLE totp_router.shards IS 'The servers; after a change call totp_router.apply()';
COMMENT ON COLUMN totp_router.shards.name IS 'Name of the shard, as in the column shard of results';
COMMENT ON COLUMN totp_router.shards.connection IS 'Where the primary is: host=… port=… dbname=…, without user and password';
COMMENT ON COLUMN totp_router.shards.audit_connection IS 'Where totp.audit_log is read, such as a standby; NULL: the primary';
COMMENT ON COLUMN totp_router.shards.slow_connection IS
  'The primary for calls of audit, admin and owner, such as a pooler that gives them more time; NULL: connection';

CREATE TABLE totp_router.partitions (
  partition integer PRIMARY KEY CHECK (partition >= 0 AND partition < totp_router.partition_count()),
  shard     text    NOT NULL REFERENCES totp_router.shards ON UPDATE CASCADE
);
COMMENT ON TABLE totp_router.partitions IS 'Which shard serves which partition; all of them. After a change call totp_router.apply()';

-- What totp_grant() grants; filled by routes.sql.
CREATE TABLE totp_router.capabilities (
  capability text CHECK (capability IN ('verify', 'enroll', 'admin', 'audit')),
  routine    text,
  PRIMARY KEY (capability, routine)
);

-- Each shard once, with one of its partitions: a call on that partition runs on the shard.
CREATE VIEW totp_router.each_shard AS
SELECT shard AS name, min(partition) AS partition, array_agg(partition ORDER BY partition) AS partitions
  FROM totp_router.partitions GROUP BY shard;

-- --- What the functions share --------------------------------------------------------------------------------------

-- Begins every call. Refuses a writer if the caller may not write, as the extension does, since a shard would not know
-- that. Refuses a rotation at an isolation level at which the extension refuses it. Returns the value of totp.actor for
-- the shard.
CREATE FUNCTION totp_router.caller(writer text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF writer IS NOT NULL AND pg_is_in_recovery() THEN
    RAISE EXCEPTION 'cannot execute %() on a standby', writer
      USING ERRCODE = 'read_only_sql_transaction', HINT = 'Call it on the primary.';
  ELSIF writer IS NOT NULL AND current_setting('transaction_read_only')::boolean THEN
    RAISE EXCEPTION 'cannot execute %() in a read-only transaction', writer
      USING ERRCODE = 'read_only_sql_transaction', HINT = 'Call it in a read-write transaction.';
  ELSIF writer IN ('totp_rotate_key', 'totp_rotate_key_online', 'totp_forget_unreadable')
        AND current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    RAISE EXCEPTION 'cannot execute %() at this isolation level', writer
      USING ERRCODE = 'active_sql_transaction', HINT = 'Call it in a transaction of isolation level READ COMMITTED.';
  END IF;
  RETURN coalesce(nullif(current_setting('totp.actor', true), ''), session_user);
END
$$;

-- Refuses to rename a user, or to move a device, from one shard to another: for a moment both user ids, or neither, could
-- sign in.
CREATE FUNCTION totp_router.same_shard(user_id text, new_user_id text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- The extension refuses what cannot be a user id.
  IF octet_length(user_id) BETWEEN 1 AND 256 AND octet_length(new_user_id) BETWEEN 1 AND 256
     AND (SELECT p.shard FROM totp_router.partitions AS p WHERE p.partition = totp_router.partition(user_id))
      <> (SELECT p.shard FROM totp_router.partitions AS p WHERE p.partition = totp_router.partition(new_user_id)) THEN
    RAISE EXCEPTION 'the two user ids are on different shards' USING ERRCODE = 'feature_not_supported',
      HINT = 'Enroll the new user id, or import the secret for it by totp_import(). Then remove the old one by totp_remove().';
  END IF;
END
$$;

-- Returns whether an error may come from a shard that is dead, hung, starting or stopping: PL/Proxy's own errors, those of
-- a broken connection or a pooler that gives up, and those of a server that starts or stops.
CREATE FUNCTION totp_router.is_dead(code text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT code ~ '^(XX000|08...|57P0.)$' $$;

-- Raises an error of one of several shards again, with the shard's name and the shards that are done.
CREATE FUNCTION totp_router.failed(shard text, done text[], code text, message text, detail text, hint text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  detail := concat_ws(' ', nullif(regexp_replace(detail, '^Remote detail: ', ''), ''),
                      CASE WHEN done = '{}' THEN 'No shard has done it.' ELSE 'Done on ' || array_to_string(done, ', ') || '.' END);
  IF hint = '' THEN
    RAISE EXCEPTION 'shard "%": %', shard, message USING ERRCODE = code, DETAIL = detail;
  END IF;
  RAISE EXCEPTION 'shard "%": %', shard, message USING ERRCODE = code, DETAIL = detail, HINT = regexp_replace(hint, '^Remote hint: ', '');
END
$$;
RESET ROLE;

-- Check that shards answer: one, to a sign-in; and all, to a call that runs on all.
CREATE FUNCTION totp_router.ping(partition integer) RETURNS SETOF integer
LANGUAGE plproxy AS $$ CLUSTER 'totp_verify'; RUN ON partition; SELECT 1; $$;
CREATE FUNCTION totp_router.ping_owner() RETURNS SETOF integer
LANGUAGE plproxy AS $$ CLUSTER 'totp_owner'; RUN ON ALL; SELECT 1; $$;
-- Returns the partitions that a shard says it serves, and those whose users it has.
CREATE FUNCTION totp_router.served(partition integer, OUT partitions integer[], OUT present integer[])
LANGUAGE plproxy AS $$ CLUSTER 'totp_admin'; RUN ON partition; SELECT s.partitions, s.present FROM totp_shard.served AS s; $$;

-- The steps of remove_unserved(): see shard.sql.
CREATE FUNCTION totp_router.unserved(partition integer, partitions integer[], after_user text, batch_size integer,
                                     OUT user_ids text[], OUT last_user text)
LANGUAGE plproxy AS $$
  CLUSTER 'totp_owner';
  RUN ON partition;
  SELECT * FROM totp_shard.unserved(partitions::integer[], after_user::text, batch_size::integer);
$$;
CREATE FUNCTION totp_router.known(partition integer, user_ids text[]) RETURNS SETOF text
LANGUAGE plproxy AS $$ CLUSTER 'totp_owner'; RUN ON partition; SELECT * FROM totp_shard.known(user_ids::text[]); $$;
CREATE FUNCTION totp_router.remove_step(partition integer, partitions integer[], user_ids text[]) RETURNS bigint
LANGUAGE plproxy AS $$
  CLUSTER 'totp_owner';
  RUN ON partition;
  SELECT * FROM totp_shard.remove_unserved(partitions::integer[], user_ids::text[]);
$$;
CREATE FUNCTION totp_router.all_removed(partition integer, partitions integer[]) RETURNS SETOF text
LANGUAGE plproxy AS $$ CLUSTER 'totp_owner'; RUN ON partition; SELECT totp_shard.all_removed(partitions::integer[])::text; $$;
SET LOCAL ROLE totp_router;

-- Returns the shards on which a routine runs, in order. Before a routine writes on several, all must answer. A shard
-- without a data key has nothing to rotate. A shard that does not know a lost master key has nothing to forget, and one
-- that still has it loaded comes first, since it refuses before anything is removed.
CREATE FUNCTION totp_router.concerned(routine text, master_key text, me text) RETURNS SETOF totp_router.each_shard
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s       totp_router.each_shard;
  first   text[] := '{}';
  second  text[] := '{}';
  loaded  boolean;
BEGIN
  IF routine IN ('totp_stats', 'totp_metrics', 'totp_keys', 'totp_health') THEN
    RETURN QUERY SELECT * FROM totp_router.each_shard AS e ORDER BY e.name;
    RETURN;
  END IF;
  PERFORM totp_router.ping(e.partition) FROM totp_router.each_shard AS e; -- within the time that users wait
  PERFORM totp_router.ping_owner();
  IF routine IN ('totp_rotate_key', 'totp_forget_unreadable') THEN
    FOR s IN SELECT * FROM totp_router.each_shard AS e ORDER BY e.name LOOP
      SELECT bool_or(k.master_key_loaded) INTO loaded FROM totp_router.totp_keys(s.partition, me) AS k
       WHERE routine = 'totp_rotate_key' OR k.master_key = concerned.master_key;
      IF loaded THEN
        first := first || s.name;
      ELSIF NOT loaded THEN
        second := second || s.name;
      END IF;
    END LOOP;
  END IF;
  -- If no shard qualifies, all are called, and each reports what is wrong.
  RETURN QUERY SELECT e.* FROM totp_router.each_shard AS e
   WHERE e.name = ANY (first || second) OR first || second = '{}' ORDER BY e.name = ANY (second), e.name;
END
$$;

-- Returns those of these users who are on the shard that serves them.
CREATE FUNCTION totp_router.known_where_served(user_ids text[]) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s record;
BEGIN
  FOR s IN SELECT e.partition, array_agg(u) AS users FROM unnest(user_ids) AS u
             JOIN totp_router.each_shard AS e ON totp_router.partition(u) = ANY (e.partitions) GROUP BY e.partition LOOP
    RETURN QUERY SELECT k FROM totp_router.known(s.partition, s.users) AS k;
  END LOOP;
END
$$;

-- Returns rows of totp_health(): whether each of these shards serves what the map sends to it, and whether the users who
-- left it are where the map says.
CREATE FUNCTION totp_router.map_health(shards text[]) RETURNS TABLE (check_name text, status text, detail text, shard text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  s     totp_router.each_shard;
  here  record;
  users text[];
  lost  bigint;
BEGIN
  check_name := 'map';
  FOR s IN SELECT * FROM totp_router.each_shard AS e WHERE e.name = ANY (shards) ORDER BY e.name LOOP
    shard := s.name;
    status := 'fail';
    BEGIN
      SELECT * INTO here FROM totp_router.served(s.partition);
      IF here.partitions IS DISTINCT FROM s.partitions THEN
        detail := format('It serves %s, the map of the router says %s: correct totp_router.partitions,'
                         ' or call totp_shard.serve() there.', here.partitions, s.partitions);
      ELSIF here.present = s.partitions THEN
        status := 'ok';
        detail := format('It serves %s, as the map of the router says.', s.partitions);
      ELSE
        users := (SELECT u.user_ids FROM totp_router.unserved(s.partition, s.partitions, NULL, 1000) AS u);
        lost := cardinality(users) - (SELECT count(*) FROM totp_router.known_where_served(users));
        IF lost > 0 THEN
          detail := format('%s of %s users that it does not serve any more are not on the shard that does, and have no second'
                           ' factor there: give their partitions back to this one.', lost, cardinality(users));
        ELSE
          status := 'warn';
          detail := format('It serves %s, as the map of the router says, and has users of %s. Until totp_router.remove_unserved()'
                           ' has run, a standby of it that is promoted serves nobody before totp_shard.serve() is called there.',
                           s.partitions, here.present);
        END IF;
      END IF;
    EXCEPTION WHEN OTHERS THEN
      detail := 'It cannot be compared with the map of the router: ' || SQLSTATE || ' ' || SQLERRM;
    END;
    RETURN NEXT;
  END LOOP;
END
$$;

-- Removes from each shard, after a split, the users that it does not serve, if the shard that serves them has them. Each
-- batch is one transaction on its shard.
CREATE FUNCTION totp_router.remove_unserved(batch_size integer DEFAULT 1000) RETURNS TABLE (shard text, removed bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s     totp_router.each_shard;
  step  record;
  known text[];
  lost  bigint;
  left_ text[] := '{}';
BEGIN
  PERFORM totp_router.caller('totp_router.remove_unserved');
  IF batch_size IS NULL OR batch_size NOT BETWEEN 1 AND 100000 THEN
    RAISE EXCEPTION 'invalid batch size' USING ERRCODE = 'invalid_parameter_value', DETAIL = 'It must be 1 to 100000.';
  END IF;
  -- All must answer and agree with the map before any user is removed.
  PERFORM (SELECT u.last_user FROM totp_router.unserved(e.partition, e.partitions, NULL, 0) AS u) FROM totp_router.each_shard AS e;
  FOR s IN SELECT * FROM totp_router.each_shard AS e ORDER BY e.name LOOP
    shard := s.name;
    removed := 0;
    lost := 0;
    SELECT NULL::text[] AS user_ids, NULL::text AS last_user INTO step;
    LOOP
      SELECT * INTO step FROM totp_router.unserved(s.partition, s.partitions, step.last_user, batch_size);
      EXIT WHEN step.last_user IS NULL;
      known := ARRAY(SELECT totp_router.known_where_served(step.user_ids));
      removed := removed + totp_router.remove_step(s.partition, s.partitions, known);
      lost := lost + cardinality(step.user_ids) - cardinality(known);
    END LOOP;
    IF lost > 0 THEN
      left_ := left_ || format('%s of %s', lost, s.name);
    ELSE
      PERFORM totp_router.all_removed(s.partition, s.partitions);
    END IF;
    RETURN NEXT;
  END LOOP;
  IF left_ <> '{}' THEN
    RAISE EXCEPTION 'users are not on the shard that serves them' USING ERRCODE = 'object_not_in_prerequisite_state',
      DETAIL = format('These were not removed, since they may be the only copy: %s.', array_to_string(left_, ', ')),
      HINT = 'Partitions move only by promotion of a standby. Give their partitions back, by totp_shard.serve() and the map.';
  END IF;
END
$$;

-- --- The map for PL/Proxy --------------------------------------------------------------------------------------------

-- Creates the cluster of PL/Proxy for a capability, whose connections log in as totp_router_<capability>. It exists before
-- apply() is called, and leads nowhere: without a cluster, PL/Proxy calls functions of schema plproxy, which may belong to
-- anyone.
CREATE FUNCTION totp_router.cluster(capability text) RETURNS name
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  server CONSTANT name := 'totp_' || capability;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_foreign_server AS s WHERE s.srvname = server) THEN
    EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER plproxy OPTIONS (%s)', server,
                   (SELECT string_agg(format('p%s %L', p, 'service=call_totp_router.apply'), ', ')
                      FROM generate_series(0, totp_router.partition_count() - 1) AS p));
    EXECUTE format('CREATE USER MAPPING FOR totp_router SERVER %I OPTIONS (user %L)', server, 'totp_router_' || capability);
  END IF;
  RETURN server;
END
$$;
DO $$
BEGIN
  PERFORM totp_router.cluster(c) FROM unnest('{verify,enroll,audit,admin,owner}'::text[]) AS c;
END
$$;

-- Gives all clusters the same map.
CREATE FUNCTION totp_router.apply() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  cluster text;
  map     text;
  s       record;
BEGIN
  -- Two sessions at once would leave the clusters with different maps.
  LOCK TABLE totp_router.shards, totp_router.partitions IN SHARE ROW EXCLUSIVE MODE;
  IF (SELECT count(*) FROM totp_router.partitions) <> totp_router.partition_count() THEN
    RAISE EXCEPTION 'the map is not complete' USING ERRCODE = 'object_not_in_prerequisite_state',
      DETAIL = format('totp_router.partitions must have a row for each of 0 to %s.', totp_router.partition_count() - 1);
  END IF;
  FOREACH cluster IN ARRAY ARRAY['verify', 'enroll', 'audit', 'admin', 'owner'] LOOP
    SELECT string_agg(format('SET p%s %L', p.partition, CASE WHEN cluster IN ('verify', 'enroll') THEN h.connection
                                                             ELSE coalesce(h.slow_connection, h.connection) END),
                      ', ' ORDER BY p.partition) INTO map
      FROM totp_router.partitions AS p JOIN totp_router.shards AS h ON h.name = p.shard;
    EXECUTE format('ALTER SERVER %I OPTIONS (%s)', totp_router.cluster(cluster), map);
  END LOOP;

  -- The audit log is read through postgres_fdw, which lets the shards filter it.
  FOR s IN SELECT srvname FROM pg_foreign_server WHERE srvname LIKE 'totp\_audit\_log\_%' AND srvowner = 'totp_router'::regrole
            AND substr(srvname, length('totp_audit_log_') + 1) NOT IN (SELECT name FROM totp_router.shards) LOOP
    EXECUTE format('DROP SERVER %I CASCADE', s.srvname);
  END LOOP;
  FOR s IN SELECT 'totp_audit_log_' || h.name AS server, 'audit_log_' || h.name AS log, f.oid IS NOT NULL AS is_there,
                  to_regclass('totp_router.audit_log_' || h.name) IS NOT NULL AS has_table,
                  (SELECT string_agg(format('DROP %I', o.option_name), ', ') FROM pg_options_to_table(f.srvoptions) AS o) AS old,
                  (SELECT string_agg(format('ADD %I %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ')
                     FROM regexp_split_to_table(trim(coalesce(h.audit_connection, h.slow_connection, h.connection)), ' +') AS o) AS new
             FROM totp_router.shards AS h LEFT JOIN pg_foreign_server AS f ON f.srvname = 'totp_audit_log_' || h.name LOOP
    IF s.is_there THEN
      EXECUTE format('ALTER SERVER %I OPTIONS (%s)', s.server, concat_ws(', ', s.old, s.new));
    ELSE
      EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (%s)', s.server, replace(s.new, 'ADD ', ''));
      EXECUTE format('CREATE USER MAPPING FOR totp_router SERVER %I OPTIONS (user ''totp_router_audit'')', s.server);
    END IF;
    IF NOT s.has_table THEN
      EXECUTE format('CREATE FOREIGN TABLE totp_router.%I () INHERITS (totp_router.audit_row) SERVER %I'
                     ' OPTIONS (schema_name ''totp'', table_name ''audit_log'')', s.log, s.server);
    END IF;
  END LOOP;
END
$$;
COMMENT ON FUNCTION totp_router.apply() IS
  'Gives the map to PL/Proxy and postgres_fdw; every session of the router uses it from the COMMIT on';

RESET ROLE;
DO $$
DECLARE
  r record;
BEGIN
  FOR r IN SELECT p.oid::regprocedure AS routine FROM pg_proc AS p
            WHERE p.pronamespace = 'totp_router'::regnamespace AND p.proname <> 'exposed' LOOP
    EXECUTE format('ALTER ROUTINE %s OWNER TO totp_router', r.routine);
  END LOOP;
  -- Revokes what PUBLIC has, and what ALTER DEFAULT PRIVILEGES of the role that runs this script granted.
  FOR r IN SELECT p.oid::regprocedure AS routine, a.grantee
             FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
            WHERE p.pronamespace = 'totp_router'::regnamespace AND a.grantee NOT IN (p.proowner, 'totp_router'::regrole) LOOP
    EXECUTE format('REVOKE ALL ON ROUTINE %s FROM %s CASCADE', r.routine,
                   CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END);
  END LOOP;
END
$$;
COMMIT;
