"""Objects that an attacker puts into a schema of a search_path: each reports that it was called."""

# Everything in it reports and raises, so that a call shows whether its result would matter or not.
TRAP = """
CREATE FUNCTION {schema}.trap(text) RETURNS void LANGUAGE plpgsql AS $trap$
BEGIN RAISE EXCEPTION 'trapped: %', $1 USING ERRCODE = 'ZZ001'; END $trap$;
"""

# Operators that the statements of an extension like this one use, for every type that its columns have.
TYPES = ["text", "name", "bigint", "integer", "smallint", "bytea", "boolean", "timestamptz", "oid", '"char"', "jsonb", "inet", "interval", "tid", "xid", "regclass",
         "regprocedure", "numeric"]
OPERATORS = ["=", "<>", "<", ">", "<=", ">=", "||", "~~", "!~~", "~", "+", "-", "*", "/", "%", "&", "|", "->>", "#>>", "@>"]

FUNCTIONS = [
    ("now", ""), ("clock_timestamp", ""), ("statement_timestamp", ""), ("current_setting", "text"), ("current_setting", "text, boolean"),
    ("set_config", "text, text, boolean"), ("nextval", "regclass"), ("currval", "regclass"), ("octet_length", "text"), ("octet_length", "bytea"),
    ("length", "text"), ("length", "bytea"), ("lower", "text"), ("upper", "text"), ("encode", "bytea, text"), ("decode", "text, text"),
    ("format", "text, VARIADIC text[]"), ("format", "text, text, text"), ("format", "text, name, name"), ("quote_ident", "text"), ("quote_ident", "name"),
    ("quote_literal", "text"), ("inet_client_addr", ""), ("pg_backend_pid", ""), ("has_schema_privilege", "name, oid, text"),
    ("has_schema_privilege", "text, oid, text"), ("pg_has_role", "name, oid, text"), ("aclexplode", "aclitem[]"), ("acldefault", '"char", oid'),
    ("pg_get_userbyid", "oid"), ("jsonb_build_object", "VARIADIC text[]"), ("to_jsonb", "text"), ("generate_series", "integer, integer"),
    ("generate_series", "bigint, bigint"), ("get_bit", "bytea, integer"), ("bit_count", "bytea"), ("to_timestamp", "double precision"), ("date_trunc", "text, timestamptz"),
    ("pg_advisory_xact_lock", "bigint"), ("pg_try_advisory_xact_lock", "bigint"), ("hashtext", "text"), ("hashtextextended", "text, bigint"),
    ("array_agg", "text"), ("unnest", "text[]"), ("array_length", "text[], integer"), ("array_position", "text[], text"), ("gen_random_uuid", ""), ("random", ""),
    ("greatest", "text"), ("coalesce", "text, text"), ("nullif", "text, text"), ("count", ""), ("string_agg", "text, text"), ("pg_extension_config_dump", "regclass, text"),
    ("inet_server_addr", ""), ("txid_current", ""), ("pg_current_xact_id", ""), ("left", "text, integer"), ("starts_with", "text, text"), ("text", "name"),
    ("sha256", "bytea"), ("get_byte", "bytea, integer"), ("convert_to", "text, name"),
]

OUR_TABLES = ["secrets", "used_codes", "attempts", "recovery_codes", "data_keys", "audit_log", "audit_seals", "audit_keys", "floor", "counters"]
TABLES = [*OUR_TABLES, "pg_class", "pg_proc", "pg_roles", "pg_authid", "pg_extension", "pg_depend", "pg_namespace"]


def set_traps(conn, schema: str) -> None:
    """Fill a schema with operators, functions and tables of the names that the extension might use."""
    conn.execute(TRAP.format(schema=schema))
    for left in TYPES:
        arguments = f"{left}, {left}"
        conn.execute(f"CREATE FUNCTION {schema}.operator_trap({arguments}) RETURNS boolean LANGUAGE plpgsql AS"
                     f" $$ BEGIN PERFORM {schema}.trap('an operator of {left}'); RETURN true; END $$")
        for operator in OPERATORS:
            conn.execute(f"CREATE OPERATOR {schema}.{operator} (LEFTARG = {left}, RIGHTARG = {left}, FUNCTION = {schema}.operator_trap)")
    for name, arguments in FUNCTIONS:
        conn.execute(f'CREATE FUNCTION {schema}."{name}"({arguments}) RETURNS text LANGUAGE plpgsql AS'
                     f" $$ BEGIN PERFORM {schema}.trap('{name}({arguments})'); RETURN NULL; END $$")
    for table in TABLES:
        conn.execute(f"CREATE TABLE {schema}.{table} (user_id text, device text, sealed bytea, time_step bigint)")
        conn.execute(f"INSERT INTO {schema}.{table} VALUES ('alice', 'default', '', 0)")
    for name in ("text", "regclass", "regprocedure", "regnamespace", "name", "timestamptz", "record"):
        conn.execute(f'CREATE DOMAIN {schema}."{name}" AS pg_catalog.int4 CHECK (false)')
