"""Row-level security: policies that ask totp_enabled() once for each statement, as the documents show it; and what COST should say."""

import statistics
from contextlib import closing

import fixture

ROWS = fixture.scaled(200_000, 2_000)
ROUNDS = fixture.scaled(40, 3)
USERS = fixture.scaled(20_000, 200)  # that have their functions timed
OPERATORS = 40  # in one WHERE, so that the time of one is seen

POLICIES = {
    "asks_once": "(SELECT totp_enabled(current_setting('app.user_id', true)))",
    "asks_claims": "(SELECT claim('aal') = 'aal2' OR NOT has_second_factor())",  # docs/in-the-database.md
    "constant": "true",
    "compares": "owner = current_setting('app.user_id', true)",
}


def measure(compare, figure):
    with fixture.server() as cluster:
        database = cluster.create_database()
        fixture.make_users(database, USERS)
        with closing(database.connect()) as conn:
            _make_tables(conn)
            assert fixture.SCALE < 1 or _is_parallel(conn), "no parallel plan"
            behind = f"{ROWS:,} rows behind (SELECT totp_enabled(…)), by parallel workers"
            lines = [compare(f"{behind}; other: USING (true)", *_reads(conn, "asks_once", "constant"), "ms", 1.5),
                     compare("the same; other: USING (owner = …), a column", *_reads(conn, "asks_once", "compares"), "ms"),
                     compare("behind a claim of JSON OR NOT totp_enabled(…); other: USING (true)", *_reads(conn, "asks_claims", "constant"), "ms", 1.5)]
            conn.execute("RESET ROLE")
            return fixture.version(cluster), lines + _costs(conn, figure)


def _make_tables(conn) -> None:
    """One table for each policy, with the same rows, wide enough for a parallel plan by PostgreSQL's defaults."""
    conn.execute("CREATE ROLE web; SELECT totp_grant('web', 'verify')")
    conn.execute("""
        CREATE FUNCTION claim(name text) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
          RETURN nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> name;
        CREATE FUNCTION has_second_factor() RETURNS boolean LANGUAGE sql STABLE PARALLEL RESTRICTED SECURITY DEFINER
          SET search_path = public, pg_temp AS $$ SELECT totp_enabled(claim('sub')) $$""")
    for name, policy in POLICIES.items():
        conn.execute(f"""
            CREATE TABLE {name} AS SELECT n AS id, 'u1'::text AS owner, n % 100 AS amount, repeat('x', 160) AS note FROM generate_series(1, {ROWS}) n;
            GRANT SELECT ON {name} TO web;
            ALTER TABLE {name} ENABLE ROW LEVEL SECURITY;
            CREATE POLICY p ON {name} USING ({policy})""")
    conn.execute("VACUUM (ANALYZE)")
    conn.execute("""SET app.user_id = 'u1'; SET request.jwt.claims = '{"sub": "nobody", "aal": "aal1"}'; SET ROLE web""")  # so that both are asked


def _is_parallel(conn) -> bool:
    return all("Workers Planned" in str(conn.execute(f"EXPLAIN SELECT sum(amount) FROM {ours}").fetchall()) for ours in ("asks_once", "asks_claims"))


def _reads(conn, ours: str, other: str) -> tuple[list[float], list[float]]:
    """Milliseconds of a sum over all rows behind our policy and behind the other, in turns; the first round is not counted."""
    fixture.say(f"policies, {ours} and {other}")
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(ROUNDS + 1):
        for side in fixture.turns(round_):
            times[side].append(fixture.seconds(conn, f"SELECT sum(amount) FROM {(ours, other)[side]}") * 1000)
    assert conn.execute(f"SELECT count(*) FROM {ours}").fetchone()[0] == ROWS, "the policy hid rows"
    return times[0][1:], times[1][1:]


def _costs(conn, figure) -> list:
    """What a call takes, in the unit of COST: the time of one operator of integers."""
    fixture.say("costs")
    conn.execute(f"SET max_parallel_workers_per_gather = 0; SET jit = off; CREATE TABLE users AS SELECT n, 'u' || n AS id FROM generate_series(1, {USERS}) n")
    conn.execute("VACUUM (ANALYZE) users")
    operators = " AND ".join(f"n > {-n}" for n in range(1, OPERATORS + 1))
    queries = ["users", f"users WHERE {operators}", "users WHERE totp_enabled(id)", "users, generate_series(n, n)", "users, totp_status(id)"]
    rounds = []
    for _ in range(ROUNDS):
        nothing, all_operators, enabled, some_function, status = (
            fixture.seconds(conn, f"SELECT count(*) FROM {query}") * 1e6 / USERS for query in queries)
        operator = (all_operators - nothing) / OPERATORS
        rounds.append([operator, enabled - nothing, status - some_function])
    declared = dict(conn.execute("SELECT proname, procost FROM pg_proc WHERE proname IN ('totp_enabled', 'totp_status')").fetchall())
    lines = []
    for number, name in enumerate(declared, start=1):
        taken = statistics.median(row[number] for row in rounds)
        operator = statistics.median(row[0] for row in rounds)
        units = statistics.median(row[number] / row[0] for row in rounds)
        lines.append(figure(f"a call of {name}(); other: an operator of integers", f"{taken:.1f} µs", f"{operator * 1000:.1f} ns", units,
                            f"COST {declared[name]:,.0f}"))
    return lines
