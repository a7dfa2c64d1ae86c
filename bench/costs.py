"""What a call of each function costs with 10,000, 1,000,000 and 10,000,000 users. `growth` makes them.

A function that this version does not have is left out. The users who call have real rows, all others have rows of the same
shape and size, which nobody opens. So what opens every secret is measured on the smallest database alone.
"""

import statistics
from contextlib import closing
from typing import NamedTuple

import fixture

ROUNDS = 5
CALLS = 40  # of one round, of a function that takes microseconds
FIRST = "a"  # before the ids of `growth`: users whose secrets a rotation moves first
BATCH = fixture.scaled(10_000, 100)
NEW_ROWS = fixture.scaled(100_000, 1_000)


class Cost(NamedTuple):
    """A function, the statement with its call in PL/pgSQL, and how often it runs in a round.

    In the statement, {user} is one of the users, another one in each call, and `n` is a number that never comes again.
    """

    function: str
    statement: str
    calls: int = CALLS
    shown: str = ""
    limit: float | None = None  # milliseconds, with the most users
    arguments: int = 0  # the least that it has


COSTS = [
    Cost("totp_verify", "PERFORM totp_verify({user}, '{good}');", shown="totp_verify, accepted"),
    Cost("totp_verify", "PERFORM totp_verify({user}, '{bad}');", shown="totp_verify, a wrong code"),
    Cost("totp_enabled", "PERFORM totp_enabled({user});"),
    Cost("totp_status", "PERFORM count(*) FROM totp_status({user});"),
    Cost("totp_enroll", "PERFORM totp_enroll('new' || n);"),
    Cost("totp_import", "PERFORM totp_import('new' || n, '{secret}', device => 'b', period => {period});", shown="totp_import"),
    Cost("totp_confirm", "PERFORM totp_confirm('new' || n, '{good}', 'b');"),
    Cost("totp_reset_recovery_codes", "PERFORM totp_reset_recovery_codes('new' || n, 10);", shown="totp_reset_recovery_codes, 10 codes"),
    Cost("totp_recover", "PERFORM totp_recover({user}, (SELECT code FROM recovery WHERE number = n));"),
    Cost("totp_unlock", "PERFORM totp_unlock({user});"),
    Cost("totp_rename_user", "PERFORM totp_rename_user('new' || n, 'newer' || n);"),
    Cost("totp_remove", "PERFORM totp_remove('newer' || n);"),
    Cost("totp_list", "PERFORM count(*) FROM totp_list(after => {user}, max => 100);", shown="totp_list, a page of 100 users", limit=5),
    Cost("totp_health", "PERFORM count(*) FROM totp_health();", 1, limit=50),
    Cost("totp_health", "PERFORM count(*) FROM totp_health(full => true);", 1, "totp_health(full => true)", arguments=1),
    Cost("totp_metrics", "PERFORM count(*) FROM totp_metrics();", 1, limit=10),
    Cost("totp_stats", "PERFORM count(*) FROM totp_stats('1 day');", 1, "totp_stats, a row of the audit log for each user"),
    Cost("totp_keys", "PERFORM count(*) FROM totp_keys();", 1),
]


def measure(databases, sizes, strides, figure):
    """Yields the lines of the table. `strides`: the distance between two users with real rows."""
    fixture.say("cost of each function")
    with closing_all(database.connect() for database in databases) as sessions:
        for conn, stride in zip(sessions, strides, strict=True):
            _prepare(conn, stride)
        for cost in COSTS:
            if _has(sessions[0], cost.function, cost.arguments):
                yield _line(cost, sizes, _rounds(cost, sessions, strides), figure)
        yield from _rotation(sessions, sizes, figure)
        yield from _export(sessions[0], sizes[0], figure)
        yield from _sealing(sessions, sizes, figure)


class closing_all(closing):
    """Sessions, closed at the end."""

    def __init__(self, sessions):
        super().__init__(self)
        self.sessions = list(sessions)

    def __enter__(self):
        return self.sessions

    def close(self):
        for session in self.sessions:
            session.close()


def _has(conn, function: str, arguments: int = 0) -> bool:
    query = "SELECT count(*) > 0 FROM pg_proc WHERE proname = %s AND pronargs >= %s"
    return conn.execute(query, [function, arguments]).fetchone()[0]


def _user(stride: int) -> str:
    return f"'u' || to_char(n::bigint * {stride}, 'FM00000000')"


