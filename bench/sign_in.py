"""End to end: accepted sign-ins of distinct users by pgbench, against a transaction with the two bare statements."""

import re
from contextlib import closing

import fixture

USERS = 60_000
PER_RUN = 6_000  # sign-ins in a run of either side, over all clients
ROUNDS = 5


def measure(compare, figure):
    lines = []
    with fixture.server(fsync="on", synchronous_commit="on") as cluster:
        database = cluster.create_database()
        fixture.make_users(database, USERS)
        clock = fixture.START
        for clients in (1, 8, 32):
            ours, bare, wal_ours, wal_bare = [], [], [], []
            for _ in range(ROUNDS):
                clock += 10 * fixture.STEP
                fixture.set_clock(database, clock)
                statement = "SELECT totp_verify('u' || :n, :code)"
                ours.append(_run(cluster, database, clients, statement, wal_ours, code=f"'{fixture.code(clock)}'"))
                statement = "SELECT bare_sign_in('u' || :n, :step)"
                bare.append(_run(cluster, database, clients, statement, wal_bare, step=clock // fixture.STEP))
            lines.append(compare(f"accepted sign-in, pgbench, {clients} clients", ours, bare, "tps", 1.0, at_least=True))
            lines.append(compare(f"WAL of it, {clients} clients", wal_ours, wal_bare, "bytes", 0.5))
        lines += _what_it_leaves(database, figure)
        return fixture.version(cluster), lines


def _run(cluster, database, clients: int, statement: str, wal: list[float], **variables) -> float:
    """One pgbench run over users that are signed in once each; its tps. Appends the WAL bytes of one sign-in."""
    per_client = PER_RUN // clients
    script = cluster.folder / "script.sql"
    text = f"\\set k :k + 1\n\\set n :client_id * {per_client} + :k\n{statement};\n"
    cluster.run("sh", "-c", 'cat >"$1"', "sh", script, stdin=text)
    # The page images that follow a checkpoint are counted apart.
    with closing(database.connect()) as conn:
        before = conn.execute("SELECT pg_current_wal_insert_lsn(), (SELECT wal_fpi FROM pg_stat_wal)").fetchone()
        options = [f"-D{name}={value}" for name, value in {"k": 0, **variables}.items()]
        out = cluster.client("pgbench", "-n", "-M", "prepared", "-c", clients, "-j", 2, "-t", per_client, "-f", script,
                             *options, database.name)
        after = conn.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", [before[0]]).fetchone()
    wal.append(float(after[0]) / (per_client * clients))
    return float(re.search(r"^tps = ([0-9.]+)", out, re.MULTILINE)[1])


def _what_it_leaves(database, figure):
    """Transaction ids and dead rows of 1,000 accepted sign-ins."""
    clock = fixture.START + 1_000_000
    query = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    with closing(database.connect()) as conn:
        before = conn.execute(query).fetchone()[0]
        for n in range(1_000):
            if n % 500 == 0:
                conn.execute(f"SET totp.clock = '{fixture.iso(clock)}'")
            assert conn.execute("SELECT totp_verify(%s, %s)", [f"u{n + 1}", fixture.code(clock)]).fetchone()[0]
        used = conn.execute(query).fetchone()[0] - before
        conn.execute("SELECT pg_stat_force_next_flush()")
        dead = conn.execute("SELECT n_dead_tup FROM pg_stat_user_tables WHERE schemaname = 'totp' AND relname = 'used_codes'")
        return [figure("transaction ids of 1,000 accepted sign-ins", f"{used}"),
                figure("dead rows after them", f"{dead.fetchone()[0]}")]
