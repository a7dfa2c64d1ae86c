"""The calls of tests/clients/calls.sql are all there is to read: every function, every column, NULL and a lock without end."""

import pytest
from drivers import DRIVERS


@pytest.fixture(scope="module")
def run():
    with DRIVERS["psycopg, text"]() as run:
        yield run


@pytest.fixture(scope="module")
def calls(run):
    """The calls, each with its rows."""
    calls = run("SELECT * FROM calls($1)", ["calls"])
    for call in calls:
        call["function"] = call["call"].removeprefix("CALL ").split("(")[0]
        call["rows"] = [] if call["error"] else run(call["statement"], call["args"])
    return calls


def test_every_function_is_called(run, calls):
    functions = {row["proname"] for row in run("SELECT proname FROM functions", [])}
    assert functions
    assert functions - {call["function"] for call in calls if not call["error"]} == set()


def test_every_function_of_a_user_is_called_with_null(run, calls):
    functions = {row["proname"] for row in run("SELECT proname FROM functions WHERE proargnames[1] = 'user_id' AND pronargs > 0", [])}
    assert functions
    assert functions - {call["function"] for call in calls if call["args"][:1] == [None]} == set()


def test_every_column_has_a_value_in_some_row(calls):
    columns = {(call["function"], column) for call in calls for column in call["columns"] or []}
    seen = {(call["function"], column) for call in calls for row in call["rows"] for column, value in row.items() if value is not None}
    assert columns
    assert columns - seen == set()


def test_a_user_is_locked_without_end(calls):
    rows = {call["function"]: row for call in calls for row in call["rows"] if call["args"][:1] == ["calls/locked"]}
    for function in ("totp_check", "totp_check_confirm", "totp_check_recover"):
        row = rows[function]
        assert (row["reason"], row["attempts_left"], row["retry_at"], row["retry_after"]) == ("locked", 0, None, None)
    row = rows["totp_status"]
    assert (row["locked"], row["locked_until"], row["recovery_locked"], row["recovery_locked_until"]) == (True, None, True, None)


def test_null_is_answered_or_an_error(calls):
    """The first column: false for what judges, NULL for what draws; totp_status has no row."""
    answers = {call["function"]: [next(iter(row.values())) for row in call["rows"]]
               for call in calls if call["args"][:1] == [None] and not call["error"]}
    assert answers.pop("totp_status") == []
    drawn = [answers.pop(name) for name in ("totp_qr_svg", "totp_qr_png", "totp_qr_text", "totp_code_at")]
    assert drawn == [[None]] * 4
    assert set(map(tuple, answers.values())) == {(False,)}
