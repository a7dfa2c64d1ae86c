-- The tables of pg_totp. Read docs/design/tables.md for why they look as they do.

-- No operator or function of another schema may be found, neither here nor in expressions that are stored from here, so each
-- is qualified. The path is that of every extension, which event triggers of the database see.
SET LOCAL search_path = @extschema@, pg_temp;

DO $$
BEGIN
  IF pg_catalog.getdatabaseencoding() OPERATOR(pg_catalog.<>) 'UTF8' THEN
    RAISE EXCEPTION 'pg_totp needs a database with encoding UTF8'
      USING ERRCODE = 'feature_not_supported',
            HINT = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0.';
  END IF;
END
$$;

-- CREATE SCHEMA would raise the same, without a HINT.
DO $$
DECLARE
  owner CONSTANT text := (
    SELECT e.extname
      FROM pg_catalog.pg_namespace n
      JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass
                                 AND d.objid OPERATOR(pg_catalog.=) n.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'
      JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
     WHERE n.nspname OPERATOR(pg_catalog.=) 'totp');
BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname OPERATOR(pg_catalog.=) 'totp') THEN
    RAISE EXCEPTION 'schema "totp" already exists'
      USING ERRCODE = 'duplicate_schema',
            DETAIL = 'The tables of pg_totp are always in a schema of that name, which CREATE EXTENSION makes.',
            HINT = CASE
              WHEN owner IS NOT NULL THEN
                pg_catalog.format('Drop extension %I, or use another database.', owner)
              WHEN '@extschema@' OPERATOR(pg_catalog.=) 'totp' THEN
                'Drop the schema if it is empty, and name another one in CREATE EXTENSION pg_totp SCHEMA.'
              ELSE
                'Rename it with ALTER SCHEMA totp RENAME TO, or drop it if nothing in it is needed.'
            END;
  END IF;
END
$$;

CREATE SCHEMA totp;

CREATE SEQUENCE totp.key_ids AS integer;
CREATE SEQUENCE totp.secret_ids AS bigint;
CREATE SEQUENCE totp.audit_ids AS bigint;

-- Data keys, wrapped by a master key that is never in the database.
CREATE TABLE totp.data_keys (
  key_id      integer     PRIMARY KEY,
  state       text        COLLATE "C" NOT NULL CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY['current', 'retiring'])),
  master_key  text        COLLATE "C" NOT NULL,
  wrapped     bytea       NOT NULL,
  created_at  timestamptz NOT NULL
) USING heap;
CREATE UNIQUE INDEX data_keys_one_current ON totp.data_keys (state) WHERE state OPERATOR(pg_catalog.=) 'current';

-- One row per secret. A device has at most one secret of each slot.
CREATE TABLE totp.secrets (
  user_id        text        COLLATE "C" NOT NULL CHECK (
    pg_catalog.octet_length(user_id) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(user_id) OPERATOR(pg_catalog.<=) 256),
  device         text        COLLATE "C" NOT NULL CHECK (
    pg_catalog.octet_length(device) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(device) OPERATOR(pg_catalog.<=) 256),
  slot           text        COLLATE "C" NOT NULL CHECK (slot OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'pending', 'proposed'])),
  secret_id      bigint      NOT NULL,
  version        integer     NOT NULL,
  key_id         integer     NOT NULL,
  sealed         bytea       NOT NULL,
  algorithm      text        COLLATE "C" NOT NULL,
  digits         smallint    NOT NULL,
  period         smallint    NOT NULL,
  issuer         text,
  account_name   text        NOT NULL,
  created_at     timestamptz NOT NULL,
  confirmed_at   timestamptz,
  enforced_since timestamptz,
  expires_at     timestamptz,
  disabled_at    timestamptz,
  PRIMARY KEY (user_id, device, slot),
  CHECK ((slot OPERATOR(pg_catalog.=) 'active') OPERATOR(pg_catalog.=) (confirmed_at IS NOT NULL))
) USING heap;
CREATE INDEX secrets_key_id ON totp.secrets (key_id);

-- Changed in place by src/inplace: the first five columns are 8 bytes wide and NOT NULL, and no column that
-- changes has an index. Never UPDATE these rows by SQL.
CREATE TABLE totp.used_codes (
  time_step     bigint      NOT NULL,
  used_at       timestamptz NOT NULL,
  uses          bigint      NOT NULL,
  recovery_mask bigint      NOT NULL,
  secret_id     bigint      NOT NULL,
  user_id       text        COLLATE "C" NOT NULL,
  PRIMARY KEY (user_id, secret_id)
) USING heap;

