"""What PostgreSQL's catalog holds of the extension, in a form in which two databases of a server can be compared."""

import psycopg

RELATIONS = """
WITH rel AS (
  SELECT c.*, c.oid::regclass::text AS name
    FROM pg_class c
   WHERE c.relnamespace = 'totp'::regnamespace)"""

# Rights are sorted: they mean the same in any order.
SUBJECTS = {
    "extension": """
        SELECT e.extversion, e.extowner::regrole::text, e.extrelocatable, obj_description(e.oid, 'pg_extension'),
               array(SELECT required.extname::text FROM pg_depend d JOIN pg_extension required ON required.oid = d.refobjid
                      WHERE d.classid = 'pg_extension'::regclass AND d.objid = e.oid AND d.refclassid = 'pg_extension'::regclass ORDER BY 1)
          FROM pg_extension e WHERE e.extname = 'pg_totp'""",
    "what pg_dump takes": """
        SELECT config.id::regclass::text, config.condition
          FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS config(id, condition) WHERE e.extname = 'pg_totp'""",
    "members": """
        SELECT pg_describe_object(d.classid, d.objid, 0)
          FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
         WHERE e.extname = 'pg_totp' AND d.deptype = 'e'""",
    "functions": """
        SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proowner::regrole::text, obj_description(p.oid, 'pg_proc'),
               array(SELECT acl::text FROM unnest(p.proacl) AS acl ORDER BY 1)
          FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
          JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_totp'""",
    "schema": """
        SELECT n.nspowner::regrole::text, obj_description(n.oid, 'pg_namespace'), array(SELECT acl::text FROM unnest(n.nspacl) AS acl ORDER BY 1)
          FROM pg_namespace n WHERE n.nspname = 'totp'""",
    "relations": RELATIONS + """
        SELECT rel.name, rel.relkind, rel.relpersistence, am.amname, rel.reloptions, rel.relreplident, rel.relrowsecurity, rel.relforcerowsecurity,
               rel.relowner::regrole::text, obj_description(rel.oid, 'pg_class'), array(SELECT acl::text FROM unnest(rel.relacl) AS acl ORDER BY 1)
          FROM rel LEFT JOIN pg_am am ON am.oid = rel.relam""",
    "columns": RELATIONS + """
        SELECT rel.name, row_number() OVER (PARTITION BY rel.oid ORDER BY a.attnum), a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attcollation::regcollation::text,
               a.attidentity, a.attgenerated, a.attstorage, a.attcompression, pg_get_expr(d.adbin, d.adrelid),
               col_description(rel.oid, a.attnum), array(SELECT acl::text FROM unnest(a.attacl) AS acl ORDER BY 1)
          FROM rel JOIN pg_attribute a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON d.adrelid = rel.oid AND d.adnum = a.attnum""",
    "constraints": RELATIONS + """
        SELECT rel.name, c.conname, c.contype, c.convalidated, pg_get_constraintdef(c.oid), obj_description(c.oid, 'pg_constraint')
          FROM rel JOIN pg_constraint c ON c.conrelid = rel.oid""",
    "indexes": RELATIONS + "SELECT pg_get_indexdef(i.indexrelid), i.indisvalid FROM rel JOIN pg_index i ON i.indrelid = rel.oid",
    "views": RELATIONS + "SELECT rel.name, pg_get_viewdef(rel.oid) FROM rel WHERE rel.relkind IN ('v', 'm')",
    "sequences": RELATIONS + """
        SELECT rel.name, format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle
          FROM rel JOIN pg_sequence s ON s.seqrelid = rel.oid""",
    "triggers": RELATIONS + "SELECT pg_get_triggerdef(t.oid) FROM rel JOIN pg_trigger t ON t.tgrelid = rel.oid",
    "policies": RELATIONS + """
        SELECT rel.name, p.polname, p.polcmd, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
          FROM rel JOIN pg_policy p ON p.polrelid = rel.oid""",
    # What pg_dump takes for the rights that CREATE EXTENSION gives: it dumps what differs from them.
    "initial rights": """
        SELECT pg_describe_object(i.classoid, i.objoid, i.objsubid), array(SELECT acl::text FROM unnest(i.initprivs) AS acl ORDER BY 1)
          FROM pg_init_privs i JOIN pg_depend d ON d.classid = i.classoid AND d.objid = i.objoid AND d.deptype = 'e'
          JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_totp'
         WHERE i.privtype = 'e'""",
}


def catalog(conn: psycopg.Connection) -> dict[str, list[tuple]]:
    """Everything of the extension by subject, in an order that does not depend on how it came about."""
    conn.execute("SET search_path = pg_catalog")  # so that every name is printed with its schema
    try:
        return {subject: sorted(conn.execute(query).fetchall(), key=repr) for subject, query in SUBJECTS.items()}
    finally:
        conn.execute("RESET search_path")
