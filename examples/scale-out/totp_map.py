#!/usr/bin/env python3
"""Compares the map of a pgbouncer with what the shards say that they serve, and ends a split.

usage: totp_map.py check CONNINFO     an error if a shard serves other partitions than the map sends to it
       totp_map.py remove CONNINFO    after a split: removes from each shard the users that it does not serve any more

CONNINFO leads to pgbouncer, as the role of the owner: "host=127.0.0.1 port=6432 user=totp_router_owner".
"""

import itertools
import sys
from contextlib import closing

import psycopg
from psycopg.rows import dict_row
from totp_client import PARTITIONS, Shards, partition

BATCH = 1000  # users in one transaction of a shard


def partitions_of_shards(conninfo: str) -> list[list[int]]:
    """Returns the partitions of each shard, as this pgbouncer has them loaded."""
    with closing(psycopg.connect(conninfo, dbname="pgbouncer", autocommit=True, row_factory=dict_row)) as console:
        databases = {row["name"]: row for row in console.execute("SHOW DATABASES")}
    missing = [f"totp_{n}" for n in range(PARTITIONS) if f"totp_{n}" not in databases]
    if missing:
        sys.exit(f"the map is not complete: pgbouncer has no database {', '.join(missing)}")
    place = {n: [str(databases[f"totp_{n}"][column]) for column in ("host", "port", "database")] for n in range(PARTITIONS)}
    return [list(group) for _, group in itertools.groupby(sorted(place, key=lambda n: (place[n], n)), key=place.get)]


def check(conninfo: str) -> None:
    """Raises an error if a shard does not answer, or serves other partitions."""
    with closing(Shards(conninfo)) as shards:
        for partitions in partitions_of_shards(conninfo):
            _unserved(shards, partitions, None, 0)


def remove(conninfo: str) -> int:
    """Returns how many users were kept, since the shard that serves them does not have them."""
    check(conninfo)  # all must answer and agree before any user is removed
    kept = 0
    with closing(Shards(conninfo)) as shards:
        for partitions in partitions_of_shards(conninfo):
            removed, lost = _remove_from(shards, partitions)
            print(f"{partitions}: removed {removed}, kept {lost}")
            if not lost:
                shards.connection(partitions[0]).execute("SELECT totp_shard.all_removed(%s)", [partitions])
            kept += lost
    return kept


def _remove_from(shards: Shards, partitions: list[int]) -> tuple[int, int]:
    removed = lost = 0
    users, last = _unserved(shards, partitions, None, BATCH)
    while last is not None:
        known = _known_where_served(shards, users)
        statement = "SELECT totp_shard.remove_unserved(%s, %s)"
        removed += shards.connection(partitions[0]).execute(statement, [partitions, known]).fetchone()[0]
        lost += len(users) - len(known)
        users, last = _unserved(shards, partitions, last, BATCH)
    return removed, lost


def _unserved(shards: Shards, partitions: list[int], after: str | None, size: int) -> tuple[list[str], str | None]:
    """Returns users that the shard of these partitions does not serve, and the last user looked at, None at the end."""
    statement = "SELECT * FROM totp_shard.unserved(%s, %s, %s)"
    return shards.connection(partitions[0]).execute(statement, [partitions, after, size]).fetchone()


def _known_where_served(shards: Shards, users: list[str]) -> list[str]:
    """Returns those of these users who are on the shard that serves them."""
    known = []
    for number, group in itertools.groupby(sorted(users, key=partition), key=partition):
        known += [user for (user,) in shards.connection(number).execute("SELECT totp_shard.known(%s)", [list(group)])]
    return known


if __name__ == "__main__":
    command, conninfo = sys.argv[1:]
    if {"check": check, "remove": remove}[command](conninfo):
        sys.exit("users were kept, since they may be the only copy: partitions move only by promotion of a standby")
