-- What the application keeps, and its two roles. Run it once, as a superuser, in a database that has pg_totp in schema mfa.

CREATE SCHEMA app;

-- The name is the key of the user: pg_totp gets this column, and never what was typed. It does not change.
CREATE TABLE app.member (
  name text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9._-]{0,31}$'),
  password text NOT NULL,                 -- as "sign-in hash" prints it
  desk boolean NOT NULL DEFAULT false     -- may open the pages of the desk
);

-- The cookie has a random token, and the table has its hash: who reads the table can use none.
CREATE TABLE app.session (
  token bytea PRIMARY KEY,
  member text NOT NULL REFERENCES app.member ON DELETE CASCADE,
  level text NOT NULL CHECK (level IN ('password', 'full', 'spent')),
  expires_at timestamptz NOT NULL,
  spent_on bytea                          -- hash of the token and the code with which the next session began: two clicks
);
CREATE INDEX ON app.session (member);
CREATE INDEX ON app.session (expires_at);

-- What the public pages may do. They begin sessions, so who has this role can be anyone here. What it changes of a user's
-- devices still needs a code of that user.
CREATE ROLE web LOGIN;
GRANT USAGE ON SCHEMA app TO web;
GRANT SELECT ON app.member TO web;
GRANT SELECT, INSERT, UPDATE, DELETE ON app.session TO web;
SELECT mfa.totp_grant('web', 'enroll');

-- What the pages of the desk may do besides: reset, unlock, list, read the audit log, end sessions.
CREATE ROLE desk LOGIN;
GRANT USAGE ON SCHEMA app TO desk;
GRANT SELECT (member), DELETE ON app.session TO desk;
SELECT mfa.totp_grant('desk', 'admin'), mfa.totp_grant('desk', 'audit');
