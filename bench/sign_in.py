"""End to end: accepted sign-ins of distinct users by pgbench, against a transaction with the two bare statements.

The bare side is a PL/pgSQL function with the two statements: one round trip, as ours. A client that sends BEGIN, SELECT,
upsert and COMMIT itself would need four.
"""

from contextlib import closing

import fixture

PER_RUN = {1: fixture.scaled(4_000, 100), 8: fixture.scaled(12_000, 160), 32: fixture.scaled(16_000, 320)}  # by clients: so many that a session's first call does not count
ROUNDS = 7
WARM_UP = fixture.scaled(4_000, 100)
AFTER_CHECKPOINT = fixture.scaled(4_000, 100)
LAST = 1_000  # users who sign in at the end
OURS, BARE = "SELECT totp_verify('u' || :n, :code);", "SELECT bare_sign_in('u' || :n, :step);"


def measure(compare, figure):
    with fixture.server(fsync="on", synchronous_commit="on") as cluster:
        database = cluster.create_database()
        users = WARM_UP + sum(PER_RUN.values()) * ROUNDS + 2 * AFTER_CHECKPOINT
        fixture.make_users(database, users + LAST)
        fixture.make_bare(database)
        lines = list(_measure(_Runs(database, users), compare))
        lines += _what_it_leaves(database, users + 1, figure)
        return fixture.version(cluster), lines


def _measure(runs, compare):
    fixture.say("warm-up")
    runs.both(8, WARM_UP, 0)
    for clients, calls in PER_RUN.items():
        name = f"{clients} client{'s' * (clients > 1)}"
        fixture.say(name)
        rounds = [runs.both(clients, calls, round_) for round_ in range(ROUNDS)]
        tps, bytes_, _ = zip(*(zip(*sides, strict=True) for sides in rounds), strict=True)
        yield compare(f"sign-ins per second, {name}", *zip(*tps, strict=True), "tps", 1.0, at_least=True)
        yield compare(f"WAL of a sign-in without page images, {name}", *zip(*bytes_, strict=True), "bytes", 0.5)
    fixture.say("after a checkpoint")
    rounds = [runs.both(8, AFTER_CHECKPOINT, round_, checkpoint=True) for round_ in range(2)]
    images = list(zip(*((ours[2], bare[2]) for ours, bare in rounds), strict=True))
    yield compare("WAL of a sign-in right after a checkpoint, with page images", *images, "bytes", 1.0)


class _Runs:
    """Runs of both sides over users that sign in once each. Those of a run are far apart, since users come in random order."""

    def __init__(self, database, users: int) -> None:
        self.database, self.users, self.done = database, users, 0

    def both(self, clients: int, calls: int, round_: int, checkpoint: bool = False) -> list[tuple[float, float, float]]:
        """Returns, for pg_totp and for the bare side: tps, and WAL bytes of a sign-in without and with page images."""
        per_client = calls // clients
        expected = fixture.uses(self.database) + per_client * clients
        # A walk through all users in steps of a prime visits each once.
        script = f"\\set n 1 + (({self.done} + :client_id * {per_client} + :k) * 7919) % {self.users}\n"
        results = [(0.0, 0.0, 0.0)] * 2
        for side in fixture.turns(round_):
            now = fixture.now(ahead=1)
            self.database.psql("VACUUM bare_used;")
            if checkpoint:
                self.database.psql("CHECKPOINT;")
            before = self.database.value("SELECT pg_current_wal_insert_lsn()")
            tps = fixture.pgbench(self.database, clients, per_client, script + (OURS, BARE)[side], code=now.good, step=now.step)
            records, images = self._wal_since(before)
            results[side] = tps, records / per_client / clients, (records + images) / per_client / clients
        self.done += per_client * clients
        assert fixture.uses(self.database) == expected, "a code was not accepted"
        return results

    def _wal_since(self, before: str) -> tuple[int, int]:
        """Returns the bytes of the records since then, and of the page images in them."""
        end = self.database.value("SELECT pg_current_wal_insert_lsn()")
        self.database.execute("SELECT pg_logical_emit_message(true, 'flush', '')")  # its commit flushes all that came before
        cluster = self.database.cluster
        out = cluster.client("pg_waldump", "--stats", "--path", cluster.data / "pg_wal", "--start", before, "--end", end)
        # Total  <count>  <record bytes> [<percent>]  <image bytes> [<percent>]  <both>
        total = next(line for line in out.splitlines() if line.startswith("Total")).replace("[", " ").split()
        return int(total[2]), int(total[4])


def _what_it_leaves(database, first: int, figure):
    """Measures transaction ids, dead rows and growth for 1,000 users from `first` on, who have not signed in yet."""
    fixture.say("what it leaves")
    with closing(database.connect()) as conn:
        before = _left(conn)
        now = fixture.now(ahead=1)
        for n in range(first, first + LAST):
            assert conn.execute("SELECT totp_verify(%s, %s)", [f"u{n}", now.good]).fetchone()[0]
        ids, dead, pages = (b - a for a, b in zip(before, _left(conn), strict=True))
    return [figure("transaction ids of 1,000 sign-ins", f"{ids}", target="= 0", met=ids == 0),
            figure("dead rows after them", f"{dead}", target="= 0", met=dead == 0),
            figure("pages that the tables grew by", f"{pages}", target="= 0", met=pages == 0)]


def _left(conn) -> tuple[int, int, int]:
    conn.execute("SELECT pg_stat_force_next_flush()")
    tables = "schemaname = 'totp' AND relname IN ('used_codes', 'attempts', 'secrets', 'audit_log')"
    return conn.execute(f"""
        SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
               (SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables WHERE {tables}),
               (SELECT sum(pg_relation_size(relid) / 8192)::bigint FROM pg_stat_user_tables WHERE {tables})""").fetchone()
