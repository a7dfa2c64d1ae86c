"""A ledger of the answers that clients got, for tests that crash the server: what must be stored afterwards, and what may be.

Only one session (crash_load.py) asks about a user, so the ledger knows what may be stored of it: a set of states after
each call, and from which of them on it must be stored. Only users "hot ..." are shared by all sessions: one code, many tries.
Each user has its own clock, which goes on by a step with each sign-in, so that codes do not run out.
"""

import threading
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from typing import NamedTuple

from amounts import SEED
from totp import code_at

NOON = 1_893_499_200  # 2030-01-01 12:00 UTC; every clock here counts unix seconds
PERIOD = 30
MAX_ATTEMPTS, LOCKOUT, LOCKOUT_MAX = 5, 30, 3600
RECOVERY_CODES = 20
SESSIONS, USERS_OF_A_SESSION, HOT_USERS = 8, 6, 2
# A failure that sets no lock may be lost for three times wal_writer_delay; a second, by default.
SECOND = 1.0

ACCEPTED_AGAIN = "accepted again"

HELPERS = """
CREATE FUNCTION ask(seconds bigint, kind text, who text, code text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('totp.clock', to_timestamp(seconds)::text, true);
  RETURN CASE kind
    WHEN 'code' THEN (SELECT reason || coalesce(' ' || attempts_left, '') FROM totp_check(who, code))
    WHEN 'verify' THEN totp_verify(who, code)::text
    WHEN 'confirm' THEN totp_confirm(who, code)::text
    WHEN 'recovery' THEN totp_recover(who, code)::text
    WHEN 'unlock' THEN totp_unlock(who)::text
    WHEN 'enroll' THEN (SELECT secret FROM totp_enroll(who))
  END;
END $$;

CREATE FUNCTION ask_in_a_block_that_fails(seconds bigint, kind text, who text, code text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE answer text;
BEGIN
  answer := ask(seconds, kind, who, code);
  RAISE EXCEPTION 'undo it';
EXCEPTION WHEN raise_exception THEN
  RETURN answer;
END $$;
"""

STORED = """
SELECT s.user_id, a.failures, extract(epoch FROM nullif(a.locked_until, '-infinity'))::bigint, u.uses,
       coalesce(r.count - bit_count(int8send(w.recovery_mask))::integer, 0),
       a.recovery_failures, extract(epoch FROM nullif(a.recovery_locked_until, '-infinity'))::bigint
  FROM totp.secrets s
  JOIN totp.attempts a USING (user_id)
  JOIN totp.used_codes u USING (user_id, secret_id)
  LEFT JOIN totp.recovery_codes r USING (user_id)
  LEFT JOIN totp.used_codes w ON (w.user_id, w.secret_id) = (r.user_id, r.set_id)
"""


class State(NamedTuple):
    """What is stored of a user; None if the user is not enrolled."""

    failures: int = 0
    locked_until: int | None = None
    uses: int = 0
    recovery_codes_left: int = 0
    recovery_failures: int = 0
    recovery_locked_until: int | None = None

    def after(self, kind: str, clock: int) -> tuple[str, "State"]:
        """What a call must answer, and what is stored then."""
        if kind in ("recovery", "wrong recovery"):
            if self.recovery_locked_until is not None and self.recovery_locked_until > clock:
                return "false", self
            if kind == "wrong recovery":
                return "false", self._replace(recovery_failures=self.recovery_failures + 1,
                                              recovery_locked_until=lock_set_by(self.recovery_failures + 1, clock))
            return "true", self._replace(failures=0, locked_until=None, recovery_codes_left=self.recovery_codes_left - 1, recovery_failures=0,
                                         recovery_locked_until=None)
        if kind == "unlock":
            clear = self._replace(failures=0, locked_until=None, recovery_failures=0, recovery_locked_until=None)
            return ("false" if clear == self else "true"), clear
        if self.locked_until is not None and self.locked_until > clock:
            return "locked 0", self
        if kind == "right":
            return f"accepted {MAX_ATTEMPTS}", self._replace(failures=0, locked_until=None, uses=self.uses + 1)
        if kind == "used":
            return f"replayed {max(MAX_ATTEMPTS - self.failures, 1)}", self
        failures = self.failures + 1
        return f"wrong {max(MAX_ATTEMPTS - failures, 0)}", self._replace(failures=failures, locked_until=lock_set_by(failures, clock))

    def locks(self, then: "State") -> bool:
        """Whether the step from this state to that one set a lock."""
        return (then.locked_until or 0, then.recovery_locked_until or 0) > (self.locked_until or 0, self.recovery_locked_until or 0)

    def lasts(self, then: "State") -> bool:
        """Whether that step is durable before the answer: every change is, but for a failure that sets no lock."""
        failed = then.failures > self.failures or then.recovery_failures > self.recovery_failures
        return then != self and (not failed or self.locks(then))