def _prepare(conn, stride: int) -> None:
    """Fills the audit log: a row for each user. Gives the users recovery codes."""
    conn.execute("""
        INSERT INTO totp.audit_log (at, event, user_id, device, actor, db_user, application_name)
        SELECT clock_timestamp() - interval '1 hour', 'imported', user_id, device, 'postgres', 'postgres', '' FROM totp.secrets""")
    conn.execute(f"""
        CREATE TABLE recovery AS SELECT n AS number, code FROM generate_series(1, {CALLS * (ROUNDS + 1)}) n,
               totp_reset_recovery_codes({_user(stride)}, 1) AS code""")
    conn.execute("CREATE INDEX ON recovery (number)")
    conn.execute(f"""
        SELECT count(totp_import('{FIRST}' || n, '{fixture.SECRET}', confirmed => true, period => {fixture.PERIOD}))
          FROM generate_series(1, {BATCH}) n""")
    conn.execute("VACUUM (ANALYZE)")


def _rounds(cost: Cost, sessions, strides) -> list[float]:
    """Returns microseconds of a call in each database: medians. The databases take turns; the first round is not counted.

    Of what runs long, the elapsed time: it may have parallel workers. Of all else, the time of the processor.
    """
    timer = fixture.seconds if cost.calls == 1 else fixture.cpu_seconds
    taken: list[list[float]] = [[] for _ in sessions]
    for round_ in range(ROUNDS + 1):
        for turn in range(len(sessions)):
            i = (turn + round_) % len(sessions)
            now = fixture.now()
            statement = cost.statement.format(user=_user(strides[i]), good=now.good, bad=now.bad, secret=fixture.SECRET,
                                              period=fixture.PERIOD)
            first = 1 + round_ * cost.calls
            taken[i].append(fixture.statements_microseconds(sessions[i], statement, first, first + cost.calls - 1, timer=timer))
    return [statistics.median(each[1:]) for each in taken]


def _line(cost: Cost, sizes, taken: list[float], figure):
    *others, most = taken
    met = None if cost.limit is None else most <= cost.limit * 1e3
    return figure(f"{cost.shown or cost.function}, {sizes[-1]:,} users; other: {', '.join(f'{size:,}' for size in sizes[:-1])}",
                  _time(most), ", ".join(map(_time, others)), most / taken[0], "" if met is None else f"≤ {cost.limit:g} ms", met)


def _time(microseconds: float) -> str:
    if microseconds < 1e3:
        return f"{microseconds:,.1f} µs"
    return f"{microseconds / 1e3:,.1f} ms" if microseconds < 1e6 else f"{microseconds / 1e6:,.2f} s"


def _rotation(sessions, sizes, figure):
    """The steps of totp_rotate_key_online(): the first, which counts, and one batch of users whose secrets are real. Then the
    view, which counts too."""
    begun = [fixture.seconds(conn, f"SELECT totp.rotation_begin({BATCH})") * 1e6 for conn in sessions]
    moved = [fixture.seconds(conn, f"SELECT totp.rotation_step('', {BATCH})") * 1e6 for conn in sessions]
    yield _line(Cost("", "", shown="totp_rotate_key_online, its first step"), sizes, begun, figure)
    yield _line(Cost("", "", shown=f"totp_rotate_key_online, a batch of {BATCH:,} users"), sizes, moved, figure)
    seen = [fixture.seconds(conn, "SELECT * FROM totp.rotation_progress") * 1e6 for conn in sessions]
    yield _line(Cost("", "", shown="totp.rotation_progress, in a rotation"), sizes, seen, figure)


def _export(conn, users: int, figure):
    taken = fixture.seconds(conn, "SELECT count(*) FROM totp_export()") * 1e6
    yield figure(f"totp_export, {users + BATCH:,} users, for each", f"{taken / (users + BATCH):,.1f} µs")


def _sealing(sessions, sizes, figure):
    """New rows of the audit log are sealed, after all older ones."""
    if not _has(sessions[0], "totp_audit_seal"):
        return
    taken = []
    for conn, size in zip(sessions, sizes, strict=True):
        for _ in range(size // 1_000_000 + 2):
            conn.execute("CALL totp_audit_seal()")
        conn.execute(f"""
            INSERT INTO totp.audit_log (at, event, user_id, device, actor, db_user, application_name)
            SELECT clock_timestamp(), 'failed', 'u' || n, NULL, 'postgres', 'postgres', '' FROM generate_series(1, {NEW_ROWS}) n""")
        taken.append(fixture.seconds(conn, "CALL totp_audit_seal()") * 1e6)
    yield _line(Cost("", "", shown=f"totp_audit_seal, {NEW_ROWS:,} rows", limit=NEW_ROWS / 100), sizes, taken, figure)