-- Changed in place, as above.
CREATE TABLE totp.attempts (
  locked_until          timestamptz NOT NULL,
  recovery_locked_until timestamptz NOT NULL,
  last_failed_at        timestamptz NOT NULL,
  failures              bigint      NOT NULL,
  recovery_failures     bigint      NOT NULL,
  user_id               text        COLLATE "C" PRIMARY KEY
) USING heap;

-- The current recovery codes of a user, as sealed hashes.
CREATE TABLE totp.recovery_codes (
  user_id    text        COLLATE "C" PRIMARY KEY CHECK (
    pg_catalog.octet_length(user_id) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(user_id) OPERATOR(pg_catalog.<=) 256),
  set_id     bigint      NOT NULL,
  count      smallint    NOT NULL,
  key_id     integer     NOT NULL,
  sealed     bytea       NOT NULL,
  created_at timestamptz NOT NULL
) USING heap;
CREATE INDEX recovery_codes_key_id ON totp.recovery_codes (key_id);

-- Changed in place, as above. One row.
CREATE TABLE totp.floor (
  floor_at          timestamptz NOT NULL,
  system_identifier bigint      NOT NULL,
  control_inode     bigint      NOT NULL,
  database          bigint      NOT NULL,
  timeline          bigint      NOT NULL,
  one               boolean     PRIMARY KEY CHECK (one)
) USING heap;
INSERT INTO totp.floor VALUES ('-infinity', 0, 0, 0, 0, true);

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

-- Event, user, and actor of everything that happened. Append-only for everyone but the owner.
CREATE TABLE totp.audit_log (
  id               bigint      PRIMARY KEY DEFAULT pg_catalog.nextval('totp.audit_ids'),
  at               timestamptz NOT NULL,
  event            text        COLLATE "C" NOT NULL,
  user_id          text        COLLATE "C",
  device           text        COLLATE "C",
  actor            text        NOT NULL,
  db_user          name        NOT NULL,
  client_addr      inet,
  application_name text        NOT NULL,
  detail           jsonb
) USING heap;
CREATE INDEX audit_log_user_at ON totp.audit_log (user_id, at);
CREATE INDEX audit_log_event_at ON totp.audit_log (event, at);
CREATE INDEX audit_log_at ON totp.audit_log (at);

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

-- PostgreSQL 19 has REPACK (CONCURRENTLY), which would lose what changes in place meanwhile. It refuses these tables.
DO $$
BEGIN
  IF pg_catalog.current_setting('server_version_num')::integer OPERATOR(pg_catalog.>=) 190000 THEN
    ALTER TABLE totp.attempts REPLICA IDENTITY NOTHING;
    ALTER TABLE totp.used_codes REPLICA IDENTITY NOTHING;
    ALTER TABLE totp.floor REPLICA IDENTITY NOTHING;
    ALTER TABLE totp.counters REPLICA IDENTITY NOTHING;
  END IF;
END
$$;

-- Without these, pg_dump would leave out every enrollment.
SELECT pg_catalog.pg_extension_config_dump('totp.key_ids', '');
SELECT pg_catalog.pg_extension_config_dump('totp.secret_ids', '');
SELECT pg_catalog.pg_extension_config_dump('totp.audit_ids', '');
SELECT pg_catalog.pg_extension_config_dump('totp.data_keys', '');
SELECT pg_catalog.pg_extension_config_dump('totp.secrets', '');
SELECT pg_catalog.pg_extension_config_dump('totp.used_codes', '');
SELECT pg_catalog.pg_extension_config_dump('totp.attempts', '');
SELECT pg_catalog.pg_extension_config_dump('totp.recovery_codes', '');
SELECT pg_catalog.pg_extension_config_dump('totp.audit_log', '');
SELECT pg_catalog.pg_extension_config_dump('totp.audit_keys', '');
SELECT pg_catalog.pg_extension_config_dump('totp.audit_seals', '');
-- The identity of a cluster belongs to that cluster. A restored database must find none.
SELECT pg_catalog.pg_extension_config_dump('totp.floor', 'WHERE false');
-- The counters are of this database in this cluster. A restored database begins with the rows of this script.
SELECT pg_catalog.pg_extension_config_dump('totp.counters', 'WHERE false');