def lock_set_by(failures: int, clock: int) -> int | None:
    """Returns the end of the lock that the last of this many failures sets."""
    return clock + min(LOCKOUT * 2 ** (failures - MAX_ATTEMPTS), LOCKOUT_MAX) if failures >= MAX_ATTEMPTS else None


def as_told(asked: str, answer: str) -> str:
    """What totp_check answers, as the function that was asked says it."""
    return str(answer.startswith("accepted")).lower() if asked in ("verify", "confirm") else answer


class Moment(NamedTuple):
    """What may be stored from a call on; it must be, or something later, if `lasting` or after a second."""

    told_at: float
    lasting: bool
    possible: frozenset[State | None]


class User:
    def __init__(self, name: str, clock: int = NOON, secret: str | None = None) -> None:
        self.name, self.clock, self.secret = name, clock, secret
        self.recovery_codes: list[str] = []
        self.last_told: tuple[int, str] | None = None
        self.history = [Moment(0, True, frozenset([None]))]

    @property
    def possible(self) -> frozenset[State | None]:
        return self.history[-1].possible

    def settle(self, state: State | None) -> None:
        """Nothing else can be stored any more."""
        self.history = [Moment(0, True, frozenset([state]))]

    def allowed(self, killed_at: float) -> set[State | None]:
        """What may be stored after a crash at that moment."""
        first = max(i for i, moment in enumerate(self.history) if moment.lasting or moment.told_at < killed_at - SECOND)
        return {state for moment in self.history[first:] for state in moment.possible}


