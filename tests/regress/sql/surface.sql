-- Everything that CREATE EXTENSION makes, with its rights and its comment. A change here is a change of the contract.
SET search_path = pg_catalog;
\pset null '(null)'
\pset format unaligned

-- Rights of anyone but the owner. With none, a function of PostgreSQL would be open to everyone: that shows here as PUBLIC.
CREATE FUNCTION pg_temp.granted(acl aclitem[], kind "char", owner oid) RETURNS text LANGUAGE sql AS $$
  SELECT coalesce(string_agg(CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END || ': ' || privilege_type, ', '
                             ORDER BY grantee, privilege_type), 'nobody')
    FROM aclexplode(coalesce(acl, acldefault(kind, owner))) WHERE grantee <> owner
$$;
CREATE FUNCTION pg_temp.is_ours(class regclass, object oid) RETURNS boolean LANGUAGE sql AS $$
  SELECT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
                  WHERE d.classid = class AND d.objid = object AND d.deptype = 'e' AND e.extname = 'pg_totp')
$$;

-- Functions: arguments with names and defaults, and the result.
SELECT p.oid::regproc AS function, CASE p.prokind WHEN 'f' THEN 'function' WHEN 'p' THEN 'procedure' ELSE p.prokind::text END AS kind,
       pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
  FROM pg_proc p WHERE pg_temp.is_ours('pg_proc', p.oid) ORDER BY p.oid::regproc::text COLLATE "C", pg_get_function_arguments(p.oid) COLLATE "C";

-- How they run, and who may call them.
SELECT p.oid::regproc AS function, l.lanname AS language,
       CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' WHEN 'v' THEN 'volatile' END AS volatility,
       CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' WHEN 'u' THEN 'unsafe' END AS parallel,
       CASE WHEN p.prosecdef THEN 'definer' ELSE 'invoker' END AS security,
       p.proconfig AS settings, p.proisstrict AS strict, p.proleakproof AS leakproof,
       pg_temp.granted(p.proacl, 'f', p.proowner) AS granted_to
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE pg_temp.is_ours('pg_proc', p.oid) ORDER BY p.oid::regproc::text COLLATE "C", pg_get_function_arguments(p.oid) COLLATE "C";

-- What they say about themselves.
SELECT p.oid::regproc AS function, obj_description(p.oid, 'pg_proc') AS comment
  FROM pg_proc p WHERE pg_temp.is_ours('pg_proc', p.oid) ORDER BY p.oid::regproc::text COLLATE "C", pg_get_function_arguments(p.oid) COLLATE "C";

-- Schemas, tables, sequences, indexes.
SELECT n.nspname AS schema, pg_temp.granted(n.nspacl, 'n', n.nspowner) AS granted_to, obj_description(n.oid, 'pg_namespace') AS comment
  FROM pg_namespace n WHERE pg_temp.is_ours('pg_namespace', n.oid) ORDER BY n.nspname;

SELECT c.oid::regclass AS relation, CASE c.relkind WHEN 'r' THEN 'table' WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' ELSE c.relkind::text END AS kind,
       CASE c.relpersistence WHEN 'p' THEN 'logged' ELSE c.relpersistence::text END AS persistence, am.amname AS access_method,
       pg_temp.granted(c.relacl, CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, c.relowner) AS granted_to,
       obj_description(c.oid, 'pg_class') AS comment
  FROM pg_class c LEFT JOIN pg_am am ON am.oid = c.relam
 WHERE pg_temp.is_ours('pg_class', c.oid) ORDER BY c.relkind, c.oid::regclass::text COLLATE "C";

SELECT i.indrelid::regclass AS relation, pg_get_indexdef(i.indexrelid) AS definition
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = 'totp'::regnamespace ORDER BY pg_get_indexdef(i.indexrelid) COLLATE "C";

SELECT conrelid::regclass AS relation, conname AS constraint, pg_get_constraintdef(oid) AS definition
  FROM pg_constraint WHERE connamespace = 'totp'::regnamespace AND contype <> 'n' ORDER BY conrelid::regclass::text COLLATE "C", conname;

-- Columns. A collation is shown where it is not the default one.
SELECT a.attrelid::regclass AS relation, a.attname AS "column", format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
       pg_get_expr(d.adbin, d.adrelid) AS "default", co.collname AS "collation", pg_temp.granted(a.attacl, 'c', c.relowner) AS granted_to,
       col_description(a.attrelid, a.attnum) AS comment
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'v', 'p')
  JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN pg_collation co ON co.oid = a.attcollation AND a.attcollation <> t.typcollation
 WHERE c.relnamespace = 'totp'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid::regclass::text COLLATE "C", a.attnum;

-- What pg_dump takes along: every table and sequence.
SELECT unnest(extconfig)::regclass AS dumped, unnest(extcondition) AS condition FROM pg_extension WHERE extname = 'pg_totp'
 ORDER BY 1;

-- Anything of another kind (a type, an operator, a trigger, a cast) would be here.
SELECT pg_describe_object(classid, objid, objsubid) AS other
  FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
 WHERE e.extname = 'pg_totp' AND d.classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_namespace'::regclass)
       -- Since PostgreSQL 17 the row types of tables and views are members themselves.
   AND NOT (d.classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t JOIN pg_class c ON c.reltype IN (t.oid, t.typelem) WHERE t.oid = d.objid AND c.relkind <> 'c'))
 ORDER BY 1;
SELECT tgrelid::regclass AS relation, tgname AS trigger FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = 'totp'::regnamespace;

-- What lacks a comment.
SELECT 'function' AS kind, p.oid::regprocedure::text AS name FROM pg_proc p
 WHERE pg_temp.is_ours('pg_proc', p.oid) AND coalesce(obj_description(p.oid, 'pg_proc'), '') = ''
UNION ALL
SELECT 'relation', c.oid::regclass::text FROM pg_class c
 WHERE pg_temp.is_ours('pg_class', c.oid) AND coalesce(obj_description(c.oid, 'pg_class'), '') = ''
UNION ALL
SELECT 'column', a.attrelid::regclass::text || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'v', 'p')
 WHERE c.relnamespace = 'totp'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped AND coalesce(col_description(a.attrelid, a.attnum), '') = ''
ORDER BY 1, 2;

-- Settings, which are there once the library is loaded.
RESET search_path;
LOAD 'pg_totp';
SELECT name, vartype, unit, context, boot_val, min_val, max_val, short_desc, extra_desc FROM pg_settings WHERE name LIKE 'totp.%' ORDER BY name COLLATE "C";
