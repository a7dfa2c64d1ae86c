-- What a shard needs besides the extension: psql -v ON_ERROR_STOP=1 -d DATABASE -f shard.sql
--
-- As a superuser, on each shard, after CREATE EXTENSION pg_totp; and again after ALTER EXTENSION pg_totp UPDATE.
-- The router, or a client without a router, calls the functions that this script creates in schema totp_shard, and nothing
-- else. Each of them
-- - refuses a user that this shard does not serve, and every user on a copy of a shard that gave up partitions,
-- - sets totp.actor for that call,
-- - calls the function of the extension with the same name.
-- Then set what this shard serves: SELECT totp_shard.serve('{0,1,2,3,4,5}');

BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;

-- --- Who else could interfere ----------------------------------------------------------------------------------

-- The functions of this script run as the role that runs it, a superuser, and call functions by their names. A role that
-- can change one of those, or create another one of that name, becomes a superuser. So no other role may control the
-- schemas and what is already in them. The script checks that before it changes anything.

-- Checks the schemas. A schema of pg_database_owner, like public, belongs to the owner of the database.
DO $$
DECLARE
  found record;
BEGIN
  IF NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) THEN
    RAISE EXCEPTION 'must be superuser to run shard.sql' USING ERRCODE = 'insufficient_privilege',
      DETAIL = 'Its functions run with the rights of the role that runs it.', HINT = 'Run it as a superuser.';
  ELSIF NOT EXISTS (SELECT FROM pg_extension AS e WHERE e.extname = 'pg_totp') THEN
    RAISE EXCEPTION 'extension "pg_totp" does not exist' USING ERRCODE = 'undefined_object',
      HINT = 'Run CREATE EXTENSION pg_totp first.';
  END IF;
  FOR found IN
    SELECT n.oid::regnamespace AS schema, n.nspname = 'totp_shard' AS is_its_own, o.rolname AS owner, o.rolsuper,
           (SELECT coalesce(min(quote_ident(r.rolname)), CASE WHEN count(*) > 0 THEN 'PUBLIC' END)
              FROM aclexplode(n.nspacl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee
             WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner AND r.rolsuper IS NOT TRUE) AS creator
      FROM pg_namespace AS n
      JOIN pg_database AS d ON d.datname = current_database()
      JOIN pg_roles AS o ON o.oid = CASE WHEN n.nspowner = 'pg_database_owner'::regrole THEN d.datdba ELSE n.nspowner END
     WHERE n.nspname IN ('totp_shard', 'totp')
        OR n.oid = (SELECT e.extnamespace FROM pg_extension AS e WHERE e.extname = 'pg_totp')
  LOOP
    IF NOT found.rolsuper OR found.is_its_own AND found.owner <> current_user THEN
      RAISE EXCEPTION 'must be owner of schema %', found.schema USING ERRCODE = 'insufficient_privilege',
        DETAIL = format('It belongs to role "%s".', found.owner),
        HINT = CASE WHEN found.rolsuper THEN 'Run the script as that role.'
                    WHEN found.is_its_own THEN 'If you do not know what it is for, drop it, and run the script again.'
                    ELSE 'Install the extension in a separate schema, or give this one to a superuser.' END;
    ELSIF found.creator IS NOT NULL THEN
      RAISE EXCEPTION 'schema % is open to others', found.schema USING ERRCODE = 'insufficient_privilege',
        DETAIL = format('Functions that %s creates there could be called instead of the intended ones.', found.creator),
        HINT = format('REVOKE CREATE ON SCHEMA %s FROM %s. Then check what is in it, and run the script again.',
                      found.schema, found.creator);
    END IF;
  END LOOP;
END
$$;

-- Checks every object in totp_shard, the functions of the extension, and other functions of their names. PostgreSQL
-- records no owner for objects of its first superuser, role 10.
DO $$
DECLARE
  found record;
BEGIN
  FOR found IN
    SELECT i.type, i.identity, r.rolname AS owner, r.rolsuper
      FROM pg_depend AS d
      LEFT JOIN pg_shdepend AS s ON (s.classid, s.objid, s.deptype) = (d.classid, d.objid, 'o')
                                AND s.dbid = (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
      JOIN pg_roles AS r ON r.oid = coalesce(s.refobjid, 10)
     CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
     WHERE (d.refclassid, d.refobjid, d.deptype) = ('pg_namespace'::regclass, to_regnamespace('totp_shard'), 'n')
       AND r.rolname <> current_user
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text, r.rolname, r.rolsuper
      FROM pg_proc AS p
      JOIN pg_roles AS r ON r.oid = p.proowner AND NOT r.rolsuper
     WHERE (p.pronamespace, p.proname) IN (
           SELECT m.pronamespace, m.proname
             FROM pg_extension AS e
             JOIN pg_depend AS d ON (d.refclassid, d.refobjid, d.classid) = ('pg_extension'::regclass, e.oid, 'pg_proc'::regclass)
             JOIN pg_proc AS m ON m.oid = d.objid
            WHERE e.extname = 'pg_totp')
  LOOP
    RAISE EXCEPTION 'must be owner of % %', found.type, found.identity USING ERRCODE = 'insufficient_privilege',
      DETAIL = format('It belongs to role "%s".', found.owner),
      HINT = CASE WHEN found.rolsuper THEN 'Run the script as that role.'
                  ELSE 'If you do not know what it is for, drop it, and run the script again.' END;
  END LOOP;
END
$$;

-- Checks the table served: one that another role gave away may have been prepared, since its triggers and the like run as
-- the role that writes to it. The table of this script needs nothing beyond PostgreSQL.
DO $$
DECLARE
  served CONSTANT oid := to_regclass('totp_shard.served');
  found  record;
BEGIN
  FOR found IN
    WITH part(classid, objid) AS (
      SELECT 'pg_class'::regclass, served
      UNION ALL SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index AS i WHERE i.indrelid = served
      UNION ALL SELECT 'pg_attrdef'::regclass, a.oid FROM pg_attrdef AS a WHERE a.adrelid = served
      UNION ALL SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint AS c WHERE c.conrelid = served
    ), foreign_part(classid, objid) AS (
      SELECT 'pg_class'::regclass, c.oid FROM pg_class AS c WHERE c.oid = served AND (c.relkind <> 'r' OR c.relrowsecurity)
      UNION ALL SELECT 'pg_class'::regclass, h.inhrelid FROM pg_inherits AS h WHERE served IN (h.inhrelid, h.inhparent)
      UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger AS t WHERE t.tgrelid = served AND NOT t.tgisinternal
      UNION ALL SELECT 'pg_rewrite'::regclass, r.oid FROM pg_rewrite AS r WHERE r.ev_class = served
      UNION ALL SELECT d.classid, d.objid FROM pg_depend AS d JOIN part USING (classid, objid)
                 WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass, 'pg_opclass'::regclass)
    )
    SELECT pg_describe_object(f.classid, f.objid, 0) AS part FROM foreign_part AS f
  LOOP
    RAISE EXCEPTION '% is not as shard.sql creates it', found.part USING ERRCODE = 'insufficient_privilege',
      DETAIL = 'It could run another role''s code with the rights of a superuser.',
      HINT = 'Note what is in totp_shard.served, drop that table, run the script again, and call totp_shard.serve().';
  END LOOP;
END
$$;

-- Checks the roles that the router logs in as, if they already exist.
DO $$
DECLARE
  found record;
BEGIN
  FOR found IN
    SELECT r.rolname AS role,
           (SELECT string_agg(quote_ident(m.rolname), ', ') FROM pg_auth_members AS a JOIN pg_roles AS m ON m.oid = a.member
             WHERE a.roleid = r.oid AND NOT m.rolsuper) AS members,
           r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls AS can_more
      FROM pg_roles AS r
     WHERE r.rolname IN ('totp_router_verify', 'totp_router_enroll', 'totp_router_audit', 'totp_router_admin', 'totp_router_owner')
  LOOP
    IF found.members IS NOT NULL THEN
      RAISE EXCEPTION 'role "%" is not for the router alone', found.role USING ERRCODE = 'insufficient_privilege',
        DETAIL = format('Its members are: %s.', found.members),
        HINT = format('REVOKE %s FROM %s, and give it a new password; or drop it. Then run the script again.',
                      found.role, found.members);
    ELSIF found.can_more THEN
      RAISE EXCEPTION 'role "%" can do more than call functions', found.role USING ERRCODE = 'insufficient_privilege',
        DETAIL = 'The router needs only the attribute LOGIN.',
        HINT = format('ALTER ROLE %s NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS, or drop it.'
                      ' Then run the script again.', found.role);
    END IF;
  END LOOP;
END
$$;

DO $$
BEGIN
  IF to_regnamespace('totp_shard') IS NULL THEN
    CREATE SCHEMA totp_shard;
  END IF;
EXCEPTION WHEN unique_violation THEN -- another session was creating it
  RAISE EXCEPTION 'must be owner of schema totp_shard' USING ERRCODE = 'insufficient_privilege',
    DETAIL = 'Another session has just created it.', HINT = 'Run the script again.';
END
$$;

-- --- Which shard serves which users ----------------------------------------------------------------------------

-- Returns the number of partitions, which is the largest possible number of shards. It must be the same here, in router.sql,
-- pgbouncer.ini, totp_client.py and totp_client.js. Choose it before the first user; it can never change. A power of two, at most 256.
CREATE OR REPLACE FUNCTION totp_shard.partition_count() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 16';
COMMENT ON FUNCTION totp_shard.partition_count() IS 'Number of partitions; the first is 0';

-- Returns the partition of a user. It never changes: it decides where the rows are. A call without a user goes to
-- partition 0. Clients that find the shard themselves compute the same: totp_client.py, totp_client.js.
--
-- PostgreSQL puts the expression in place of the call. So the function has no search_path, and every name and operator has
-- its schema. It is STABLE because convert_to() is.
CREATE OR REPLACE FUNCTION totp_shard.partition(user_id text) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT COALESCE(pg_catalog.get_byte(pg_catalog.sha256(pg_catalog.convert_to(user_id, 'UTF8')), 0)
                  OPERATOR(pg_catalog.%) totp_shard.partition_count(), 0)
$$;
COMMENT ON FUNCTION totp_shard.partition(text) IS 'Returns the partition of a user';

CREATE TABLE IF NOT EXISTS totp_shard.served (
  partitions integer[] NOT NULL,
  present    integer[] NOT NULL,
  only_on    text      CHECK ((only_on IS NULL) = (partitions = present)),
  audit_id   bigint    NOT NULL,
  one        boolean   PRIMARY KEY DEFAULT true CHECK (one)
);
COMMENT ON TABLE totp_shard.served IS 'What this shard serves; written by totp_shard.serve()';
COMMENT ON COLUMN totp_shard.served.partitions IS 'The partitions whose users it serves';
COMMENT ON COLUMN totp_shard.served.present IS 'The partitions whose users it has: more than it serves, from a split until the users who moved are removed';
COMMENT ON COLUMN totp_shard.served.only_on IS 'The only server for which this row is valid, while it has users that it does not serve; NULL: valid on a promoted standby too';
COMMENT ON COLUMN totp_shard.served.audit_id IS 'Last row of totp.audit_log before it served these partitions';

-- Identifies this server. The result is NULL on a standby, and differs after its promotion, which begins a timeline.
CREATE OR REPLACE FUNCTION totp_shard.this_server() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('system %s, database %s, timeline %s', c.system_identifier, d.oid, left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))
    FROM pg_control_system() AS c, pg_database AS d WHERE d.datname = current_database() AND NOT pg_is_in_recovery()