class Ledger:
    def __init__(self, db) -> None:
        self.db = db
        self.seed = SEED
        self.users: list[list[User]] = []
        self.hot: list[User] = []
        self.told: set[tuple[int, str, str]] = set()  # clock, user, code: accepted since the last settling
        self.ever_told: set[tuple[int, str, str]] = set()
        self.recovered: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.lock = threading.Lock()

    def populate(self) -> "Ledger":
        self.db.psql(HELPERS)
        self.hot = [User(f"hot {i}") for i in range(HOT_USERS)]
        self.users = [[User(f"{session}-{i}") for i in range(USERS_OF_A_SESSION)] for session in range(SESSIONS)]
        with closing(self.db.connect()) as conn:
            for user in [*self.hot, *sum(self.users, [])]:
                [user.secret] = conn.execute("SELECT ask(%s, 'enroll', %s, NULL)", [user.clock, user.name]).fetchone()
                user.settle(State())
            for user in [*self.hot, *(user for users in self.users for user in users[:USERS_OF_A_SESSION // 2])]:  # the others wait for their first code
                self.activate(conn, user)
                if user not in self.hot:
                    self.make_recovery_codes(conn, user)
        return self

    def activate(self, conn, user: User) -> None:
        """The first code of a secret locks its user to the end of the transaction: two hot users would make deadlocks."""
        code = code_at(user.secret, user.clock)
        assert conn.execute("SELECT ask(%s, 'code', %s, %s)", [user.clock, user.name, code]).fetchone() == (f"accepted {MAX_ATTEMPTS}",)
        user.settle(State(uses=1))
        user.last_told = user.clock, code
        self.told.add((user.clock, user.name, code))

    def make_recovery_codes(self, conn, user: User) -> None:
        user.recovery_codes = [code for [code] in conn.execute("SELECT totp_reset_recovery_codes(%s, %s)", [user.name, RECOVERY_CODES])]
        [state] = user.possible
        user.settle(state._replace(recovery_codes_left=RECOVERY_CODES))

    # --- under load ------------------------------------------------------------------

    def count(self, *what: str) -> None:
        with self.lock:
            self.counts.update(what)

    @property
    def errors(self) -> set[str]:
        """Errors of calls whose session did not die."""
        return {what for what in self.counts if what.startswith("error")}

    def note(self, told_at: float, user: User, kind: str, asked: str, code: str | None, clock: int, answer: str) -> None:
        """The answer that a session got. Called by that session."""
        self.count("calls", f"{asked} calls", f"{kind}: {answer.split()[0]}")
        accepted = answer.split()[0] == as_told(asked, "accepted")
        if user in self.hot:
            with self.lock:
                if accepted:
                    if (clock, user.name, code) in self.told:
                        self.findings.append(f"{user.name}: accepted twice under load")
                    self.told.add((clock, user.name, code))
                elif answer.split()[0] != as_told(asked, "replayed"):
                    self.findings.append(f"{user.name}: told {answer}")
            return
        steps = [(old, new) for old in user.possible for expected, new in [old.after(kind, clock)] if as_told(asked, expected) == answer]
        if not steps:
            self.findings.append(f"{user.name}: told {answer!r} to {kind} at {clock} in {set(user.possible)}")
            return
        self.count(*[f"locks told to {kind}"] * all(old.locks(new) for old, new in steps))
        moment = Moment(told_at, all(old.lasts(new) for old, new in steps), frozenset(new for _, new in steps))
        user.history = [moment] if moment.lasting else [*user.history, moment]
        if accepted:
            user.last_told = clock, code
            self.told.add((clock, user.name, code))
        elif kind == "recovery" and answer == "true":
            self.recovered.append((user.name, code))

    # --- after the crash -------------------------------------------------------------

    def settle(self, killed_at: float) -> None:
        """Compares what is stored and answered now with the answers given, and begins again from there."""
        with closing(self.db.connect()) as conn:
            stored = {name: State(*state) for name, *state in conn.execute(STORED)}
            everyone = sum(self.users, [])
            for user in everyone:
                state, allowed = stored.get(user.name), user.allowed(killed_at)
                if state not in allowed:
                    self.findings.append(f"{user.name}: {forgotten(state, allowed)}: {state} is stored, not one of {allowed}")
                user.settle(state)
            self.users = [[user for user in users if user.secret and user.possible != {None}] for users in self.users]
            everyone = sum(self.users, [])

            locked = [user for user in everyone if stored[user.name].after("right", user.clock)[0] == "locked 0"]
            self.expect(conn, "a lock is not kept", "locked", [(user.clock, user.name, code_at(user.secret, user.clock)) for user in locked])
            self.counts["locks after recovery"] += len(locked)
            locked = [user for user in everyone if user.recovery_codes and stored[user.name].after("recovery", user.clock)[0] == "false"]
            self.expect(conn, "a lock of recovery codes is not kept", "false", [(user.clock, user.name, user.recovery_codes[-1]) for user in locked], "recovery")
            self.counts["locks of recovery codes after recovery"] += len(locked)
            conn.execute("SELECT totp_unlock(user_id) FROM totp.attempts")
            self.expect(conn, ACCEPTED_AGAIN, "replayed", self.told)
            self.expect(conn, "recovery code accepted again", "false", [(NOON, *told) for told in self.recovered], "recovery")
            self.ever_told |= self.told
            self.told, self.recovered = set(), []

            # Every secret opens: a later code is good.
            now = max(user.clock for user in [*everyone, *self.hot]) + 3 * PERIOD
            for user in [*everyone, *self.hot]:
                user.clock = now
            fresh = [(now, user.name, code_at(user.secret, now)) for user in [*everyone, *self.hot]]
            self.expect(conn, "does not sign in", "accepted", fresh)
            stored = {name: State(*state) for name, *state in conn.execute(STORED)}
            for user in everyone:
                user.settle(stored[user.name])
                # Not an older one: to a clock hours behind that of a lock, the lock is an error of the clock, and over.
                user.last_told = now, code_at(user.secret, now)
                if len(user.recovery_codes) < RECOVERY_CODES // 4:
                    self.make_recovery_codes(conn, user)

    def expect(self, conn, finding: str, answer: str, asked: Collection[tuple[int, str, str]], kind: str = "code") -> None:
        told = conn.execute("SELECT who, ask(seconds, %s, who, code) FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS t(seconds, who, code)",
                            [kind, *([*column] for column in zip(*asked, strict=True))]) if asked else []
        self.findings += [f"{who}: {finding}: told {said}" for who, said in told if said.split()[0] != answer]
        self.counts[f"asked after recovery: {answer}"] += len(asked)


def forgotten(state: State | None, allowed: set[State | None]) -> str:
    """Returns what was answered and is not stored any more."""
    known = [one for one in allowed if one is not None]
    if state is None or not known:
        return "an enrollment was forgotten"
    if state.uses < min(one.uses for one in known):
        return "an accepted code was forgotten"
    if state.recovery_codes_left > max(one.recovery_codes_left for one in known):
        return "a used recovery code was forgotten"
    if (state.locked_until or 0) < min(one.locked_until or 0 for one in known):
        return "a lock was forgotten"
    if (state.recovery_locked_until or 0) < min(one.recovery_locked_until or 0 for one in known):
        return "a lock of recovery codes was forgotten"
    if state.failures < min(one.failures for one in known):
        return "a failure was forgotten"
    if state.recovery_failures < min(one.recovery_failures for one in known):
        return "a failure of recovery codes was forgotten"
    return "something else"
