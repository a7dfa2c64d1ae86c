"""How many codes a guesser can have compared, in whatever way the guesses are spread."""

import math

import pytest
from totp import NOON, check, code_at, fix_clock, import_secret

NAMED = {"none": lambda guess: False, "all": lambda guess: True, "all but the first": lambda guess: guess > 0, "the first": lambda guess: guess == 0}


@pytest.mark.parametrize("is_named", NAMED.values(), ids=NAMED)
def test_naming_a_device_gives_no_more_guesses(conn, is_named):
    """Ten devices and a window of two: a guess at all of them is compared with 50 codes, one at a named device with 5."""
    secrets = [letter * 32 for letter in "ABCDEFGHIJ"]
    for secret in secrets:
        import_secret(conn, "alice", secret, device=secret[0])
    conn.execute("SET totp.window_steps = 2")
    clock, guesses, compared = NOON, 0, 0
    while clock != math.inf:
        fix_clock(conn, clock)
        near = {code_at(secret, clock.timestamp() + 30 * step) for secret in secrets for step in range(-2, 3)}
        wrong = next(code for code in (f"{number:06}" for number in range(100)) if code not in near)
        answer = check(conn, "alice", wrong, "A" if is_named(guesses) else None)
        assert answer.reason == "wrong"
        compared += 5 if is_named(guesses) else 50
        guesses, clock = guesses + 1, answer.retry_at or clock
    assert compared <= 1000, f"{compared} codes by {guesses} guesses"