$$;
COMMENT ON FUNCTION totp_shard.this_server() IS 'System, database and timeline; NULL on a standby';

-- Sets the partitions that this shard serves. From its COMMIT on, calls about users of other partitions are refused. It
-- waits for running calls, and new ones wait for it, for five seconds at most: then it gives up.
--
-- A server that gives up partitions continues to run, and a copy of it is promoted to serve those. This row is on the copy
-- too, and names the partitions that stay. So the row is valid on this server only: a copy serves nobody until serve() is
-- called there. totp_router.remove_unserved() ends that: an ordinary failover needs no call.
CREATE OR REPLACE FUNCTION totp_shard.serve(partitions integer[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
  wanted CONSTANT integer[] := ARRAY(SELECT DISTINCT p FROM unnest(partitions) AS p ORDER BY p);
  has    integer[];
BEGIN
  IF cardinality(wanted) = 0 OR NOT wanted <@ ARRAY(SELECT generate_series(0, totp_shard.partition_count() - 1)) THEN
    RAISE EXCEPTION 'invalid partitions' USING ERRCODE = 'invalid_parameter_value',
      DETAIL = format('Accepted are one or more of 0 to %s.', totp_shard.partition_count() - 1);
  END IF;
  LOCK TABLE totp_shard.served IN ACCESS EXCLUSIVE MODE;
  has := coalesce((SELECT s.present FROM totp_shard.served AS s), wanted);
  IF NOT wanted <@ has THEN
    RAISE EXCEPTION 'this server does not have the users of all these partitions'
      USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = format('It has those of %s.', has),
            HINT = 'Partitions move by promotion of a standby. If nobody is in them yet, DELETE FROM totp_shard.served first.';
  END IF;
  INSERT INTO totp_shard.served AS s (partitions, present, only_on, audit_id)
  VALUES (wanted, has, CASE WHEN wanted <> has THEN totp_shard.this_server() END,
          coalesce((SELECT max(l.id) FROM totp.audit_log AS l), 0))
  ON CONFLICT (one) DO UPDATE
  SET partitions = EXCLUDED.partitions, present = EXCLUDED.present, only_on = EXCLUDED.only_on,
      audit_id = CASE WHEN s.partitions = EXCLUDED.partitions THEN s.audit_id ELSE EXCLUDED.audit_id END;
END
$$;
COMMENT ON FUNCTION totp_shard.serve(integer[]) IS 'Sets the partitions that this shard serves; calls about users of others are refused';

-- enter() of an earlier shard.sql returns nothing, and CREATE OR REPLACE cannot change that.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_proc AS p
              WHERE p.oid = to_regprocedure('totp_shard.enter(text, text)') AND p.prorettype <> 'text'::regtype) THEN
    DROP FUNCTION totp_shard.enter(text, text);
  END IF;
END
$$;

-- Begins every call. The lock on totp_shard.served, which any SELECT takes, is held until the end of the call. A search_path
-- would have to be set and reset at each call: so there is none, and every name and operator has its schema. It returns the
-- actor because PL/pgSQL evaluates an assignment faster than a PERFORM, which runs a query.
CREATE OR REPLACE FUNCTION totp_shard.enter(caller text, user_id text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  bytes   CONSTANT pg_catalog.int4 := pg_catalog.octet_length(user_id);
  mine    pg_catalog.int4[];
  only_on pg_catalog.text;
BEGIN
  -- With an older snapshot it would see an older map.
  IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
    RAISE EXCEPTION 'a shard can only be called at READ COMMITTED' USING ERRCODE = 'active_sql_transaction';
  END IF;
  SELECT s.partitions, s.only_on INTO mine, only_on FROM totp_shard.served AS s;
  -- The extension refuses what cannot be a user id.
  IF bytes OPERATOR(pg_catalog.>=) 1 AND bytes OPERATOR(pg_catalog.<=) 256 THEN
    IF only_on IS NOT NULL AND (only_on OPERATOR(pg_catalog.=) totp_shard.this_server()) IS NOT TRUE THEN
      RAISE EXCEPTION 'this copy of a shard serves nobody yet' USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'Its shard is being split. If it is promoted, call totp_shard.serve() here, with the partitions that it will serve.';
    ELSIF (totp_shard.partition(user_id) OPERATOR(pg_catalog.=) ANY (mine)) IS NOT TRUE THEN
      RAISE EXCEPTION 'this shard does not serve the user' USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'The partition has moved or is moving. Call again. If the error remains, compare the map of the router or of'
               ' pgbouncer with totp_shard.served.';
    END IF;
  END IF;
  RETURN pg_catalog.set_config('totp.actor', COALESCE(caller, ''), true);
END
$$;
COMMENT ON FUNCTION totp_shard.enter(text, text) IS 'Refuses a user that this shard does not serve, and sets totp.actor';

-- --- Users who moved away ------------------------------------------------------------------------------------------

-- Returns what this shard serves. The router passes the partitions that it sends here: if the two differ, nothing is removed.
CREATE OR REPLACE FUNCTION totp_shard.agreed(partitions integer[]) RETURNS integer[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  mine integer[];
BEGIN
  PERFORM totp_shard.enter('totp_shard.remove_unserved', NULL);
  SELECT s.partitions INTO mine FROM totp_shard.served AS s; -- and nobody changes it before this call ends
  IF mine IS DISTINCT FROM ARRAY(SELECT DISTINCT p FROM unnest(partitions) AS p ORDER BY p) THEN
    RAISE EXCEPTION 'the shard and the router do not agree on what the shard serves'
      USING ERRCODE = 'object_not_in_prerequisite_state',
            DETAIL = format('The shard serves %s, the router sends %s.', mine, partitions);
  END IF;
  RETURN mine;
END
$$;
COMMENT ON FUNCTION totp_shard.agreed(integer[]) IS 'Returns what this shard serves, if the router agrees';

-- Returns those of the next users, in order, that this shard does not serve. last_user is where to continue; NULL at the end.
CREATE OR REPLACE FUNCTION totp_shard.unserved(partitions integer[], after_user text, batch_size integer,
                                               OUT user_ids text[], OUT last_user text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  mine CONSTANT integer[] := totp_shard.agreed(partitions);
BEGIN
  user_ids := ARRAY(SELECT a.user_id FROM totp.attempts AS a WHERE a.user_id > coalesce(after_user, '') COLLATE "C"
                     ORDER BY a.user_id LIMIT batch_size);
  last_user := user_ids[cardinality(user_ids)];
  user_ids := ARRAY(SELECT u FROM unnest(user_ids) AS u WHERE totp_shard.partition(u) <> ALL (mine));
END
$$;
COMMENT ON FUNCTION totp_shard.unserved(integer[], text, integer) IS 'Returns users that this shard has and does not serve, a batch at a time';

-- Called on the shard that serves these users. Returns those that it has, or that it had when it began to serve them and
-- has removed or renamed since.
CREATE OR REPLACE FUNCTION totp_shard.known(user_ids text[]) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM totp_shard.enter('totp_shard.remove_unserved', u) FROM unnest(user_ids) AS u;
  RETURN QUERY SELECT u FROM unnest(user_ids) AS u
   WHERE EXISTS (SELECT FROM totp.attempts AS a WHERE a.user_id = u)
      OR EXISTS (SELECT FROM totp.audit_log AS l JOIN totp_shard.served AS s ON l.id > s.audit_id
                  WHERE l.user_id = u AND l.event IN ('removed', 'renamed'));
END
$$;
COMMENT ON FUNCTION totp_shard.known(text[]) IS 'Returns those of the given users that this shard has, or once had';

-- Removes these users by totp_remove(), audited, one by one, except users that this shard serves.
CREATE OR REPLACE FUNCTION totp_shard.remove_unserved(partitions integer[], user_ids text[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  mine    CONSTANT integer[] := totp_shard.agreed(partitions);
  remove  CONSTANT text := (SELECT format('SELECT %s.totp_remove($1)', extnamespace::regnamespace) FROM pg_extension WHERE extname = 'pg_totp');
  removed bigint := 0;
  one     text;
BEGIN
  FOREACH one IN ARRAY user_ids LOOP
    IF totp_shard.partition(one) <> ALL (mine) THEN
      EXECUTE remove USING one;
      removed := removed + 1;
    END IF;
  END LOOP;
  RETURN removed;
END
$$;
COMMENT ON FUNCTION totp_shard.remove_unserved(integer[], text[]) IS
  'Removes users that this shard does not serve any more; for totp_router.remove_unserved()';

-- Ends a split, after the last removal: from then on a promoted standby of this shard serves what it served, without a call.
CREATE OR REPLACE FUNCTION totp_shard.all_removed(partitions integer[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  mine CONSTANT integer[] := totp_shard.agreed(partitions);
BEGIN
  UPDATE totp_shard.served AS s SET present = mine, only_on = NULL WHERE s.only_on = totp_shard.this_server();
END
$$;
COMMENT ON FUNCTION totp_shard.all_removed(integer[]) IS 'Ends a split; for totp_router.remove_unserved()';

-- --- One function for each of the extension's ------------------------------------------------------------------

-- Creates the roles that the router logs in as, one for each capability, so that no connection can do more than it needs.
DO $$
DECLARE
  role text;
BEGIN
  FOREACH role IN ARRAY ARRAY['totp_router_verify', 'totp_router_enroll', 'totp_router_audit', 'totp_router_admin',
                              'totp_router_owner'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
      EXECUTE format('CREATE ROLE %I LOGIN', role);
    END IF;
    -- PL/Proxy names types without their schema, and the owner of a database may set its search_path.
    EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = pg_catalog, pg_temp', role, current_database());
  END LOOP;
END
$$;

-- Returns where a call of a routine of the extension goes. An unknown routine is an error: decide, and add it.
CREATE OR REPLACE FUNCTION totp_shard.route(schema name, name name, first_argument text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN schema = 'totp' AND name IN ('rotation_begin', 'rotation_step', 'rotation_end') THEN 'step'
    WHEN schema = 'totp' THEN 'internal'
    WHEN first_argument = 'user_id' THEN 'user'
    WHEN name IN ('totp_stats', 'totp_metrics', 'totp_health', 'totp_keys', 'totp_rotate_key', 'totp_prune_audit', 'totp_forget_unreadable') THEN 'all'
    WHEN name IN ('totp_qr_svg', 'totp_qr_png', 'totp_qr_text', 'totp_code_at', 'totp_read_tokens') THEN 'any'
    WHEN name IN ('totp_grant', 'totp_revoke', 'totp_rotate_key_online') THEN 'router'
    WHEN name IN ('totp_export', 'totp_list', 'totp_acknowledge_restore', 'totp_audit_seal', 'totp_audit_verify') THEN 'refused'
  END
$$;
COMMENT ON FUNCTION totp_shard.route(name, name, text) IS
  'Where the router sends calls: user, all, any (shard), step (of a rotation), router (its own), refused; internal: never called';

-- routes.sql makes the router's functions from this table, so it must contain nothing else.
DROP VIEW IF EXISTS totp_shard.routines;
DROP TABLE IF EXISTS totp_shard.capabilities;
CREATE TABLE totp_shard.capabilities (
  capability text CHECK (capability IN ('verify', 'enroll', 'audit', 'admin')),
  name       name,
  PRIMARY KEY (name, capability)
);
COMMENT ON TABLE totp_shard.capabilities IS 'The routines of each capability of totp_grant()';

CREATE VIEW totp_shard.routines AS
SELECT p.oid::regprocedure AS routine, n.nspname AS schema, p.proname AS name, p.prokind AS kind,
       r.route,
       ARRAY(SELECT c.capability FROM totp_shard.capabilities AS c WHERE c.name = p.proname) AS capabilities,
       -- The connection of the router that has the least capability which allows the call.
       coalesce((SELECT c.capability FROM totp_shard.capabilities AS c WHERE c.name = p.proname
                  ORDER BY array_position('{verify,enroll,audit,admin}', c.capability) LIMIT 1), 'owner') AS cluster,
       pg_get_function_arguments(p.oid) AS arguments,
       pg_get_function_identity_arguments(p.oid) AS parameters,
       t.shares_names, t.types, t.remote_parameters, format('totp_shard.%I(%s)', p.proname, t.remote_parameters) AS remote,
       pg_get_function_result(p.oid) AS result,
       -- If it runs on all shards, with a column that names the shard.
       CASE WHEN r.route IS DISTINCT FROM 'all' THEN pg_get_function_result(p.oid)
            WHEN p.proretset THEN regexp_replace(pg_get_function_result(p.oid), '\)$', ', shard text)')
            ELSE format('TABLE(%I %s, shard text)', p.proname, pg_get_function_result(p.oid)) END AS router_result,
       p.proretset AS returns_set,
       CASE p.provolatile WHEN 'v' THEN 'VOLATILE' ELSE 'STABLE' END AS volatility,
       p.provolatile = 'v' AND p.proname NOT IN ('totp_health', 'totp_keys', 'totp_stats', 'totp_metrics') AS writes,
       '$' || array_position(p.proargnames, 'new_user_id') AS second_user,
       -- $1, $2,     and     user_id::text, code::text,     which without names are counted from the partition on
       (SELECT coalesce(string_agg(format('$%s, ', a.n), '' ORDER BY a.n), '') FROM generate_series(1, p.pronargs) AS a(n)) AS numbers,
       (SELECT coalesce(string_agg(format('%s::%s, ', CASE WHEN t.shares_names THEN '$' || a.n + 1 ELSE quote_ident(p.proargnames[a.n]) END,
                                          format_type(p.proargtypes[a.n - 1], NULL)), '' ORDER BY a.n), '')
          FROM generate_series(1, p.pronargs) AS a(n)) AS names,
       obj_description(p.oid, 'pg_proc') AS comment
  FROM pg_extension AS e
  JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                     AND d.classid = 'pg_proc'::regclass
  JOIN pg_proc AS p ON p.oid = d.objid
  JOIN pg_namespace AS n ON n.oid = p.pronamespace
 CROSS JOIN LATERAL totp_shard.route(n.nspname, p.proname, CASE WHEN p.pronargs > 0 THEN p.proargnames[1] END) AS r(route)
       -- PL/pgSQL refuses a name that a parameter shares with a column of the result. Then the parameters have no names.
 CROSS JOIN LATERAL (SELECT coalesce(p.proargnames[:p.pronargs] && p.proargnames[p.pronargs + 1:], false),
                            oidvectortypes(p.proargtypes)) AS a(shares_names, types)
 CROSS JOIN LATERAL (SELECT a.shares_names, a.types,
                            concat_ws(', ', nullif(CASE WHEN a.shares_names THEN a.types
                                                        ELSE pg_get_function_identity_arguments(p.oid) END, ''), 'caller text'))
                    AS t(shares_names, types, remote_parameters)
 WHERE e.extname = 'pg_totp';
COMMENT ON VIEW totp_shard.routines IS 'The routines of the extension, and where the router sends calls of them';

DO $$
DECLARE
  r          record;
  capability text;
  login      name;
  home       CONSTANT text := (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'pg_totp');
BEGIN
  -- totp_grant() itself shows what a capability contains. The grant is revoked again: the roles must call the functions
  -- that are created below. What they can do as PUBLIC, or through a group, does not belong to the capability.
  FOREACH capability IN ARRAY ARRAY['verify', 'enroll', 'audit', 'admin'] LOOP
    login := 'totp_router_' || capability;
    EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA %s, totp FROM %I', home, login);
    EXECUTE format('SELECT %s.totp_grant(%L::name, %L::text)', home, login, capability);
    INSERT INTO totp_shard.capabilities
    SELECT DISTINCT capability, p.proname
      FROM totp_shard.routines AS t JOIN pg_proc AS p ON p.oid = t.routine CROSS JOIN LATERAL aclexplode(p.proacl) AS a
     WHERE a.grantee = login::regrole;
    EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA %s, totp FROM %I', home, login);
  END LOOP;

  -- Drops what the extension no longer has after an update.
  FOR r IN SELECT p.oid::regprocedure AS routine FROM pg_proc AS p
            WHERE p.pronamespace = 'totp_shard'::regnamespace AND p.proname ~ '^(totp|rotation)_'
              AND NOT EXISTS (SELECT FROM totp_shard.routines AS t
                               WHERE (t.name, t.remote_parameters, t.result)
                                   = (p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid))) LOOP
    EXECUTE format('DROP FUNCTION %s', r.routine);
  END LOOP;

  FOR r IN SELECT * FROM totp_shard.routines AS t ORDER BY t.routine::text LOOP
    IF r.route IS NULL THEN
      RAISE EXCEPTION 'no route for calls of %', r.routine USING HINT = 'Add it to totp_shard.route() in shard.sql.';
    END IF;
    CONTINUE WHEN r.route NOT IN ('user', 'all', 'any', 'step');
    EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS %s LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS %L',
      r.remote, r.result, format(E'BEGIN\n  caller := totp_shard.enter(caller, %s);\n%s  %s %I.%I(%s);\nEND',
        CASE WHEN r.route = 'user' THEN '$1' ELSE 'NULL' END,
        CASE WHEN r.second_user IS NOT NULL THEN format(E'  caller := totp_shard.enter(caller, %s);\n', r.second_user) ELSE '' END,
        CASE WHEN r.returns_set THEN 'RETURN QUERY SELECT * FROM' ELSE 'RETURN' END, r.schema, r.name, rtrim(r.numbers, ', ')));
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', r.remote, 'For the router: ' || r.comment);
  END LOOP;

  -- After REASSIGN OWNED a function may belong to this role although another role wrote it.
  FOR r IN SELECT p.oid::regprocedure AS routine FROM pg_proc AS p WHERE p.pronamespace = 'totp_shard'::regnamespace
            AND 1 < (SELECT count(*) FROM pg_proc AS o WHERE (o.pronamespace, o.proname) = (p.pronamespace, p.proname)) LOOP
    RAISE EXCEPTION 'function name of % is not unique', r.routine USING ERRCODE = 'insufficient_privilege',
      DETAIL = 'The other function could be called instead.',
      HINT = 'Drop the function of that name that shard.sql did not create, and run the script again.';
  END LOOP;
END
$$;

-- --- Rights ----------------------------------------------------------------------------------------------------------

-- Revokes what ALTER DEFAULT PRIVILEGES or a GRANT gave to anyone, then grants each role of the router what it calls.
DO $$
DECLARE
  r record;
BEGIN
  FOR r IN
    SELECT 'SCHEMA totp_shard' AS object, a.grantee
      FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
     WHERE n.nspname = 'totp_shard' AND a.grantee <> n.nspowner
    UNION
    SELECT format('ROUTINE %s', p.oid::regprocedure), a.grantee
      FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
     WHERE p.pronamespace = 'totp_shard'::regnamespace AND a.grantee <> p.proowner
    UNION
    SELECT format('TABLE %s', c.oid::regclass), a.grantee
      FROM pg_class AS c LEFT JOIN pg_attribute AS t ON t.attrelid = c.oid AND t.attacl IS NOT NULL
     CROSS JOIN LATERAL (SELECT * FROM aclexplode(c.relacl) UNION SELECT * FROM aclexplode(t.attacl)) AS a
     WHERE c.relnamespace = 'totp_shard'::regnamespace AND c.relkind IN ('r', 'v') AND a.grantee <> c.relowner
  LOOP
    EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', r.object,
                   CASE r.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(r.grantee)) END);
  END LOOP;
  FOR r IN SELECT t.remote, c.capability
             FROM totp_shard.routines AS t CROSS JOIN LATERAL unnest(t.capabilities || ARRAY['owner']) AS c(capability)
            WHERE t.route IN ('user', 'all', 'any', 'step') LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', r.remote, 'totp_router_' || r.capability);
  END LOOP;
END
$$;
GRANT USAGE ON SCHEMA totp_shard TO totp_router_verify, totp_router_enroll, totp_router_audit, totp_router_admin, totp_router_owner;
GRANT EXECUTE ON FUNCTION totp_shard.unserved(integer[], text, integer), totp_shard.known(text[]),
  totp_shard.remove_unserved(integer[], text[]), totp_shard.all_removed(integer[]) TO totp_router_owner;
-- For totp_health() of the router, which compares it with its map.
GRANT SELECT ON totp_shard.served TO totp_router_admin;
COMMIT;
