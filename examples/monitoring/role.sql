-- The role that the exporters log in as. Run it with psql in each database that has the extension, as a superuser.
-- It can call totp_metrics(), and nothing else: with totp_grant(…, 'audit') it could read the audit log too.
SELECT 'CREATE ROLE prometheus LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'prometheus')
\gexec
SELECT format('GRANT USAGE ON SCHEMA %I TO prometheus', nspname),
       format('GRANT EXECUTE ON FUNCTION %I.totp_metrics() TO prometheus', nspname),
       format('ALTER ROLE prometheus IN DATABASE %I SET search_path = %I, pg_temp', current_database(), nspname)
  FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
 WHERE extname = 'pg_totp'
\gexec
ALTER ROLE prometheus SET statement_timeout = '5s';
