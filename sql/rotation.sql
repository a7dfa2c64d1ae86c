-- Online rotation: the procedure, and the view that another session can watch.

-- Progress of a rotation. No row if none is under way.
CREATE VIEW totp.rotation_progress AS
SELECT current.key_id AS to_key,
       pg_catalog.array_agg(retiring.key_id ORDER BY retiring.key_id) AS from_keys,
       current.created_at AS started_at,
       (SELECT pg_catalog.count(*) FROM totp.secrets s WHERE s.key_id OPERATOR(pg_catalog.=) current.key_id) AS done,
       (SELECT pg_catalog.count(*) FROM totp.secrets s WHERE s.key_id OPERATOR(pg_catalog.<>) current.key_id) AS remaining
  FROM totp.data_keys current
  JOIN totp.data_keys retiring ON retiring.state OPERATOR(pg_catalog.=) 'retiring'
 WHERE current.state OPERATOR(pg_catalog.=) 'current'
 GROUP BY current.key_id, current.created_at;
COMMENT ON VIEW totp.rotation_progress IS 'Progress of an online rotation; empty if none is under way';
COMMENT ON COLUMN totp.rotation_progress.to_key IS 'The new data key';
COMMENT ON COLUMN totp.rotation_progress.from_keys IS 'The data keys that will be destroyed';
COMMENT ON COLUMN totp.rotation_progress.started_at IS 'When the new data key was created';
COMMENT ON COLUMN totp.rotation_progress.done IS 'Secrets under the new data key';
COMMENT ON COLUMN totp.rotation_progress.remaining IS 'Secrets under an old one';

-- A procedure that commits must be SECURITY INVOKER without SET, so every name and operator in it is qualified. The
-- functions that it calls are SECURITY DEFINER.
CREATE PROCEDURE totp_rotate_key_online(batch_size integer DEFAULT 1000)
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
      RAISE NOTICE 'pg_totp: % of % secrets moved, % per second', done, total,
        pg_catalog.round(done::numeric OPERATOR(pg_catalog./) (0.001 OPERATOR(pg_catalog.+)
          EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started)));
    END LOOP;
    complete := totp.rotation_end();
    COMMIT;
  END LOOP;
  RAISE NOTICE 'pg_totp: rotation complete, % secrets moved', done;
END
$$;
