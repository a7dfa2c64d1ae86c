-- From 0.1.0 to 0.2.0: the same functions and tables; what changed is in the library, and one comment.

\echo Use "ALTER EXTENSION pg_totp UPDATE" to load this file. \quit

COMMENT ON COLUMN totp.floor.control_inode IS 'Inodes and times of global/pg_control and backup_label.old, combined: another number in a copy of the data directory';
