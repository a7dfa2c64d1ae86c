-- The router: psql -v ON_ERROR_STOP=1 -d DATABASE -f router.sql
--
-- As a superuser, in an empty database with encoding UTF8, once. Needs PL/Proxy (Debian: postgresql-15-plproxy) and
-- postgres_fdw. Then, in this order:
--   INSERT INTO totp_router.shards …; INSERT INTO totp_router.partitions …;    which servers, and who serves what
--   psql -d SHARD -f routes.sql | psql -d ROUTER                              the functions, made from the catalogue of a shard
--   SELECT totp_router.apply();                                               tell PL/Proxy; again after each change
-- It holds no secret, no key and no state of a user: a map, and functions that pass calls on.

BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS plproxy;
CREATE EXTENSION IF NOT EXISTS postgres_fdw;
SET LOCAL search_path = pg_catalog, pg_temp;

-- Owner of all of this. The functions run with its rights; nobody else can use the connections to the shards.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'totp_router') THEN
    CREATE ROLE totp_router NOLOGIN;
  END IF;
END
$$;
CREATE SCHEMA totp_router AUTHORIZATION totp_router;
CREATE SCHEMA totp AUTHORIZATION totp_router;
GRANT USAGE ON FOREIGN DATA WRAPPER plproxy, postgres_fdw TO totp_router;
SET LOCAL ROLE totp_router;

-- --- The map -----------------------------------------------------------------------------------------------------

CREATE TABLE totp_router.shards (
  name             text PRIMARY KEY CHECK (name ~ '^[a-z0-9_]{1,32}$'),
  connection       text NOT NULL,
  audit_connection text,
  CHECK (connection || ' ' || coalesce(audit_connection, '') ~ '^([a-z_]+=[^ ''\\]+ *)+$'),
  CHECK (connection || ' ' || coalesce(audit_connection, '') !~ '\m(user|password)=')
);
COMMENT ON TABLE totp_router.shards IS 'The servers; after a change call totp_router.apply()';
COMMENT ON COLUMN totp_router.shards.name IS 'What the column shard of answers shows';
COMMENT ON COLUMN totp_router.shards.connection IS 'Where the primary is: host=… port=… dbname=…, without user and password';
COMMENT ON COLUMN totp_router.shards.audit_connection IS 'Where totp.audit_log is read, such as a standby; NULL: the primary';

CREATE TABLE totp_router.partitions (
  partition integer PRIMARY KEY CHECK (partition BETWEEN 0 AND 15),
  shard     text    NOT NULL REFERENCES totp_router.shards ON UPDATE CASCADE
);
COMMENT ON TABLE totp_router.partitions IS 'Which shard serves which partition; all 16 of them. After a change call totp_router.apply()';

-- What totp_grant() gives; filled by routes.sql.
CREATE TABLE totp_router.capabilities (
  capability text,
  routine    text,
  PRIMARY KEY (capability, routine)
);

-- Each shard once, with a partition of it: what runs on that one runs on the shard.
CREATE VIEW totp_router.each_shard AS
SELECT shard AS name, min(partition) AS partition, array_agg(partition ORDER BY partition) AS partitions
  FROM totp_router.partitions GROUP BY shard;

-- --- What the functions share --------------------------------------------------------------------------------------

