"""Many sessions at once: on few users, on one page, on separate pages; with more and more clients; the page lock.

Sign-ins of one user need a code each. So every statement computes the code of the moment and sets totp.clock to it: a time
step passes every 50 microseconds of the real clock. The other sides do the same before their own statements.
"""

import statistics
import time

import fixture
import page_lock

CLIENTS = 32
CALLS = fixture.scaled(12_800, 320)  # sign-ins in a run, over all clients
ROUNDS = 3
SCALING = (1, 2, 4, 8, 32)
STEPS_PER_SECOND = 20_000
DISTANCE = 150  # users this far apart share no page
OWN = 10  # users of each client, if each client has its own
USERS = CLIENTS * OWN * DISTANCE
# The same frame for all sides: the code of this moment, and the user whose turn it is.
FRAME = f"""\\set turn :k %% :turns
WITH step AS MATERIALIZED (SELECT floor(extract(epoch FROM statement_timestamp()) * {STEPS_PER_SECOND})::bigint - :origin AS step),
     now AS MATERIALIZED (SELECT step, to_timestamp(step * {fixture.PERIOD}) AS at FROM step),
     code AS MATERIALIZED (SELECT *, totp_code_at('{fixture.SECRET}', at, period => {fixture.PERIOD}) AS code FROM now)
SELECT %s FROM code c, who w
 WHERE w.client = :client_id AND w.turn = :turn AND set_config('totp.clock', c.at::text, false) IS NOT NULL;"""
OURS, BARE, READ = "totp_verify(w.user_id, c.code)", "bare_sign_in(w.user_id, c.step)", "bare_select(w.user_id)"
WHO = {
    "10 users": "SELECT c, 0, 'u' || 1 + {distance} * (c % 10) FROM generate_series(0, {last}) c",
    "users of one page": """
        SELECT c, 0, user_id FROM generate_series(0, {last}) c
          JOIN (SELECT row_number() OVER () - 1 AS place, user_id FROM totp.used_codes u JOIN totp.attempts a USING (user_id)
                 WHERE (u.ctid::text::point)[0] = 100 AND (a.ctid::text::point)[0] = (
                       SELECT (a.ctid::text::point)[0] FROM totp.used_codes u JOIN totp.attempts a USING (user_id)
                        WHERE (u.ctid::text::point)[0] = 100 GROUP BY 1 ORDER BY count(*) DESC LIMIT 1)) p ON place = c""",
    "users on separate pages": """
        SELECT c, t, 'u' || 1 + {distance} * (c * {own} + t) FROM generate_series(0, {last}) c, generate_series(0, {own} - 1) t""",
}


def measure(compare, figure):
    with fixture.server(fsync="off", synchronous_commit="on") as cluster:
        database = cluster.create_database()
        fixture.make_users(database, USERS + page_lock.USERS)
        fixture.make_bare(database)
        runs = _Runs(database)
        lines = []
        for fsync in ("off", "on"):
            cluster.configure(fsync=fsync)
            cluster.restart()
            lines += _crowds(runs, figure, fsync)
            if fsync == "off":
                lines += _scaling(runs, compare)
                lines += page_lock.measure(database, USERS + 1, figure)
        return fixture.version(cluster), lines


def _crowds(runs, figure, fsync: str):
    for name in reversed(WHO):
        fixture.say(f"{CLIENTS} clients on {name}, fsync = {fsync}")
        turns = runs.choose(name)
        ours, bare, accepted = [], [], []
        for round_ in range(ROUNDS):
            for side in fixture.turns(round_):
                if side == 0:
                    tps, share = runs.ours(CLIENTS, turns)
                    ours.append(tps)
                    accepted.append(share)
                else:
                    bare.append(runs.run(BARE, CLIENTS, turns))
        ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
        yield figure(f"{CLIENTS} clients on {name}, fsync = {fsync}; other: bare statements, alike",
                     f"{statistics.median(ours):,.0f} tps, {statistics.median(accepted):.0%} accepted",
                     f"{statistics.median(bare):,.0f} tps", ratio)


def _scaling(runs, compare):
    """Measures clients on separate users. A bare SELECT, which locks and logs nothing, shows the best that the machine can do."""
    turns = runs.choose("users on separate pages")
    tps = {clients: ([], [], []) for clients in SCALING}
    for round_ in range(ROUNDS):
        fixture.say(f"scaling, round {round_ + 1} of {ROUNDS}")
        for clients in SCALING:
            ours, bare, read = tps[clients]
            ours.append(runs.ours(clients, turns)[0])
            bare.append(runs.run(BARE, clients, turns))
            read.append(runs.run(READ, clients, turns))
    for clients in SCALING:
        ours, bare, read = tps[clients]
        yield compare(f"sign-ins per second, fsync = off, {clients} client{'s' * (clients > 1)}; other: bare statements", ours, bare, "tps")
    for clients in SCALING[1:]:
        gain, read = ([many / one for many, one in zip(tps[clients][i], tps[1][i], strict=True)] for i in (0, 2))
        yield compare(f"{clients} clients : 1 client; other: bare SELECT, which neither locks nor logs", gain, read, "×",
                      0.9 if clients == CLIENTS else None, at_least=True, decimals=2)


class _Runs:
    """Runs of pgbench in which each statement uses the code of its moment."""

    def __init__(self, database) -> None:
        self.database = database
        # So that the first step is later than the real time of any sign-in.
        self.origin = int(time.time() * STEPS_PER_SECOND) - 2 * fixture.START // fixture.PERIOD
        database.psql("CREATE TABLE who (client int, turn int, user_id text, PRIMARY KEY (client, turn))")

    def choose(self, name: str) -> int:
        """Fills the table of users who sign in; returns how many each client has in turn."""
        select = WHO[name].format(last=CLIENTS - 1, own=OWN, distance=DISTANCE)
        self.database.psql(f"TRUNCATE who; INSERT INTO who {select}; VACUUM (ANALYZE) who;")
        [(clients, turns)] = self.database.execute("SELECT count(DISTINCT client), max(turn) + 1 FROM who")
        assert clients == CLIENTS, f"{name}: {clients}"
        return turns

    def ours(self, clients: int, turns: int) -> tuple[float, float]:
        """Returns the tps, and the share of codes that were accepted: of two codes of one user, the earlier may arrive later."""
        before = fixture.uses(self.database)
        tps = self.run(OURS, clients, turns)
        share = (fixture.uses(self.database) - before) / (CALLS // clients * clients)
        assert turns == 1 or share > 0.99, f"a code was not accepted: {share:.2%}"
        return tps, share

    def run(self, call: str, clients: int, turns: int) -> float:
        self.database.psql("VACUUM bare_used")
        return fixture.pgbench(self.database, clients, CALLS // clients, FRAME % call, origin=self.origin, turns=turns)
