"""The drivers for Python. Each is a context that yields a function of a statement, whose parameters are $1, $2, and of their values.

The function returns the rows, as dictionaries. The database is "drivers"; host and port come from PGHOST and PGPORT.
"""

import asyncio
import re
from contextlib import contextmanager

import asyncpg
import django
import psycopg
import psycopg2
import sqlalchemy
from django.conf import settings
from sqlalchemy.ext.asyncio import create_async_engine

URL = "postgresql+%s://postgres@/drivers"


def with_names(cursor):
    return [dict(zip([column[0] for column in cursor.description], row)) for row in cursor.fetchall()] if cursor.description else []


def percent(statement):
    return re.sub(r"\$\d", "%s", statement)


def named(statement, args):
    """SQLAlchemy's form of them."""
    return sqlalchemy.text(re.sub(r"\$(\d)", r":p\1", statement)), {f"p{number}": arg for number, arg in enumerate(args, 1)}


@contextmanager
def psycopg_with(**options):
    factory = options.pop("cursor_factory", None)
    with psycopg.connect(dbname="drivers", user="postgres", autocommit=True, cursor_factory=factory) as conn:
        yield lambda statement, args: with_names(conn.cursor(**options).execute(percent(statement), args))


@contextmanager
def psycopg2_text():
    conn = psycopg2.connect(dbname="drivers", user="postgres")
    conn.autocommit = True

    def run(statement, args):
        with conn.cursor() as cursor:
            cursor.execute(percent(statement), args)
            return with_names(cursor)

    yield run
    conn.close()


@contextmanager
def asyncpg_binary():
    with asyncio.Runner() as runner:
        conn = runner.run(asyncpg.connect(database="drivers", user="postgres"))
        yield lambda statement, args: [dict(row) for row in runner.run(conn.fetch(statement, *args))]
        runner.run(conn.close())


@contextmanager
def sqlalchemy_with(dialect):
    engine = sqlalchemy.create_engine(URL % dialect, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        def run(statement, args):
            result = conn.execute(*named(statement, args))
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

        yield run
    engine.dispose()


@contextmanager
def sqlalchemy_asyncpg():
    async def run(statement, args):
        async with engine.connect() as conn:
            result = await conn.execute(*named(statement, args))
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

    engine = create_async_engine(URL % "asyncpg", isolation_level="AUTOCOMMIT")
    with asyncio.Runner() as runner:
        yield lambda statement, args: runner.run(run(statement, args))
        runner.run(engine.dispose())


@contextmanager
def django_with(alias):
    if not settings.configured:
        database = {"ENGINE": "django.db.backends.postgresql", "NAME": "drivers", "USER": "postgres"}
        settings.configure(USE_TZ=True, DATABASES={
            "default": database, "server_side_binding": database | {"OPTIONS": {"server_side_binding": True}}})
        django.setup()
    from django.db import connections

    def run(statement, args):
        with connections[alias].cursor() as cursor:
            cursor.execute(percent(statement), args)
            return with_names(cursor)

    yield run
    connections[alias].close()


DRIVERS = {
    "psycopg, text": lambda: psycopg_with(),
    "psycopg, binary": lambda: psycopg_with(binary=True),
    "psycopg, client-side binding": lambda: psycopg_with(cursor_factory=psycopg.ClientCursor),
    "psycopg2": psycopg2_text,
    "asyncpg": asyncpg_binary,
    "SQLAlchemy, psycopg": lambda: sqlalchemy_with("psycopg"),
    "SQLAlchemy, psycopg2": lambda: sqlalchemy_with("psycopg2"),
    "SQLAlchemy, asyncpg": sqlalchemy_asyncpg,
    "Django": lambda: django_with("default"),
    "Django, server-side binding": lambda: django_with("server_side_binding"),
}
