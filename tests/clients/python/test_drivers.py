"""Each driver for Python reads every answer of the extension: the calls of tests/clients/calls.sql.

tests/run-clients starts the server. Its clock stands still, and its time zone is not UTC.
"""

import json
import uuid
from datetime import datetime

import pytest
from drivers import DRIVERS


TYPES = {
    "boolean": bool, "integer": int, "bigint": int, "double precision": float, "text": str, "void": (str, bytes, type(None)),
    "timestamp with time zone": datetime, "bytea": (bytes, memoryview), "text[]": list, "integer[]": list,
}


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


@pytest.fixture
def run(driver):
    with DRIVERS[driver]() as run:
        yield run


def as_json(value):
    """A value as PostgreSQL writes it in JSON, without the quotes of a string."""
    match value:
        case None | str():
            return value
        case bytes() | memoryview():
            return r"\x" + bytes(value).hex()
        case _:
            return json.dumps(value, separators=(",", ":"))


def check(call, row):
    """Each column has its name, its type, and the value that the server says it has."""
    expected = row.pop("expected")
    assert list(row) == call["columns"]
    for (name, value), type_, text in zip(row.items(), call["types"], expected, strict=True):
        assert value is None or isinstance(value, TYPES[type_]), f"{name} is a {type(value).__name__}, and not {type_}"
        if isinstance(value, datetime):
            assert value.tzinfo is not None, f"{name} has no time zone"
            assert value == datetime.fromisoformat(text), name
        elif isinstance(value, float):
            assert value == float(text), name
        elif type_ != "void":
            assert as_json(value) == text, name


def failure(run, statement, args):
    """The SQLSTATE of the error that a statement ends in. SQLAlchemy and Django wrap the errors of drivers."""
    try:
        run(statement, args)
    except Exception as error:
        while error is not None:
            for name in ("sqlstate", "pgcode"):
                if getattr(error, name, None):
                    return getattr(error, name)
            error = getattr(error, "orig", None) or error.__cause__
        raise


def problem(run, call):
    """What is wrong with a call, or None."""
    try:
        if call["error"]:
            assert failure(run, call["statement"], call["args"]) == call["error"]
        else:
            for row in run(call["statement"], call["args"]):
                check(call, row)
    except Exception as error:
        return f"{call['call']} with {call['args']}: {type(error).__name__}: {error}"


def test_reads_every_answer(driver, run):
    calls = run("SELECT * FROM calls($1)", [driver])
    problems = list(filter(None, (problem(run, call) for call in calls)))
    assert calls and not problems, "\n".join(problems)


def test_would_not_read_infinity(run):
    """Why no answer has it: an exception, or a value that is no time or has no zone."""
    call = {"call": "", "args": [], "error": None, "columns": ["retry_at"], "types": ["timestamp with time zone"],
            "statement": "SELECT timestamptz 'infinity' AS retry_at, ARRAY['infinity'] AS expected"}
    assert problem(run, call)


@pytest.mark.parametrize("user_id", [42, uuid.UUID(int=42)], ids=["number", "uuid"])
def test_an_id_that_is_no_text_is_an_error(driver, run, user_id):
    statement = "SELECT totp_verify($1, $2)"
    assert failure(run, statement, [user_id, "123456"]) == ("22000" if "asyncpg" in driver else "42883")
    assert run(statement, [str(user_id), "123456"]) == [{"totp_verify": False}]