-- The beginning of every call: refuses a writer where the caller may not write, as the extension does, since a shard
-- would not know. Answers with what becomes totp.actor on the shard.
CREATE FUNCTION totp_router.caller(writer text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF writer IS NOT NULL AND pg_is_in_recovery() THEN
    RAISE EXCEPTION 'cannot execute %() on a standby', writer
      USING ERRCODE = 'read_only_sql_transaction', HINT = 'Call it on the primary.';
  ELSIF writer IS NOT NULL AND current_setting('transaction_read_only')::boolean THEN
    RAISE EXCEPTION 'cannot execute %() in a read-only transaction', writer
      USING ERRCODE = 'read_only_sql_transaction', HINT = 'Call it in a read-write transaction.';
  END IF;
  RETURN coalesce(nullif(current_setting('totp.actor', true), ''), session_user);
END
$$;

-- A rename would leave both names, or neither, able to sign in for a moment where it goes from server to server.
CREATE FUNCTION totp_router.same_shard(user_id text, new_user_id text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  -- What is no user id at all is left to the extension.
  IF octet_length(user_id) BETWEEN 1 AND 256 AND octet_length(new_user_id) BETWEEN 1 AND 256
     AND (SELECT p.shard FROM totp_router.partitions AS p WHERE p.partition = totp_router.partition(user_id))
      <> (SELECT p.shard FROM totp_router.partitions AS p WHERE p.partition = totp_router.partition(new_user_id)) THEN
    RAISE EXCEPTION 'cannot rename a user to an id of another shard' USING ERRCODE = 'feature_not_supported',
      HINT = 'Enrol the new user id, or totp_import() its secret, then totp_remove() the old one.';
  END IF;
END
$$;

-- An error of one shard of several: raises it again with the shard's name, and says which are done.
CREATE FUNCTION totp_router.failed(shard text, done text[], code text, message text, hint text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'shard "%": %', shard, message
    USING ERRCODE = code, HINT = coalesce(nullif(replace(hint, 'Remote hint: ', ''), ''), 'See the log of that shard.'),
          DETAIL = CASE WHEN done = '{}' THEN 'No shard has done it.' ELSE 'Done on ' || array_to_string(done, ', ') || '.' END;
END
$$;
RESET ROLE;

-- Whether all shards answer, before something is done on all.
CREATE FUNCTION totp_router.ping_owner() RETURNS SETOF integer
LANGUAGE plproxy AS $$ CLUSTER 'totp_owner'; RUN ON ALL; SELECT 1; $$;
CREATE FUNCTION totp_router.served(partition integer) RETURNS SETOF integer[]
LANGUAGE plproxy AS $$ CLUSTER 'totp_admin'; RUN ON partition; SELECT s.partitions FROM totp_shard.served AS s; $$;
CREATE FUNCTION totp_router.remove_unserved_step(partition integer, partitions integer[], after_user text, batch_size integer,
                                                 OUT removed bigint, OUT last_user text)
LANGUAGE plproxy AS $$
  CLUSTER 'totp_owner';
  RUN ON partition;
  SELECT * FROM totp_shard.remove_unserved(partitions::integer[], after_user::text, batch_size::integer);
$$;
ALTER FUNCTION totp_router.ping_owner() OWNER TO totp_router;
ALTER FUNCTION totp_router.served(integer) OWNER TO totp_router;
ALTER FUNCTION totp_router.remove_unserved_step(integer, integer[], text, integer) OWNER TO totp_router;
SET LOCAL ROLE totp_router;

-- The shards that something is to be done on, in the order to do it. Before something is written on several, all must
-- answer. One without a data key has nothing to rotate; of a lost master key, one that does not know it has nothing to
-- forget, and one that still has it loaded comes first, since it refuses before anything is removed.
CREATE FUNCTION totp_router.concerned(routine text, master_key text, me text) RETURNS SETOF totp_router.each_shard
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s       totp_router.each_shard;
  first   text[] := '{}';
  second  text[] := '{}';
  loaded  boolean;
BEGIN
  IF routine IN ('totp_stats', 'totp_keys', 'totp_health') THEN
    RETURN QUERY SELECT * FROM totp_router.each_shard AS e ORDER BY e.name;
    RETURN;
  END IF;
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
  -- No shard at all: each is asked, and says what is wrong.
  RETURN QUERY SELECT e.* FROM totp_router.each_shard AS e
   WHERE e.name = ANY (first || second) OR first || second = '{}' ORDER BY e.name = ANY (second), e.name;
END
$$;

-- Rows of totp_health(): whether each shard serves what the map sends to it.
CREATE FUNCTION totp_router.map_health() RETURNS TABLE (check_name text, status text, detail text, shard text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
  s    totp_router.each_shard;
  mine integer[];
BEGIN
  FOR s IN SELECT * FROM totp_router.each_shard AS e ORDER BY e.name LOOP
    BEGIN
      mine := (SELECT * FROM totp_router.served(s.partition));
      check_name := 'map';
      shard := s.name;
      status := CASE WHEN mine = s.partitions THEN 'ok' ELSE 'fail' END;
      detail := format(CASE WHEN mine = s.partitions THEN 'It serves %s, as the map of the router says.'
                            ELSE 'It serves %s, the map of the router says %s: correct totp_router.partitions,'
                                 ' or call totp_shard.serve() there.' END, mine, s.partitions);
      RETURN NEXT;
    EXCEPTION WHEN internal_error THEN -- a dead shard has its row already
      NULL;
    END;
  END LOOP;
END
$$;

-- After a split: removes from each shard the users that it does not serve. Each batch is a transaction of its shard.
CREATE FUNCTION totp_router.remove_unserved(batch_size integer DEFAULT 1000) RETURNS TABLE (shard text, removed bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s    record;
  step record;
BEGIN
  PERFORM totp_router.caller('totp_router.remove_unserved'), totp_router.ping_owner();
  FOR s IN SELECT * FROM totp_router.each_shard ORDER BY name LOOP
    shard := s.name;
    removed := 0;
    SELECT NULL::bigint AS removed, NULL::text AS last_user INTO step;
    LOOP
      SELECT * INTO step FROM totp_router.remove_unserved_step(s.partition, s.partitions, step.last_user, batch_size);
      removed := removed + step.removed;
      EXIT WHEN step.last_user IS NULL;
    END LOOP;
    RETURN NEXT;
  END LOOP;
END
$$;

-- --- Telling PL/Proxy ------------------------------------------------------------------------------------------------

-- One cluster of PL/Proxy for each capability, all with the same map: its connections log in as totp_router_<capability>.
CREATE FUNCTION totp_router.apply() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  cluster text;
  map     text;
  s       record;
BEGIN
  -- Two at once would leave the clusters with different maps.
  LOCK TABLE totp_router.shards, totp_router.partitions IN SHARE ROW EXCLUSIVE MODE;
  IF (SELECT count(*) FROM totp_router.partitions) <> 16 THEN
    RAISE EXCEPTION 'the map is not complete' USING ERRCODE = 'object_not_in_prerequisite_state',
      DETAIL = 'totp_router.partitions must have a row for each of 0 to 15.';
  END IF;
  SELECT string_agg(format('SET p%s %L', p.partition, h.connection), ', ' ORDER BY p.partition) INTO map
    FROM totp_router.partitions AS p JOIN totp_router.shards AS h ON h.name = p.shard;
  FOREACH cluster IN ARRAY ARRAY['verify', 'enroll', 'audit', 'admin', 'owner'] LOOP
    IF NOT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = 'totp_' || cluster) THEN
      EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER plproxy OPTIONS (%s)', 'totp_' || cluster, replace(map, 'SET ', ''));
      EXECUTE format('CREATE USER MAPPING FOR totp_router SERVER %I OPTIONS (user %L)',
                     'totp_' || cluster, 'totp_router_' || cluster);
    END IF;
    EXECUTE format('ALTER SERVER %I OPTIONS (%s)', 'totp_' || cluster, map);
  END LOOP;

  -- The audit log is read through postgres_fdw, which lets the shards filter it.
  FOR s IN SELECT srvname FROM pg_foreign_server WHERE srvname LIKE 'totp\_audit\_log\_%'
            AND substr(srvname, 16) NOT IN (SELECT name FROM totp_router.shards) LOOP
    EXECUTE format('DROP SERVER %I CASCADE', s.srvname);
  END LOOP;
  FOR s IN SELECT 'totp_audit_log_' || h.name AS server, 'audit_log_' || h.name AS log, f.oid IS NOT NULL AS is_there,
                  (SELECT string_agg(format('DROP %I', o.option_name), ', ') FROM pg_options_to_table(f.srvoptions) AS o) AS old,
                  (SELECT string_agg(format('ADD %I %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ')
                     FROM regexp_split_to_table(trim(coalesce(h.audit_connection, h.connection)), ' +') AS o) AS new
             FROM totp_router.shards AS h LEFT JOIN pg_foreign_server AS f ON f.srvname = 'totp_audit_log_' || h.name LOOP
    IF s.is_there THEN
      EXECUTE format('ALTER SERVER %I OPTIONS (%s)', s.server, concat_ws(', ', s.old, s.new));
    ELSE
      EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (%s)', s.server, replace(s.new, 'ADD ', ''));
      EXECUTE format('CREATE USER MAPPING FOR totp_router SERVER %I OPTIONS (user ''totp_router_audit'')', s.server);
      EXECUTE format('CREATE FOREIGN TABLE totp_router.%I () INHERITS (totp_router.audit_row) SERVER %I'
                     ' OPTIONS (schema_name ''totp'', table_name ''audit_log'')', s.log, s.server);
    END IF;
  END LOOP;
END
$$;
COMMENT ON FUNCTION totp_router.apply() IS
  'Gives the map to PL/Proxy and postgres_fdw; every session of the router has it from the COMMIT on';

REVOKE ALL ON ALL ROUTINES IN SCHEMA totp_router FROM PUBLIC;
RESET ROLE;
COMMIT;
