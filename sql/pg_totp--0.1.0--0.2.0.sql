-- From 0.1.0 to 0.2.0: the same functions and tables; most of what changed is in the library.

\echo Use "ALTER EXTENSION pg_totp UPDATE" to load this file. \quit

COMMENT ON COLUMN totp.floor.control_inode IS 'Inode of global/pg_control, mixed with its time of birth: differs in a copy of the data directory';

SET LOCAL search_path = pg_catalog, pg_temp;

-- Sets of recovery codes are counted too.
CREATE OR REPLACE VIEW totp.rotation_progress AS
SELECT current.key_id AS to_key,
       pg_catalog.array_agg(retiring.key_id ORDER BY retiring.key_id) AS from_keys,
       current.created_at AS started_at,
       (SELECT pg_catalog.count(*) FROM totp.secrets s WHERE s.key_id = current.key_id)
       + (SELECT pg_catalog.count(*) FROM totp.recovery_codes r WHERE r.key_id = current.key_id) AS done,
       (SELECT pg_catalog.count(*) FROM totp.secrets s WHERE s.key_id <> current.key_id)
       + (SELECT pg_catalog.count(*) FROM totp.recovery_codes r WHERE r.key_id <> current.key_id) AS remaining
  FROM totp.data_keys current
  JOIN totp.data_keys retiring ON retiring.state = 'retiring'
 WHERE current.state = 'current'
 GROUP BY current.key_id, current.created_at;
COMMENT ON COLUMN totp.rotation_progress.done IS 'Secrets and sets of recovery codes under the new data key';
COMMENT ON COLUMN totp.rotation_progress.remaining IS 'Secrets and sets of recovery codes under an old one';

SET LOCAL search_path = @extschema@, pg_temp;

-- Progress beyond what was there at the beginning is no longer "8 of 3".
CREATE OR REPLACE PROCEDURE totp_rotate_key_online(batch_size integer DEFAULT 1000)
LANGUAGE plpgsql
AS $$
DECLARE
  total     bigint;
  done      bigint := 0;
  moved     bigint;
  last_user pg_catalog.text;
  complete  boolean := false;
  started   CONSTANT timestamp with time zone := pg_catalog.clock_timestamp();
BEGIN
  total := totp.rotation_begin(batch_size);
  COMMIT;
  WHILE NOT complete LOOP
    last_user := NULL;
    LOOP
      SELECT step.moved, step.last_user INTO moved, last_user
        FROM totp.rotation_step(last_user, batch_size) AS step;
      COMMIT;
      EXIT WHEN last_user IS NULL;
      done := done OPERATOR(pg_catalog.+) moved;
      RAISE NOTICE 'pg_totp: % of % secrets moved, % per second', done, GREATEST(total, done),
        pg_catalog.round(done::numeric OPERATOR(pg_catalog./) (0.001 OPERATOR(pg_catalog.+)
          EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started)));
    END LOOP;
    complete := totp.rotation_end();
    COMMIT;
  END LOOP;
  RAISE NOTICE 'pg_totp: rotation complete, % secrets moved', done;
END
$$;
