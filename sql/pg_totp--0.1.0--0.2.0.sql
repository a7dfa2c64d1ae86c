-- From 0.1.0 to 0.2.0: the same functions and tables; most of what changed is in the library.

\echo Use "ALTER EXTENSION pg_totp UPDATE" to load this file. \quit

COMMENT ON COLUMN totp.floor.control_inode IS 'Inodes and times of global/pg_control and backup_label.old, combined: another number in a copy of the data directory';

-- They ask for the right of the user who calls them, which SECURITY DEFINER would hide. Grants stay.
ALTER FUNCTION @extschema@.totp_export() SECURITY INVOKER;
ALTER FUNCTION @extschema@.totp_prune_audit(interval) SECURITY INVOKER;
ALTER FUNCTION @extschema@.totp_forget_unreadable(text) SECURITY INVOKER;
