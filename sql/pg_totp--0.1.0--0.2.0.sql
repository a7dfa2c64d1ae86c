-- From 0.1.0 to 0.2.0: the same functions and tables; what changed is in the library.

\echo Use "ALTER EXTENSION pg_totp UPDATE" to load this file. \quit
